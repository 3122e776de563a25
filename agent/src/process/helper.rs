//! Helper processes: the agent's own program run again, which the agent talks to over a socket.
//!
//! What they take is part of what the agent takes ([`super::own_usage`]).

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The program that runs now, also when its file was replaced or deleted.
const OWN_PROGRAM: &str = "/proc/self/exe";

/// A helper process, ended when it is dropped.
///
/// It has three descriptors: 0 is its end of the socket, 1 the [life line](Helper::start), 2 leads
/// nowhere.
#[derive(Debug)]
pub struct Helper {
    pid: libc::pid_t,
    socket: UnixStream,
    /// `None` once it was let go.
    life_line: Option<OwnedFd>,
    reaped: bool,
}

/// How a helper process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With this exit code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// Somebody else has reaped it.
    Unknown,
}

/// What the helper processes have taken.
#[derive(Debug, Default)]
struct Ledger {
    living: Vec<libc::pid_t>,
    /// CPU time of those that ended.
    cpu: Duration,
    /// Most that the resident peaks of those that lived at the same time came to, in bytes.
    peak: u64,
}

static LEDGER: Mutex<Ledger> = Mutex::new(Ledger {
    living: Vec::new(),
    cpu: Duration::ZERO,
    peak: 0,
});

impl Helper {
    /// Runs the agent's own program with these arguments, `name` being the first word of its
    /// command line, and an empty environment.
    ///
    /// The life line is a pipe whose other end the agent holds for as long as it wants the helper
    /// to live. The process is in a group of its own: a signal of the terminal is not for it.
    ///
    /// # Errors
    /// When no process, socket or pipe can be made.
    pub fn start(name: &str, arguments: &[&OsStr]) -> io::Result<Self> {
        Self::run(Path::new(OWN_PROGRAM), name, arguments)
    }

    /// As [`Helper::start`], with another program.
    ///
    /// # Errors
    /// As there, or there is no such program.
    pub fn run(program: &Path, name: &str, arguments: &[&OsStr]) -> io::Result<Self> {
        let (socket, theirs) = UnixStream::pair()?;
        let (life, life_line) = io::pipe()?;
        let mut command = Command::new(program);
        command
            .arg0(name)
            .args(arguments)
            .env_clear()
            .process_group(0)
            .stdin(OwnedFd::from(theirs))
            .stdout(OwnedFd::from(life))
            .stderr(Stdio::null());
        // It is reaped by its id: `Child` has no way to the CPU time.
        let child = command.spawn()?;
        let pid = child.id() as libc::pid_t;
        let mut ledger = ledger();
        ledger.living.push(pid);
        Ok(Self {
            pid,
            socket,
            life_line: Some(life_line.into()),
            reaped: false,
        })
    }

    /// The agent's end of the socket.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// CPU time that it has taken so far; `None` once it has ended.
    pub fn cpu_time(&self) -> Option<Duration> {
        cpu_time(self.pid)
    }

    /// Itself, if it has not ended.
    pub fn if_living(mut self) -> Option<Self> {
        self.reap(libc::WNOHANG).is_none().then_some(self)
    }

