//! CPU sampling: the clock on every CPU, and what its records say.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Instant;

use agent_ebpf::{End, SampleRecord, StackRecord, control, record};
use aya::maps::{HashMap as BpfMap, MapData};
use aya::programs::PerfEvent;
use perf_event_open_sys::bindings::{
    PERF_COUNT_HW_CPU_CYCLES, PERF_COUNT_SW_CPU_CLOCK, PERF_TYPE_HARDWARE, PERF_TYPE_SOFTWARE,
};

use super::{syscalls, tcp};
use crate::session::event::{Event, Sampling};
use crate::session::target::Targets;
use crate::session::{Attached, Error, Needs, program_mut, take};

/// The clock that drives the sampling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// Hardware CPU cycles: halted CPUs do not tick.
    Cycles,
    /// The kernel's per-CPU high-resolution timer.
    CpuClock,
}

impl Clock {
    /// As `perf list` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Clock::Cycles => "cycles",
            Clock::CpuClock => "cpu-clock",
        }
    }

    /// `type` and `config` of perf_event_open(2).
    const fn event(self) -> (u32, u64) {
        match self {
            Clock::Cycles => (PERF_TYPE_HARDWARE, PERF_COUNT_HW_CPU_CYCLES as u64),
            Clock::CpuClock => (PERF_TYPE_SOFTWARE, PERF_COUNT_SW_CPU_CLOCK as u64),
        }
    }

    /// How often it ticks: `frequency` times a second, its period doubled so many times.
    const fn sampling(self, frequency: u64, doublings: u32) -> Sampling {
        match self {
            // The kernel looks for the period that fits.
            Clock::Cycles => Sampling::Frequency(frequency >> doublings),
            Clock::CpuClock => Sampling::Period((NANOSECONDS / frequency) << doublings),
        }
    }
}

const NANOSECONDS: u64 = 1_000_000_000;
const PROGRAM: &str = "cpu_sample";

/// The clock on every CPU, running.
#[derive(Debug)]
pub struct Ticker {
    /// What it is.
    pub clock: Clock,
    frequency: u64,
    doublings: u32,
    events: Vec<Event>,
}

/// What the session must provide.
pub fn needs() -> Needs {
    Needs {
        stacks: true,
        unused_maps: vec![tcp::MAPS, syscalls::MAPS],
        ..Needs::default()
    }
}

/// Starts sampling on every CPU, at least once a second: by hardware cycles where the machine counts
/// them and `cycles` allows it.
///
/// # Errors
/// When the kernel refuses the program, or both clocks.
pub fn attach(session: &mut Attached, frequency: u64, cycles: bool) -> Result<Ticker, Error> {
    let cpus = session.kernel().cpus.clone();
    let sampler: &mut PerfEvent = program_mut(session.ebpf(), PROGRAM)?;
    sampler.load().map_err(|source| Error::Program {
        program: PROGRAM,
        source: Box::new(source),
    })?;
    let program = sampler.fd().map_err(|source| Error::Program {
        program: PROGRAM,
        source: Box::new(source),
    })?;
    let start = |clock: Clock, cpu: u32| {
        let (kind, config) = clock.event();
        let event = Event::open(kind, config, clock.sampling(frequency, 0), cpu)?;
        event.run(&program.as_fd().as_raw_fd())?;
        event.start()?;
        Ok(event)
    };
    let mut ticker = Ticker {
        clock: Clock::CpuClock,
        frequency,
        doublings: 0,
        events: Vec::new(),
    };
    let first = cpus.first().copied().unwrap_or(0);
    if cycles && let Ok(event) = start(Clock::Cycles, first) {
        ticker.clock = Clock::Cycles;
        ticker.events.push(event);
    }
    for &cpu in cpus.iter().skip(ticker.events.len()) {
        let event = start(ticker.clock, cpu).map_err(|source: io::Error| Error::Clock {
            clock: ticker.clock.name(),
            cpu,
            source,
        })?;
        ticker.events.push(event);
    }
    Ok(ticker)
}

