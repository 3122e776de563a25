//! What the agent asks of and about itself.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use super::helper;

/// The limit of open files that this process was started with.
static OPEN_FILES: OnceLock<libc::rlimit> = OnceLock::new();

/// Allows this process as many open files as it may have: it holds the files of every module, and
/// two descriptors for each process in scope.
pub fn raise_open_files() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the call writes the structure only.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } == 0 {
        let before = *OPEN_FILES.get_or_init(|| limit);
        limit.rlim_cur = before.rlim_max;
        // SAFETY: the call reads the structure only.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    }
}

/// The limit of locked memory that this process was started with, once it has been changed.
static LOCKED_MEMORY: OnceLock<libc::rlimit> = OnceLock::new();

/// Allows this process as much locked memory as it may have: kernels before 5.11 charge BPF maps
/// to it. Without `CAP_SYS_RESOURCE` that is its hard limit.
pub fn raise_locked_memory() {
    let Ok(before) = locked_memory() else {
        return;
    };
    let before = *LOCKED_MEMORY.get_or_init(|| before);
    let unlimited = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    let most = libc::rlimit {
        rlim_cur: before.rlim_max,
        ..before
    };
    // SAFETY: the call reads the structure only.
    if unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const unlimited) } != 0 {
        // SAFETY: as above.
        unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const most) };
    }
}

/// The limit of locked memory (`RLIMIT_MEMLOCK`).
///
/// # Errors
/// What `getrlimit` answers.
pub fn locked_memory() -> io::Result<libc::rlimit> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the call writes the structure only.
    match unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) } {
        0 => Ok(limit),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Undoes [`raise_open_files`] and [`raise_locked_memory`], in a new process before it executes its
/// program. Only async-signal-safe calls are made.
pub fn restore_limits() {
    if let Some(limit) = OPEN_FILES.get() {
        // SAFETY: the call reads the structure only.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, limit) };
    }
    if let Some(limit) = LOCKED_MEMORY.get() {
        // SAFETY: as above.
        unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, limit) };
    }
}

/// What the agent has taken so far, its helper processes included: CPU seconds, and peak resident
/// bytes: its own peak and theirs, which need not have been at the same moment. The program and the
/// libraries, which they share, count once.
pub fn own_usage() -> (f64, u64) {
    let (helpers_seconds, helpers_peak) = helper::usage();
    // SAFETY: all-zero is a valid value of this plain structure.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the structure is ours.
    unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    (
        seconds(usage.ru_utime) + seconds(usage.ru_stime) + helpers_seconds,
        peak_resident_bytes().unwrap_or(usage.ru_maxrss as u64 * 1024) + helpers_peak,
    )
}

/// Peak resident bytes (`VmHWM`): `ru_maxrss` counts what the process was before its exec, a copy
/// of whoever started it.
fn peak_resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes * 1024)
}

/// Resident bytes of the agent and its helper processes now; the program and the libraries, which
/// they share, count once.
pub fn own_resident_bytes() -> u64 {
    let own = resident_pages("/proc/self/statm").map_or(0, |(all, _)| all);
    // SAFETY: the call has no preconditions.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    (own + helper::resident_pages()) * u64::try_from(page).unwrap_or(4096)
}

/// Resident pages as a `statm` file (proc_pid_statm(5)) tells them: all, and those from files.
pub(super) fn resident_pages(statm: &str) -> Option<(u64, u64)> {
    let text = fs::read_to_string(statm).ok()?;
    let mut fields = text.split(' ').skip(1).map(str::parse);
    Some((fields.next()?.ok()?, fields.next()?.ok()?))
}

/// Sum of one field over the descriptors of BPF objects that this process holds open
/// (`/proc/self/fdinfo`, kernel/bpf/syscall.c).
fn bpf_fdinfo(kind: &str, field: &str) -> u64 {
    let Ok(entries) = fs::read_dir("/proc/self/fdinfo") else {
        return 0;
    };
    entries
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path()).ok())
        .filter(|text| text.lines().any(|line| line.starts_with(kind)))
        .filter_map(|text| bpf_field(&text, field))
        .sum()
}

