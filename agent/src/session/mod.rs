//! The life of a run: [`Loaded`] -> [`Attached`] -> finished, each consuming the last.
//!
//! Owns the programs, their links and the maps. Closing the descriptors is the whole clean-up.

pub mod btf;
pub mod deferred;
mod error;
pub mod event;
pub mod modules;
mod namespace;
mod raw_tracepoint;
pub mod records;
pub mod sideband;
mod tables;
pub mod target;
pub mod tracepoint;
mod watch;

use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_ebpf::{Counter, ProcessRecord, TARGET_BEFORE_EXEC, record};
use aya::maps::{Array, ArrayOfMaps, HashMap as BpfMap, MapData, PerCpuArray, RingBuf};
use aya::{Ebpf, EbpfLoader};

use crate::preflight::Kernel;
use crate::process::{self, Process};
use deferred::Deferred;
pub use error::Error;
use modules::Builders;
pub use raw_tracepoint::attach as attach_raw_tracepoint;
use records::{Counters, owner, process_record};
use sideband::{Event, Sideband};
use tables::Tables;
use target::{Maps, Targets};
use watch::Watch;

/// The compiled kernel programs.
static BYTECODE: &[u8] = aya::include_bytes_aligned!("../../bpf/agent.bpf.o");

/// How often the ring buffer is looked at when nobody wakes us.
const TICK: Duration = Duration::from_millis(100);
/// Shortest time between two looks: a busy host must not keep us busy.
const PAUSE: Duration = Duration::from_millis(2);
/// Longest time that the start of the clock waits for unwind tables.
const TABLES_WAIT: Duration = Duration::from_millis(100);
/// Looks at the ring buffer that a walk into unknown code waits for the mapping to become known;
/// one that waits for a table waits for as long as tables are being built.
const LOOKS: u32 = 3;
/// Longest time that one look takes, so that Ctrl-C is heard.
const LOOK: Duration = Duration::from_millis(50);
/// Most samples that wait for code to become known: some 18 KB each.
const MAX_WAITING: usize = 4096;
/// Longest time that the end of the run waits for unwind tables.
const LAST_TABLES: Duration = Duration::from_secs(1);

/// Longest time that the record of a process's end can be behind one that is being written.
const LATE_END: Duration = Duration::from_secs(1);

/// What is known of the records of before a side-band event.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    /// All have been taken in.
    Whole,
    /// An end may be missing.
    MayMissEnds,
}

/// Looks for children from before the attach: each finds those that the ones of the last have forked.
const MAX_GENERATIONS: usize = 16;

/// The programs that follow the life of processes, and their tracepoints.
const LIFE: [(&str, &str); 4] = [
    ("process_fork", "sched_process_fork"),
    ("process_exec", "sched_process_exec"),
    ("process_exit", "sched_process_exit"),
    ("process_free", "sched_process_free"),
];

/// The programs that a command needs, and for which the maps are made large enough.
#[derive(Clone, Debug, Default)]
pub struct Needs {
    /// Stacks are taken: what the processes map is followed, and unwind tables are built.
    pub stacks: bool,
    /// Bytes of the ring buffer, a power of two and at least a page; 0 for the usual size.
    pub ring_bytes: u32,
    /// Offsets that the kernel programs need besides the usual ones: the name of the global, the
    /// field (which [`Kernel::probe_with`] was asked for) and what is added to its offset.
    pub offsets: &'static [(&'static str, &'static str, u32)],
    /// Globals of the kernel programs besides the usual ones, with their values.
    pub globals: Vec<(&'static str, u32)>,
    /// Maps that only other probes use, in lists: they are made as small as can be.
    pub unused_maps: Vec<&'static [&'static str]>,
}

/// What is in scope beside the processes themselves.
#[derive(Clone, Copy, Debug, Default)]
pub struct Follow {
    /// What they fork, too.
    pub children: bool,
    /// One that is refused does not end the run, unless all are.
    pub tolerant: bool,
    /// Samples only from their next exec on: they are the agent's own children until then.
    pub from_exec: bool,
}

/// A sample whose walk userspace finishes.
struct Waiting {
    sample: Deferred,
    /// Looks that it has waited for.
    looks: u32,
    /// What its process had mapped, where that has changed since.
    maps: Option<Arc<Maps>>,
}

