//! What a failing call was about: its record as a text for people.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::time::{Duration, Instant};

use agent_ebpf::failure::{CallRecord, call, row, shape};

use crate::process::{Process, descriptor::Descriptor, library};
use crate::syscalls::benign::Facts;
use crate::syscalls::table::Spec;

/// An argument, described when it was first seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    /// For people.
    pub(super) value: String,
    pub(super) path: String,
    pub(super) values: [u64; 6],
    pub(super) file_flags: u32,
    pub(super) library: bool,
}

const S_IFMT: u32 = 0o17_0000;

impl Known {
    /// What decides whether a failure with it is benign. `mapped`: whether a library of this file
    /// name is mapped.
    pub(super) fn facts(&self, mapped: impl Fn(&str) -> bool) -> Facts<'_> {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        Facts {
            path: &self.path,
            values: self.values,
            nonblocking: self.file_flags & libc::O_NONBLOCK as u32 != 0,
            found: self.library || !name.is_empty() && mapped(name),
        }
    }
}

/// Time that may be spent on looking sockets up: the table of all of a namespace's may be long, and
/// the records wait meanwhile.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allowance {
    /// Time that is left; negative where the last look took more.
    seconds: f64,
    at: Instant,
}

/// Share of the time that may be spent so.
const SHARE: f64 = 0.05;
/// Most that is saved up, in seconds.
const SAVED: f64 = 0.05;

impl Allowance {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            seconds: SAVED,
            at: now,
        }
    }

    /// Whether there is time for a look.
    fn is_left(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.seconds = (self.seconds + passed * SHARE).min(SAVED);
        self.at = now;
        self.seconds > 0.0
    }

    fn spend(&mut self, time: Duration) {
        self.seconds -= time.as_secs_f64();
    }
}

/// Reads a record, and asks the process what its descriptors and directories are. The result is
/// the argument's key and its description.
pub(super) fn decode<'p>(
    bytes: &[u8],
    specs: &[Spec],
    process: impl Fn(u32) -> Option<&'p Process>,
    allowance: &mut Allowance,
) -> Option<(u64, Known)> {
    let (record, text) = parse(bytes)?;
    let process = process(record.tgid);
    let spec = specs
        .get(row::number(record.row) as usize)
        .copied()
        .unwrap_or_default();
    let known = describe(&record, text, spec, process, allowance);
    Some((record.key, known))
}

fn parse(bytes: &[u8]) -> Option<(CallRecord, &[u8])> {
    let (head, text) = bytes.split_at_checked(size_of::<CallRecord>())?;
    let word = |at: usize| Some(u32::from_ne_bytes(head.get(at..at + 4)?.try_into().ok()?));
    let long = |at: usize| Some(u64::from_ne_bytes(head.get(at..at + 8)?.try_into().ok()?));
    let mut values = [0; 6];
    for (index, value) in values.iter_mut().enumerate() {
        *value = long(24 + 8 * index)?;
    }
    let record = CallRecord {
        kind: word(0)?,
        tgid: word(4)?,
        row: long(8)?,
        key: long(16)?,
        values,
        inode: long(72)?,
        file_flags: word(80)?,
        mode: word(84)?,
        shape: word(88)?,
        flags: word(92)?,
        first: word(96)?,
        second: word(100)?,
        third: word(104)?,
        fourth: word(108)?,
    };
    Some((record, text))
}

/// The four texts of a record.
struct Texts<'a> {
    first: &'a [u8],
    second: &'a [u8],
    /// Paths that relative ones start from, or of the file behind the descriptor.
    places: [Option<String>; 2],
    /// The socket behind the descriptor.
    socket: Option<String>,
    /// Whether that is a unix socket, which the kernel programs know no path of.
    unix: bool,
}

impl<'a> Texts<'a> {
    fn split(record: &CallRecord, text: &'a [u8]) -> Self {
        let mut rest = text;
        let mut next = |length: u32| {
            let (head, tail) = rest
                .split_at_checked(length as usize)
                .unwrap_or((rest, &[]));
            rest = tail;
            head
        };
        let (first, second) = (next(record.first), next(record.second));
        let (third, fourth) = (next(record.third), next(record.fourth));
        let flagged = |flag| record.flags & flag != 0;
        let mut places = [
            place(third, flagged(call::DEEP)),
            place(fourth, flagged(call::DEEP2)),
        ];
        let mut socket = None;
        let mut unix = false;
        if flagged(call::SOCKET) {
            socket = ends(third);
            unix = third.starts_with(&libc::AF_UNIX.to_ne_bytes());
            places[0] = None;
        } else if flagged(call::DELETED)
            && let Some(place) = &mut places[0]
        {
            place.push_str(" (deleted)");
        }
        Self {
            first,
            second,
            places,
            socket,
            unix,
        }
    }
}