impl Ticker {
    /// Doubles its period so many times in all, at most [`control::MAX_DOUBLINGS`]; a tick counts for
    /// as many of before. Asks for no privilege.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn slow(&mut self, session: &mut Attached, doublings: u32) -> Result<(), Error> {
        let failed = |source| Error::Io {
            what: "cannot slow the sampling clock",
            source,
        };
        // No tick may come by the one period and be counted by the other.
        for event in &self.events {
            event.stop().map_err(failed)?;
        }
        session.tell(control::DOUBLINGS, doublings)?;
        self.doublings = doublings;
        for event in &self.events {
            let sampling = self.clock.sampling(self.frequency, doublings);
            event.change(sampling).map_err(failed)?;
            event.start().map_err(failed)?;
        }
        Ok(())
    }

    /// Ticks a second on each CPU now.
    pub fn frequency(&self) -> f64 {
        self.frequency as f64 / f64::from(1u32 << self.doublings)
    }

    /// Stops it. Gives the times that the kernel skipped the program, which it forgets with it.
    ///
    /// # Errors
    /// When the bytecode does not hold the program.
    pub fn detach(&mut self, session: &mut Attached) -> Result<u64, Error> {
        // Closing the events stops them: no tick runs after it.
        self.events.clear();
        let skipped = session.recursion_misses([PROGRAM]);
        let sampler: &mut PerfEvent = program_mut(session.ebpf(), PROGRAM)?;
        let _ = sampler.unload();
        Ok(skipped)
    }
}

/// The stacks that the kernel has sent and will not send again.
pub struct Sent(BpfMap<MapData, u64, u64>);

impl Sent {
    /// Takes hold of the kernel's set of them.
    ///
    /// # Errors
    /// When the bytecode does not hold the map.
    pub fn of(session: &mut Attached) -> Result<Self, Error> {
        Ok(Self(take(session.ebpf(), "SEEN")?))
    }

    /// Has the kernel send these whole the next time. What is on its way may still be a hash.
    pub fn forget(&mut self, hashes: &[u64]) {
        for hash in hashes {
            // The kernel may have dropped it already.
            let _ = self.0.remove(hash);
        }
    }
}

/// A stack as the kernel sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawStack {
    /// Kernel addresses, leaf first.
    pub kernel: Vec<u64>,
    /// Packed user frames, leaf first.
    pub user: Vec<u64>,
    /// Why the user part ended.
    pub end: End,
}

impl RawStack {
    /// How many frames it has.
    fn frames(&self) -> usize {
        self.kernel.len() + self.user.len()
    }

    /// Reads a [`StackRecord`] with its frames.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let short = |at: usize| Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let head = size_of::<SampleRecord>();
        let end = u32::from_ne_bytes(bytes.get(head..head + 4)?.try_into().ok()?);
        let kernel = usize::from(short(head + 4)?);
        let user = usize::from(short(head + 6)?);
        let (frames, rest) = bytes.get(size_of::<StackRecord>()..)?.as_chunks::<8>();
        let mut frames = frames.iter().map(|&frame| u64::from_ne_bytes(frame));
        let stack = RawStack {
            kernel: frames.by_ref().take(kernel).collect(),
            user: frames.by_ref().take(user).collect(),
            end: End::from_number(end)?,
        };
        (stack.kernel.len() == kernel && stack.user.len() == user && rest.is_empty())
            .then_some(stack)
    }
}

/// Whose samples are counted together.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Place of the process in [`Targets::list`].
    pub process: usize,
    /// Thread id.
    pub tid: u32,
    /// Names of process and thread at the time, as indices into [`Samples::names`].
    pub comm: u32,
    /// See `comm`.
    pub thread: u32,
    /// Hash of the stack.
    pub stack: u64,
}

impl Key {
    /// The same with its names under their new numbers.
    pub fn renumbered(self, new: impl Fn(u32) -> u32) -> Self {
        Self {
            comm: new(self.comm),
            thread: new(self.thread),
            ..self
        }
    }
}

