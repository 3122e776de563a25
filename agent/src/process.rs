//! A read-only view of a process through `/proc` (proc(5)): what it is, what it has mapped, and
//! the files behind it. The only place, with `preflight` and the kernel symbolizer, that reads there.

pub mod container;
pub mod descriptor;
pub mod helper;
pub mod library;
mod own;
pub mod priority;
pub mod privilege;
pub mod regular;
mod root;
pub mod usage;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

pub use own::{
    bpf_map_bytes, bpf_recursion_misses, host_name, monotonic_ns, own_resident_bytes, own_usage,
    raise_open_files, restore_open_files, without_opening_files,
};
use regular::Last;
pub use root::Root;

/// Why a process cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is none with this id.
    #[error("there is no process {0}; `ps -e` lists those that run")]
    NotFound(u32),
    /// It is a thread of another process.
    #[error("{tid} is a thread of process {pid}; use --pid {pid}")]
    Thread {
        /// The id given.
        tid: u32,
        /// Its process.
        pid: u32,
    },
    /// It has ended and waits for its parent.
    #[error(
        "process {pid} ({comm}) is a zombie: it has ended and only waits for its parent {parent} to reap it"
    )]
    Zombie {
        /// The id given.
        pid: u32,
        /// Its name.
        comm: String,
        /// Its parent.
        parent: u32,
    },
    /// It is part of the kernel.
    #[error(
        "process {pid} ({comm}) is a kernel thread: it has no program to watch; `perf top` shows the kernel itself"
    )]
    KernelThread {
        /// The id given.
        pid: u32,
        /// Its name.
        comm: String,
    },
    /// The kernel does not let this user look at it.
    #[error("no permission to look at process {pid}, which belongs to uid {uid}: {hint}")]
    Permission {
        /// The id given.
        pid: u32,
        /// Its owner.
        uid: u32,
        /// What would help, or why nothing does.
        hint: &'static str,
    },
    /// Something else.
    #[error("cannot read {path}")]
    Read {
        /// What was read.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// A process held by a pidfd, which tells whether the process of this id is still the same one.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    /// `None` once it has ended and was let go.
    pidfd: Option<OwnedFd>,
    /// Its root directory, open so that its files are found when it is gone.
    root: Root,
    /// Its id in its own, innermost PID namespace.
    own_pid: u32,
    uid: u32,
}

/// What `/proc/PID/stat` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Name of the main thread, as the kernel keeps it (15 bytes).
    pub comm: String,
    /// State letter: `R`, `S`, `D`, `Z`, `T`, …
    pub state: char,
    /// Parent process.
    pub parent: u32,
    /// Kernel flags (`PF_…`, linux/sched.h).
    pub flags: u64,
    /// CPU time so far, in user and kernel mode, in clock ticks.
    pub cpu_ticks: u64,
    /// Start time in clock ticks since boot.
    pub start_time: u64,
}

/// Most bytes that are read of a command line.
const MAX_COMMAND_LINE: u64 = 64 << 10;

/// `PF_KTHREAD` (linux/sched.h).
const PF_KTHREAD: u64 = 0x0020_0000;

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
    pub path: OsString,
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

impl Process {
    /// Takes hold of a process and checks that it can be profiled.
    ///
    /// # Errors
    /// When there is no such process, or it is a thread, a zombie or a kernel thread.
    pub fn open(pid: u32) -> Result<Self, Error> {
        // SAFETY: the system call takes integers only and returns a new descriptor.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0) };
        if fd < 0 {
            return Err(Self::open_failed(pid, io::Error::last_os_error()));
        }
        // SAFETY: the kernel has just given this descriptor to us alone.
        let pidfd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        let process = Self {
            pid,
            pidfd: Some(pidfd),
            root: Root::of(pid),
            own_pid: namespace_pid(pid).unwrap_or(pid),
            uid: fs::metadata(proc_path(pid, ""))
                .map(|meta| meta.uid())
                .unwrap_or(0),
        };
        let stat = process.stat()?;
        if stat.flags & PF_KTHREAD != 0 {
            return Err(Error::KernelThread {
                pid,
                comm: stat.comm,
            });
        }
        if stat.state == 'Z' || stat.state == 'X' {
            return Err(Error::Zombie {
                pid,
                comm: stat.comm,
                parent: stat.parent,
            });
        }
        process.still_there()?;
        Ok(process)
    }