/// A path from its components, the last of which comes first; `None` without any.
fn place(names: &[u8], deep: bool) -> Option<String> {
    let names = names.strip_suffix(b"\0")?;
    let mut path = String::from(if deep { "…" } else { "" });
    for name in names.rsplit(|&byte| byte == 0) {
        path.push('/');
        path += &String::from_utf8_lossy(name);
    }
    Some(path)
}

/// A socket by its peer, or by its own address without one ([`agent_ebpf::connection::Ends`]);
/// `None` for one that is not of the internet.
fn ends(bytes: &[u8]) -> Option<String> {
    let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let (family, ports) = (word(0)?, word(4)?);
    let end = |at: usize, port: u32| {
        let host = match family as i32 {
            libc::AF_INET => IpAddr::from(<[u8; 4]>::try_from(bytes.get(at..at + 4)?).ok()?),
            libc::AF_INET6 => IpAddr::from(<[u8; 16]>::try_from(bytes.get(at..at + 16)?).ok()?),
            _ => return None,
        };
        Some(SocketAddr::new(host.to_canonical(), port as u16))
    };
    match (ports >> 16, ports & 0xffff) {
        (0, 0) => end(24, 0).map(|_| "socket".to_owned()),
        (local, 0) => Some(format!("socket {} (local)", end(8, local)?)),
        (_, remote) => Some(format!("socket {}", end(24, remote)?)),
    }
}

fn describe(
    record: &CallRecord,
    text: &[u8],
    spec: Spec,
    process: Option<&Process>,
    allowance: &mut Allowance,
) -> Known {
    let mut parts = Vec::new();
    for (index, kind) in spec.values {
        parts.extend(kind.show(record.values.get(*index as usize).copied().unwrap_or(0)));
    }
    let texts = Texts::split(record, text);
    let mut path = String::new();
    let has = |place| shape::index(record.shape, place).is_some();
    if has(shape::PATH) {
        path = first_path(record, &texts, spec);
        parts.push(path.clone());
        if has(shape::PATH2) {
            parts.push("->".to_owned());
            parts.push(second_path(record, &texts));
        }
    } else if !texts.first.is_empty() {
        let address = address(texts.first);
        path = address.strip_prefix("unix:").unwrap_or_default().to_owned();
        parts.push(address);
    } else if record.flags & call::UNREADABLE != 0 {
        parts.push("(unreadable address)".to_owned());
    } else if let Some(index) = shape::index(record.shape, shape::FD) {
        parts.push(file(record, index, &texts, process, allowance));
    }
    Known {
        value: parts.join(" "),
        library: library::is_installed(process, &path),
        path,
        values: record.values,
        file_flags: record.file_flags,
    }
}

fn first_path(record: &CallRecord, texts: &Texts<'_>, spec: Spec) -> String {
    if record.flags & call::UNREADABLE != 0 {
        return unreadable(record, shape::index(record.shape, shape::PATH));
    }
    let shown = string(texts.first);
    if spec.text || record.flags & call::RELATIVE == 0 {
        return shown;
    }
    let directory = shape::index(record.shape, shape::DIRECTORY);
    join(record, directory, texts.places[0].as_deref(), &shown)
}

fn second_path(record: &CallRecord, texts: &Texts<'_>) -> String {
    if record.flags & call::UNREADABLE2 != 0 {
        return unreadable(record, shape::index(record.shape, shape::PATH2));
    }
    let shown = string(texts.second);
    if record.flags & call::RELATIVE2 == 0 {
        return shown;
    }
    let directory = shape::index(record.shape, shape::DIRECTORY2);
    join(record, directory, texts.places[1].as_deref(), &shown)
}

/// A path that the kernel could not read either, or that lies in a page that is not in memory.
fn unreadable(record: &CallRecord, index: Option<u32>) -> String {
    let pointer = index.and_then(|index| record.values.get(index as usize));
    match pointer {
        Some(0) => "NULL".to_owned(),
        _ => "(unreadable path)".to_owned(),
    }
}

