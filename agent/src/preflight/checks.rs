//! The checks as data: what keeps a probe from working, why, and what helps. A check looks at
//! [`Facts`] only, so each can be tried with circumstances that this machine does not have.

use serde::Serialize;

use super::OLDEST;
use super::facts::{Facts, Lockdown, Symbols};
use super::privileges;
use crate::process::privilege::Cap;

/// What the agent can do, as far as the checks tell it apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Probe {
    /// `agent profile`.
    Profile,
    /// Names of the kernel's functions in stacks.
    KernelNames,
    /// `agent tcp`.
    Tcp,
    /// `agent syscalls`.
    Syscalls,
    /// `agent syscalls --latency`.
    SyscallsLatency,
    /// `agent record` and `agent serve`.
    Record,
}

impl Probe {
    /// All of them.
    pub const ALL: [Probe; 6] = [
        Probe::Profile,
        Probe::KernelNames,
        Probe::Tcp,
        Probe::Syscalls,
        Probe::SyscallsLatency,
        Probe::Record,
    ];

    /// What it stands for on the command line.
    pub const fn title(self) -> &'static str {
        match self {
            Probe::Profile => "profile",
            Probe::KernelNames => "kernel names",
            Probe::Tcp => "tcp",
            Probe::Syscalls => "syscalls",
            Probe::SyscallsLatency => "syscalls --latency",
            Probe::Record => "record, serve",
        }
    }
}

/// What a problem does to a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// It works, but shows less.
    Degrades,
    /// It does not work.
    Blocks,
}

/// Something that is in the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Name of the check that found it.
    pub check: &'static str,
    /// What it does.
    pub effect: Effect,
    /// Why.
    pub reason: String,
    /// What helps, to be pasted; `None` where nothing does.
    pub fix: Option<String>,
}

/// The reason and what helps.
type Found = Option<(String, Option<String>)>;

/// A condition that the probes need.
struct Check {
    /// A stable name.
    id: &'static str,
    probes: &'static [Probe],
    effect: Effect,
    find: fn(&Facts) -> Found,
}

/// Those that load BPF programs.
const LOADING: &[Probe] = &[
    Probe::Profile,
    Probe::Tcp,
    Probe::Syscalls,
    Probe::SyscallsLatency,
    Probe::Record,
];
const SYSCALLS: &[Probe] = &[Probe::Syscalls, Probe::SyscallsLatency, Probe::Record];
const SAMPLING: &[Probe] = &[Probe::Profile, Probe::Record];

/// In the order in which they are told: what stands first makes what follows likely.
static CHECKS: [Check; 10] = [
    Check {
        id: "kernel_version",
        probes: LOADING,
        effect: Effect::Blocks,
        find: kernel_version,
    },
    Check {
        id: "user_namespace",
        probes: LOADING,
        effect: Effect::Blocks,
        find: user_namespace,
    },
    Check {
        id: "capability",
        probes: LOADING,
        effect: Effect::Blocks,
        find: capability,
    },
    Check {
        id: "seccomp",
        probes: LOADING,
        effect: Effect::Blocks,
        find: seccomp,
    },
    Check {
        id: "lockdown",
        probes: LOADING,
        effect: Effect::Blocks,
        find: lockdown,
    },
    Check {
        id: "btf",
        probes: LOADING,
        effect: Effect::Blocks,
        find: btf,
    },
    Check {
        id: "proc",
        probes: LOADING,
        effect: Effect::Blocks,
        find: foreign_proc,
    },
    Check {
        id: "kernel_symbols",
        probes: &[Probe::KernelNames],
        effect: Effect::Degrades,
        find: kernel_symbols,
    },
    Check {
        id: "perf_event_max_sample_rate",
        probes: SAMPLING,
        effect: Effect::Degrades,
        find: sample_rate,
    },
    Check {
        id: "skipped_runs",
        probes: SYSCALLS,
        effect: Effect::Degrades,
        find: skipped_runs,
    },
];

/// What is in the way of a probe.
pub fn look(facts: &Facts, probe: Probe) -> Vec<Problem> {
    let concerned = CHECKS.iter().filter(|check| check.probes.contains(&probe));
    concerned
        .filter_map(|check| {
            let (reason, fix) = (check.find)(facts)?;
            Some(Problem {
                check: check.id,
                effect: check.effect,
                reason,
                fix,
            })
        })
        .collect()
}

fn kernel_version(facts: &Facts) -> Found {
    let (major, minor) = OLDEST;
    (facts.version < OLDEST).then(|| {
        let reason = format!(
            "kernel {} is too old: agent needs Linux {major}.{minor} or later",
            facts.release
        );
        let fix = format!("boot a kernel of {major}.{minor} or later");
        (reason, Some(fix))
    })
}

fn user_namespace(facts: &Facts) -> Found {
    facts.user_namespace.then(|| {
        let reason = "the agent runs in a user namespace of its own (a rootless container, \
                      `unshare -U`), where no capability counts for BPF and perf; containers \
                      leave it with --userns=host";
        (reason.to_owned(), Some(format!("sudo {}", facts.command)))
    })
}

