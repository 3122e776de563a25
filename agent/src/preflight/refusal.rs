//! Why the kernel refuses something although the checks found nothing in the way: what it does not
//! say itself, the circumstances often do.

use super::checks::{Effect, Probe, Problem, look};
use super::facts::Facts;
use crate::process::privilege::Cap;

/// What the kernel was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// To make a BPF map.
    Map,
    /// To load a BPF program.
    Program,
    /// To attach one.
    Attach,
    /// To open a perf event.
    PerfEvent,
    /// To map a perf event's ring buffer.
    PerfRing,
    /// Something else.
    Other,
}

/// A "no" of the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What it was asked for.
    pub operation: Operation,
    /// The number of the error.
    pub errno: i32,
}

/// The reason and what helps.
type Found = Option<(String, Option<String>)>;

/// A cause that a refusal may have.
struct Suspect {
    id: &'static str,
    find: fn(&Facts, Refusal) -> Found,
}

/// The likelier ones first.
static SUSPECTS: [Suspect; 8] = [
    Suspect {
        id: "memlock",
        find: memlock,
    },
    Suspect {
        id: "perf_event_paranoid",
        find: paranoid,
    },
    Suspect {
        id: "perf_event_mlock_kb",
        find: perf_ring,
    },
    Suspect {
        id: "open_files",
        find: open_files,
    },
    Suspect {
        id: "kernel_config",
        find: kernel_config,
    },
    Suspect {
        id: "memory",
        find: memory,
    },
    Suspect {
        id: "seccomp",
        find: filter,
    },
    Suspect {
        id: "security_module",
        find: security_module,
    },
];

/// Why the kernel may have refused this: what the checks find, else the likeliest suspect, else that
/// nothing is known.
pub fn explain(facts: &Facts, probe: Probe, refusal: Refusal) -> Vec<Problem> {
    let mut problems = look(facts, probe);
    problems.retain(|problem| problem.effect == Effect::Blocks);
    if !problems.is_empty() {
        return problems;
    }
    let suspected = SUSPECTS.iter().find_map(|suspect| {
        let (reason, fix) = (suspect.find)(facts, refusal)?;
        Some((suspect.id, reason, fix))
    });
    let unknown = || {
        let reason = "the kernel does not say why, and nothing that agent knows of is in the way";
        let fix = "sudo dmesg | tail -20 (a security module may have written why)";
        ("unknown", reason.to_owned(), Some(fix.to_owned()))
    };
    let (check, reason, fix) = suspected.unwrap_or_else(unknown);
    vec![Problem {
        check,
        effect: Effect::Blocks,
        reason,
        fix,
    }]
}

fn is_no(errno: i32) -> bool {
    matches!(errno, libc::EPERM | libc::EACCES)
}

fn memlock(facts: &Facts, refusal: Refusal) -> Found {
    let limit = facts.memlock_bytes?;
    let charged = facts.version < (5, 11) && refusal.errno == libc::EPERM;
    (charged && matches!(refusal.operation, Operation::Map | Operation::Program)).then(|| {
        let reason = format!(
            "kernels before 5.11 charge BPF memory to RLIMIT_MEMLOCK, which is {} KiB here",
            limit >> 10
        );
        let fix = format!("sudo sh -c 'ulimit -l unlimited; {}'", facts.command);
        (reason, Some(fix))
    })
}

/// Debian's and Ubuntu's kernels know levels above 2, at which `CAP_PERFMON` may not be enough.
fn paranoid(facts: &Facts, refusal: Refusal) -> Found {
    let level = facts.perf_event_paranoid.filter(|&level| level > 2)?;
    let fits = refusal.operation == Operation::PerfEvent && is_no(refusal.errno);
    (fits && !facts.capabilities.contains(Cap::SysAdmin)).then(|| {
        let reason = format!(
            "kernel.perf_event_paranoid is {level}: at levels above 2 this kernel lets only \
             CAP_SYS_ADMIN open perf events"
        );
        let fix = "sudo sysctl kernel.perf_event_paranoid=2";
        (reason, Some(fix.to_owned()))
    })
}

fn perf_ring(facts: &Facts, refusal: Refusal) -> Found {
    (refusal.operation == Operation::PerfRing && is_no(refusal.errno)).then(|| {
        let limit = facts.perf_event_mlock_kb.unwrap_or_default();
        let reason = format!(
            "the memory of perf's ring buffers is used up (kernel.perf_event_mlock_kb is {limit}, \
             for all of this user's tools together)"
        );
        let fix = format!("sudo sysctl kernel.perf_event_mlock_kb={}", limit + 1024);
        (reason, Some(fix))
    })
}

fn open_files(_: &Facts, refusal: Refusal) -> Found {
    (refusal.errno == libc::EMFILE).then(|| {
        let reason = "the limit of open files is used up: each CPU takes two, each process and each \
                      mapped file one";
        (reason.to_owned(), Some("ulimit -Hn 65536".to_owned()))
    })
}

