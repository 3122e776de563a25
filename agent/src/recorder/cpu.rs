//! Sampled stacks: from the start of the clock to the profile.

use std::time::{Duration, Instant};

use agent_ebpf::Counter;

use crate::capture::redact;
use crate::naming;
use crate::probe::cpu::{self, Clock, Samples, Ticker};
use crate::probe::syscalls::target_facts;
use crate::process;
use crate::profile::{Accounting, Cost, Facts, Profile};
use crate::session::target::Targets;
use crate::session::{Attached, Error};

/// The clock runs.
pub struct Cpu {
    ticker: Ticker,
    frequency: u64,
    begin: Instant,
    samples: Samples,
    skipped: u64,
    /// How long the clock ran.
    ran: Option<Duration>,
}

impl Cpu {
    /// Starts the clock; `cycles`: it may be one of hardware cycles.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn attach(session: &mut Attached, frequency: u64, cycles: bool) -> Result<Self, Error> {
        let ticker = cpu::attach(session, frequency, cycles)?;
        let begin = Instant::now();
        Ok(Self {
            ticker,
            frequency,
            begin,
            samples: Samples::since(begin),
            skipped: 0,
            ran: None,
        })
    }

    /// What the clock is.
    pub fn clock(&self) -> Clock {
        self.ticker.clock
    }

    /// Doubles the clock's period so many times in all; see [`Ticker::slow`].
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn slow(&mut self, session: &mut Attached, doublings: u32) -> Result<(), Error> {
        self.ticker.slow(session, doublings)
    }

    /// When the clock ran on every CPU.
    pub fn begin(&self) -> Instant {
        self.begin
    }

    /// Samples so far.
    pub fn samples(&self) -> u64 {
        self.samples.total()
    }

    /// The samples, for who takes parts of them away.
    pub fn samples_mut(&mut self) -> &mut Samples {
        &mut self.samples
    }

    /// Takes in one record of the ring buffer.
    pub fn take(&mut self, bytes: &[u8], targets: &Targets) {
        self.samples.take(bytes, targets);
    }

    /// Stops the clock, if it still runs, and gives the time that it ran.
    ///
    /// # Errors
    /// When the bytecode does not hold the program.
    pub fn detach(&mut self, session: &mut Attached) -> Result<Duration, Error> {
        if let Some(ran) = self.ran {
            return Ok(ran);
        }
        self.skipped = self.ticker.detach(session)?;
        let ran = self.begin.elapsed();
        self.ran = Some(ran);
        Ok(ran)
    }

    /// How long the clock ran, or has run so far.
    pub fn ran(&self) -> Duration {
        self.ran.unwrap_or_else(|| self.begin.elapsed())
    }

    /// Keeps the symbols of BPF programs if stacks may need them: to be called after the end of the
    /// clock, before the programs are unloaded.
    pub fn keep_symbols(&self) {
        if self.samples.has_kernel_stacks() {
            process::keep_symbols_of_programs();
        }
    }

    /// The samples with their names, the account of the ticks and the cost. `facts` are those of
    /// [`facts`]; what the clock knows is added.
    pub fn profile(&self, session: &Attached, facts: Facts) -> Profile {
        let mut profile = Profile::default();
        naming::name(&mut profile, &self.samples, session.targets());
        self.describe(&mut profile, session, facts);
        profile.timeline = self.samples.timeline(profile.facts.duration_seconds);
        profile
    }

    /// Adds the facts, the account of the ticks since the begin and the cost to a profile of samples,
    /// whose notes stay.
    pub fn describe(&self, profile: &mut Profile, session: &Attached, facts: Facts) {
        profile.facts = Facts {
            event: self.clock().name().to_owned(),
            frequency: self.frequency,
            ..facts
        };
        let noted = std::mem::take(&mut profile.accounting.notes);
        profile.accounting = self.accounting(session, &profile.facts);
        profile.accounting.notes.extend(noted);
        profile.cost = cost(session);
    }

    /// Where every tick went. Samples that reached us but could not be read are a loss like any
    /// other.
    fn accounting(&self, session: &Attached, facts: &Facts) -> Accounting {
        let counters = session.counters();
        let undecoded = self.samples.undecoded;
        let mut accounting = Accounting {
            ticks: counters.get(Counter::Ticks),
            idle: counters.get(Counter::Idle),
            other: counters.get(Counter::Other),
            emitted: counters.get(Counter::Emitted) - undecoded.min(counters.get(Counter::Emitted)),
            expected_ticks: (self.ran().as_secs_f64() * facts.frequency as f64).round() as u64
                * u64::from(facts.cpus),
            recursion_misses: self.skipped,
            frame_pointer_frames: counters.get(Counter::FramePointerFallback),
            ..Accounting::default()
        };
        for counter in [Counter::LostRingFull, Counter::LostScratchBusy] {
            let count = counters.get(counter);
            accounting.lost.insert(counter.name().into(), count);
        }
        accounting.lost.insert("undecoded".into(), undecoded);
        for counter in [
            Counter::LostChild,
            Counter::LostProcessRecord,
            Counter::IdReused,
        ] {
            if counters.get(counter) > 0 {
                let cause = counter.name().replace('_', " ");
                accounting.notes.insert(cause, counters.get(counter));
            }
        }
        accounting.notes.extend(session.targets().notes());
        accounting
    }
}

/// The circumstances of a run that began at `started` (seconds since the epoch), sampled or not.
pub fn facts(session: &Attached, started: u64, duration: Duration, ended: &str) -> Facts {
    let words: Vec<String> = std::env::args_os()
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    Facts {
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        command_line: redact::command_line(&words),
        kernel: session.kernel().name.clone(),
        cpus: session.kernel().cpus.len() as u32,
        started,
        duration_seconds: duration.as_secs_f64(),
        targets: session.targets().list().iter().map(target_facts).collect(),
        ended: ended.to_owned(),
        ..Facts::default()
    }
}

/// What the agent has taken so far.
fn cost(session: &Attached) -> Cost {
    let (cpu_seconds, peak_rss_bytes) = process::own_usage();
    let counters = session.counters();
    let samples = counters.get(Counter::Samples);
    let per_sample = |total: u64| (samples > 0).then(|| total as f64 / samples as f64);
    Cost {
        cpu_seconds,
        peak_rss_bytes,
        bpf_map_bytes: Some(session.map_bytes()),
        bpf_ns_per_sample: per_sample(counters.get(Counter::Nanoseconds)),
        bytes_per_sample: per_sample(session.bytes()),
    }
}
