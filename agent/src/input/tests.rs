#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
use super::*;
use crate::diff::Measure;
use crate::output::{self, Format, fixture};
use crate::profile::Profile;
use crate::protobuf::Message;

fn named(side: &Side) -> Vec<(String, u64)> {
    let mut list: Vec<(String, u64)> = side
        .stacks
        .iter()
        .map(|(frames, weight)| {
            let names = frames
                .iter()
                .map(|&id| side.stacks.names()[id as usize].as_str());
            (names.collect::<Vec<_>>().join(";"), weight)
        })
        .collect();
    list.sort();
    list
}

fn read_back(profile: &Profile, format: Format) -> Side {
    parse(&output::render(format, profile).unwrap(), "x").unwrap()
}

#[test]
fn our_own_formats_agree() {
    let mut profile = fixture::profile();
    for counted in [false, true] {
        if counted {
            profile.facts.frequency = 0;
            profile.facts.event = "failed system calls".to_owned();
        }
        let pprof = read_back(&profile, Format::Pprof);
        let folded = read_back(&profile, Format::Folded);
        assert_eq!(named(&pprof), named(&folded));
        assert_eq!(pprof.measure, folded.measure);
        assert_eq!(pprof.processes, Some(true));
        assert_eq!((pprof.seconds, folded.seconds), (Some(2.0), Some(2.0)));
        assert_eq!(pprof.samples(), Some(100.0));
        assert_eq!(pprof.cpus().is_some(), !counted);
    }
    assert_eq!(
        read_back(&profile, Format::Pprof).measure,
        Measure::Other("failed_system_calls/count".to_owned())
    );
}

#[test]
fn a_bundle_has_the_same_stacks_and_more() {
    let capture = fixture::capture::capture();
    let bytes = crate::bundle::write(&capture).unwrap();
    let side = parse(&bytes, "x").unwrap();
    let folded = read_back(&capture.profile, Format::Folded);
    assert_eq!(named(&side), named(&folded));
    assert!(side.traffic.is_some());
    for end in [2, 100, bytes.len() / 2, bytes.len() - 1] {
        assert!(parse(&bytes[..end], "x").is_err(), "{end}");
    }
}

#[test]
fn cpu_time_is_the_same_from_both() {
    let profile = fixture::profile();
    let (pprof, folded) = (
        read_back(&profile, Format::Pprof).cpus().unwrap(),
        read_back(&profile, Format::Folded).cpus().unwrap(),
    );
    assert!((pprof - folded).abs() < 1e-6 && (pprof - 0.505).abs() < 0.001);
}

#[test]
fn workers_are_the_same_before_and_after() {
    let mut profile = fixture::profile();
    profile.stacks[0].pid += 1;
    for format in [Format::Pprof, Format::Folded] {
        let side = read_back(&profile, format);
        assert!(
            named(&side)
                .iter()
                .all(|(stack, _)| stack.starts_with("server;"))
        );
    }
    assert_eq!(process_name("postgres-12"), "postgres");
    assert_eq!(process_name("redis-server"), "redis-server");
    assert_eq!(process_name("-12"), "-12");
}

#[test]
fn folded_stacks_of_another_tool() {
    let side = parse(
        b"# note 12\nperl;main;f_[k] 3\n\nperl;main;f 4\nb c 1\n",
        "x",
    )
    .unwrap();
    assert_eq!(
        named(&side),
        [("b c".to_owned(), 1), ("perl;main;f".to_owned(), 7)]
    );
    assert_eq!((side.measure, side.processes), (Measure::Unstated, None));
}

/// A profile with these types of values and one sample of each list of values.
fn pprof(types: &[(&str, &str)], period: (&str, &str, u64), samples: &[&[u64]]) -> Vec<u8> {
    let mut strings = vec![String::new(), "f".to_owned()];
    let mut index = |text: &str| {
        strings.push(text.to_owned());
        strings.len() as u64 - 1
    };
    let mut message = Message::default();
    for (kind, unit) in types {
        let mut pair = Message::default();
        pair.integer(1, index(kind)).integer(2, index(unit));
        message.message(1, &pair);
    }
    let mut pair = Message::default();
    pair.integer(1, index(period.0)).integer(2, index(period.1));
    message.message(11, &pair).integer(12, period.2);
    for values in samples {
        let mut sample = Message::default();
        sample.integers(1, [1]).integers(2, values.iter().copied());
        message.message(2, &sample);
    }
    let mut line = Message::default();
    line.integer(1, 1);
    let mut location = Message::default();
    location.integer(1, 1).message(4, &line);
    let mut function = Message::default();
    function.integer(1, 1).integer(2, 1);
    message.message(4, &location).message(5, &function);
    for text in &strings {
        message.bytes(6, text.as_bytes());
    }
    message.into_bytes()
}