    /// What was read under its id is its own only if it has not ended since.
    fn still_there(&self) -> Result<(), Error> {
        if self.has_ended() {
            return Err(Error::NotFound(self.pid));
        }
        Ok(())
    }

    fn open_failed(pid: u32, error: io::Error) -> Error {
        let leader = status_field(pid, "Tgid:");
        match leader {
            Some(leader) if leader != pid => Error::Thread {
                tid: pid,
                pid: leader,
            },
            _ if error.raw_os_error() == Some(libc::ESRCH) || leader.is_none() => {
                Error::NotFound(pid)
            }
            _ => Error::Read {
                path: proc_path(pid, "stat"),
                source: error,
            },
        }
    }

    /// Its id in the agent's PID namespace.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Readable once the process has ended; `None` after [`Process::let_go`].
    pub fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.pidfd.as_ref().map(AsFd::as_fd)
    }

    /// Closes the descriptor of a process that has ended.
    pub fn let_go(&mut self) {
        self.pidfd = None;
    }

    /// Whether it has ended (it may still be a zombie).
    pub fn has_ended(&self) -> bool {
        let Some(pidfd) = &self.pidfd else {
            return true;
        };
        let mut poll = libc::pollfd {
            fd: pidfd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one valid pollfd, no waiting.
        unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
    }

    /// Its state.
    ///
    /// # Errors
    /// [`Error::NotFound`] once it is gone.
    pub fn stat(&self) -> Result<Stat, Error> {
        let path = proc_path(self.pid, "stat");
        let text = fs::read(&path).map_err(|_| Error::NotFound(self.pid))?;
        parse_stat(&text).ok_or_else(|| Error::Read {
            path,
            source: io::ErrorKind::InvalidData.into(),
        })
    }

    /// Path of its program, as it sees it; `None` when it cannot be read.
    pub fn exe(&self) -> Option<PathBuf> {
        fs::read_link(proc_path(self.pid, "exe")).ok()
    }

    /// Its command line, at most the first [`MAX_COMMAND_LINE`] bytes; `None` when it cannot be
    /// read or the process has taken it away.
    pub fn command_line(&self) -> Option<Vec<String>> {
        let mut text = Vec::new();
        let file = File::open(proc_path(self.pid, "cmdline")).ok()?;
        io::Read::read_to_end(&mut io::Read::take(file, MAX_COMMAND_LINE), &mut text).ok()?;
        self.still_there().ok()?;
        // A process that has written a title over its arguments leaves zeros behind it.
        let end = text.iter().rposition(|&byte| byte != 0)?;
        let words = text.get(..=end)?.split(|&byte| byte == 0);
        Some(
            words
                .map(|word| String::from_utf8_lossy(word).into_owned())
                .collect(),
        )
    }

    /// Whether its program is a 32-bit one (`EI_CLASS` of its ELF header); false where that cannot be
    /// read.
    pub fn is_32_bit(&self) -> bool {
        let mut head = [0; 5];
        let read = File::open(proc_path(self.pid, "exe"))
            .and_then(|mut file| io::Read::read_exact(&mut file, &mut head));
        read.is_ok() && head == *b"\x7fELF\x01"
    }

    /// Owner of the process: the uid its `/proc` directory shows.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// Its executable mappings, in the order of their addresses.
    ///
    /// # Errors
    /// When they cannot be read: no permission, or the process is gone.
    pub fn maps(&self) -> Result<Vec<Map>, Error> {
        let path = proc_path(self.pid, "maps");
        let text = fs::read(&path).map_err(|source| match source.raw_os_error() {
            Some(libc::EACCES | libc::EPERM) => Error::Permission {
                pid: self.pid,
                uid: self.uid(),
                hint: privilege::refusal_hint(),
            },
            Some(libc::ENOENT | libc::ESRCH) => Error::NotFound(self.pid),
            _ => Error::Read { path, source },
        })?;
        self.still_there()?;
        Ok(text
            .split(|&byte| byte == b'\n')
            .filter_map(parse_map)
            .collect())
    }

    /// Its root directory: held open, so that its files are found also when it is gone.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// Holds its root directory by this descriptor, which leads to the same place.
    pub fn share_root(&mut self, same: &Root) {
        self.root = same.clone();
    }

    /// Looks where its root directory is now: a container's first process enters it late.
    pub fn renew_root(&mut self) {
        let root = Root::of(self.pid);
        if root.dir.is_some() && self.still_there().is_ok() {
            self.root = root;
        }
    }

    /// Children of its threads.
    pub fn children(&self) -> Vec<u32> {
        let Ok(entries) = fs::read_dir(proc_path(self.pid, "task")) else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter_map(|entry| fs::read_to_string(entry.path().join("children")).ok())
            .flat_map(|text| {
                text.split_whitespace()
                    .filter_map(|pid| pid.parse().ok())
                    .collect::<Vec<_>>()
            })
            .collect()
    }

    /// Opens its perf map, `/tmp/perf-PID.map` with the process's own id in its own namespace; no
    /// link of that name.
    pub fn open_perf_map(&self) -> Option<File> {
        self.root
            .open(
                Path::new(&format!("/tmp/perf-{}.map", self.own_pid)),
                Last::NoLink,
                |_| true,
            )
            .ok()
    }
}