fn capability(facts: &Facts) -> Found {
    let missing = privileges::missing(facts);
    if missing.is_empty() {
        return None;
    }
    let names: Vec<String> = missing.iter().map(Cap::to_string).collect();
    let reason = format!(
        "no permission: agent needs {} (in a container: {})",
        names.join(", "),
        privileges::container_options(&missing)
    );
    Some((reason, Some(privileges::how_to_get(&missing, facts))))
}

fn seccomp(facts: &Facts) -> Found {
    // Before 5.19 the kernel itself answers EPERM to all of bpf(2) without the capability.
    let unclear = facts.version < (5, 19) && !facts.capabilities.allows(Cap::Bpf);
    let refused = facts
        .refused_calls
        .iter()
        .filter(|refused| !(unclear && refused.call == "bpf"));
    let calls: Vec<&str> = refused.map(|refused| refused.call).collect();
    if calls.is_empty() {
        return None;
    }
    let reason = format!("a seccomp filter forbids {} here", calls.join(", "));
    let fix = "start the container with --security-opt seccomp=unconfined, or a profile that \
               allows these calls; for a systemd unit: SystemCallFilter= with them";
    Some((reason, Some(fix.to_owned())))
}

fn lockdown(facts: &Facts) -> Found {
    (facts.lockdown == Some(Lockdown::Confidentiality)).then(|| {
        let reason = "the kernel is locked down (confidentiality): BPF programs may not read its \
                      memory, root's neither";
        let fix = "boot with lockdown=integrity, or without lockdown=confidentiality";
        (reason.to_owned(), Some(fix.to_owned()))
    })
}

fn btf(facts: &Facts) -> Found {
    let errno = facts.btf_error?;
    let path = super::BTF;
    Some(if errno == libc::ENOENT {
        let reason = format!("the kernel has no BTF ({path})");
        let fix = "boot a kernel built with CONFIG_DEBUG_INFO_BTF=y, as those of all big \
                   distributions are; in a container: mount /sys";
        (reason, Some(fix.to_owned()))
    } else {
        let error = std::io::Error::from_raw_os_error(errno);
        let reason = format!("the kernel's BTF ({path}) cannot be read: {error}");
        (reason, Some(format!("sudo {}", facts.command)))
    })
}

fn foreign_proc(facts: &Facts) -> Found {
    facts.foreign_proc.then(|| {
        let reason = "/proc shows the processes of another PID namespace than the agent's";
        let fix = "mount -t proc proc /proc (or start with `unshare --mount-proc`)";
        (reason.to_owned(), Some(fix.to_owned()))
    })
}

fn kernel_symbols(facts: &Facts) -> Found {
    let paranoid = facts.perf_event_paranoid.unwrap_or(2);
    match facts.kernel_symbols {
        Symbols::Shown => None,
        Symbols::Absent => {
            let reason = "the kernel shows no symbols (/proc/kallsyms; CONFIG_KALLSYMS): its \
                          functions have no names";
            Some((reason.to_owned(), None))
        }
        Symbols::Hidden if facts.kptr_restrict == Some(2) => {
            let reason = "kernel.kptr_restrict is 2: the kernel hides its addresses from everybody";
            let fix = "sudo sysctl kernel.kptr_restrict=1";
            Some((reason.to_owned(), Some(fix.to_owned())))
        }
        Symbols::Hidden if facts.kptr_restrict == Some(0) => {
            let reason = format!(
                "the kernel hides its addresses: CAP_SYSLOG is missing, and \
                 kernel.perf_event_paranoid is {paranoid}, above 1"
            );
            let fix = privileges::how_to_get(&[Cap::Syslog], facts);
            Some((reason, Some(fix)))
        }
        Symbols::Hidden => {
            let reason = "the kernel hides its addresses: kernel.kptr_restrict is 1, and \
                          CAP_SYSLOG is missing";
            let fix = privileges::how_to_get(&[Cap::Syslog], facts);
            Some((reason.to_owned(), Some(fix)))
        }
    }
}

/// The frequency that the commands have by default, in Hz.
const FREQUENCY: i64 = 99;

fn sample_rate(facts: &Facts) -> Found {
    let limit = facts.perf_event_max_sample_rate?;
    (limit < FREQUENCY).then(|| {
        let reason = format!(
            "kernel.perf_event_max_sample_rate is {limit}: a CPU is sampled {limit} times a \
             second at most (`--frequency {limit}`)"
        );
        let fix = format!("sudo sysctl kernel.perf_event_max_sample_rate={FREQUENCY}");
        (reason, Some(fix))
    })
}

