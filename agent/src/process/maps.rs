//! What a process has mapped: `/proc/PID/maps` (proc(5)).

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes of paths that are kept of a process's mappings; of further ones, the file's name only.
const MAX_PATHS: usize = 16 << 20;
/// Longest time that reading a list of mappings takes.
const MAPS_TIME: Duration = Duration::from_millis(500);

/// One executable mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Map {
    /// First address.
    pub start: u64,
    /// First address after it.
    pub end: u64,
    /// Offset of the first byte in the file.
    pub offset: u64,
    /// Device and inode of the file; both 0 without one.
    pub file: FileId,
    /// Path as the kernel prints it, without ` (deleted)`; `[vdso]`; empty for anonymous memory.
    /// Shared by the mappings of a file: there can be 65,530 of them, and a path can have 4 KiB.
    pub path: Arc<OsStr>,
}

/// The executable mappings of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// In the order of their addresses.
    pub maps: Vec<Map>,
    /// Whether there are more of them, which it would have taken too long to read.
    pub cut: bool,
}

/// What identifies a file on a running system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FileId {
    /// Major number of the device.
    pub major: u32,
    /// Minor number of the device.
    pub minor: u32,
    /// Inode number.
    pub inode: u64,
}

impl FileId {
    pub(super) fn of(meta: &fs::Metadata) -> Self {
        Self {
            major: libc::major(meta.dev()),
            minor: libc::minor(meta.dev()),
            inode: meta.ino(),
        }
    }
}

impl Map {
    /// The last component of the path, to show.
    pub fn name(&self) -> String {
        let path = Path::new(&self.path);
        let name = path.file_name().unwrap_or(&self.path);
        String::from_utf8_lossy(name.as_bytes()).into_owned()
    }
}

/// Reads a list of mappings line by line: it can have hundreds of megabytes, since a path can have
/// 4 KiB and is printed for each mapping.
pub(crate) fn read(file: impl Read) -> io::Result<Listed> {
    let deadline = Instant::now() + MAPS_TIME;
    let mut reader = BufReader::with_capacity(64 << 10, file);
    let mut paths = Paths::default();
    let (mut listed, mut line) = (Listed::default(), Vec::new());
    while reader.read_until(b'\n', &mut line)? > 0 {
        listed
            .maps
            .extend(parse_map(line.trim_ascii_end(), &mut paths));
        line.clear();
        if Instant::now() >= deadline {
            listed.cut = true;
            break;
        }
    }
    Ok(listed)
}

/// The paths of mapped files as the kernel prints them and as they are: each is kept once.
#[derive(Default)]
pub(super) struct Paths {
    known: HashMap<FileId, (Box<[u8]>, Arc<OsStr>)>,
    /// Bytes of all of them.
    bytes: usize,
}

impl Paths {
    fn of(&mut self, file: FileId, printed: &[u8]) -> Arc<OsStr> {
        if let Some((_, path)) = self
            .known
            .get(&file)
            .filter(|(other, _)| **other == *printed)
        {
            return Arc::clone(path);
        }
        let plain = printed.strip_suffix(b" (deleted)").unwrap_or(printed);
        let mut path: Arc<OsStr> = unescaped(plain).into();
        self.bytes += 2 * path.len();
        if self.bytes > MAX_PATHS {
            let name = Path::new(&path).file_name().unwrap_or_default();
            path = name.into();
            return path;
        }
        self.known.insert(file, (printed.into(), Arc::clone(&path)));
        path
    }
}

/// `START-END PERM OFFSET MAJOR:MINOR INODE  PATH`, executable ones only.
pub(super) fn parse_map(line: &[u8], paths: &mut Paths) -> Option<Map> {
    let mut fields = line.splitn(6, |&byte| byte == b' ');
    let mut text = || std::str::from_utf8(fields.next()?).ok();
    let (start, end) = text()?.split_once('-')?;
    if text()?.as_bytes().get(2) != Some(&b'x') {
        return None;
    }
    let offset = u64::from_str_radix(text()?, 16).ok()?;
    let (major, minor) = text()?.split_once(':')?;
    let file = FileId {
        major: u32::from_str_radix(major, 16).ok()?,
        minor: u32::from_str_radix(minor, 16).ok()?,
        inode: text()?.parse().ok()?,
    };
    let path = fields.next().unwrap_or_default().trim_ascii_start();
    Some(Map {
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
        offset,
        file,
        path: paths.of(file, path),
    })
}

/// A path as it is: the kernel prints line ends as `\012` (`seq_path`).
fn unescaped(path: &[u8]) -> OsString {
    const LINE_END: &[u8] = b"\\012";
    if !path.contains(&b'\\') {
        return OsString::from_vec(path.to_vec());
    }
    let mut rest = path;
    let mut plain = Vec::with_capacity(path.len());
    while let Some((&byte, after)) = rest.split_first() {
        let (byte, after) = match rest.strip_prefix(LINE_END) {
            Some(after) => (b'\n', after),
            None => (byte, after),
        };
        plain.push(byte);
        rest = after;
    }
    OsString::from_vec(plain)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed test may panic")]
mod tests {
    use super::*;
    use std::io::{Seek, Write};

    fn listed(text: &str) -> Listed {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file.rewind().unwrap();
        read(file).unwrap()
    }

    #[test]
    fn line_ends_in_paths_are_as_they_were() {
        let listed = listed("1000-2000 r-xp 00000000 00:00 7 /tmp/a\\012b\\01\n");
        assert_eq!(*listed.maps[0].path, *"/tmp/a\nb\\01");
        assert!(!listed.cut);
    }

    #[test]
    fn mappings_of_a_file_share_its_path() {
        let line = |inode, path| format!("1000-2000 r-xp 00000000 00:00 {inode} {path}\n");
        let text = [line(7, "/a"), line(8, "/b"), line(7, "/a"), line(7, "/c")].concat();
        let maps = listed(&text).maps;
        assert!(Arc::ptr_eq(&maps[0].path, &maps[2].path));
        let paths: Vec<_> = maps.iter().map(|map| &*map.path).collect();
        assert_eq!(paths, ["/a", "/b", "/a", "/c"]);
    }

    #[test]
    fn of_too_many_long_paths_the_names_are_kept() {
        let directory = "d/".repeat(2000);
        let line = |i| format!("1000-2000 r-xp 00000000 00:00 {i} /{directory}f{i}\n");
        let maps = listed(&(1..4000).map(line).collect::<String>()).maps;
        assert_eq!(maps.len(), 3999);
        assert!(maps[0].path.len() > 4000);
        assert_eq!(*maps[3998].path, *"f3999");
    }
}