fn bpf_field(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(field))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Now, in nanoseconds of the monotonic clock, which is also that of the kernel programs.
pub fn monotonic_ns() -> u64 {
    clock(libc::CLOCK_MONOTONIC)
}

/// CPU time of the calling thread so far, in nanoseconds.
pub fn thread_cpu_ns() -> u64 {
    clock(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// A clock of clock_gettime(2), in nanoseconds.
fn clock(id: libc::clockid_t) -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the structure is ours; both clocks that are asked for always exist.
    unsafe { libc::clock_gettime(id, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// What a look at the monotonic clock takes, in nanoseconds; the kernel's own looks take as long.
pub fn clock_ns() -> u64 {
    const READS: u64 = 100;
    let batch = || {
        let begin = monotonic_ns();
        for _ in 0..READS {
            std::hint::black_box(monotonic_ns());
        }
        (monotonic_ns() - begin) / READS
    };
    // What is longer was interrupted.
    (0..10).map(|_| batch()).min().unwrap_or(0)
}

/// Gives an open file that has no name (`O_TMPFILE`) this one, which must be free.
///
/// # Errors
/// `AlreadyExists` where anything has the name, a symbolic link too; what linkat(2) answers else.
pub fn name_file(file: &File, path: &Path) -> io::Result<()> {
    let open = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let path = CString::new(path.as_os_str().as_encoded_bytes())?;
    // SAFETY: both paths end in zero and outlive the call.
    let failed = unsafe {
        libc::linkat(
            libc::AT_FDCWD,
            open.as_ptr(),
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::AT_SYMLINK_FOLLOW,
        )
    };
    match failed {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The wall clock's time at a moment of the monotonic clock, in nanoseconds.
pub fn wall_time(monotonic: u64) -> SystemTime {
    let ago = monotonic_ns().saturating_sub(monotonic);
    let now = SystemTime::now();
    now.checked_sub(Duration::from_nanos(ago)).unwrap_or(now)
}

/// Bytes of memory of the BPF maps that this process holds open.
pub fn bpf_map_bytes() -> u64 {
    bpf_fdinfo("map_type:", "memlock:")
}

/// Times the kernel skipped this BPF program because it would have nested.
pub fn bpf_recursion_misses(program: BorrowedFd<'_>) -> u64 {
    let path = format!("/proc/self/fdinfo/{}", program.as_raw_fd());
    fs::read_to_string(path)
        .ok()
        .and_then(|text| bpf_field(&text, "recursion_misses:"))
        .unwrap_or(0)
}

/// The machine's name.
pub fn host_name() -> String {
    let mut name = [0u8; 256];
    // SAFETY: the buffer is ours and as long as said; the last byte stays zero.
    unsafe { libc::gethostname(name.as_mut_ptr().cast(), name.len() - 1) };
    let length = name.iter().position(|&byte| byte == 0).unwrap_or(0);
    String::from_utf8_lossy(name.get(..length).unwrap_or_default()).into_owned()
}

/// Runs `work` while this process can open no file: aya's loader reads and parses the kernel's BTF
/// when it is made, 20 ms and 20 MB that nobody needs, and takes it well if that fails.
///
/// Descriptors that are open stay open. To be called before other threads are started.
pub fn without_opening_files<T>(work: impl FnOnce() -> T) -> T {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the structure is ours.
    let known = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } == 0;
    let none = libc::rlimit {
        rlim_cur: 0,
        ..limit
    };
    if known {
        // SAFETY: as above; the hard limit stays as it is.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const none) };
    }
    let result = work();
    if known {
        // SAFETY: as above.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_skipped_runs_are_not_told_there_are_none() {
        let before = "prog_type:\t17\nmemlock:\t4096\n";
        assert_eq!(bpf_field(before, "recursion_misses:"), None);
        let since = "prog_type:\t17\nrecursion_misses:\t7\n";
        assert_eq!(bpf_field(since, "recursion_misses:"), Some(7));
    }

    #[test]
    fn a_look_at_the_clock_takes_less_than_a_microsecond_or_is_emulated() {
        assert!((1..100_000).contains(&clock_ns()), "{}", clock_ns());
    }
}
