//! The overhead guard: what the agent costs, held against its limits. Pure; [`crate::recorder::guard`]
//! measures and does what is decided here.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Limit of `agent profile`, whose cost is the user's choice.
pub const SAMPLING: Limit = Limit { millionths: 10_000 };
/// Limit of the commands whose cost grows with what the target does.
pub const EVENTS: Limit = Limit {
    millionths: 200_000,
};
/// What the agent's own process may take of all CPUs, unless the limit is above [`EVENTS`]: it is an
/// ordinary process, which priorities and control groups hold.
const PROCESS: f64 = 0.1;

/// Looks before it are of the start, which ends by itself: nanoseconds.
const GRACE: u64 = 1_000_000_000;
/// Time over which the cost is added up, and the least that is judged: nanoseconds.
const WINDOW: u64 = 2_000_000_000;
const SHORTEST: u64 = 1_300_000_000;
/// A target that uses less than this part of one CPU is held to use as much: what the agent takes
/// of nearly nothing harms nobody.
const IDLE: u64 = 10;
/// The clock is slowed to a sixteenth at most, in steps of two.
const MAX_DOUBLINGS: u32 = 4;

/// How much the agent may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    millionths: u32,
}

impl Limit {
    /// From percent; `None` for nothing, more than all, and what is no number.
    pub fn percent(percent: f64) -> Option<Self> {
        let millionths = (percent * 1e4).round();
        (1.0..=1e6).contains(&millionths).then_some(Self {
            millionths: millionths as u32,
        })
    }

    /// Share of the target's CPU time that programs in the kernel may take, 0 to 1.
    pub fn target(self) -> f64 {
        f64::from(self.millionths) / 1e6
    }

    /// Share of all CPUs that the agent's process and the way to its hooks may take; and share of one
    /// CPU that the process may take while the target waits for one.
    pub fn process(self) -> f64 {
        if self.millionths > EVENTS.millionths {
            self.target()
        } else {
            PROCESS
        }
    }
}

/// What can be slowed or detached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Probe {
    /// The sampling clock.
    Profile,
    /// The hooks of connections.
    Tcp,
    /// The hooks of system calls.
    Syscalls,
}

impl Probe {
    /// Every one, in the order of their numbers.
    pub const ALL: [Probe; 3] = [Probe::Profile, Probe::Tcp, Probe::Syscalls];

    /// As the subcommand is called.
    pub const fn name(self) -> &'static str {
        match self {
            Probe::Profile => "profile",
            Probe::Tcp => "tcp",
            Probe::Syscalls => "syscalls",
        }
    }
}

/// Which limit was passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The programs' time, of the target's CPU time.
    Target,
    /// The agent's process and the way to its hooks, of all CPUs.
    Machine,
    /// The target's wait for a CPU, as far as the agent's process used one, of the time that passed.
    Waiting,
}

/// Sums since some moment, in nanoseconds. They only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Look {
    /// Since the start of the run.
    pub at: u64,
    /// Time in the programs of each [`Probe`], on behalf of the targets.
    pub programs: [u64; 3],
    /// CPU time of the targets.
    pub target: u64,
    /// Time that their threads could have run and had no CPU, where that is known.
    pub waited: Option<u64>,
    /// CPU time of the agent's main thread.
    pub agent: u64,
    /// What the kernel's way to the hooks of system calls cost all processes.
    pub hooks: u64,
}

/// The cost in a window, as shares of 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Shares {
    /// See [`Cause::Target`].
    pub target: f64,
    /// See [`Cause::Machine`].
    pub machine: f64,
    /// See [`Cause::Waiting`]; 0 where it is not known.
    pub waiting: f64,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The clock's period is to be doubled so many times in all.
    Slow(u32),
    /// The probe is to be taken away.
    Detach(Probe),
}

/// Something that the guard did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// When, in seconds since the start.
    pub at_s: f64,
    /// To which probe.
    pub probe: Probe,
    /// Ticks a second from then on; `None` where it was detached.
    pub hz: Option<f64>,
    /// Why.
    pub cause: Cause,
    /// What the cost was then, 0 to 1.
    pub share: f64,
    /// What it may be.
    pub limit: f64,
}

