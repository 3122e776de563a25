//! What the checks look at: the circumstances on this machine, as they are now.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;

use serde::Serialize;

use super::{BTF, parse_version, uname};
use crate::process;
use crate::process::privilege::{self, Caps};

/// `PROC_USER_INIT_INO` (linux/proc_ns.h, 6.18): the inode of the initial user namespace.
const INITIAL_USER_NAMESPACE: u64 = 0xEFFF_FFFD;
/// Bytes of the kernel's symbols that are looked through for an address.
const SYMBOLS: u64 = 1 << 16;

/// System calls that the agent cannot do without, each tried with arguments that the kernel itself
/// answers with EINVAL: another answer is a filter's.
const CALLS: [(&str, libc::c_long, [libc::c_long; 5]); 4] = [
    ("bpf", libc::SYS_bpf, [-1, 0, 0, 0, 0]),
    (
        "perf_event_open",
        libc::SYS_perf_event_open,
        [0, 0, 0, 0, -1],
    ),
    ("pidfd_open", libc::SYS_pidfd_open, [-1, 0, 0, 0, 0]),
    ("openat2", libc::SYS_openat2, [-1, 0, 0, 0, 0]),
];

/// How much of itself the kernel defends against root (kernel_lockdown(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Lockdown {
    /// Against changes.
    Integrity,
    /// Against reading, too.
    Confidentiality,
}

/// What the kernel shows of its symbols.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Symbols {
    /// Their addresses.
    #[default]
    Shown,
    /// Names only (`kernel.kptr_restrict`).
    Hidden,
    /// None at all (`CONFIG_KALLSYMS`).
    Absent,
}

/// A system call that a filter refuses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RefusedCall {
    /// Its name.
    pub call: &'static str,
    /// The number of the error, or of the signal that ends the caller, negative.
    pub answer: i32,
}

/// The circumstances. What cannot be read is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Facts {
    /// `uname -srm`.
    pub kernel: String,
    /// `uname -r`.
    pub release: String,
    /// Its first two numbers.
    pub version: (u32, u32),
    /// Effective user id.
    pub uid: u32,
    /// Effective capabilities.
    #[serde(serialize_with = "names")]
    pub capabilities: Caps,
    /// Whether the agent is in a user namespace of a container, where capabilities are not the
    /// machine's.
    pub user_namespace: bool,
    /// Whether it is in a PID namespace of a container.
    pub pid_namespace: bool,
    /// Whether `/proc` shows another PID namespace than the agent's.
    pub foreign_proc: bool,
    /// How `/proc` hides processes.
    pub hidepid: Option<String>,
    /// Whether a seccomp filter is in force.
    pub seccomp: bool,
    /// What it refuses.
    pub refused_calls: Vec<RefusedCall>,
    /// `/sys/kernel/security/lockdown`.
    pub lockdown: Option<Lockdown>,
    /// `/sys/kernel/security/lsm`.
    pub security_modules: Option<String>,
    /// The number of the error with which the kernel's BTF cannot be opened.
    pub btf_error: Option<i32>,
    /// What the kernel shows of its symbols.
    pub kernel_symbols: Symbols,
    /// `kernel.perf_event_paranoid`.
    pub perf_event_paranoid: Option<i64>,
    /// `kernel.perf_event_max_sample_rate`.
    pub perf_event_max_sample_rate: Option<i64>,
    /// `kernel.perf_event_mlock_kb`.
    pub perf_event_mlock_kb: Option<i64>,
    /// `kernel.kptr_restrict`.
    pub kptr_restrict: Option<i64>,
    /// `kernel.unprivileged_bpf_disabled`.
    pub unprivileged_bpf_disabled: Option<i64>,
    /// `RLIMIT_MEMLOCK` in bytes; `None` for no limit.
    pub memlock_bytes: Option<u64>,
    /// The first of the processes asked for that the agent may not look into.
    pub unreadable_pid: Option<u32>,
    /// The command line to repeat.
    pub command: String,
}