fn skipped_runs(facts: &Facts) -> Found {
    (facts.version >= (7, 0) && !facts.capabilities.contains(Cap::SysAdmin)).then(|| {
        let reason = "without CAP_SYS_ADMIN the hook is a raw tracepoint, which this kernel may \
                      preempt and then skips; skipped runs are counted";
        let fix = privileges::how_to_get(&[Cap::SysAdmin], facts);
        (reason.to_owned(), Some(fix))
    })
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::super::facts::RefusedCall;
    use super::*;
    use crate::process::privilege::Caps;

    /// A machine on which nothing is in the way.
    pub(in crate::preflight) fn good() -> Facts {
        Facts {
            release: "6.1.0".to_owned(),
            version: (6, 1),
            uid: 1000,
            capabilities: Caps::of(&Cap::ALL),
            perf_event_paranoid: Some(2),
            kptr_restrict: Some(0),
            perf_event_max_sample_rate: Some(100_000),
            command: "agent doctor".to_owned(),
            ..Facts::default()
        }
    }

    /// The names of the checks that find something for a probe, their reasons and fixes as one text.
    fn found(facts: &Facts, probe: Probe) -> (Vec<&'static str>, String) {
        let problems = look(facts, probe);
        let text = problems
            .iter()
            .map(|problem| format!("{} -> {:?}\n", problem.reason, problem.fix))
            .collect();
        let names = problems.iter().map(|problem| problem.check).collect();
        (names, text)
    }

    #[test]
    fn a_good_machine_has_no_problem() {
        for probe in Probe::ALL {
            assert_eq!(look(&good(), probe), [], "{probe:?}");
        }
    }

    #[test]
    fn every_check_finds_its_own() {
        let old = Facts {
            version: (5, 4),
            release: "5.4.0".into(),
            ..good()
        };
        let user_namespace = Facts {
            user_namespace: true,
            ..good()
        };
        let no_capability = Facts {
            capabilities: Caps::default(),
            ..good()
        };
        let bpf = RefusedCall {
            call: "bpf",
            answer: libc::EPERM,
        };
        let filtered = Facts {
            seccomp: true,
            refused_calls: vec![bpf],
            ..good()
        };
        let locked = Facts {
            lockdown: Some(Lockdown::Confidentiality),
            ..good()
        };
        let no_btf = Facts {
            btf_error: Some(libc::ENOENT),
            ..good()
        };
        let foreign = Facts {
            foreign_proc: true,
            ..good()
        };
        for (facts, check, words) in [
            (&old, "kernel_version", "5.4.0"),
            (&user_namespace, "user_namespace", "--userns=host"),
            (&no_capability, "capability", "CAP_BPF, CAP_PERFMON"),
            (&filtered, "seccomp", "forbids bpf"),
            (&locked, "lockdown", "lockdown=integrity"),
            (&no_btf, "btf", "CONFIG_DEBUG_INFO_BTF"),
            (&foreign, "proc", "mount -t proc"),
        ] {
            for &probe in LOADING {
                let (names, text) = found(facts, probe);
                assert_eq!(names, [check]);
                assert!(text.contains(words), "{text}");
            }
            assert_eq!(found(facts, Probe::KernelNames).0, [""; 0], "{check}");
        }
        let slow = Facts {
            perf_event_max_sample_rate: Some(50),
            ..good()
        };
        assert_eq!(
            found(&slow, Probe::Record).0,
            ["perf_event_max_sample_rate"]
        );
        assert_eq!(found(&slow, Probe::Tcp).0, [""; 0]);
        let capabilities = Caps::of(&[Cap::Bpf, Cap::Perfmon]);
        let new = Facts {
            version: (7, 0),
            capabilities,
            ..good()
        };
        assert_eq!(found(&new, Probe::Syscalls).0, ["skipped_runs"]);
        assert_eq!(found(&new, Probe::Tcp).0, [""; 0]);
    }

    #[test]
    fn hidden_symbols_are_explained() {
        let hidden = Facts {
            kernel_symbols: Symbols::Hidden,
            ..good()
        };
        let text = |facts: &Facts| found(facts, Probe::KernelNames).1;
        let all = Facts {
            kptr_restrict: Some(2),
            ..hidden.clone()
        };
        assert!(text(&all).contains("sysctl kernel.kptr_restrict=1"));
        let some = Facts {
            kptr_restrict: Some(1),
            ..hidden.clone()
        };
        assert!(text(&some).contains("kernel.kptr_restrict is 1, and CAP_SYSLOG"));
        assert!(text(&hidden).contains("perf_event_paranoid is 2"));
        let absent = Facts {
            kernel_symbols: Symbols::Absent,
            ..good()
        };
        assert!(text(&absent).contains("CONFIG_KALLSYMS") && text(&absent).contains("None"));
    }

    #[test]
    fn an_old_kernel_is_not_taken_for_a_filter() {
        let bpf = RefusedCall {
            call: "bpf",
            answer: libc::EPERM,
        };
        let unclear = Facts {
            version: (5, 10),
            seccomp: true,
            refused_calls: vec![bpf],
            capabilities: Caps::default(),
            ..good()
        };
        assert_eq!(found(&unclear, Probe::Tcp).0, ["capability"]);
    }

    #[test]
    fn another_users_process_takes_one_capability_more() {
        let facts = Facts {
            capabilities: Caps::of(&[Cap::SysAdmin]),
            unreadable_pid: Some(42),
            ..good()
        };
        let (names, text) = found(&facts, Probe::Profile);
        assert_eq!(names, ["capability"]);
        assert!(text.contains("needs CAP_SYS_PTRACE"), "{text}");
    }
}