/// The guard's account of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The limit: share of the target's CPU time.
    pub limit: f64,
    /// The limit of the agent's own process: share of all CPUs.
    pub process_limit: f64,
    /// The largest shares of any window.
    pub worst: Shares,
    /// What it did, in order.
    pub steps: Vec<Step>,
}

impl Report {
    /// Ticks a second at the end, where the clock was slowed.
    pub fn slowed_to(&self) -> Option<f64> {
        self.steps.iter().rev().find_map(|step| step.hz)
    }
}

/// Watches the cost of a run.
#[derive(Clone, Debug)]
pub struct Guard {
    limit: Limit,
    cpus: u32,
    frequency: u64,
    doublings: u32,
    attached: [bool; 3],
    /// Those of the window, the oldest first.
    looks: VecDeque<Look>,
    report: Report,
}

impl Guard {
    /// Of a run with these probes on so many CPUs; `frequency` is that of the clock.
    pub fn new(limit: Limit, probes: &[Probe], cpus: u32, frequency: u64) -> Self {
        Self {
            limit,
            cpus: cpus.max(1),
            frequency,
            doublings: 0,
            attached: Probe::ALL.map(|probe| probes.contains(&probe)),
            looks: VecDeque::new(),
            report: Report {
                limit: limit.target(),
                process_limit: limit.process(),
                ..Report::default()
            },
        }
    }

    /// What it saw and did.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Whether a probe is watched that was not detached.
    pub fn is_attached(&self, probe: Probe) -> bool {
        self.attached.get(probe as usize) == Some(&true)
    }

    /// Whether a probe is left.
    pub fn has_probes(&self) -> bool {
        self.attached.contains(&true)
    }

    /// Takes in what was measured, and says what is to be done. It counts as done.
    pub fn look(&mut self, look: Look) -> Option<Decision> {
        if look.at < GRACE {
            return None;
        }
        self.looks.push_back(look);
        let old = |other: Option<&Look>| other.is_some_and(|other| look.at - other.at >= WINDOW);
        while old(self.looks.get(1)) {
            self.looks.pop_front();
        }
        let grown = growth(*self.looks.front()?, look);
        if grown.at < SHORTEST {
            return None;
        }
        let shares = self.shares(&grown);
        let worst = &mut self.report.worst;
        worst.target = worst.target.max(shares.target);
        worst.machine = worst.machine.max(shares.machine);
        worst.waiting = worst.waiting.max(shares.waiting);
        self.decide(look.at, shares, &grown)
    }

    fn shares(&self, grown: &Look) -> Shares {
        let share = |part: u64, of: u64| part as f64 / of.max(1) as f64;
        let programs: u64 = grown.programs.iter().sum();
        let target = grown.target.max(grown.at / IDLE);
        let waited = grown.waited.unwrap_or(0);
        Shares {
            target: share(programs, target),
            machine: share(
                grown.agent + grown.hooks,
                grown.at.saturating_mul(u64::from(self.cpus)),
            ),
            waiting: share(waited.min(grown.agent), grown.at),
        }
    }

    fn decide(&mut self, at: u64, shares: Shares, grown: &Look) -> Option<Decision> {
        let process = self.limit.process();
        let (cause, share, limit) = [
            (Cause::Target, shares.target, self.limit.target()),
            (Cause::Machine, shares.machine, process),
            (Cause::Waiting, shares.waiting, process),
        ]
        .into_iter()
        .max_by(|a, b| (a.1 / a.2).total_cmp(&(b.1 / b.2)))
        .filter(|(_, share, limit)| share > limit)?;
        let probe = self.costliest(cause, grown)?;
        self.looks.clear();
        let most = self.frequency.max(1).ilog2().min(MAX_DOUBLINGS);
        let decision = if probe == Probe::Profile && self.doublings < most {
            let needed = (share / limit).log2().ceil().max(1.0) as u32;
            self.doublings = (self.doublings + needed).min(most);
            Decision::Slow(self.doublings)
        } else {
            if let Some(attached) = self.attached.get_mut(probe as usize) {
                *attached = false;
            }
            Decision::Detach(probe)
        };
        self.report.steps.push(Step {
            at_s: (at / 1_000_000) as f64 / 1e3,
            probe,
            hz: match decision {
                Decision::Slow(doublings) => {
                    Some(self.frequency as f64 / f64::from(1u32 << doublings))
                }
                Decision::Detach(_) => None,
            },
            cause,
            share,
            limit,
        });
        Some(decision)
    }