fn kernel_config(facts: &Facts, refusal: Refusal) -> Found {
    let reason = match (refusal.operation, refusal.errno) {
        (_, libc::ENOSYS) => {
            "this kernel lacks the system call (CONFIG_BPF_SYSCALL, \
                              CONFIG_PERF_EVENTS)"
        }
        (Operation::Attach, libc::ENOENT | libc::EINVAL) => {
            "this kernel does not have the hook, or not as its version has it"
        }
        (Operation::Program, libc::EINVAL | libc::E2BIG | libc::ENOENT) => {
            "this kernel's verifier does not accept the program"
        }
        _ => return None,
    };
    let fix = format!(
        "please report it with the kernel's name, `{}`",
        facts.kernel
    );
    Some((reason.to_owned(), Some(fix)))
}

fn memory(_: &Facts, refusal: Refusal) -> Found {
    matches!(refusal.errno, libc::ENOMEM | libc::ENOSPC).then(|| {
        let reason = "the kernel has no memory for it, or the container's limit of memory is \
                      reached (BPF maps count, from 5.11 on)";
        let fix = "give the container 256 MB at least (--memory 256m)";
        (reason.to_owned(), Some(fix.to_owned()))
    })
}

fn filter(facts: &Facts, refusal: Refusal) -> Found {
    (facts.seccomp && is_no(refusal.errno)).then(|| {
        let reason = "a seccomp filter is in force, and may refuse this call by its arguments";
        let fix = "start the container with --security-opt seccomp=unconfined";
        (reason.to_owned(), Some(fix.to_owned()))
    })
}

fn security_module(facts: &Facts, refusal: Refusal) -> Found {
    let modules = facts.security_modules.as_deref()?;
    let strict = ["selinux", "apparmor", "smack", "tomoyo", "bpf"];
    let active: Vec<&str> = modules
        .split(',')
        .filter(|module| strict.contains(module))
        .collect();
    (!active.is_empty() && is_no(refusal.errno)).then(|| {
        let reason = format!(
            "a security module may forbid it; active here: {}",
            active.join(", ")
        );
        let fix = "sudo dmesg | grep -iE 'avc|apparmor|denied' | tail -5";
        (reason, Some(fix.to_owned()))
    })
}

#[cfg(test)]
mod tests {
    use super::super::checks::tests::good;
    use super::*;
    use crate::process::privilege::Caps;

    fn why(facts: &Facts, operation: Operation, errno: i32) -> (&'static str, String) {
        let problems = explain(facts, Probe::Profile, Refusal { operation, errno });
        let [problem] = &problems[..] else {
            panic!("{problems:?}");
        };
        let fix = problem.fix.clone().unwrap_or_default();
        (problem.check, format!("{} -> {fix}", problem.reason))
    }

    #[test]
    fn each_suspect_is_found() {
        let old = Facts {
            version: (5, 10),
            memlock_bytes: Some(64 << 10),
            ..good()
        };
        let (check, text) = why(&old, Operation::Map, libc::EPERM);
        assert_eq!(check, "memlock");
        assert!(text.contains("64 KiB") && text.contains("ulimit -l unlimited"));
        let strict = Facts {
            perf_event_paranoid: Some(4),
            capabilities: Caps::of(&[Cap::Bpf, Cap::Perfmon]),
            ..good()
        };
        let (check, text) = why(&strict, Operation::PerfEvent, libc::EACCES);
        assert_eq!(check, "perf_event_paranoid");
        assert!(text.contains("is 4") && text.contains("perf_event_paranoid=2"));
        let seccomp = Facts {
            seccomp: true,
            ..good()
        };
        assert_eq!(why(&seccomp, Operation::Map, libc::EPERM).0, "seccomp");
        let modules = Some("capability,yama,apparmor".to_owned());
        let module = Facts {
            security_modules: modules,
            ..good()
        };
        let (check, text) = why(&module, Operation::Map, libc::EPERM);
        assert_eq!(check, "security_module");
        assert!(text.contains("here: apparmor"));
        for (operation, errno, check) in [
            (Operation::PerfRing, libc::EPERM, "perf_event_mlock_kb"),
            (Operation::PerfEvent, libc::EMFILE, "open_files"),
            (Operation::Attach, libc::ENOENT, "kernel_config"),
            (Operation::Program, libc::EINVAL, "kernel_config"),
            (Operation::Map, libc::ENOSYS, "kernel_config"),
            (Operation::Map, libc::ENOMEM, "memory"),
            (Operation::Other, libc::EPERM, "unknown"),
        ] {
            assert_eq!(why(&good(), operation, errno).0, check);
        }
    }

    #[test]
    fn what_the_checks_find_comes_first() {
        let facts = Facts {
            btf_error: Some(libc::ENOENT),
            seccomp: true,
            ..good()
        };
        assert_eq!(why(&facts, Operation::Map, libc::EPERM).0, "btf");
    }
}