impl Facts {
    /// Looks at the machine, and at which of these processes the agent may look into.
    pub fn gather(pids: &[u32]) -> Self {
        let (kernel, release) = uname();
        let version = parse_version(&release);
        let sysctl = |name: &str| {
            let text = fs::read_to_string(format!("/proc/sys/kernel/{name}")).ok()?;
            text.trim().parse().ok()
        };
        let security = |name: &str| fs::read_to_string(format!("/sys/kernel/security/{name}")).ok();
        let capabilities = privilege::effective();
        let seccomp = seccomp();
        Self {
            kernel,
            // SAFETY: geteuid takes nothing, touches no memory and cannot fail.
            uid: unsafe { libc::geteuid() },
            capabilities,
            user_namespace: fs::metadata("/proc/self/ns/user")
                .is_ok_and(|meta| meta.ino() != INITIAL_USER_NAMESPACE),
            pid_namespace: !process::in_initial_pid_namespace(),
            foreign_proc: foreign_proc(),
            hidepid: fs::read_to_string("/proc/self/mounts")
                .ok()
                .and_then(|mounts| hidepid(&mounts)),
            seccomp,
            refused_calls: if seccomp { refused_calls() } else { Vec::new() },
            lockdown: security("lockdown").and_then(|text| lockdown(&text)),
            security_modules: security("lsm").map(|text| text.trim().to_owned()),
            btf_error: File::open(BTF).err().and_then(|error| error.raw_os_error()),
            kernel_symbols: kernel_symbols(),
            perf_event_paranoid: sysctl("perf_event_paranoid"),
            perf_event_max_sample_rate: sysctl("perf_event_max_sample_rate"),
            perf_event_mlock_kb: sysctl("perf_event_mlock_kb"),
            kptr_restrict: sysctl("kptr_restrict"),
            unprivileged_bpf_disabled: sysctl("unprivileged_bpf_disabled"),
            memlock_bytes: process::locked_memory()
                .ok()
                .map(|limit| limit.rlim_cur)
                .filter(|&bytes| bytes != libc::RLIM_INFINITY),
            unreadable_pid: pids.iter().copied().find(|&pid| process::is_refused(pid)),
            command: super::command::line(std::env::args_os()),
            release,
            version,
        }
    }
}

fn names<S: serde::Serializer>(caps: &Caps, serializer: S) -> Result<S::Ok, S::Error> {
    use privilege::Cap;
    let held = Cap::ALL.into_iter().filter(|&cap| caps.contains(cap));
    serializer.collect_seq(held.map(|cap| cap.to_string()))
}

/// Whether `/proc` calls this process by another number than the kernel does when it is asked.
fn foreign_proc() -> bool {
    let shown = fs::read_link("/proc/self").ok();
    let shown = shown.and_then(|path| path.to_str()?.parse().ok());
    shown != Some(std::process::id())
}

/// The option of `/proc` (proc(5)) that hides processes of others.
fn hidepid(mounts: &str) -> Option<String> {
    // The last mount is the one that is seen.
    let line = mounts
        .lines()
        .rfind(|line| line.split(' ').nth(1) == Some("/proc"))?;
    let mut options = line.split(' ').nth(3)?.split(',');
    let value = options.find_map(|option| option.strip_prefix("hidepid="))?;
    (!matches!(value, "0" | "off")).then(|| value.to_owned())
}

fn lockdown(text: &str) -> Option<Lockdown> {
    if text.contains("[confidentiality]") {
        Some(Lockdown::Confidentiality)
    } else {
        text.contains("[integrity]").then_some(Lockdown::Integrity)
    }
}

/// Whether a filter is in force (`Seccomp: 2` of proc_pid_status(5)).
fn seccomp() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("Seccomp:"));
    line.is_some_and(|line| line.trim_end().ends_with('2'))
}

