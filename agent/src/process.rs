//! A read-only view of a process through `/proc` (proc(5)): what it is, what it has mapped, and
//! the files behind it. The only place, with `preflight` and the kernel symbolizer, that reads there.

pub mod cgroup;
pub mod container;
pub mod descriptor;
pub mod helper;
pub mod identity;
pub mod library;
pub(crate) mod maps;
mod own;
pub mod priority;
pub mod privilege;
pub mod regular;
mod root;
pub mod usage;

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use agent_ebpf::Start;
use identity::Entry;
pub use maps::{FileId, Listed, Map};
pub use own::{
    bpf_map_bytes, bpf_recursion_misses, clock_ns, host_name, locked_memory, monotonic_ns,
    name_file, own_resident_bytes, own_usage, raise_locked_memory, raise_open_files,
    restore_limits, thread_cpu_ns, wall_time, without_opening_files,
};
use regular::Last;
pub use root::Root;

/// Why a process cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is none with this id.
    #[error("there is no process {0}{hint}", hint = not_found_hint())]
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
    /// It runs, but `/proc` has no directory of it.
    #[error(
        "process {0} runs, but /proc does not show it: it is mounted with hidepid, and CAP_SYS_PTRACE is missing; run as root: `sudo agent …`"
    )]
    Hidden(u32),
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

/// Where to find the id of a process that runs.
fn not_found_hint() -> &'static str {
    if in_initial_pid_namespace() {
        "; `ps -e` lists those that run"
    } else {
        " in this PID namespace, which has numbers of its own: in a container another container's processes are \
         seen only with `kubectl debug --target=CONTAINER`, `docker run --pid=container:NAME` or the host's PID \
         namespace"
    }
}

/// A process held by a pidfd and its directory in `/proc`: another one that has its id later is
/// never taken for it.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    /// `None` once it has ended and was let go.
    held: Option<(OwnedFd, Entry)>,
    start: Start,
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
    /// The same of its children that it has waited for.
    pub children_ticks: u64,
    /// Start time in clock ticks since boot.
    pub start_time: u64,
}

/// Most bytes that are read of a command line.
const MAX_COMMAND_LINE: u64 = 64 << 10;

