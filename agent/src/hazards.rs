//! What kernels do that the agent must know, as data: where it holds, what would follow, and what is
//! done instead. The code asks here; a version stands nowhere else.

/// The oldest kernel with all that is needed: the ring buffer (5.8), array maps of different sizes in
/// a map of maps and iterators over files (5.10).
pub const OLDEST: Version = (5, 10);

/// Major and minor number.
pub type Version = (u32, u32);

/// Where a hazard holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Where {
    /// On kernels before this one.
    Before(u32, u32),
    /// On this one and later ones.
    Since(u32, u32),
    /// On all kernels.
    Everywhere,
    /// Where this turns out when it is tried: what is tried.
    Tried(&'static str),
}

/// Something that a kernel does, or does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hazard {
    /// A short stable name.
    pub name: &'static str,
    /// The kernels that have it.
    pub kernels: Where,
    /// The commands that meet it.
    pub probes: &'static [&'static str],
    /// What would follow.
    pub consequence: &'static str,
    /// What is done instead.
    pub instead: &'static str,
    /// Where it is known from: the kernel's source, or our measurement.
    pub source: &'static str,
    /// The test that shows what is done, as a path of modules; `suite` is tests/suite.
    pub test: &'static str,
}

impl Hazard {
    /// Whether it must be reckoned with on a kernel of this version. What has to be tried may hold
    /// anywhere.
    pub const fn holds(&self, version: Version) -> bool {
        match self.kernels {
            Where::Before(major, minor) => is_before(version, (major, minor)),
            Where::Since(major, minor) => !is_before(version, (major, minor)),
            Where::Everywhere | Where::Tried(_) => true,
        }
    }
}

const fn is_before(version: Version, other: Version) -> bool {
    version.0 < other.0 || version.0 == other.0 && version.1 < other.1
}

const EVERY: &[&str] = &["profile", "tcp", "syscalls"];

/// Old kernels lack what everything is built on.
pub const TOO_OLD: Hazard = Hazard {
    name: "too_old",
    kernels: Where::Before(OLDEST.0, OLDEST.1),
    probes: EVERY,
    consequence: "maps and iterators that the programs need do not exist",
    instead: "the agent refuses to start, and says so",
    source: "include/uapi/linux/bpf.h: BPF_F_INNER_MAP, BPF_MAP_TYPE_RINGBUF",
    test: "preflight::checks::tests::every_check_finds_its_own",
};

/// BPF memory counts against a limit of the user's.
pub const MEMLOCK: Hazard = Hazard {
    name: "memlock",
    kernels: Where::Before(5, 11),
    probes: EVERY,
    consequence: "maps are charged to RLIMIT_MEMLOCK, and creating one fails with EPERM",
    instead: "maps that a command does not use have one entry; the error names the limit",
    source: "kernel/bpf/syscall.c: bpf_map_charge_init, gone in 5.11",
    test: "preflight::refusal::tests::each_suspect_is_found",
};

/// The saved registers of a task cannot be asked for.
pub const NO_TASK_PT_REGS: Hazard = Hazard {
    name: "no_task_pt_regs",
    kernels: Where::Before(5, 15),
    probes: &["profile", "syscalls"],
    consequence: "the verifier refuses a program that calls bpf_task_pt_regs",
    instead: "the registers are read from the top of the kernel stack",
    source: "include/uapi/linux/bpf.h: bpf_task_pt_regs, since 5.15",
    test: "suite::completeness::kernel_mode",
};

/// Skipped runs are not counted by the kernel.
pub const NO_RECURSION_MISSES: Hazard = Hazard {
    name: "no_recursion_misses",
    kernels: Where::Before(5, 12),
    probes: EVERY,
    consequence: "runs that the kernel skipped are not told",
    instead: "they count as none; ticks are held against frequency and time",
    source: "kernel/bpf/syscall.c: recursion_misses in the fdinfo of a program, since 5.12",
    test: "process::own::tests::where_skipped_runs_are_not_told_there_are_none",
};

/// A sendfile does not pass the function that other sends pass.
pub const SENDPAGE: Hazard = Hazard {
    name: "sendpage",
    kernels: Where::Before(6, 5),
    probes: &["tcp"],
    consequence: "answers sent by sendfile would not be seen",
    instead: "do_tcp_sendpages is hooked, too",
    source: "net/ipv4/tcp.c: do_tcp_sendpages, gone in 6.5",
    test: "suite::hazards::answers_by_sendfile_are_seen",
};