/// The bytecode is in the kernel; nothing runs yet.
pub struct Loaded {
    ebpf: Ebpf,
    kernel: Kernel,
    /// Those of unwind tables, where stacks are taken.
    builders: Option<Builders>,
}

impl Loaded {
    /// Loads the maps, sized for what is needed.
    ///
    /// # Errors
    /// When the kernel is too old, lacks BTF, or refuses.
    pub fn load(kernel: Kernel, needs: &Needs) -> Result<Self, Error> {
        let mut globals = kernel.globals()?;
        for &(name, field, more) in needs.offsets {
            globals.words.push((name, kernel.offset(field)? + more));
        }
        globals.words.extend_from_slice(&needs.globals);
        let mut loader = process::without_opening_files(EbpfLoader::new);
        loader.btf(None);
        for (name, value) in &globals.words {
            loader.override_global(name, value, true);
        }
        loader.override_global("HASH_SEED", &globals.hash_seed, true);
        let loaded_at = process::monotonic_ns();
        loader.override_global("LOADED_AT", &loaded_at, true);
        if !needs.stacks {
            for map in ["TABLES", "SEEN"] {
                loader.map_max_entries(map, 2);
            }
        }
        if needs.ring_bytes != 0 {
            loader.map_max_entries("EVENTS", needs.ring_bytes);
        }
        for map in needs.unused_maps.iter().copied().flatten() {
            loader.map_max_entries(map, 1);
        }
        // They begin while the kernel takes the bytecode.
        let builders = needs.stacks.then(Builders::start);
        let ebpf = loader
            .load(BYTECODE)
            .map_err(|error| Error::Load(Box::new(error)))?;
        Ok(Self {
            ebpf,
            kernel,
            builders,
        })
    }

    /// The maps and programs, for a probe to attach.
    pub fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// What the kernel offers.
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// Follows the processes from now on: their life by tracepoints and, where stacks are taken,
    /// their mappings by the side band. A process that has ended meanwhile is left out, but not
    /// the first.
    ///
    /// # Errors
    /// When the kernel refuses a program or a process.
    pub fn follow(mut self, targets: Vec<Process>, follow: Follow) -> Result<Attached, Error> {
        for (program, hook) in LIFE {
            attach_raw_tracepoint(&mut self.ebpf, program, hook)?;
        }
        let cpus: &[u32] = match self.builders {
            Some(_) => &self.kernel.cpus,
            None => &[],
        };
        let sideband = Sideband::open(cpus)?;
        let tgids = namespace::initial_ids(&mut self.ebpf, &self.kernel, &targets)?;
        let tables: ArrayOfMaps<MapData, _> = take(&mut self.ebpf, "TABLES")?;
        let scope: BpfMap<MapData, u32, [u64; 3]> = take(&mut self.ebpf, "TARGETS")?;
        let mut attached = Attached {
            events: take(&mut self.ebpf, "EVENTS")?,
            counters: take(&mut self.ebpf, "COUNTERS")?,
            control: take(&mut self.ebpf, "CONTROL")?,
            watch: Watch::new()?,
            targets: Targets::new(scope, Tables::new(tables), follow.children, self.builders),
            sideband,
            ebpf: self.ebpf,
            kernel: self.kernel,
            bytes: 0,
            waiting_events: sideband::Queue::default(),
            deferred: Vec::new(),
            skipped: 0,
        };
        for fd in attached.sideband.fds() {
            attached.watch.add(fd)?;
        }
        attached.watch.add(attached.events.as_raw_fd())?;
        let flags = if follow.from_exec {
            TARGET_BEFORE_EXEC
        } else {
            0
        };
        let mut refusal = None;
        for (process, tgid) in targets.into_iter().zip(tgids) {
            let others = !attached.targets.list().is_empty();
            if others && process.has_ended() {
                continue;
            }
            let tgid = tgid.ok_or(Error::NoTgid(process.pid()))?;
            if let Some(pidfd) = process.pidfd() {
                attached.watch.add(pidfd.as_raw_fd())?;
            }
            match attached.targets.add(process, tgid, flags) {
                Err(target::Error::Process(process::Error::NotFound(_))) if others => {}
                Err(error) if follow.tolerant => {
                    attached.targets.leave_out();
                    refusal.get_or_insert(error);
                }
                added => added?,
            }
        }
        if let Some(refusal) = refusal.filter(|_| attached.targets.list().is_empty()) {
            return Err(refusal.into());
        }
        if follow.children {
            attached.add_children();
        }
        attached.targets.flush(TABLES_WAIT);
        Ok(attached)
    }
}