/// The program of a command line as the agent finds it, and its interpreter's file: what will be
/// mapped first when it is executed.
pub fn program_file(program: &Path) -> Option<(File, Map)> {
    let path = if program.components().count() > 1 {
        fs::canonicalize(program).ok()?
    } else {
        let directories = std::env::var_os("PATH")?;
        std::env::split_paths(&directories)
            .map(|directory| directory.join(program))
            .find_map(|path| fs::canonicalize(path).ok())?
    };
    let file = regular::open_at(&path, |_| true).ok()?;
    let meta = file.metadata().ok()?;
    let map = Map {
        start: 0,
        end: 0,
        offset: 0,
        file: FileId {
            major: libc::major(meta.dev()),
            minor: libc::minor(meta.dev()),
            inode: meta.ino(),
        },
        path: path.into_os_string(),
    };
    Some((file, map))
}

/// The agent's own executable mappings: a program that it starts often uses the same libraries.
pub fn own_maps() -> Vec<Map> {
    let maps = fs::read("/proc/self/maps").unwrap_or_default();
    maps.split(|&byte| byte == b'\n')
        .filter_map(parse_map)
        .collect()
}

/// Whether there is no process of this id.
pub fn is_gone(pid: u32) -> bool {
    !proc_path(pid, "").exists()
}

fn proc_path(pid: u32, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{name}"))
}

