//! Which process it is: an id is given out again once its process is gone.
//!
//! A process is known by its pidfd, which says whether it still runs, by its directory in `/proc`,
//! which never shows another's, and by its start, by which the kernel programs know it.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;

use agent_ebpf::Start;

use super::{parse_stat, proc_path, regular};

/// The directory of one process in `/proc`, held open.
///
/// The kernel ties it to the process and not to its id (`struct pid` in `proc_inode`, fs/proc): once
/// the process is gone each look into it fails, also when another process has the id.
#[derive(Clone, Debug)]
pub struct Entry(Arc<File>);

impl Entry {
    /// That of the process that has this id now.
    ///
    /// # Errors
    /// When there is none, or it is hidden.
    pub fn open(pid: u32) -> io::Result<Self> {
        let held = regular::hold_directory(&proc_path(pid, ""))?;
        Ok(Self(Arc::new(held)))
    }

    /// A path to a file in it.
    pub fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.0.as_raw_fd()))
    }
}

/// When a process began that `/proc` says to have begun at this clock tick after the boot.
pub(super) fn start(ticks: u64) -> Start {
    // SAFETY: takes an integer and touches no memory.
    let frequency = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    let span = 1_000_000_000 / u64::try_from(frequency).unwrap_or(100).max(1);
    let offsets = fs::read_to_string("/proc/self/timens_offsets").unwrap_or_default();
    Start {
        at: ticks
            .wrapping_mul(span)
            .wrapping_sub(boot_offset(&offsets).unwrap_or(0) as u64),
        span,
    }
}

/// What the agent's time namespace adds to the boot clock, in nanoseconds (time_namespaces(7)):
/// `boottime SECONDS NANOSECONDS`.
fn boot_offset(offsets: &str) -> Option<i64> {
    let line = offsets.lines().find(|line| line.starts_with("boottime"))?;
    let mut numbers = line.split_whitespace().skip(1).map(str::parse::<i64>);
    let seconds = numbers.next()?.ok()?;
    let nanoseconds = numbers.next()?.ok()?;
    seconds.checked_mul(1_000_000_000)?.checked_add(nanoseconds)
}

/// Whether the process that has this id began when `known` says.
pub fn is_running(pid: u32, known: Start) -> bool {
    let stat = fs::read(proc_path(pid, "stat")).ok();
    let stat = stat.and_then(|text| parse_stat(&text));
    stat.is_some_and(|stat| start(stat.start_time).is(known.at))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;
    use std::process::Command;

    #[test]
    fn the_entry_of_a_process_that_is_gone_shows_nothing() {
        let mut child = Command::new("sleep").arg("100").spawn().unwrap();
        let entry = Entry::open(child.id()).unwrap();
        assert!(fs::read(entry.path("stat")).is_ok());
        child.kill().unwrap();
        child.wait().unwrap();
        let error = fs::read(entry.path("stat")).unwrap_err();
        assert!(matches!(
            error.raw_os_error(),
            Some(libc::ESRCH | libc::ENOENT)
        ));
    }

    #[test]
    fn a_process_is_told_by_its_start() {
        let pid = std::process::id();
        let stat = parse_stat(&fs::read(proc_path(pid, "stat")).unwrap()).unwrap();
        let own = start(stat.start_time);
        assert!(is_running(pid, own));
        assert!(is_running(pid, Start::exactly(own.at + own.span - 1)));
        assert!(!is_running(pid, Start::exactly(own.at + own.span)));
        assert!(!is_running(pid, Start::exactly(own.at.wrapping_sub(1))));
        assert!(!Start::default().is(0));
    }

    #[test]
    fn offsets_of_a_time_namespace_are_read() {
        let text = "monotonic           1         0\nboottime       -86400       500\n";
        assert_eq!(boot_offset(text), Some(-86_399_999_999_500));
        assert_eq!(boot_offset(""), None);
    }

    /// A copy of this process with this id, which sleeps; `None` where ids cannot be chosen (clone3(2):
    /// `CAP_CHECKPOINT_RESTORE`) or it is taken.
    fn sleeper(pid: i32) -> Option<i32> {
        // SAFETY: all-zero is a valid value of this structure of integers.
        let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
        arguments.exit_signal = libc::SIGCHLD as u64;
        arguments.set_tid = (&raw const pid) as u64;
        arguments.set_tid_size = 1;
        let (at, size) = (&raw const arguments, size_of::<libc::clone_args>());
        // SAFETY: without flags it is a fork; the copy makes system calls only, and never returns.
        match unsafe { libc::syscall(libc::SYS_clone3, at, size) } {
            0 => loop {
                // SAFETY: a system call without memory effects.
                unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
                // SAFETY: as above.
                unsafe { libc::pause() };
            },
            made => (made > 0).then_some(pid),
        }
    }

    fn end(pid: i32) {
        // SAFETY: a child of ours that is not reaped yet.
        unsafe { libc::kill(pid, libc::SIGKILL) };
        // SAFETY: as above.
        unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
    }

    #[test]
    fn a_process_that_is_replaced_while_it_is_opened_shows_nothing() {
        let limit = fs::read_to_string("/proc/sys/kernel/pid_max").unwrap();
        let mut pids = (1..limit.trim().parse::<i32>().unwrap()).rev().skip(300);
        let Some(pid) = pids.by_ref().take(50).find(|&pid| sleeper(pid).is_some()) else {
            println!("ids of processes cannot be chosen here");
            return;
        };
        let (mut first, mut second) = (0, 0);
        for round in 0..300 {
            let opener = std::thread::spawn(move || {
                let begin = std::time::Instant::now();
                while begin.elapsed().as_micros() < round % 100 {}
                super::super::Process::open(pid as u32)
            });
            end(pid);
            let next = sleeper(pid);
            if let Ok(process) = opener.join().unwrap() {
                if process.has_ended() {
                    first += 1;
                    assert!(process.stat().is_err() && process.maps().is_err());
                    assert!(process.exe().is_none() && process.command_line().is_none());
                    assert!(
                        process.descriptor(0).is_none()
                            && process.new_children(|_| false).is_empty()
                    );
                } else {
                    second += 1;
                    assert!(process.maps().is_ok());
                }
            }
            if next.is_none() && sleeper(pid).is_none() {
                // Somebody else was given the id.
                return;
            }
        }
        end(pid);
        println!("{first} held the first process, {second} the second");
    }
}