    /// Says how it ended, if it does so within a moment; ends it otherwise.
    pub fn ended(mut self) -> Ended {
        for _ in 0..50 {
            if let Some(ended) = self.reap(libc::WNOHANG) {
                return ended;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.kill_and_reap()
    }

    /// Lets go of the life line.
    #[cfg(test)]
    pub(crate) fn let_go(&mut self) {
        self.life_line = None;
    }

    #[cfg(test)]
    pub(crate) fn signal(&self, number: libc::c_int) {
        // SAFETY: sends a signal to our own child, which has not been reaped.
        unsafe { libc::kill(self.pid, number) };
    }

    fn kill_and_reap(&mut self) -> Ended {
        // Noted while it still has memory.
        ledger().note_peak();
        if let Some(ended) = self.reap(libc::WNOHANG) {
            return ended;
        }
        // The agent may have given up the right to signal a process of another user: the life line
        // is what ends it then.
        self.life_line = None;
        // SAFETY: sends a signal to our own child, which has not been reaped.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
        self.reap(0).unwrap_or(Ended::Unknown)
    }

    /// Takes its end in; `None` if it has not ended and `flags` forbid to wait.
    fn reap(&mut self, flags: libc::c_int) -> Option<Ended> {
        let mut status = 0;
        // SAFETY: all-zero is a valid value of this plain structure.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        let reaped = loop {
            // SAFETY: the status and the structure are ours; the child has not been reaped by us.
            let pid = unsafe { libc::wait4(self.pid, &raw mut status, flags, &raw mut usage) };
            if pid >= 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
                break pid;
            }
        };
        if reaped == 0 {
            return None;
        }
        self.reaped = true;
        let mut ledger = ledger();
        ledger.living.retain(|&pid| pid != self.pid);
        if reaped < 0 {
            return Some(Ended::Unknown);
        }
        ledger.cpu += duration(usage.ru_utime) + duration(usage.ru_stime);
        Some(match libc::WIFSIGNALED(status) {
            true => Ended::Signal(libc::WTERMSIG(status)),
            false => Ended::Code(libc::WEXITSTATUS(status)),
        })
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        if !self.reaped {
            self.kill_and_reap();
        }
    }
}

impl Ledger {
    fn note_peak(&mut self) {
        let peaks = self.living.iter().filter_map(|&pid| peak_resident(pid));
        self.peak = self.peak.max(peaks.sum());
    }
}

fn ledger() -> MutexGuard<'static, Ledger> {
    LEDGER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the helper processes have taken so far: CPU seconds of all, and the most that the peaks of
/// those living at the same time came to, in bytes; files that are in memory aside.
pub(super) fn usage() -> (f64, u64) {
    let mut ledger = ledger();
    ledger.note_peak();
    let living = ledger.living.iter().filter_map(|&pid| cpu_time(pid));
    let cpu = ledger.cpu + living.sum::<Duration>();
    (cpu.as_secs_f64(), ledger.peak)
}

/// Resident pages of the living ones (`/proc/PID/statm`), those from files aside.
pub(super) fn resident_pages() -> u64 {
    let ledger = ledger();
    let pages = |&pid: &libc::pid_t| {
        let (all, files) = super::own::resident_pages(&format!("/proc/{pid}/statm"))?;
        Some(all.saturating_sub(files))
    };
    ledger.living.iter().filter_map(pages).sum()
}

/// Most memory that a process had of its own so far, in bytes: its resident peak less what it has
/// from files (`VmHWM` and `RssFile` of proc_pid_status(5)). Those are the agent's program and its
/// libraries, which the agent has in memory itself.
fn peak_resident(pid: libc::pid_t) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kib = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    Some(kib("VmHWM:")?.saturating_sub(kib("RssFile:")?) * 1024)
}

fn cpu_time(pid: libc::pid_t) -> Option<Duration> {
    let mut clock = 0;
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: both calls write to variables of ours only.
    let known = unsafe {
        libc::clock_getcpuclockid(pid, &raw mut clock) == 0
            && libc::clock_gettime(clock, &raw mut time) == 0
    };
    known.then(|| Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

fn duration(time: libc::timeval) -> Duration {
    Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    fn shell(script: &str) -> Helper {
        let words = [OsStr::new("-c"), OsStr::new(script)];
        Helper::run(Path::new("/bin/sh"), "sh", &words).unwrap()
    }

    #[test]
    fn its_end_is_told_and_its_time_counted() {
        let before = usage().0;
        let busy = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; exit 7";
        let mut helper = shell(busy);
        let ended = helper.reap(0).unwrap();
        assert_eq!(ended, Ended::Code(7));
        assert!(usage().0 > before);
        drop(helper);
        assert_eq!(
            shell("exec sleep 100").ended(),
            Ended::Signal(libc::SIGKILL)
        );
    }

    #[test]
    fn a_helper_that_lives_has_memory_and_ends_with_its_owner() {
        let helper = shell("exec sleep 100");
        let pid = helper.pid;
        assert!(usage().1 > 0 && resident_pages() > 0);
        assert!(helper.cpu_time().is_some());
        drop(helper);
        assert!(peak_resident(pid).is_none());
    }
}