fn status_field(pid: u32, field: &str) -> Option<u32> {
    let status = fs::read_to_string(proc_path(pid, "status")).ok()?;
    let line = status.lines().find(|line| line.starts_with(field))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// The id of the process in its own, innermost PID namespace.
fn namespace_pid(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(proc_path(pid, "status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("NSpid:"))?;
    line.split_whitespace().last()?.parse().ok()
}

/// Whether the agent runs in the initial PID namespace.
pub fn in_initial_pid_namespace() -> bool {
    // PROC_PID_INIT_INO (linux/proc_ns.h, 6.18).
    fs::metadata("/proc/self/ns/pid").is_ok_and(|meta| meta.ino() == 0xEFFF_FFFC)
}

/// `PID (COMM) STATE PPID …`; the name may hold blanks and parentheses.
fn parse_stat(text: &[u8]) -> Option<Stat> {
    let open = text.iter().position(|&byte| byte == b'(')?;
    let close = text.iter().rposition(|&byte| byte == b')')?;
    let comm = String::from_utf8_lossy(text.get(open + 1..close)?).into_owned();
    let rest = std::str::from_utf8(text.get(close + 1..)?).ok()?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    Some(Stat {
        comm,
        state: fields.first()?.chars().next()?,
        parent: fields.get(1)?.parse().ok()?,
        flags: fields.get(6)?.parse().ok()?,
        cpu_ticks: number(11)? + number(12)?,
        start_time: fields.get(19)?.parse().ok()?,
    })
}

/// `START-END PERM OFFSET MAJOR:MINOR INODE  PATH`, executable ones only.
fn parse_map(line: &[u8]) -> Option<Map> {
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
    let path = path.strip_suffix(b" (deleted)").unwrap_or(path);
    Some(Map {
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
        offset,
        file,
        path: OsString::from_vec(path.to_vec()),
    })
}

impl Map {
    /// The last component of the path, to show.
    pub fn name(&self) -> String {
        let path = Path::new(&self.path);
        let name = path.file_name().unwrap_or(&self.path);
        String::from_utf8_lossy(name.as_bytes()).into_owned()
    }
}

/// The vDSO as a file in memory, copied from the agent's own address space: it is the same code
/// for every 64-bit process of a kernel.
pub fn vdso() -> Option<File> {
    let map = own_maps().into_iter().find(|map| map.path == "[vdso]")?;
    let mut image = vec![0; (map.end - map.start) as usize];
    File::open("/proc/self/mem")
        .ok()?
        .read_exact_at(&mut image, map.start)
        .ok()?;
    // SAFETY: the name is a C string; returns a new descriptor.
    let fd = unsafe { libc::memfd_create(c"vdso".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return None;
    }
    // SAFETY: the kernel has just given this descriptor to us alone.
    let file = unsafe { File::from_raw_fd(fd) };
    file.write_all_at(&image, 0).ok()?;
    Some(file)
}

/// The kernel's symbols (`/proc/kallsyms`).
///
/// # Errors
/// When they cannot be opened.
pub fn kallsyms() -> io::Result<File> {
    File::open("/proc/kallsyms")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_name_with_blanks_and_parentheses_is_read() {
        let text = b"42 (a) b (c) S 7 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 12345 99 1";
        let stat = parse_stat(text).unwrap();
        assert_eq!(stat.comm, "a) b (c");
        assert_eq!((stat.state, stat.parent, stat.start_time), ('S', 7, 12345));
        assert_eq!(stat.cpu_ticks, 5 + 6);
    }

    #[test]
    fn only_executable_mappings_are_kept() {
        let line = b"7f0000001000-7f0000002000 r-xp 00001000 fd:00 1234    /tmp/a b (deleted)";
        let map = parse_map(line).unwrap();
        assert_eq!(
            (map.start, map.end, map.offset),
            (0x7f00_0000_1000, 0x7f00_0000_2000, 0x1000)
        );
        assert_eq!(map.path, "/tmp/a b");
        assert_eq!(
            map.file,
            FileId {
                major: 0xfd,
                minor: 0,
                inode: 1234
            }
        );
        assert_eq!(
            parse_map(b"7f0000001000-7f0000002000 rw-p 00000000 00:00 0 "),
            None
        );
    }

    #[test]
    fn this_process_can_be_looked_at() {
        let process = Process::open(std::process::id()).unwrap();
        let maps = process.maps().unwrap();
        let map = maps.iter().find(|map| map.file.inode != 0).unwrap();
        assert!(process.root().open_mapped(process.pid(), map).is_some());
        assert!(!process.has_ended());
        assert!(vdso().unwrap().metadata().unwrap().len() >= 4096);
    }

    #[test]
    fn what_took_the_place_of_a_mapped_file_is_not_opened() {
        let directory = tempfile::tempdir().unwrap();
        let held = regular::hold_directory(directory.path()).unwrap();
        let root = Root {
            dir: Some(Arc::new(held)),
            id: None,
        };
        let pipe = directory.path().join("lib.so");
        let released = regular::tests::releases_a_writer(&pipe, || {
            let mut map = parse_map(b"1000-2000 r-xp 00000000 00:00 0 /lib.so").unwrap();
            map.file.inode = fs::metadata(&pipe).unwrap().ino();
            assert!(root.open_mapped(std::process::id(), &map).is_none());
        });
        assert!(!released);
    }

    #[test]
    fn a_perf_map_is_looked_for_in_the_root_of_its_process() {
        let directory = tempfile::tempdir().unwrap();
        let mut process = Process::open(std::process::id()).unwrap();
        let held = regular::hold_directory(directory.path()).unwrap();
        process.root.dir = Some(Arc::new(held));
        fs::create_dir(directory.path().join("its")).unwrap();
        std::os::unix::fs::symlink("/its", directory.path().join("tmp")).unwrap();
        let name = format!("perf-{}.map", process.own_pid);
        let map = directory.path().join("its").join(name);
        let released = regular::tests::releases_a_writer(&map, || {
            assert!(process.open_perf_map().is_none());
        });
        assert!(!released);
        fs::remove_file(&map).unwrap();
        fs::write(&map, "").unwrap();
        assert!(process.open_perf_map().is_some());
    }

    #[test]
    fn a_kernel_thread_is_refused() {
        assert!(matches!(
            Process::open(2),
            Err(Error::KernelThread { .. } | Error::NotFound(_))
        ));
    }
}