/// `PF_KTHREAD` (linux/sched.h).
const PF_KTHREAD: u64 = 0x0020_0000;

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
        let entry = Entry::open(pid).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => Error::NotFound(pid),
            _ => Error::Read {
                path: proc_path(pid, ""),
                source,
            },
        })?;
        let own_pid = fs::read_to_string(entry.path("status")).ok();
        let mut process = Self {
            pid,
            root: Root::of(&entry),
            own_pid: own_pid.and_then(|text| innermost(&text)).unwrap_or(pid),
            uid: fs::metadata(entry.path(""))
                .map(|meta| meta.uid())
                .unwrap_or(0),
            held: Some((pidfd, entry)),
            start: Start::default(),
        };
        let stat = match process.stat() {
            // Its directory can be held, but not looked into.
            Err(Error::NotFound(_)) if !process.has_ended() => return Err(Error::Hidden(pid)),
            stat => stat?,
        };
        process.start = identity::start(stat.start_time);
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
        // The id was its own all the time: the directory is that of the process of the pidfd.
        if process.has_ended() {
            return Err(Error::NotFound(pid));
        }
        Ok(process)
    }

    /// As [`Process::open`], if it is the one that began then.
    ///
    /// # Errors
    /// As there; [`Error::NotFound`] if another process has its id.
    pub fn open_begun(pid: u32, start: Start) -> Result<Self, Error> {
        Self::open(pid).and_then(|process| match process.start.is(start.at) {
            true => Ok(process),
            false => Err(Error::NotFound(pid)),
        })
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

    /// When it began.
    pub fn start(&self) -> Start {
        self.start
    }

    /// Readable once the process has ended; `None` after [`Process::let_go`].
    pub fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.held.as_ref().map(|(pidfd, _)| pidfd.as_fd())
    }

    /// Its directory in `/proc`; `None` after [`Process::let_go`].
    pub fn entry(&self) -> Option<&Entry> {
        self.held.as_ref().map(|(_, entry)| entry)
    }

    /// A path to a file of that directory.
    pub(crate) fn path(&self, name: &str) -> io::Result<PathBuf> {
        let gone = || io::Error::from_raw_os_error(libc::ESRCH);
        Ok(self.entry().ok_or_else(gone)?.path(name))
    }

    /// Closes the descriptors of a process that has ended.
    pub fn let_go(&mut self) {
        self.held = None;
    }

    /// Whether it has ended (it may still be a zombie).
    pub fn has_ended(&self) -> bool {
        self.held.as_ref().is_none_or(|(pidfd, _)| ended(pidfd))
    }

    /// Its state.
    ///
    /// # Errors
    /// [`Error::NotFound`] once it is gone.
    pub fn stat(&self) -> Result<Stat, Error> {
        let text = self.path("stat").and_then(fs::read);
        let text = text.map_err(|_| Error::NotFound(self.pid))?;
        parse_stat(&text).ok_or_else(|| Error::Read {
            path: proc_path(self.pid, "stat"),
            source: io::ErrorKind::InvalidData.into(),
        })
    }

    /// Path of its program, as it sees it; `None` when it cannot be read.
    pub fn exe(&self) -> Option<PathBuf> {
        self.path("exe").and_then(fs::read_link).ok()
    }

    /// The file of its program, which tells one from another at the same path; `None` when it cannot
    /// be seen.
    pub fn program(&self) -> Option<FileId> {
        let meta = self.path("exe").and_then(fs::metadata).ok()?;
        Some(FileId::of(&meta))
    }

    /// Its command line, at most the first [`MAX_COMMAND_LINE`] bytes; `None` when it cannot be
    /// read or the process has taken it away.
    pub fn command_line(&self) -> Option<Vec<String>> {
        let mut text = Vec::new();
        let file = self.path("cmdline").and_then(File::open).ok()?;
        file.take(MAX_COMMAND_LINE).read_to_end(&mut text).ok()?;
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
        let read = self
            .path("exe")
            .and_then(File::open)
            .and_then(|mut file| file.read_exact(&mut head));
        read.is_ok() && head == *b"\x7fELF\x01"
    }

    /// Owner of the process: the uid its `/proc` directory shows.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// Its executable mappings, as many as can be read in half a second: the kernel holds the process's
    /// memory map meanwhile.
    ///
    /// # Errors
    /// When they cannot be read: no permission, or the process is gone.
    pub fn maps(&self) -> Result<Listed, Error> {
        let maps = self.path("maps").and_then(File::open).and_then(maps::read);
        let maps = maps.map_err(|source| match source.raw_os_error() {
            Some(libc::EACCES | libc::EPERM) => Error::Permission {
                pid: self.pid,
                uid: self.uid(),
                hint: privilege::refusal_hint(),
            },
            Some(libc::ENOENT | libc::ESRCH) => Error::NotFound(self.pid),
            _ => Error::Read {
                path: proc_path(self.pid, "maps"),
                source,
            },
        })?;
        Ok(maps)
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
        let Some(root) = self.entry().map(Root::of) else {
            return;
        };
        if root.dir.is_some() {
            self.root = root;
        }
    }

    /// Children of its threads that live, but those whose ids are `known`.
    pub fn new_children(&self, known: impl Fn(u32) -> bool) -> Vec<Process> {
        let Ok(entries) = self.path("task").and_then(fs::read_dir) else {
            return Vec::new();
        };
        // An id that was read may be another's when it is opened.
        let child = |pid: &str| {
            let pid = pid.parse().ok().filter(|&pid| !known(pid))?;
            let child = Process::open(pid).ok()?;
            let parent = child.stat().ok()?.parent;
            (parent == self.pid && !self.has_ended()).then_some(child)
        };
        entries
            .flatten()
            .filter_map(|entry| fs::read_to_string(entry.path().join("children")).ok())
            .flat_map(|text| {
                text.split_whitespace()
                    .filter_map(child)
                    .collect::<Vec<_>>()
            })
            .collect()
    }

    /// Opens its perf map, `/tmp/perf-PID.map` with the process's own id in its own namespace; no
    /// link of that name.
    ///
    /// # Errors
    /// When there is none, or of the kind [`io::ErrorKind::InvalidInput`] when it is no regular file.
    pub fn open_perf_map(&self) -> io::Result<File> {
        let path = format!("/tmp/perf-{}.map", self.own_pid);
        self.root.open(Path::new(&path), Last::NoLink, |_| true)
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
        file: FileId::of(&meta),
        path: path.into_os_string().into(),
    };
    Some((file, map))
}

