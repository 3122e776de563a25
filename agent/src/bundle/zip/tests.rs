#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
use std::io::Write;
use std::process::Command;

use super::*;

const TEXT: &[u8] = b"the same words, the same words, the same words";
const START: u64 = 1_795_257_901;

fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), START);
    for (name, contents) in entries {
        writer.add(name, contents).unwrap();
    }
    writer.finish().unwrap()
}

fn open(bytes: &[u8]) -> Result<Archive<'_>, Error> {
    Archive::open(bytes, u64::MAX)
}

fn read(bytes: &[u8], name: &'static str) -> Result<Vec<u8>, Error> {
    open(bytes)?.read(name)
}

/// The place of the directory's header of an entry.
fn header_of(bytes: &[u8], name: &str) -> usize {
    let at = |at: &usize| {
        bytes[*at..].starts_with(&CENTRAL.to_le_bytes())
            && bytes[at + CENTRAL_BYTES..].starts_with(name.as_bytes())
    };
    (0..bytes.len() - CENTRAL_BYTES).find(at).unwrap()
}

#[test]
fn what_was_written_is_read() {
    let bytes = archive(&[("a.txt", TEXT), ("empty", b"")]);
    assert_eq!(bytes, archive(&[("a.txt", TEXT), ("empty", b"")]));
    let mut archive = open(&bytes).unwrap();
    assert_eq!(archive.names().collect::<Vec<_>>(), ["a.txt", "empty"]);
    assert_eq!(archive.read("a.txt").unwrap(), TEXT);
    assert_eq!(archive.read("empty").unwrap(), b"");
    assert_eq!(archive.read("b"), Err(Error::NoEntry("b")));
}

#[test]
fn unzip_agrees() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.zip");
    std::fs::write(&path, archive(&[("a.txt", TEXT), ("ü", b"x")])).unwrap();
    let Ok(list) = Command::new("unzip")
        .args(["-Z", "-T"])
        .arg(&path)
        .env("TZ", "UTC")
        .output()
    else {
        return;
    };
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    assert!(list.contains("-rw-------"), "{list}");
    assert!(list.contains("20261121.104501"), "{list}");
    let test = Command::new("unzip").arg("-t").arg(&path).output().unwrap();
    assert!(test.status.success());
}

#[test]
fn what_zip_writes_is_read() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("a.txt"), TEXT).unwrap();
    std::fs::write(directory.path().join("b.txt"), b"x").unwrap();
    let packed = Command::new("python3")
        .args(["-m", "zipfile", "-c", "out.zip", "a.txt", "b.txt"])
        .current_dir(directory.path())
        .status();
    if !packed.is_ok_and(|status| status.success()) {
        return;
    }
    let bytes = std::fs::read(directory.path().join("out.zip")).unwrap();
    assert_eq!(read(&bytes, "a.txt").unwrap(), TEXT);
    assert_eq!(read(&bytes, "b.txt").unwrap(), b"x");
}

#[test]
fn other_files_are_no_archives() {
    for other in [&b""[..], b"PK", &[0; 100], &[b'{'; 70_000]] {
        assert_eq!(read(other, "a"), Err(Error::NotZip));
    }
}

#[test]
fn one_that_was_cut_short_is_refused_wherever_it_ends() {
    let bytes = archive(&[("a.txt", TEXT), ("b.txt", TEXT)]);
    for end in 0..bytes.len() {
        let error = open(&bytes[..end]).unwrap_err();
        assert!(
            matches!(error, Error::NotZip | Error::Damaged(_)),
            "{error}"
        );
    }
    // The directory alone, without what it lists.
    let middle = header_of(&bytes, "a.txt");
    assert!(read(&bytes[middle..], "a.txt").is_err());
}

#[test]
fn no_changed_byte_is_fatal() {
    let bytes = archive(&[("a.txt", TEXT), ("b.txt", TEXT)]);
    for at in 0..bytes.len() {
        for change in [1, 0x80, 0xff] {
            let mut changed = bytes.clone();
            changed[at] ^= change;
            if let Ok(contents) = read(&changed, "a.txt") {
                assert_eq!(contents, TEXT, "byte {at}");
            }
        }
    }
}

#[test]
fn a_bomb_is_not_inflated() {
    let mut bytes = archive(&[("a.txt", &vec![0; 4 << 20])]);
    assert!(bytes.len() < 8192);
    let size_at = header_of(&bytes, "a.txt") + 24;
    // It inflates to more than it says.
    bytes[size_at..size_at + 4].copy_from_slice(&100u32.to_le_bytes());
    assert_eq!(read(&bytes, "a.txt"), Err(Error::Contents("a.txt")));
    // It says more than may be.
    bytes[size_at..size_at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    let error = read(&bytes, "a.txt").unwrap_err();
    assert!(error.to_string().contains("256 MiB"), "{error}");
}

#[test]
fn all_entries_together_are_bounded() {
    let half = vec![0; 1 << 20];
    let bytes = archive(&[("a", &half), ("b", &half), ("c", &half)]);
    let mut archive = Archive::open(&bytes, 5 << 19).unwrap();
    assert!(archive.read("a").is_ok() && archive.read("b").is_ok());
    assert!(matches!(
        archive.read("c"),
        Err(Error::Bomb { name: "c", .. })
    ));
}

#[test]
fn names_that_lead_out_are_refused() {
    for name in ["../x", "a/../../x", "/etc/passwd", "..\\x", "C:\\x", "a\0b"] {
        let bytes = archive(&[("meta.json", TEXT), (name, TEXT)]);
        assert_eq!(open(&bytes).unwrap_err(), Error::Path(name.to_owned()));
    }
    assert!(open(&archive(&[("a..b", TEXT), ("d/e", TEXT)])).is_ok());
}

#[test]
fn two_entries_of_one_name_are_refused() {
    let bytes = archive(&[("meta.json", TEXT), ("meta.json", b"{}")]);
    let error = open(&bytes).unwrap_err();
    assert_eq!(error, Error::Duplicate("meta.json".to_owned()));
}

#[test]
fn too_many_entries_are_refused() {
    let names: Vec<String> = (0..=MAX_ENTRIES).map(|number| number.to_string()).collect();
    let entries: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), TEXT)).collect();
    let error = open(&archive(&entries)).unwrap_err();
    assert_eq!(error, Error::TooMany(MAX_ENTRIES + 1));
}

#[test]
fn what_bundles_do_not_use_is_named() {
    let bytes = archive(&[("a.txt", TEXT)]);
    let header = header_of(&bytes, "a.txt");
    let with = |at: usize, value: u8| {
        let mut changed = bytes.clone();
        changed[at] = value;
        read(&changed, "a.txt").unwrap_err()
    };
    assert_eq!(with(header + 8, 1), Error::Unsupported("encryption"));
    assert!(matches!(with(header + 10, 14), Error::Unsupported(_)));
    let end = bytes.len() - END_BYTES;
    assert!(matches!(with(end + 4, 1), Error::Unsupported(_)));
}

#[test]
fn a_comment_is_passed_over() {
    let mut bytes = archive(&[("a.txt", TEXT)]);
    let at = bytes.len() - 2;
    bytes[at..].copy_from_slice(&5u16.to_le_bytes());
    bytes.write_all(b"hello").unwrap();
    assert_eq!(read(&bytes, "a.txt").unwrap(), TEXT);
}
