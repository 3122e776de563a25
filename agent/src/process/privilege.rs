//! What the agent itself may do.

use std::fs;
use std::io;

/// `CAP_SYS_PTRACE` (linux/capability.h).
const CAP_SYS_PTRACE: u32 = 19;

/// More than there are: a capability is a bit of 64.
const CAPABILITIES: libc::c_ulong = 64;
/// `_LINUX_CAPABILITY_VERSION_3` (linux/capability.h).
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// The agent's effective capabilities, a bit for each (`CapEff` of proc_pid_status(5)).
pub fn effective_capabilities() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("CapEff:"));
    line.and_then(|line| u64::from_str_radix(line.split_whitespace().nth(1)?, 16).ok())
        .unwrap_or(0)
}

/// Takes from this thread, for ever, the capabilities that a program it executes could give it; only
/// with `CAP_SETPCAP` is that possible.
pub fn empty_bounding_set() {
    let zero: libc::c_ulong = 0;
    for capability in 0..CAPABILITIES {
        // SAFETY: takes integers only; one that the kernel does not know is an error of no matter.
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, zero, zero, zero) };
    }
}

/// Gives up all capabilities of this thread.
///
/// # Errors
/// When the kernel refuses.
pub fn give_up_all() -> io::Result<()> {
    let (all, zero) = (libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong, 0);
    // SAFETY: takes integers only.
    unsafe { libc::prctl(libc::PR_CAP_AMBIENT, all, zero, zero, zero) };
    let header = [CAPABILITY_VERSION_3, 0];
    let none = [0_u32; 6];
    // SAFETY: both structures (linux/capability.h) are words in a row, and are only read.
    match unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What to say where the kernel does not let the agent look at a process.
pub(super) fn refusal_hint() -> &'static str {
    // SAFETY: geteuid takes nothing, touches no memory and cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    hint(root || effective_capabilities() >> CAP_SYS_PTRACE & 1 != 0)
}

fn hint(privileged: bool) -> &'static str {
    if privileged {
        "the kernel refuses it even to root: the process has capabilities that this shell lacks, or a user namespace or a security module (AppArmor, SELinux, Yama) forbids it"
    } else {
        "run as root: `sudo agent …`"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_not_told_to_become_root() {
        assert!(hint(false).contains("sudo"));
        assert!(!hint(true).contains("sudo") && hint(true).contains("even to root"));
    }
}