    /// The probe to act upon.
    fn costliest(&self, cause: Cause, grown: &Look) -> Option<Probe> {
        let hooks = cause == Cause::Machine && grown.hooks > grown.agent;
        if hooks && self.is_attached(Probe::Syscalls) {
            return Some(Probe::Syscalls);
        }
        let cost = |probe: &Probe| grown.programs.get(*probe as usize).copied();
        let attached = Probe::ALL
            .into_iter()
            .filter(|&probe| self.is_attached(probe));
        attached.max_by_key(cost)
    }
}

/// What came between two looks.
fn growth(first: Look, last: Look) -> Look {
    let mut programs = last.programs;
    for (now, before) in programs.iter_mut().zip(first.programs) {
        *now = now.saturating_sub(before);
    }
    Look {
        at: last.at.saturating_sub(first.at),
        programs,
        target: last.target.saturating_sub(first.target),
        waited: last
            .waited
            .zip(first.waited)
            .map(|(now, before)| now.saturating_sub(before)),
        agent: last.agent.saturating_sub(first.agent),
        hooks: last.hooks.saturating_sub(first.hooks),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;

    const MS: u64 = 1_000_000;

    /// Looks twice a second at costs that grow by so much a second, from the start on.
    fn run(guard: &mut Guard, from_ms: u64, to_ms: u64, each_second: Look) -> Vec<(u64, Decision)> {
        let times = (from_ms / 500..=to_ms / 500).map(|half| half * 500);
        let scaled = |at: u64, value: u64| value * at / 1000;
        times
            .filter_map(|at| {
                let look = Look {
                    at: at * MS,
                    programs: each_second.programs.map(|value| scaled(at, value)),
                    target: scaled(at, each_second.target),
                    waited: each_second.waited.map(|value| scaled(at, value)),
                    agent: scaled(at, each_second.agent),
                    hooks: scaled(at, each_second.hooks),
                };
                Some((at, guard.look(look)?))
            })
            .collect()
    }

    fn guard(limit: Limit, probes: &[Probe]) -> Guard {
        Guard::new(limit, probes, 2, 999)
    }

    #[test]
    fn what_is_below_the_limits_is_left_alone() {
        let mut guard = guard(EVENTS, &[Probe::Tcp]);
        let cost = Look {
            programs: [0, 190 * MS, 0],
            target: 1000 * MS,
            waited: Some(500 * MS),
            agent: 100 * MS,
            ..Look::default()
        };
        assert_eq!(run(&mut guard, 0, 20_000, cost), []);
        let worst = guard.report().worst;
        assert!((worst.target - 0.19).abs() < 1e-6, "{worst:?}");
        assert!((worst.machine - 0.05).abs() < 1e-6, "{worst:?}");
        assert!((worst.waiting - 0.1).abs() < 1e-6, "{worst:?}");
    }

    #[test]
    fn a_probe_of_events_is_detached_within_three_seconds() {
        let mut guard = guard(EVENTS, &[Probe::Syscalls]);
        let cost = Look {
            programs: [0, 0, 400 * MS],
            target: 1000 * MS,
            ..Look::default()
        };
        let done = run(&mut guard, 0, 10_000, cost);
        assert_eq!(done, [(2500, Decision::Detach(Probe::Syscalls))]);
        assert!(!guard.has_probes());
        let step = &guard.report().steps[0];
        assert_eq!((step.cause, step.hz), (Cause::Target, None));
        assert!((step.share - 0.4).abs() < 1e-6);
    }

    #[test]
    fn the_clock_is_slowed_by_what_is_needed_and_detached_at_last() {
        let mut guard = guard(SAMPLING, &[Probe::Profile]);
        let cost = Look {
            programs: [30 * MS, 0, 0],
            target: 1000 * MS,
            ..Look::default()
        };
        // Three times the limit: a quarter of the frequency. The cost of this test does not fall.
        let done = run(&mut guard, 0, 10_000, cost);
        let expected = [
            (2500, Decision::Slow(2)),
            (4500, Decision::Slow(4)),
            (6500, Decision::Detach(Probe::Profile)),
        ];
        assert_eq!(done, expected);
        assert_eq!(guard.report().slowed_to(), Some(999.0 / 16.0));
    }

    #[test]
    fn a_clock_ticks_once_a_second_at_least() {
        let mut guard = Guard::new(SAMPLING, &[Probe::Profile], 1, 3);
        let cost = Look {
            programs: [500 * MS, 0, 0],
            target: 1000 * MS,
            ..Look::default()
        };
        let done = run(&mut guard, 0, 3000, cost);
        assert_eq!(done, [(2500, Decision::Slow(1))]);
    }

    #[test]
    fn the_costliest_probe_goes_first() {
        let mut guard = guard(EVENTS, &Probe::ALL);
        let cost = Look {
            programs: [MS, 100 * MS, 120 * MS],
            target: 1000 * MS,
            ..Look::default()
        };
        let done = run(&mut guard, 0, 3000, cost);
        assert_eq!(done, [(2500, Decision::Detach(Probe::Syscalls))]);
        let rest = Look {
            programs: [MS, 100 * MS, 0],
            ..cost
        };
        assert_eq!(run(&mut guard, 3000, 9000, rest), []);
        assert!(guard.has_probes());
    }

    #[test]
    fn a_burst_is_no_runaway() {
        let mut guard = guard(EVENTS, &[Probe::Syscalls]);
        let mut at = |ms: u64, cost: u64| {
            guard.look(Look {
                at: ms * MS,
                programs: [0, 0, cost * MS],
                target: ms * MS,
                ..Look::default()
            })
        };
        // 250 ms at once in two seconds, and in the first second whatever there was.
        for (ms, cost) in [
            (500, 400),
            (1000, 500),
            (1500, 750),
            (2000, 750),
            (2500, 750),
        ] {
            assert_eq!(at(ms, cost), None, "{ms}");
        }
    }

    #[test]
    fn an_idle_target_is_counted_as_a_tenth_of_a_cpu() {
        let mut guard = guard(SAMPLING, &[Probe::Profile]);
        let cost = Look {
            programs: [MS / 2, 0, 0],
            target: MS,
            ..Look::default()
        };
        assert_eq!(run(&mut guard, 0, 5000, cost), []);
        assert!((guard.report().worst.target - 0.005).abs() < 1e-6);
    }

    #[test]
    fn a_busy_agent_is_stopped_where_it_takes_the_machine_or_makes_the_target_wait() {
        let mut busy = guard(SAMPLING, &[Probe::Profile]);
        let cost = Look {
            target: 1000 * MS,
            agent: 300 * MS,
            ..Look::default()
        };
        let done = run(&mut busy, 0, 3000, cost);
        assert_eq!(done, [(2500, Decision::Slow(1))]);
        assert_eq!(busy.report().steps[0].cause, Cause::Machine);
        // Of 64 CPUs that is nothing; but the two share one.
        let mut shared = Guard::new(SAMPLING, &[Probe::Profile], 64, 999);
        assert_eq!(run(&mut shared, 0, 3000, cost), []);
        let waits = Look {
            target: 700 * MS,
            waited: Some(300 * MS),
            ..cost
        };
        let mut shared = Guard::new(SAMPLING, &[Probe::Profile], 64, 999);
        run(&mut shared, 0, 3000, waits);
        assert_eq!(shared.report().steps[0].cause, Cause::Waiting);
    }

    #[test]
    fn the_way_to_the_hooks_is_the_syscall_probes() {
        let mut guard = guard(EVENTS, &Probe::ALL);
        let cost = Look {
            programs: [0, 30 * MS, 0],
            target: 1000 * MS,
            hooks: 400 * MS,
            ..Look::default()
        };
        let done = run(&mut guard, 0, 3000, cost);
        assert_eq!(done, [(2500, Decision::Detach(Probe::Syscalls))]);
    }

    #[test]
    fn limits_are_more_than_nothing_and_at_most_all() {
        assert_eq!(Limit::percent(1.0), Some(SAMPLING));
        assert_eq!(Limit::percent(20.0), Some(EVENTS));
        assert!((Limit::percent(25.0).unwrap().process() - 0.25).abs() < 1e-9);
        assert!((SAMPLING.process() - 0.1).abs() < 1e-9);
        for bad in [0.0, -1.0, 100.1, f64::NAN, f64::INFINITY, 1e-9] {
            assert_eq!(Limit::percent(bad), None, "{bad}");
        }
    }
}