/// The agent's own executable mappings: a program that it starts often uses the same libraries.
pub fn own_maps() -> Vec<Map> {
    let maps = File::open("/proc/self/maps").and_then(maps::read);
    maps.unwrap_or_default().maps
}

fn ended(pidfd: &OwnedFd) -> bool {
    let mut poll = libc::pollfd {
        fd: pidfd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one valid pollfd, no waiting.
    unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
}

/// Whether the kernel does not let this process read what the other one has mapped
/// (`PTRACE_MODE_READ`, ptrace(2)); false where there is no such process.
pub fn is_refused(pid: u32) -> bool {
    let refused = |error: io::Error| error.kind() == io::ErrorKind::PermissionDenied;
    // With CAP_PERFMON alone newer kernels give the one, but not the other.
    File::open(proc_path(pid, "maps")).is_err_and(refused)
        || fs::read_link(proc_path(pid, "root")).is_err_and(refused)
}

fn proc_path(pid: u32, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{name}"))
}

fn status_field(pid: u32, field: &str) -> Option<u32> {
    let status = fs::read_to_string(proc_path(pid, "status")).ok()?;
    let line = status.lines().find(|line| line.starts_with(field))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// The id of the process in its own, innermost PID namespace, from its `/proc/PID/status`.
fn innermost(status: &str) -> Option<u32> {
    let line = status.lines().find(|line| line.starts_with("NSpid:"))?;
    line.split_whitespace().last()?.parse().ok()
}

/// Whether the agent runs in the initial PID namespace.
pub fn in_initial_pid_namespace() -> bool {
    // PROC_PID_INIT_INO (linux/proc_ns.h, 6.18).
    fs::metadata("/proc/self/ns/pid").is_ok_and(|meta| meta.ino() == 0xEFFF_FFFC)
}

/// `PID (COMM) STATE PPID …`; the name may hold blanks and parentheses.
pub(crate) fn parse_stat(text: &[u8]) -> Option<Stat> {
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
        cpu_ticks: number(11)?.saturating_add(number(12)?),
        children_ticks: number(13)
            .unwrap_or(0)
            .saturating_add(number(14).unwrap_or(0)),
        start_time: fields.get(19)?.parse().ok()?,
    })
}