/// A program of the bytecode by its name and kind.
pub fn program_mut<'a, P>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, Error>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program>,
{
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(Error::Missing(name))
}

/// A map of the bytecode by its name and kind.
pub fn take<M: TryFrom<aya::maps::Map>>(ebpf: &mut Ebpf, name: &'static str) -> Result<M, Error> {
    ebpf.take_map(name)
        .and_then(|map| M::try_from(map).ok())
        .ok_or(Error::Map(name))
}

/// The processes are followed, and what probes are attached are running.
pub struct Attached {
    ebpf: Ebpf,
    kernel: Kernel,
    events: RingBuf<MapData>,
    counters: PerCpuArray<MapData, [u64; Counter::ALL.len()]>,
    control: Array<MapData, u32>,
    sideband: Sideband,
    targets: Targets,
    watch: Watch,
    bytes: u64,
    /// Samples whose walk waits, with the looks that they have waited for.
    waiting_events: sideband::Queue,
    deferred: Vec<Waiting>,
    /// Runs that the kernel skipped of programs that are unloaded again.
    skipped: u64,
}

impl Attached {
    /// The maps and programs, for a probe to attach.
    pub fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// What the kernel offers.
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// The processes and modules.
    pub fn targets(&self) -> &Targets {
        &self.targets
    }

    /// Takes children into scope that were forked before their parents were followed, and so untold,
    /// and after the list of the targets was made.
    fn add_children(&mut self) {
        for _ in 0..MAX_GENERATIONS {
            let children = self.targets.new_children();
            if children.is_empty() {
                return;
            }
            let tgids = match namespace::initial_ids(&mut self.ebpf, &self.kernel, &children) {
                Ok(tgids) => tgids,
                Err(_) => vec![None; children.len()],
            };
            let mut added = false;
            for (child, tgid) in children.into_iter().zip(tgids) {
                let Some(tgid) = tgid else {
                    continue;
                };
                match self.targets.add_untold(child, tgid) {
                    Ok(is_new) => {
                        added |= is_new;
                        // Its end wakes us; without it the next tick does.
                        let pidfd = self.targets.pidfd(tgid).filter(|_| is_new);
                        let _ = pidfd.map(|fd| self.watch.add(fd));
                    }
                    Err(target::Error::Process(process::Error::NotFound(_))) => {}
                    Err(error) => self.targets.note_failure(Err(error)),
                }
            }
            if !added {
                return;
            }
        }
    }

    /// Takes processes into scope that were found while the run goes on, and counts them; those that
    /// are in scope already stay as they are. Gives the ids of those that were refused.
    pub fn join(&mut self, processes: Vec<Process>) -> Vec<u32> {
        let Ok(tgids) = namespace::initial_ids(&mut self.ebpf, &self.kernel, &processes) else {
            self.targets.leave_out();
            return processes.iter().map(Process::pid).collect();
        };
        let mut refused = Vec::new();
        for (process, tgid) in processes.into_iter().zip(tgids) {
            let pid = process.pid();
            let Some(tgid) = tgid.filter(|_| !self.targets.has(pid)) else {
                continue;
            };
            match self.targets.join(process, tgid) {
                // Its end wakes us; without it the next tick does.
                Ok(()) => drop(self.targets.pidfd(tgid).map(|fd| self.watch.add(fd))),
                Err(target::Error::Process(process::Error::NotFound(_))) => {}
                Err(_) => {
                    self.targets.leave_out();
                    refused.push(pid);
                }
            }
        }
        refused
    }

    /// Makes tables ready for a program that is about to be started.
    ///
    /// # Errors
    /// When no slot is left.
    pub fn make_ready(&mut self, program: &Path) -> Result<(), Error> {
        Ok(self.targets.make_ready(program)?)
    }