/// Programs at raw tracepoints are preempted and do not nest.
pub const PREEMPTED_TRACEPOINTS: Hazard = Hazard {
    name: "preempted_tracepoints",
    kernels: Where::Since(7, 0),
    probes: &["tcp", "syscalls"],
    consequence: "while a thread is preempted in a program, the kernel skips it for other threads of that CPU",
    instead: "failing calls are counted at the perf event of the tracepoint, which is not preempted; what is \
              skipped of connections is counted as programs_skipped; a run is measured with 10 µs at most",
    source: "our measurement on 7.2; kernel/trace/bpf_trace.c: __bpf_trace_run",
    test: "suite::syscalls::exact::the_hook_is_a_perf_event_where_the_kernel_preempts_the_other",
};

/// The list of a least-recently-used map is locked with a plain lock.
pub const LRU_IN_NMI: Hazard = Hazard {
    name: "lru_in_nmi",
    kernels: Where::Everywhere,
    probes: &["record"],
    consequence: "a tick of hardware cycles is an NMI: where it inserts into the map of seen stacks while a \
                  program at a system call does, on the same CPU, the kernel hangs",
    instead: "with --stacks the clock is the timer's, which the lock keeps away",
    source: "kernel/bpf/bpf_lru_list.c: bpf_lru_pop_free takes loc_l->lock by raw_spin_lock_irqsave",
    test: "suite::hazards::no_cycles_beside_stacks_of_failing_calls",
};

/// The ring buffer does not wait in an NMI.
pub const RING_IN_NMI: Hazard = Hazard {
    name: "ring_in_nmi",
    kernels: Where::Everywhere,
    probes: &["profile", "record"],
    consequence: "a tick of hardware cycles finds the ring buffer locked and gets no room",
    instead: "the sample is counted as lost, ring_full",
    source: "kernel/bpf/ringbuf.c: __bpf_ringbuf_reserve",
    test: "suite::accounting::ticks_balance_to_the_tick",
};

/// A map of maps is updated slowly.
pub const SLOW_MAP_OF_MAPS: Hazard = Hazard {
    name: "slow_map_of_maps",
    kernels: Where::Everywhere,
    probes: &["profile", "record"],
    consequence: "each update waits for an RCU grace period, 4 to 18 ms; a storm of forks would stop the agent",
    instead: "updates are queued, shared by equal processes, and done for 50 ms a look at most",
    source: "kernel/bpf/syscall.c: maybe_wait_bpf_programs; our measurement",
    test: "suite::lifecycle::a_storm_of_short_programs_is_followed",
};

/// User memory that is not there is not fetched.
pub const NO_PAGE_FAULTS: Hazard = Hazard {
    name: "no_page_faults",
    kernels: Where::Everywhere,
    probes: &["profile", "syscalls"],
    consequence: "words of a stack or an argument that are paged out cannot be read",
    instead: "the stack ends as read_fault, the path is shown as (unreadable path)",
    source: "kernel/trace/bpf_trace.c: bpf_probe_read_user_common, with page faults disabled",
    test: "suite::syscalls::arguments_say_what_failed",
};

/// perf lowers its own rate, and drops ticks.
pub const PERF_THROTTLING: Hazard = Hazard {
    name: "perf_throttling",
    kernels: Where::Everywhere,
    probes: &["profile", "record"],
    consequence: "above perf_event_max_sample_rate, which the kernel lowers under load, ticks do not come",
    instead: "a frequency above it is refused; ticks are held against frequency, time and CPUs",
    source: "kernel/events/core.c: perf_sample_event_took, __perf_event_account_interrupt",
    test: "suite::bad_input::frequency_out_of_range",
};

/// Machines without a counter of cycles.
pub const NO_CYCLES: Hazard = Hazard {
    name: "no_cycles",
    kernels: Where::Tried("perf_event_open of hardware cycles"),
    probes: &["profile", "record"],
    consequence: "many virtual machines have no hardware counters: the event is refused",
    instead: "the kernel's timer is the clock, cpu-clock",
    source: "perf_event_open(2): ENOENT, EOPNOTSUPP",
    test: "suite::hazards::without_hardware_counters_the_clock_is_the_timer",
};

/// Functions cannot be hooked.
pub const NO_FENTRY: Hazard = Hazard {
    name: "no_fentry",
    kernels: Where::Tried("loading the program of inet_csk_accept"),
    probes: &["tcp"],
    consequence: "kernels without trampolines or function tracing refuse fentry and fexit programs",
    instead: "tracepoints where there are any; the wait in the accept queue is null and named as not seen",
    source: "kernel/bpf/trampoline.c; our measurement",
    test: "suite::tcp::life::the_wait_to_be_accepted_is_measured",
};