/// A relative path with the directory that it starts from. The root directory has no components.
fn join(record: &CallRecord, directory: Option<u32>, place: Option<&str>, path: &str) -> String {
    let fd = directory.and_then(|index| record.values.get(index as usize));
    let fd = fd.map_or(libc::AT_FDCWD, |&fd| fd as i32);
    match place {
        // A call on the descriptor itself (AT_EMPTY_PATH); else an empty path is a mistake.
        Some(place) if path.is_empty() && fd != libc::AT_FDCWD => place.to_owned(),
        None if path.is_empty() && fd != libc::AT_FDCWD => format!("fd {fd}"),
        _ if path.is_empty() => "(empty path)".to_owned(),
        Some(place) => format!("{place}/{path}"),
        None if fd == libc::AT_FDCWD => format!("/{path}"),
        None => format!("{path} (in fd {fd})"),
    }
}

/// The file behind the descriptor: its path; or what `/proc/PID/fd` shows of what has none, if it
/// still is the same; of a unix socket its path, if there is time to look it up.
fn file(
    record: &CallRecord,
    index: u32,
    texts: &Texts<'_>,
    process: Option<&Process>,
    allowance: &mut Allowance,
) -> String {
    let fd = record.values.get(index as usize).copied().unwrap_or(0) as i32;
    if record.flags & call::OPEN == 0 {
        return format!("fd {fd} (not open)");
    }
    let known = texts.places[0].as_ref().or(texts.socket.as_ref());
    if let Some(known) = known {
        return known.clone();
    }
    let Some(process) = process else {
        return kind(record.mode, fd);
    };
    match process.descriptor(fd) {
        Some(Descriptor { shown, inode }) if inode == record.inode => {
            let path = texts.unix.then(|| unix_path(process, inode, allowance));
            path.flatten().unwrap_or(shown)
        }
        _ => kind(record.mode, fd),
    }
}

fn unix_path(process: &Process, inode: u64, allowance: &mut Allowance) -> Option<String> {
    let begin = Instant::now();
    if !allowance.is_left(begin) {
        return None;
    }
    let path = process.unix_socket(inode);
    allowance.spend(begin.elapsed());
    path
}

/// What is known of a file without a path that is closed again.
fn kind(mode: u32, fd: i32) -> String {
    match mode & S_IFMT {
        libc::S_IFDIR => "/".to_owned(),
        libc::S_IFIFO => "pipe".to_owned(),
        libc::S_IFSOCK => format!("fd {fd} (socket, closed since)"),
        _ => format!("fd {fd} (closed since)"),
    }
}

/// A C string; a path without its end is one of `PATH_MAX` bytes or more.
fn string(text: &[u8]) -> String {
    let end = text
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(text.len());
    let shown = String::from_utf8_lossy(text.get(..end).unwrap_or_default()).into_owned();
    if end + 1 >= agent_ebpf::failure::PATH_BYTES {
        shown + "…"
    } else {
        shown
    }
}

/// A socket address (`struct sockaddr_in`, `_in6`, `_un`; ip(7), ipv6(7), unix(7)).
fn address(bytes: &[u8]) -> String {
    let family = bytes
        .first_chunk()
        .map_or(0, |family| u16::from_ne_bytes(*family));
    let port = || Some(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?));
    let v4 = || {
        let address: [u8; 4] = bytes.get(4..8)?.try_into().ok()?;
        Some(SocketAddrV4::new(Ipv4Addr::from(address), port()?).to_string())
    };
    let v6 = || {
        let address: [u8; 16] = bytes.get(8..24)?.try_into().ok()?;
        Some(SocketAddrV6::new(Ipv6Addr::from(address), port()?, 0, 0).to_string())
    };
    let shown = match i32::from(family) {
        libc::AF_INET => v4(),
        libc::AF_INET6 => v6(),
        libc::AF_UNIX => Some(unix(bytes.get(2..).unwrap_or_default())),
        _ => None,
    };
    shown.unwrap_or_else(|| format!("address of family {family}"))
}