    /// Waits for the unwind tables of what is mapped now, for a moment at most: walks that come
    /// to code without one are finished later, but only as far as the copy of the stack goes.
    pub async fn tables_ready(&mut self) {
        let deadline = Instant::now() + TABLES_WAIT;
        while self.targets.pending() > 0 {
            match tokio::time::timeout_at(deadline.into(), self.targets.next_built()).await {
                Ok(built) => self.targets.install(built),
                Err(_) => break,
            }
        }
    }

    /// Waits for news, for a short while at most, and takes them in. Records that are not about
    /// the life of processes go to `sink`, with the targets as they were then.
    pub async fn pump(&mut self, sink: &mut impl FnMut(&[u8], &Targets)) {
        let mut built = None;
        let wait = if self.targets.is_behind() {
            Duration::ZERO
        } else {
            TICK
        };
        tokio::select! {
            () = self.watch.ready() => {}
            table = self.targets.next_built() => built = table,
            () = tokio::time::sleep(wait) => {}
        }
        self.targets.install(built);
        self.drain(sink);
        tokio::time::sleep(PAUSE).await;
    }

    /// Takes in what has come, as far as the time for one look allows.
    pub fn drain(&mut self, sink: &mut impl FnMut(&[u8], &Targets)) {
        let until = Instant::now() + LOOK;
        self.events_of_sideband();
        loop {
            if !self.take_record(sink) {
                // All forks of before are known now, and all ends but those behind a record that a
                // program is just writing.
                self.on_events_until(u64::MAX, Order::MayMissEnds);
                break;
            }
            if Instant::now() >= until {
                break;
            }
        }
        self.catch_up(LOOK, LOOKS, sink);
    }

    /// What follows a look at the ring: the mapping tables and the walks.
    fn catch_up(&mut self, time: Duration, looks: u32, sink: &mut impl FnMut(&[u8], &Targets)) {
        self.targets.renew(time);
        if self.targets.is_behind() {
            self.targets.flush(time);
        }
        self.finish_walks(looks, sink);
    }

    /// Takes the side band's events. They wait until the records of before them were taken.
    fn events_of_sideband(&mut self) {
        self.waiting_events.add(self.sideband.drain());
    }

    /// Takes in the side band's events of before a moment.
    fn on_events_until(&mut self, time: u64, order: Order) {
        while let Some((at, event)) = self.waiting_events.first_until(time) {
            if order == Order::MayMissEnds && self.targets.may_be_anothers(event) {
                let age = process::monotonic_ns().saturating_sub(*at);
                if Duration::from_nanos(age) < LATE_END {
                    break;
                }
                self.waiting_events.pop();
                continue;
            }
            let Some((at, event)) = self.waiting_events.pop() else {
                break;
            };
            if let Event::Name {
                pid, by_exec: true, ..
            } = &event
                && let Some(tgid) = self.targets.tgid(*pid)
            {
                self.keep_maps(tgid);
            }
            self.targets.on_event(at, event);
        }
    }

    /// Samples that wait are of what their process has mapped until now.
    fn keep_maps(&mut self, tgid: u32) {
        let Some(maps) = self.targets.maps(tgid) else {
            return;
        };
        let of_it = |waiting: &&mut Waiting| waiting.sample.tgid == tgid;
        for waiting in self.deferred.iter_mut().filter(of_it) {
            waiting.maps.get_or_insert_with(|| Arc::clone(maps));
        }
    }

    /// Takes one record; false if there is none.
    fn take_record(&mut self, sink: &mut impl FnMut(&[u8], &Targets)) -> bool {
        let Some(item) = self.events.next() else {
            return false;
        };
        self.bytes += item.len() as u64 + RING_HEADER;
        if let Some(event) = process_record(&item) {
            drop(item);
            self.on_process(&event);
            return true;
        }
        if let Some(tgid) = owner(&item) {
            self.targets.ensure(tgid);
        }
        match Deferred::decode(&item) {
            Some(sample) if self.deferred.len() < MAX_WAITING => self.deferred.push(Waiting {
                sample,
                looks: 0,
                maps: None,
            }),
            Some(sample) => sink(&sample.record(), &self.targets),
            None => sink(&item, &self.targets),
        }
        true
    }