/// The vDSO as a file in memory, copied from the agent's own address space: it is the same code
/// for every 64-bit process of a kernel.
pub fn vdso() -> Option<File> {
    let map = own_maps().into_iter().find(|map| *map.path == *"[vdso]")?;
    let start = std::ptr::with_exposed_provenance::<u8>(map.start as usize);
    // SAFETY: the kernel maps it readable, and it stays as it is for as long as the process lives.
    let image = unsafe { std::slice::from_raw_parts(start, (map.end - map.start) as usize) };
    // SAFETY: the name is a C string; returns a new descriptor.
    let fd = unsafe { libc::memfd_create(c"vdso".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return None;
    }
    // SAFETY: the kernel has just given this descriptor to us alone.
    let file = unsafe { File::from_raw_fd(fd) };
    file.write_all_at(image, 0).ok()?;
    Some(file)
}

/// The kernel's symbols, held open: whether they show addresses is decided when they are opened.
static KALLSYMS: OnceLock<File> = OnceLock::new();

/// Holds the kernel's symbols (`/proc/kallsyms`) open, as this process may see them now.
pub fn hold_kallsyms() {
    if let Ok(file) = open_kallsyms() {
        let _ = KALLSYMS.set(file);
    }
}

/// Lines of the kernel's symbols that were kept: those of BPF programs.
static KEPT_KALLSYMS: OnceLock<Vec<u8>> = OnceLock::new();

/// Keeps the symbols of BPF programs: to be called when a run has ended, before programs are
/// unloaded, whose symbols go with them.
pub fn keep_symbols_of_programs() {
    let Ok(file) = open_or_held() else {
        return;
    };
    let mut kept = Vec::new();
    let mut lines = BufReader::with_capacity(1 << 16, file);
    let mut line = Vec::new();
    while matches!(lines.read_until(b'\n', &mut line), Ok(1..)) {
        if line.ends_with(b"[bpf]\n") {
            kept.extend_from_slice(&line);
        }
        line.clear();
    }
    let _ = KEPT_KALLSYMS.set(kept);
}

/// The text of the kernel's symbols.
pub type Kallsyms = io::Chain<File, &'static [u8]>;

/// The kernel's symbols from the first on, for one reader at a time: those of now and those that were
/// kept.
///
/// # Errors
/// When they cannot be opened.
pub fn kallsyms() -> io::Result<Kallsyms> {
    let kept = KEPT_KALLSYMS.get().map_or(&[][..], Vec::as_slice);
    Ok(open_or_held()?.chain(kept))
}

fn open_or_held() -> io::Result<File> {
    match KALLSYMS.get() {
        Some(held) => {
            let mut file = held.try_clone()?;
            file.seek(io::SeekFrom::Start(0))?;
            Ok(file)
        }
        None => open_kallsyms(),
    }
}

fn open_kallsyms() -> io::Result<File> {
    File::open("/proc/kallsyms")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {

    use super::maps::{Paths, parse_map};
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_name_with_blanks_and_parentheses_is_read() {
        let text = b"42 (a) b (c) S 7 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 12345 99 1";
        let stat = parse_stat(text).unwrap();
        assert_eq!(stat.comm, "a) b (c");
        assert_eq!((stat.state, stat.parent, stat.start_time), ('S', 7, 12345));
        assert_eq!(stat.cpu_ticks, 5 + 6);
    }

    #[test]
    fn times_beyond_what_a_number_holds_do_not_overflow() {
        let most = u64::MAX;
        let text = format!("1 (a) S 7 1 1 0 -1 4 1 2 3 4 {most} {most} 7 8 20 0 1 0 5 99 1");
        assert_eq!(parse_stat(text.as_bytes()).unwrap().cpu_ticks, most);
    }

    #[test]
    fn only_executable_mappings_are_kept() {
        let line = b"7f0000001000-7f0000002000 r-xp 00001000 fd:00 1234    /tmp/a b (deleted)";
        let map = parse_map(line, &mut Paths::default()).unwrap();
        assert_eq!(
            (map.start, map.end, map.offset),
            (0x7f00_0000_1000, 0x7f00_0000_2000, 0x1000)
        );
        assert_eq!(*map.path, *"/tmp/a b");
        assert_eq!(
            map.file,
            FileId {
                major: 0xfd,
                minor: 0,
                inode: 1234
            }
        );
        assert_eq!(
            parse_map(
                b"7f0000001000-7f0000002000 rw-p 00000000 00:00 0 ",
                &mut Paths::default()
            ),
            None
        );
    }

    #[test]
    fn this_process_can_be_looked_at() {
        let process = Process::open(std::process::id()).unwrap();
        let maps = process.maps().unwrap().maps;
        let map = maps.iter().find(|map| map.file.inode != 0).unwrap();
        assert!(process.root().open_mapped(process.entry(), map).is_some());
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
            let mut map = parse_map(
                b"1000-2000 r-xp 00000000 00:00 0 /lib.so",
                &mut Paths::default(),
            )
            .unwrap();
            map.file.inode = fs::metadata(&pipe).unwrap().ino();
            assert!(root.open_mapped(None, &map).is_none());
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
            let error = process.open_perf_map().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        });
        assert!(!released);
        fs::remove_file(&map).unwrap();
        fs::write(&map, "").unwrap();
        assert!(process.open_perf_map().is_ok());
    }

    #[test]
    fn a_kernel_thread_is_refused() {
        assert!(matches!(
            Process::open(2),
            Err(Error::KernelThread { .. } | Error::NotFound(_))
        ));
    }
}