#[test]
fn the_type_of_value_is_chosen() {
    let chosen = |types: &[(&str, &str)], period, samples: &[&[u64]]| {
        let side = parse(&pprof(types, period, samples), "x").unwrap();
        (side.measure.clone(), side.stacks.total(), side.samples())
    };
    let go = [("samples", "count"), ("cpu", "nanoseconds")];
    let clock = ("cpu", "nanoseconds", 10_000_000);
    assert_eq!(
        chosen(&go, clock, &[&[3, 30_000_000]]),
        (Measure::Cpu, 3, Some(3.0))
    );
    let none = ("", "", 0);
    let cpu = [("cpu", "nanoseconds")];
    assert_eq!(
        chosen(&cpu, clock, &[&[30_000_000]]),
        (Measure::Cpu, 30_000_000, Some(3.0))
    );
    // The period is what divides all values, if that is one of a clock.
    assert_eq!(
        chosen(&cpu, none, &[&[20_000_000], &[30_000_000]]),
        (Measure::Cpu, 50_000_000, Some(1.0))
    );
    assert_eq!(chosen(&cpu, none, &[&[7], &[3]]), (Measure::Cpu, 10, None));
    let heap = [("alloc_objects", "count"), ("alloc_space", "bytes")];
    assert_eq!(
        chosen(&heap, ("space", "bytes", 524_288), &[&[3, 4096]]),
        (Measure::Other("alloc_space/bytes".to_owned()), 4096, None)
    );
    let wall = [("samples", "count"), ("wall", "nanoseconds")];
    assert_eq!(
        chosen(&wall, ("wall", "nanoseconds", 1), &[&[3, 4096]]).0,
        Measure::Other("wall/nanoseconds".to_owned())
    );
}

#[test]
fn broken_files_are_refused() {
    let refused = |bytes: &[u8]| parse(bytes, "x").unwrap_err().to_string();
    assert_eq!(refused(b""), "it is empty");
    assert!(refused(b"<svg>\n").contains("line 1 is no folded stack"));
    assert!(refused(b"a;b 3\nc;d -4\n").contains("line 2"));
    assert!(refused(b"\x89PNG\r\n\x1a\n").contains("none of the formats"));
    assert!(refused(b"a 18446744073709551615\nb 1\n").contains("too large"));
    let negative = pprof(&[("cpu", "nanoseconds")], ("", "", 0), &[&[u64::MAX]]);
    assert!(refused(&negative).contains("negative"));
    let values = pprof(&[("cpu", "nanoseconds")], ("", "", 0), &[&[1, 2]]);
    assert!(refused(&values).contains("2 values"));
    let gzip = output::render(Format::Pprof, &fixture::profile()).unwrap();
    for end in 2..gzip.len() {
        assert!(parse(&gzip[..end], "x").is_err(), "{end}");
    }
}

#[test]
fn a_broken_profile_is_an_error_and_no_panic() {
    use std::io::Read as _;
    let packed = output::render(Format::Pprof, &fixture::profile()).unwrap();
    let mut bytes = Vec::new();
    let mut gzip = flate2::read::GzDecoder::new(&packed[..]);
    gzip.read_to_end(&mut bytes).unwrap();
    for at in 0..bytes.len() {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            let mut broken = bytes.clone();
            broken[at] = value;
            let _ = pprof::parse(&broken, "x");
            let _ = pprof::parse(&broken[..at], "x");
        }
    }
}

#[test]
fn a_bomb_is_refused() {
    use std::io::Write as _;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let zeros = vec![b'\n'; 1 << 20];
    for _ in 0..=MAX_BYTES >> 20 {
        gzip.write_all(&zeros).unwrap();
    }
    let bomb = gzip.finish().unwrap();
    assert!(bomb.len() < 4 << 20);
    let error = parse(&bomb, "x").unwrap_err().to_string();
    assert!(error.contains("more than 256 MiB"), "{error}");
}

#[test]
fn what_is_no_file_is_named() {
    let error = read(Path::new("/nonexistent/x.pb.gz"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("`/nonexistent/x.pb.gz`: "), "{error}");
    let error = read(Path::new("/dev/zero")).unwrap_err().to_string();
    assert!(error.ends_with("it is no regular file"), "{error}");
}