/// A thread at a sample.
#[derive(Clone, Copy, Debug)]
struct Whose {
    tid: u32,
    tgid: u32,
    /// As [`Key::thread`].
    thread: u32,
}

/// Threads that are remembered for each stack. The kernel knows the last only; which of several CPUs
/// was last can look different from here.
const MAX_LAST: usize = 256;

/// All samples of a run, not yet named.
#[derive(Debug)]
pub struct Samples {
    /// Stacks by their hash.
    pub stacks: HashMap<u64, RawStack>,
    /// Samples by whose they are, each as the ticks that it counts for.
    pub counts: HashMap<Key, u64>,
    /// Interned names.
    pub names: Vec<String>,
    name_ids: HashMap<String, u32>,
    /// Whose the last samples of each stack were, for [`record::REPEAT`]; the latest last.
    last: HashMap<u64, Vec<Whose>>,
    /// Samples whose record could not be read or whose stack never came.
    pub undecoded: u64,
    begin: Instant,
    seconds: Vec<u64>,
}

impl Samples {
    /// None yet, of a run that began at this moment.
    pub fn since(begin: Instant) -> Self {
        Self {
            stacks: HashMap::new(),
            counts: HashMap::new(),
            names: Vec::new(),
            name_ids: HashMap::new(),
            last: HashMap::new(),
            undecoded: 0,
            begin,
            seconds: Vec::new(),
        }
    }

    /// Samples by second since the begin, for a run of this many seconds; what was taken in after
    /// its end counts for its last second, as does a rest of less than a tenth. See [`crate::profile::Profile::timeline`].
    pub fn timeline(&self, duration_seconds: f64) -> Vec<u64> {
        // A run of 30.01 s has no 31st second.
        let length = ((duration_seconds - 0.1).ceil() as usize).max(1);
        let mut timeline = self.seconds.clone();
        let late: u64 = timeline.iter().skip(length).sum();
        timeline.resize(length, 0);
        if let Some(last) = timeline.last_mut() {
            *last += late;
        }
        timeline
    }

    /// Takes in one record of the ring buffer.
    pub fn take(&mut self, bytes: &[u8], targets: &Targets) {
        self.take_of(bytes, |tgid| {
            let index = targets.find(tgid)?;
            Some((index, targets.list().get(index)?.comm.as_str()))
        });
    }

    /// As [`Samples::take`]; `process` gives a process's place in [`Targets::list`] and its name.
    pub(crate) fn take_of<'t>(
        &mut self,
        bytes: &[u8],
        process: impl Fn(u32) -> Option<(usize, &'t str)>,
    ) {
        if self.decode(bytes, process).is_none() {
            let first = bytes.first_chunk().map(|first| u32::from_ne_bytes(*first));
            self.undecoded += first.map_or(1, record::weight);
        }
    }

    /// All samples taken in.
    pub fn total(&self) -> u64 {
        self.counts.values().sum::<u64>() + self.undecoded
    }

    /// The counts since the last time, which begin anew; so does the timeline.
    pub fn take_counts(&mut self) -> HashMap<Key, u64> {
        self.begin = Instant::now();
        self.seconds.clear();
        std::mem::take(&mut self.counts)
    }

    /// Whether some stack has frames of the kernel.
    pub fn has_kernel_stacks(&self) -> bool {
        self.stacks.values().any(|stack| !stack.kernel.is_empty())
    }

    /// Frames of all stacks.
    pub fn frames(&self) -> usize {
        self.stacks.values().map(RawStack::frames).sum()
    }

    /// Frames of one stack.
    pub fn frames_of(&self, stack: u64) -> usize {
        self.stacks.get(&stack).map_or(0, RawStack::frames)
    }

    /// Drops a stack that no count has.
    pub fn forget(&mut self, stack: u64) {
        self.stacks.remove(&stack);
        self.last.remove(&stack);
    }

