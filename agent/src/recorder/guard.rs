//! Measures what a run costs, for the overhead guard.

use std::time::{Duration, Instant};

use agent_ebpf::{Counter, Timed, control};

use super::processes;
use crate::guard::{Decision, Guard, Limit, Look, Probe, Report, Step};
use crate::process::priority::Undisturbed;
use crate::process::{self, usage::Pulse};
use crate::session::records::Counters;
use crate::session::{Attached, Error};

/// Time between two looks at least; more where a look takes long.
const PERIOD: Duration = Duration::from_millis(500);
/// A look may take this part of the time.
const PART: u32 = 200;
/// Shortest time that the programs are measured for before a look.
const MEASURED: Duration = Duration::from_millis(50);
/// What the kernel's way to a hook of system calls costs each call of each process, in nanoseconds
/// (docs/overhead.md).
const HOOK: u64 = 40;
/// What is measured now and then.
const TIMED: [Timed; 2] = [Timed::TCP, Timed::SYSCALLS];

/// Watches the cost of a run; without a limit it does nothing.
pub struct Watch {
    guard: Option<Guard>,
    begin: Instant,
    /// When the next look is due.
    next: Duration,
    /// When the last one was.
    last: Duration,
    /// Since when the programs are being measured, and the counters then.
    measuring: Option<(Duration, Counters)>,
    /// The counters at the last look.
    runs: Counters,
    /// Nanoseconds that a run of each of [`TIMED`] took when it was last measured, on average.
    means: [f64; 2],
    /// Nanoseconds that measuring adds to a run.
    clock: f64,
    pulse: Pulse,
    /// Hooks that each system call passes.
    hooks: u64,
    sums: Look,
}

impl Watch {
    /// Begins, with the run. `frequency` is that of the clock, where there is one; `timed`: the
    /// beginnings of system calls are hooked, too.
    ///
    /// # Errors
    /// When the programs cannot be told to measure.
    pub fn begin(
        session: &mut Attached,
        limit: Option<Limit>,
        probes: &[Probe],
        frequency: u64,
        timed: bool,
    ) -> Result<Self, Error> {
        let cpus = session.kernel().cpus.len() as u32;
        let mut pulse = Pulse::default();
        if limit.is_some() {
            session.tell(control::MEASURE, 0)?;
            pulse.look(processes(session));
        }
        Ok(Self {
            guard: limit.map(|limit| Guard::new(limit, probes, cpus, frequency)),
            begin: Instant::now(),
            next: PERIOD,
            last: Duration::ZERO,
            measuring: None,
            runs: Counters::default(),
            means: [0.0; 2],
            clock: process::clock_ns() as f64,
            pulse,
            hooks: if timed { 2 } else { 1 },
            sums: Look::default(),
        })
    }

    /// To be called several times a second. What it decides is to be done at once.
    pub fn tick(&mut self, session: &mut Attached) -> Option<Decision> {
        self.guard.as_ref()?;
        let now = self.begin.elapsed();
        match self.measuring {
            None if now >= self.next => {
                let _undisturbed = Undisturbed::begin();
                self.measuring = Some((now, session.counters()));
                // Where the kernel refuses it now, the next look finds no time: begin() has tried it.
                let _ = session.tell(control::MEASURE, 1);
                None
            }
            Some((since, before)) if now >= since + MEASURED => {
                self.measuring = None;
                let counters = {
                    let _undisturbed = Undisturbed::begin();
                    let _ = session.tell(control::MEASURE, 0);
                    session.counters()
                };
                let measured = self.begin.elapsed() - since;
                let span = self.begin.elapsed() - self.last;
                self.add(&before, &counters, span.div_duration_f64(measured));
                self.last = self.begin.elapsed();
                self.sums.at = self.last.as_nanos() as u64;
                self.sums.agent = process::thread_cpu_ns();
                let (target, waited) = self.pulse.look(processes(session));
                (self.sums.target, self.sums.waited) = (target, waited);
                // Where others have the CPU, a look takes long and costs no more.
                let took = process::thread_cpu_ns().saturating_sub(self.sums.agent);
                self.next = now + PERIOD.max(Duration::from_nanos(took) * PART);
                self.guard.as_mut()?.look(self.sums)
            }
            _ => None,
        }
    }

    /// Adds what the programs took since the last look, of which `before` and `now` saw the part that
    /// was measured, a `times`-th.
    fn add(&mut self, before: &Counters, now: &Counters, times: f64) {
        let grown = |counter| now.get(counter).saturating_sub(before.get(counter));
        for (mean, counters) in self.means.iter_mut().zip(TIMED) {
            let measured = grown(counters.measured);
            if measured > 0 {
                let mean_ns = grown(counters.nanoseconds) as f64 / measured as f64;
                *mean = (mean_ns - self.clock).max(0.0);
            }
        }
        let [tcp_mean, syscall_mean] = self.means;
        let [profile, tcp, syscalls] = &mut self.sums.programs;
        let runs = |counters: Timed| {
            now.get(counters.runs)
                .saturating_sub(self.runs.get(counters.runs)) as f64
        };
        *profile = now.get(Counter::Nanoseconds);
        *tcp += (runs(Timed::TCP) * tcp_mean) as u64;
        *syscalls += (runs(Timed::SYSCALLS) * syscall_mean) as u64;
        let calls = grown(Counter::Calls) as f64 * times;
        self.sums.hooks += (calls * (HOOK * self.hooks) as f64) as u64;
        self.runs = *now;
    }

    /// What it saw and did; `None` without a limit.
    pub fn report(&self) -> Option<&Report> {
        self.guard.as_ref().map(Guard::report)
    }

    /// The last thing that it did.
    pub fn last_step(&self) -> Option<Step> {
        self.report()?.steps.last().cloned()
    }

    /// Whether it has left a probe in place.
    pub fn is_attached(&self, probe: Probe) -> bool {
        let guard = self.guard.as_ref();
        guard.is_none_or(|guard| guard.is_attached(probe))
    }

    /// Whether all probes were detached.
    pub fn has_ended(&self) -> bool {
        self.guard.as_ref().is_some_and(|guard| !guard.has_probes())
    }
}
