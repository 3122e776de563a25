//! What the agent itself may do.

use std::fs;

/// `CAP_SYS_PTRACE` (linux/capability.h).
const CAP_SYS_PTRACE: u32 = 19;

/// The agent's effective capabilities, a bit for each (`CapEff` of proc_pid_status(5)).
pub fn effective_capabilities() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("CapEff:"));
    line.and_then(|line| u64::from_str_radix(line.split_whitespace().nth(1)?, 16).ok())
        .unwrap_or(0)
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