/// Tries each of [`CALLS`] in a process of its own: a filter may answer with the end of the caller.
fn refused_calls() -> Vec<RefusedCall> {
    let tried = CALLS.into_iter().map(|(call, number, arguments)| {
        let answer = answer_of(number, arguments);
        RefusedCall { call, answer }
    });
    let refused = |tried: &RefusedCall| !matches!(tried.answer, 0 | libc::EINVAL | libc::EFAULT);
    tried.filter(refused).collect()
}

fn answer_of(number: libc::c_long, [a, b, c, d, e]: [libc::c_long; 5]) -> i32 {
    // SAFETY: the child makes system calls only.
    match unsafe { libc::fork() } {
        -1 => 0,
        0 => {
            // SAFETY: no argument is an address; a call that succeeds would change nothing.
            let failed = unsafe { libc::syscall(number, a, b, c, d, e) } < 0;
            let errno = io::Error::last_os_error().raw_os_error().unwrap_or(0);
            // SAFETY: ends the child without running anything of the parent's.
            unsafe { libc::_exit(if failed { errno } else { 0 }) }
        }
        child => {
            let mut status = 0;
            // SAFETY: our own child, and a number to be written.
            if unsafe { libc::waitpid(child, &raw mut status, 0) } != child {
                return 0;
            }
            match libc::WIFSIGNALED(status) {
                true => -libc::WTERMSIG(status),
                false => libc::WEXITSTATUS(status),
            }
        }
    }
}

fn kernel_symbols() -> Symbols {
    let Ok(file) = process::kallsyms() else {
        return Symbols::Absent;
    };
    let mut text = String::new();
    // A cut line is of no account.
    let _ = file.take(SYMBOLS).read_to_string(&mut text);
    symbols(&text)
}

fn symbols(text: &str) -> Symbols {
    let mut addresses = text.lines().filter_map(|line| line.split(' ').next());
    match addresses.any(|address| address.bytes().any(|digit| digit != b'0')) {
        true => Symbols::Shown,
        false if text.is_empty() => Symbols::Absent,
        false => Symbols::Hidden,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;

    #[test]
    fn files_of_the_kernel_are_understood() {
        assert_eq!(lockdown("[none] integrity confidentiality\n"), None);
        let text = "none [integrity] confidentiality\n";
        assert_eq!(lockdown(text), Some(Lockdown::Integrity));
        let text = "none integrity [confidentiality]\n";
        assert_eq!(lockdown(text), Some(Lockdown::Confidentiality));
        let mounts = "proc /proc proc rw 0 0\nproc /proc proc rw,nosuid,hidepid=invisible 0 0\n";
        assert_eq!(hidepid(mounts).as_deref(), Some("invisible"));
        assert_eq!(hidepid("proc /proc proc rw,hidepid=0 0 0\n"), None);
        assert_eq!(symbols(""), Symbols::Absent);
        let hidden = "0000000000000000 A a\n0000000000000000 T b\n";
        assert_eq!(symbols(hidden), Symbols::Hidden);
        let shown = "0000000000000000 A a\nffffffff81000000 T b\n";
        assert_eq!(symbols(shown), Symbols::Shown);
    }

    #[test]
    fn nothing_here_refuses_the_calls() {
        assert_eq!(answer_of(libc::SYS_getpid, [0; 5]), 0);
        assert_eq!(answer_of(libc::SYS_close, [-1, 0, 0, 0, 0]), libc::EBADF);
        let kill = [0, libc::c_long::from(libc::SIGSYS), 0, 0, 0];
        // kill(0, …) would be for the group: tkill of no thread is refused.
        assert_eq!(answer_of(libc::SYS_tkill, kill), libc::EINVAL);
        let facts = Facts::gather(&[std::process::id()]);
        assert_eq!(facts.unreadable_pid, None);
        assert!(!facts.foreign_proc);
    }
}
