//! Measures what a run costs, for the overhead guard.

use std::time::{Duration, Instant};

use agent_ebpf::{Counter, control};

use super::pids;
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
const MEASURED: Duration = Duration::from_millis(20);
/// What the kernel's way to a hook of system calls costs each call of each process, in nanoseconds
/// (docs/overhead.md).
const HOOK: u64 = 40;

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
            pulse.look(pids(session));
        }
        Ok(Self {
            guard: limit.map(|limit| Guard::new(limit, probes, cpus, frequency)),
            begin: Instant::now(),
            next: PERIOD,
            last: Duration::ZERO,
            measuring: None,
            pulse,
            hooks: if timed { 2 } else { 1 },
            sums: Look::default(),
        })
    }

    /// To be called several times a second. What it decides is to be done at once.
    pub fn tick(&mut self, session: &mut Attached) -> Option<Decision> {
        if self.guard.is_none() {
            return None;
        }
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
                let (target, waited) = self.pulse.look(pids(session));
                (self.sums.target, self.sums.waited) = (target, waited);
                // Where others have the CPU, a look takes long and costs no more.
                let took = process::thread_cpu_ns().saturating_sub(self.sums.agent);
                self.next = now + PERIOD.max(Duration::from_nanos(took) * PART);
                self.guard.as_mut()?.look(self.sums)
            }
            _ => None,
        }
    }

    /// Adds what the programs took: the clock's all the time, the others' in a part of it.
    fn add(&mut self, before: &Counters, now: &Counters, times: f64) {
        let grown = |counter| now.get(counter).saturating_sub(before.get(counter)) as f64 * times;
        let [profile, tcp, syscalls] = &mut self.sums.programs;
        *profile = now.get(Counter::Nanoseconds);
        *tcp += grown(Counter::TcpNanoseconds) as u64;
        *syscalls += grown(Counter::SyscallNanoseconds) as u64;
        self.sums.hooks += (grown(Counter::Calls) * (HOOK * self.hooks) as f64) as u64;
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