    /// Drops all names but these and those of the counts; gives the new number of each.
    pub fn keep_names(&mut self, used: &BTreeSet<u32>) -> HashMap<u32, u32> {
        let counts = std::mem::take(&mut self.counts);
        let mut used = used.clone();
        used.extend(counts.keys().flat_map(|key| [key.comm, key.thread]));
        used.extend(self.last.values().flatten().map(|whose| whose.thread));
        let old = std::mem::take(&mut self.names);
        self.name_ids.clear();
        let mut numbers = HashMap::new();
        for id in used {
            if let Some(name) = old.get(id as usize) {
                numbers.insert(id, self.name(name));
            }
        }
        let new = |id: u32| numbers.get(&id).copied().unwrap_or(0);
        for whose in self.last.values_mut().flatten() {
            whose.thread = new(whose.thread);
        }
        let renumbered = |(key, count): (Key, u64)| (key.renumbered(new), count);
        self.counts = counts.into_iter().map(renumbered).collect();
        numbers
    }

    fn decode<'t>(
        &mut self,
        bytes: &[u8],
        process: impl Fn(u32) -> Option<(usize, &'t str)>,
    ) -> Option<()> {
        let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let long = |at: usize| Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let (kind, ticks) = (record::kind(word(0)?), record::weight(word(0)?));
        if kind == record::REPEAT {
            let (tid, stack) = (word(4)?, long(8)?);
            let last = self.last.get(&stack)?;
            let &whose = last.iter().rfind(|whose| whose.tid == tid)?;
            return self.count(whose, stack, ticks, process(whose.tgid)?);
        }
        let (tgid, tid, stack) = (word(4)?, word(8)?, long(16)?);
        let thread = bytes.get(24..size_of::<SampleRecord>())?;
        let thread = thread.split(|&byte| byte == 0).next()?;
        match kind {
            record::STACK => {
                let raw = RawStack::decode(bytes)?;
                self.stacks.insert(stack, raw);
            }
            record::SAMPLE if self.stacks.contains_key(&stack) => {}
            _ => return None,
        }
        let thread = self.name(&String::from_utf8_lossy(thread));
        let whose = Whose { tid, tgid, thread };
        let last = self.last.entry(stack).or_default();
        last.retain(|other| other.tid != tid);
        if last.len() >= MAX_LAST {
            last.remove(0);
        }
        last.push(whose);
        self.count(whose, stack, ticks, process(tgid)?)
    }

    fn count(
        &mut self,
        whose: Whose,
        stack: u64,
        ticks: u64,
        process: (usize, &str),
    ) -> Option<()> {
        let (process, comm) = process;
        let comm = self.name(comm);
        let key = Key {
            process,
            tid: whose.tid,
            comm,
            thread: whose.thread,
            stack,
        };
        *self.counts.entry(key).or_default() += ticks;
        self.count_second(self.begin.elapsed().as_secs(), ticks);
        Some(())
    }

    fn count_second(&mut self, second: u64, ticks: u64) {
        let second = second as usize;
        if self.seconds.len() <= second {
            self.seconds.resize(second + 1, 0);
        }
        if let Some(count) = self.seconds.get_mut(second) {
            *count += ticks;
        }
    }

    /// The number of a name in [`Samples::names`], which takes it in if it is new.
    pub(crate) fn name(&mut self, name: &str) -> u32 {
        if let Some(&id) = self.name_ids.get(name) {
            return id;
        }
        let id = self.names.len() as u32;
        self.names.push(name.to_owned());
        self.name_ids.insert(name.to_owned(), id);
        id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_late_counts_for_the_last_second() {
        let mut samples = Samples::since(Instant::now());
        for second in [0, 0, 2, 3, 7] {
            samples.count_second(second, 1);
        }
        assert_eq!(samples.timeline(2.5), [2, 0, 3]);
        assert_eq!(samples.timeline(3.02), [2, 0, 3]);
        assert_eq!(samples.timeline(10.0), [2, 0, 1, 1, 0, 0, 0, 1, 0, 0]);
        assert_eq!(samples.timeline(0.0), [5]);
    }
}