    /// Takes in what happened to a process, and the side band's events of before.
    fn on_process(&mut self, event: &ProcessRecord) {
        self.events_of_sideband();
        self.on_events_until(event.time, Order::Whole);
        if event.kind == record::GONE {
            self.keep_maps(event.tgid);
        }
        self.targets.on_process(event);
        if event.kind == record::FORK
            && let Some(fd) = self.targets.pidfd(event.tgid)
        {
            // A child that ends wakes us; without it the next tick does.
            let _ = self.watch.add(fd);
        }
    }

    /// Takes in the last records when no program runs any more, after the tables that are still
    /// being built.
    pub async fn finish(&mut self, sink: &mut impl FnMut(&[u8], &Targets)) {
        // A storm of forks or execs would send records for ever.
        self.skipped = self.recursion_misses([]);
        raw_tracepoint::unload(&mut self.ebpf, LIFE.map(|(program, _)| program));
        while self.take_record(sink) {}
        self.events_of_sideband();
        self.on_events_until(u64::MAX, Order::Whole);
        self.targets.renew(LOOK);
        self.catch_up(Duration::ZERO, LOOKS, sink);
        let deadline = Instant::now() + LAST_TABLES;
        while !self.deferred.is_empty() && self.targets.pending() > 0 {
            match tokio::time::timeout_at(deadline.into(), self.targets.next_built()).await {
                Ok(built) => self.targets.install(built),
                Err(_) => break,
            }
        }
        self.targets.close(!self.deferred.is_empty());
        self.finish_walks(0, sink);
        self.targets.check_programs();
    }

    /// Walks on where more is known now; what has waited for more than `looks` is passed on as it is.
    fn finish_walks(&mut self, looks: u32, sink: &mut impl FnMut(&[u8], &Targets)) {
        let targets = &self.targets;
        let patient = targets.pending() > 0 && looks > 0;
        self.deferred.retain_mut(|waiting| {
            waiting.looks += 1;
            let maps = waiting.maps.as_ref();
            let maps = maps.or_else(|| targets.maps(waiting.sample.tgid));
            let done = maps.is_none_or(|maps| waiting.sample.walk(&targets.code(maps)));
            let waits = !done && (patient || waiting.looks < looks);
            if !waits {
                sink(&waiting.sample.record(), targets);
            }
            waits
        });
    }

    /// Bytes that came through the ring buffer, with its headers.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Tells the programs one of [`agent_ebpf::control`], from now on.
    ///
    /// # Errors
    /// When the kernel refuses the update.
    pub fn tell(&mut self, control: u32, value: u32) -> Result<(), Error> {
        self.control
            .set(control, value, 0)
            .map_err(|_| Error::Map("CONTROL"))
    }

    /// Sums of the kernel's counters over all CPUs.
    pub fn counters(&self) -> Counters {
        let mut sums = [0; Counter::ALL.len()];
        if let Ok(values) = self.counters.get(&0, 0) {
            for cpu in values.iter() {
                for (sum, value) in sums.iter_mut().zip(cpu) {
                    *sum += value;
                }
            }
        }
        Counters(sums)
    }

    /// Times the kernel skipped one of these programs, or of those that follow processes, because it
    /// would have nested (`bpf_prog_info.recursion_misses`, 5.12).
    pub fn recursion_misses(&self, programs: impl IntoIterator<Item = &'static str>) -> u64 {
        let life = LIFE.iter().map(|&(program, _)| program);
        let misses = |name| {
            let program = self.ebpf.program(name)?;
            // One that is not loaded has skipped nothing.
            Some(process::bpf_recursion_misses(program.fd().ok()?.as_fd()))
        };
        self.skipped + life.chain(programs).filter_map(misses).sum::<u64>()
    }

    /// Bytes of all BPF maps.
    pub fn map_bytes(&self) -> u64 {
        process::bpf_map_bytes()
    }
}

/// Bytes that the ring buffer puts before each record (`BPF_RINGBUF_HDR_SZ`).
const RING_HEADER: u64 = 8;