/// A path, or a name in the abstract namespace, which begins with a zero byte.
fn unix(name: &[u8]) -> String {
    match name.split_first() {
        None => "unix:(unnamed)".to_owned(),
        Some((0, name)) => format!("unix:@{}", String::from_utf8_lossy(name)),
        Some(_) => format!("unix:{}", string(name)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;
    use crate::syscalls::table;
    use std::os::fd::{AsRawFd, OwnedFd};
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::UnixListener;

    /// What is shown of a record whose process is gone.
    fn shown(record: &CallRecord, text: &[u8], spec: Spec) -> String {
        let mut allowance = Allowance::new(Instant::now());
        describe(record, text, spec, None, &mut allowance).value
    }

    #[test]
    fn only_unix_sockets_are_looked_up_and_only_while_there_is_time() {
        let me = Process::open(std::process::id()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let fd = listener.as_raw_fd();
        let file = std::fs::File::from(OwnedFd::from(listener));
        let spec = table::of("accept4");
        let look = |family: i32, allowance: &mut Allowance| {
            let mut ends = family.to_ne_bytes().to_vec();
            ends.resize(40, 0);
            let record = CallRecord {
                shape: spec.shape,
                values: [fd as u64, 0, 0, 0, 0, 0],
                flags: call::OPEN | call::SOCKET,
                inode: file.metadata().unwrap().ino(),
                mode: libc::S_IFSOCK,
                third: 40,
                ..CallRecord::default()
            };
            describe(&record, &ends, spec, Some(&me), allowance).value
        };
        let full = Allowance::new(Instant::now());
        let mut allowance = full;
        let with_path = look(libc::AF_UNIX, &mut allowance);
        assert!(
            with_path.ends_with(&format!("socket unix:{}", path.display())),
            "{with_path}"
        );
        assert!(allowance.seconds < full.seconds);
        let mut allowance = full;
        let other = look(libc::AF_NETLINK, &mut allowance);
        assert!(other.ends_with("socket"), "{other}");
        assert_eq!(allowance.at, full.at, "no look");
        allowance.spend(Duration::from_secs(60));
        let without = look(libc::AF_UNIX, &mut allowance);
        assert!(without.ends_with("socket"), "{without}");
    }

    #[test]
    fn looks_take_a_small_share_of_the_time() {
        let begin = Instant::now();
        let after = |ms| begin + Duration::from_millis(ms);
        let mut allowance = Allowance::new(begin);
        assert!(allowance.is_left(begin));
        allowance.spend(Duration::from_millis(60));
        assert!(!allowance.is_left(begin));
        assert!(!allowance.is_left(after(199)));
        assert!(allowance.is_left(after(201)));
        // What is saved up in an hour is no more than at the start.
        assert!(allowance.is_left(after(3_600_000)));
        allowance.spend(Duration::from_millis(51));
        assert!(!allowance.is_left(after(3_600_000)));
    }

    #[test]
    fn a_file_is_shown_by_its_path_or_by_its_kind() {
        let read = |place: &[u8], mode: u32| {
            let spec = table::of("read");
            let record = CallRecord {
                shape: spec.shape,
                values: [5, 0, 0, 0, 0, 0],
                flags: call::OPEN,
                third: place.len() as u32,
                mode,
                ..CallRecord::default()
            };
            shown(&record, place, spec)
        };
        assert_eq!(read(b"log\0var\0", libc::S_IFREG), "/var/log");
        assert_eq!(read(b"", libc::S_IFDIR), "/");
        assert_eq!(read(b"", libc::S_IFIFO), "pipe");
        assert_eq!(read(b"", libc::S_IFSOCK), "fd 5 (socket, closed since)");
    }

    #[test]
    fn deleted_files_and_sockets_are_shown_as_proc_shows_them() {
        let spec = table::of("write");
        let read = |third: &[u8], flags: u32| {
            let record = CallRecord {
                shape: spec.shape,
                flags: call::OPEN | flags,
                third: third.len() as u32,
                ..CallRecord::default()
            };
            shown(&record, third, spec)
        };
        assert_eq!(read(b"x\0tmp\0", call::DELETED), "/tmp/x (deleted)");
        let socket = |family: i32, ports: u32, local: &[u8], remote: &[u8]| {
            let mut bytes = [family.to_ne_bytes(), ports.to_ne_bytes()].concat();
            bytes.extend_from_slice(local);
            bytes.resize(24, 0);
            bytes.extend_from_slice(remote);
            bytes.resize(40, 0);
            read(&bytes, call::SOCKET)
        };
        let here = [127, 0, 0, 1];
        assert_eq!(
            socket(libc::AF_INET, 80 << 16 | 443, &here, &[10, 0, 0, 7]),
            "socket 10.0.0.7:443"
        );
        assert_eq!(
            socket(libc::AF_INET, 80 << 16, &here, &[]),
            "socket 127.0.0.1:80 (local)"
        );
        let six = Ipv6Addr::LOCALHOST.octets();
        assert_eq!(socket(libc::AF_INET6, 443, &[], &six), "socket [::1]:443");
        let mapped = Ipv4Addr::LOCALHOST.to_ipv6_mapped().octets();
        assert_eq!(
            socket(libc::AF_INET6, 443, &[], &mapped),
            "socket 127.0.0.1:443"
        );
        assert_eq!(socket(libc::AF_UNIX, 0, &[], &[]), "fd 0 (closed since)");
        assert_eq!(read(b"cut", call::SOCKET), "fd 0 (closed since)");
    }

    #[test]
    fn an_empty_path_is_no_directory() {
        let cwd = libc::AT_FDCWD as u64;
        let path = |name: &str, values: [u64; 6]| {
            let spec = table::of(name);
            let record = CallRecord {
                shape: spec.shape,
                values,
                flags: call::RELATIVE,
                first: 1,
                third: 4,
                ..CallRecord::default()
            };
            shown(&record, b"\0tmp\0", spec)
        };
        assert_eq!(path("unlink", [1, 0, 0, 0, 0, 0]), "(empty path)");
        assert_eq!(path("openat", [cwd, 1, 0, 0, 0, 0]), "(empty path)");
        assert_eq!(path("newfstatat", [5, 1, 0, 0, 0, 0]), "/tmp");
    }

    fn known(name: &str, values: [u64; 6], text: &[&[u8]], flags: u32) -> String {
        let spec = table::of(name);
        let length = |index: usize| text.get(index).map_or(0, |text| text.len() as u32);
        let record = CallRecord {
            shape: spec.shape,
            values,
            flags,
            first: length(0),
            second: length(1),
            ..CallRecord::default()
        };
        shown(&record, &text.concat(), spec)
    }

    #[test]
    fn paths_are_shown_with_their_directory() {
        let cwd = libc::AT_FDCWD as u64;
        assert_eq!(
            known("openat", [cwd, 1, 0, 0, 0, 0], &[b"/a b\0"], 0),
            "/a b"
        );
        assert_eq!(
            known("rename", [1, 1, 0, 0, 0, 0], &[b"/a\0", b"/b\0"], 0),
            "/a -> /b"
        );
        assert_eq!(
            known("openat", [cwd, 0xdead, 0, 0, 0, 0], &[], call::UNREADABLE),
            "(unreadable path)"
        );
        assert_eq!(
            known("statx", [cwd, 0, 0, 0, 0, 0], &[], call::UNREADABLE),
            "NULL"
        );
        let long = [vec![b'/'; 4095], vec![0]].concat();
        assert!(known("open", [1, 0, 0, 0, 0, 0], &[&long], 0).ends_with("/…"));
    }

    #[test]
    fn relative_paths_are_joined_with_their_places() {
        let record = CallRecord {
            shape: table::of("renameat").shape,
            values: [7, 1, libc::AT_FDCWD as u64, 1, 0, 0],
            flags: call::RELATIVE | call::RELATIVE2 | call::DEEP2,
            first: 2,
            second: 4,
            third: 8,
            fourth: 2,
            ..CallRecord::default()
        };
        let joined = shown(&record, b"a\0b/c\0app\0srv\0x\0", table::of("renameat"));
        assert_eq!(joined, "/srv/app/a -> …/x/b/c");
        let nowhere = CallRecord {
            third: 0,
            fourth: 0,
            ..record
        };
        let joined = shown(&nowhere, b"a\0b/c\0", table::of("renameat"));
        assert_eq!(joined, "a (in fd 7) -> /b/c");
        let cut = CallRecord {
            first: 100,
            ..record
        };
        shown(&cut, b"a\0", table::of("renameat"));
    }

    #[test]
    fn addresses_of_each_family_are_shown() {
        let v4 = [2, 0, 0, 80, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(
            known("connect", [3, 1, 16, 0, 0, 0], &[&v4], call::OPEN),
            "127.0.0.1:80"
        );
        let mut v6 = vec![10, 0, 1, 187, 0, 0, 0, 0];
        v6.extend(Ipv6Addr::LOCALHOST.octets());
        assert_eq!(address(&v6), "[::1]:443");
        assert_eq!(address(b"\x01\x00/run/x.sock\0"), "unix:/run/x.sock");
        assert_eq!(address(b"\x01\x00\0abstract"), "unix:@abstract");
        assert_eq!(address(b"\x02\x00\x00"), "address of family 2");
        assert_eq!(address(b""), "address of family 0");
    }

    #[test]
    fn values_and_descriptors_are_shown() {
        assert_eq!(
            known("kill", [42, 15, 0, 0, 0, 0], &[], 0),
            "pid 42 SIGTERM"
        );
        assert_eq!(known("read", [9, 0, 0, 0, 0, 0], &[], 0), "fd 9 (not open)");
        assert_eq!(
            known("ioctl", [9, 0x5401, 0, 0, 0, 0], &[], call::OPEN),
            "TCGETS fd 9 (closed since)"
        );
    }

    #[test]
    fn a_cut_record_is_refused() {
        assert!(parse(&[7; 50]).is_none());
        assert!(parse(&[0; 112]).is_some());
    }
}