/// Perf events of tracepoints are numbered in tracefs.
pub const NO_TRACEFS: Hazard = Hazard {
    name: "no_tracefs",
    kernels: Where::Tried("mounting tracefs where nobody sees it"),
    probes: &["syscalls"],
    consequence: "without the right to mount the number of the perf event is not known",
    instead: "the raw tracepoint is used, and what is skipped is counted",
    source: "fsopen(2): CAP_SYS_ADMIN",
    test: "suite::hazards::failing_calls_are_counted_without_the_right_to_mount",
};

/// A hook of system calls slows every call.
pub const SLOW_SYSCALL_PATH: Hazard = Hazard {
    name: "slow_syscall_path",
    kernels: Where::Everywhere,
    probes: &["syscalls", "record"],
    consequence: "with any program at sys_exit every call of every process takes the kernel's slow way out, some 40 ns",
    instead: "the program looks at the result first; calls are counted into the overhead guard's account",
    source: "kernel/entry/common.c: SYSCALL_WORK_SYSCALL_TRACEPOINT; our measurement",
    test: "guard::tests::the_way_to_the_hooks_is_the_syscall_probes",
};

/// All of them.
pub const ALL: [Hazard; 15] = [
    TOO_OLD,
    MEMLOCK,
    NO_RECURSION_MISSES,
    NO_TASK_PT_REGS,
    SENDPAGE,
    PREEMPTED_TRACEPOINTS,
    LRU_IN_NMI,
    RING_IN_NMI,
    SLOW_MAP_OF_MAPS,
    NO_PAGE_FAULTS,
    PERF_THROTTLING,
    NO_CYCLES,
    NO_FENTRY,
    NO_TRACEFS,
    SLOW_SYSCALL_PATH,
];

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;
    use std::collections::HashSet;
    use std::fs;
    use std::path::{Path, PathBuf};

    /// The file of a module, `a::b` in `a/b.rs`, or of the module around it.
    fn file_of(test: &str) -> Option<(PathBuf, String)> {
        let (path, name) = test.rsplit_once("::")?;
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let base = match path.split_once("::") {
            Some(("suite", _)) => root.join("../tests"),
            _ => root.join("src"),
        };
        let mut place = base.join(path.replace("::", "/"));
        while place.starts_with(&base) {
            let file = place.with_extension("rs");
            if file.is_file() {
                return Some((file, name.to_owned()));
            }
            place.pop();
        }
        None
    }

    #[test]
    fn each_row_has_a_test_that_exists() {
        for hazard in ALL {
            let (file, name) = file_of(hazard.test).unwrap_or_else(|| panic!("{}", hazard.test));
            let source = fs::read_to_string(&file).unwrap();
            let (_, after) = source
                .split_once(&format!("fn {name}("))
                .unwrap_or_else(|| panic!("no {name} in {}", file.display()));
            assert!(!after.is_empty() && source.contains("#[test]"));
        }
    }

    #[test]
    fn rows_are_whole_and_told_apart() {
        let names: HashSet<&str> = ALL.iter().map(|hazard| hazard.name).collect();
        assert_eq!(names.len(), ALL.len());
        for hazard in ALL {
            let texts = [hazard.consequence, hazard.instead, hazard.source];
            assert!(texts.iter().all(|text| !text.is_empty()), "{}", hazard.name);
            assert!(!hazard.probes.is_empty(), "{}", hazard.name);
        }
    }

    #[test]
    fn versions_have_edges() {
        assert!(SENDPAGE.holds((5, 15)) && SENDPAGE.holds((6, 4)) && !SENDPAGE.holds((6, 5)));
        assert!(!PREEMPTED_TRACEPOINTS.holds((6, 18)) && PREEMPTED_TRACEPOINTS.holds((7, 0)));
        assert!(NO_TASK_PT_REGS.holds((5, 14)) && !NO_TASK_PT_REGS.holds((5, 15)));
        assert!(TOO_OLD.holds((4, 19)) && TOO_OLD.holds((5, 9)) && !TOO_OLD.holds(OLDEST));
        assert!(MEMLOCK.holds((5, 10)) && !MEMLOCK.holds((5, 11)));
        assert!(NO_CYCLES.holds((6, 1)) && LRU_IN_NMI.holds((7, 2)));
    }
}
