//! Which processes are in scope, and what each has mapped.

mod error;
mod life;
mod program;

use std::collections::{HashMap, HashSet, VecDeque};
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_ebpf::unwind::{Block, Mapping, Module as Layout, mappings};
use agent_ebpf::{Start, Target};
use aya::maps::{HashMap as BpfMap, MapData};

use super::deferred::Code;
use super::modules::{Builders, Built, Module, Modules, Origin};
use super::tables::Tables;
use crate::parser;
use crate::process::container::Place;
use crate::process::identity::{self, Entry};
use crate::process::{self, FileId, Map, Process, Root};
use crate::symbolize::debug_files::DebugRoots;
pub use error::Error;
use program::shown_program;

/// One process in scope, or one that was.
#[derive(Debug)]
pub struct Tracked {
    /// Its id as the agent sees it.
    pub pid: u32,
    /// Its thread-group id in the initial PID namespace.
    pub tgid: u32,
    /// Its main thread's name.
    pub comm: String,
    /// Its program.
    pub exe: Option<String>,
    /// The file of that.
    program: Option<FileId>,
    /// Held while it lives and could be opened.
    pub process: Option<Process>,
    /// Whether it has ended.
    pub ended: bool,
    /// When its last thread ended, in nanoseconds of the monotonic clock: what its id did later was
    /// another's.
    pub exited_at: Option<u64>,
    start: Start,
    /// Where it runs: looked up for the first process only.
    pub place: Place,
    origin: Origin,
    /// Slot of its mapping table: 0 while it has none, and perhaps shared.
    slot: u16,
    maps: Arc<Maps>,
    /// Whether `maps` differ from what the slot was made of.
    changed: bool,
    /// Further `TARGET_…` flags, until its next exec.
    flags: u32,
    /// Whether it waits for [`Targets::flush`].
    queued: bool,
    /// When `maps` were read from the process, in nanoseconds of the monotonic clock.
    read_at: u64,
    /// How long that took.
    read_for: u64,
    /// When it was forked in scope, in nanoseconds of the monotonic clock: what was told of its id
    /// before was told of another process. 0 of others.
    forked_at: u64,
}

impl Tracked {
    /// Whether it has ended, told or not.
    fn is_over(&self) -> bool {
        self.ended
            || match &self.process {
                Some(process) => process.has_ended(),
                None => !identity::is_running(self.pid, self.start),
            }
    }

    /// Whether it has ended, perhaps before the kernel programs knew it: then they did not tell when,
    /// and what comes under its id can be another's. One that was forked in scope was always known.
    fn may_have_ended_untold(&self) -> bool {
        self.start != Start::exactly(self.start.at) && self.is_over()
    }
}

/// What a process has mapped to execute, by address, each with its module.
pub type Maps = Vec<(Map, Option<usize>)>;

/// What went wrong without ending the run, by cause.
pub type Notes = HashMap<String, u64>;

/// What is said of processes that were found in the control group while the run went on.
const JOINED: &str =
    "processes that joined the control group (what they did before they were found is missing)";

/// What is said of those that were refused.
const LEFT_OUT: &str = "processes of the control group left out (--pid with one of them says why)";

fn no_table(mapping: &Mapping) -> bool {
    mapping.module.table == 0
}

/// The code of one process.
pub struct ProcessCode<'a> {
    targets: &'a Targets,
    maps: &'a Maps,
}

impl Code for ProcessCode<'_> {
    fn mapping(&self, address: u64) -> Option<Mapping> {
        let maps = self.maps;
        let after = maps.partition_point(|(map, _)| map.start <= address);
        let (map, module) = maps.get(after.checked_sub(1)?)?;
        self.targets
            .entry(map, *module)
            .filter(|_| address < map.end)
    }

    fn block(&self, table: u32, index: u32) -> Option<Block> {
        self.targets.tables.block(table, index)
    }
}

/// The processes in scope and their modules.
pub struct Targets {
    scope: BpfMap<MapData, u32, [u64; 3]>,
    tables: Tables,
    modules: Modules,
    list: Vec<Tracked>,
    by_tgid: HashMap<u32, usize>,
    by_pid: HashMap<u32, usize>,
    /// Processes whose mapping table must be written.
    queue: VecDeque<usize>,
    /// The root directories seen, each with where its debug files are.
    roots: Vec<(Root, Arc<DebugRoots>)>,
    follow: bool,
    mappings: bool,
    /// When the side band last lost events: what was read before must be read anew. 0 for never.
    lost_at: u64,
    notes: Notes,
}

impl Targets {
    /// No process yet. `follow`: what they fork is in scope too. With `builders` what they map is
    /// followed, for the unwinding of their stacks.
    pub fn new(
        scope: BpfMap<MapData, u32, [u64; 3]>,
        tables: Tables,
        follow: bool,
        builders: Option<Builders>,
    ) -> Self {
        let mappings = builders.is_some();
        Self {
            scope,
            tables,
            modules: Modules::new(builders),
            list: Vec::new(),
            by_tgid: HashMap::new(),
            by_pid: HashMap::new(),
            queue: VecDeque::new(),
            roots: Vec::new(),
            follow,
            mappings,
            lost_at: 0,
            notes: Notes::new(),
        }
    }

    /// Takes a process into scope: from now on its samples are kept. `flags`: further
    /// `TARGET_…` flags.
    ///
    /// # Errors
    /// When its mappings cannot be read or the kernel refuses the entry.
    pub fn add(&mut self, process: Process, tgid: u32, flags: u32) -> Result<(), Error> {
        let maps = match self.mappings {
            true => Some((process::monotonic_ns(), process.maps()?)),
            false => None,
        };
        let (pid, start) = (process.pid(), process.start());
        let index = self.track(pid, tgid, start, Some(process), None);
        if let Some((read_at, maps)) = maps {
            self.set_maps(index, maps, read_at)?;
            self.share_table(index);
        }
        self.list[index].flags = flags;
        self.enter_scope(index)?;
        // The program that takes it out of scope may have seen it before.
        if self.list[index]
            .process
            .as_ref()
            .is_some_and(Process::has_ended)
        {
            let _ = self.scope.remove(&tgid);
        }
        Ok(())
    }

    /// Takes a process into scope that was found while the run goes on.
    ///
    /// # Errors
    /// As [`Targets::add`].
    pub fn join(&mut self, process: Process, tgid: u32) -> Result<(), Error> {
        if self.add_untold(process, tgid)? {
            *self.notes.entry(JOINED.to_owned()).or_default() += 1;
        }
        Ok(())
    }

    /// As [`Targets::add`], but not one that is in scope: forked by one that was, the record of it is on
    /// its way. Whether it was added.
    pub fn add_untold(&mut self, process: Process, tgid: u32) -> Result<bool, Error> {
        if self.scope.get(&tgid, 0).is_ok() {
            return Ok(false);
        }
        self.add(process, tgid, 0).map(|()| true)
    }

    /// Children of the processes in scope that are not known.
    pub fn new_children(&self) -> Vec<Process> {
        let living = self.list.iter().filter(|tracked| !tracked.ended);
        let parents = living.filter_map(|tracked| tracked.process.as_ref());
        let children = parents.flat_map(|parent| parent.new_children(|pid| self.has(pid)));
        children.collect()
    }

    /// Whether the process that the agent sees as `pid` is in scope and lives.
    pub fn has(&self, pid: u32) -> bool {
        let tracked = self
            .by_pid
            .get(&pid)
            .and_then(|&index| self.list.get(index));
        tracked.is_some_and(|tracked| !tracked.is_over())
    }

    /// Counts a process of the control group that was refused.
    pub fn leave_out(&mut self) {
        *self.notes.entry(LEFT_OUT.to_owned()).or_default() += 1;
    }

    /// Servers of many processes forked them all from one: those that map the same share a table.
    fn share_table(&mut self, index: usize) {
        let maps = Arc::clone(&self.list[index].maps);
        let same = |other: &&Tracked| other.slot != 0 && *other.maps == *maps;
        let Some(other) = self.list[..index].iter().find(same) else {
            return;
        };
        let (slot, maps) = (other.slot, Arc::clone(&other.maps));
        self.tables.share(slot);
        let tracked = &mut self.list[index];
        (tracked.slot, tracked.maps) = (slot, maps);
        (tracked.changed, tracked.queued) = (false, false);
        self.queue.retain(|&queued| queued != index);
    }

    /// Where the files of a process are found: the target's own debug files come first, then
    /// the host's or the agent's container's.
    fn origin(&mut self, process: Option<Entry>, root: &Root) -> Origin {
        let known = self.roots.iter().find(|(known, _)| known == root);
        let (root, debug) = match known {
            Some((root, debug)) => (root.clone(), Arc::clone(debug)),
            None => {
                let path = root.path();
                let debug = Arc::new(DebugRoots::open([path.as_path(), Path::new("/")]));
                self.roots.push((root.clone(), Arc::clone(&debug)));
                (root.clone(), debug)
            }
        };
        Origin {
            process,
            root,
            debug,
        }
    }

    /// `parent`: whose files a process has that is already gone.
    fn track(
        &mut self,
        pid: u32,
        tgid: u32,
        start: Start,
        mut process: Option<Process>,
        parent: Option<usize>,
    ) -> usize {
        let stat = process.as_ref().and_then(|process| process.stat().ok());
        let root = match (&process, parent.and_then(|index| self.list.get(index))) {
            (Some(process), _) => process.root().clone(),
            (None, Some(parent)) => parent.origin.root.clone(),
            (None, None) => Root::default(),
        };
        let entry = process.as_ref().and_then(Process::entry).cloned();
        let origin = self.origin(entry, &root);
        if let Some(process) = &mut process {
            process.share_root(&origin.root);
        }
        let place = match &process {
            Some(process) if self.list.is_empty() => Place::of(process),
            _ => Place::default(),
        };
        self.list.push(Tracked {
            pid,
            tgid,
            comm: stat.map_or_else(|| "?".to_owned(), |stat| stat.comm),
            exe: process.as_ref().and_then(shown_program),
            program: process.as_ref().and_then(Process::program),
            process,
            ended: false,
            exited_at: None,
            start,
            place,
            origin,
            slot: 0,
            maps: Arc::default(),
            changed: false,
            flags: 0,
            queued: false,
            read_at: 0,
            read_for: 0,
            forked_at: 0,
        });
        let index = self.list.len() - 1;
        self.by_tgid.insert(tgid, index);
        self.by_pid.insert(pid, index);
        index
    }

    fn enter_scope(&mut self, index: usize) -> Result<(), Error> {
        let Some(tracked) = self.list.get(index) else {
            return Ok(());
        };
        let target = self.target(tracked);
        self.scope
            .insert(tracked.tgid, target.words(), 0)
            .map_err(|source| Error::Scope {
                pid: tracked.pid,
                source,
            })
    }

    /// A process as the kernel programs know it.
    fn target(&self, tracked: &Tracked) -> Target {
        Target {
            table: u32::from(tracked.slot),
            flags: self.follow_flag() | tracked.flags,
            start: tracked.start,
        }
    }

    /// Has a process's mapping table written at the next [`Targets::flush`].
    fn enqueue(&mut self, index: usize) {
        if let Some(tracked) = self.list.get_mut(index)
            && !tracked.queued
        {
            tracked.queued = true;
            self.queue.push_back(index);
        }
    }

    /// Whether mapping tables wait to be written.
    pub fn is_behind(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Writes mapping tables that changed, at least one, as many as the time allows: the kernel
    /// takes some milliseconds for each.
    pub fn flush(&mut self, time: Duration) {
        let deadline = Instant::now() + time;
        let mut written = HashSet::new();
        while let Some(index) = self.queue.pop_front() {
            let tracked = &mut self.list[index];
            tracked.queued = false;
            if tracked.ended {
                continue;
            }
            let changed = std::mem::take(&mut tracked.changed);
            let slot = tracked.slot;
            if !changed && !written.insert(slot) {
                continue;
            }
            let done = self.write_maps(index, changed);
            self.note_failure(done);
            if Instant::now() >= deadline {
                break;
            }
        }
    }

    fn module_of(&mut self, index: usize, map: &Map) -> Result<Option<usize>, Error> {
        let Some(tracked) = self.list.get(index) else {
            return Ok(None);
        };
        let tables = &mut self.tables;
        Ok(self.modules.of(map, &tracked.origin, || tables.reserve())?)
    }

    /// Builds the tables of what a program that is about to be started will probably map: itself
    /// and the libraries of the agent.
    ///
    /// # Errors
    /// When no slot is left.
    pub fn make_ready(&mut self, program: &Path) -> Result<(), Error> {
        let own = Entry::open(std::process::id()).ok();
        let origin = self.origin(own, &Root::default());
        for map in process::own_maps() {
            let tables = &mut self.tables;
            self.modules.of(&map, &origin, || tables.reserve())?;
        }
        if let Some((file, map)) = process::program_file(program)
            && !self.modules.has(map.file)
        {
            let slot = self.tables.reserve()?;
            self.modules.add(&map, Some(file), &origin, slot);
        }
        Ok(())
    }

    /// Hands a process's mapping table to the kernel. `changed`: it cannot be the one that others
    /// share.
    fn write_maps(&mut self, index: usize, changed: bool) -> Result<(), Error> {
        let slot = self.list[index].slot;
        let moves = slot == 0 || changed && self.tables.is_shared(slot);
        if moves {
            let own = self.tables.reserve()?;
            self.tables.give_back(slot);
            self.list[index].slot = own;
        }
        let tracked = &self.list[index];
        let mut entries: Vec<Mapping> = Vec::with_capacity(tracked.maps.len());
        for (map, module) in tracked.maps.iter() {
            let Some(entry) = self.entry(map, *module) else {
                continue;
            };
            match entries.last_mut() {
                // JIT code comes in many pieces that lie side by side.
                Some(last) if no_table(last) && no_table(&entry) && last.end == entry.start => {
                    last.end = entry.end;
                }
                _ => entries.push(entry),
            }
        }
        if entries.len() > mappings::MAX {
            let dropped = entries.len() - mappings::MAX;
            entries.truncate(mappings::MAX);
            let note = "executable mappings beyond the table's limit".to_owned();
            *self.notes.entry(note).or_default() += dropped as u64;
        }
        self.tables.put_mappings(tracked.slot, &entries)?;
        if moves {
            self.point_to_table(index);
        }
        Ok(())
    }

    /// A mapping as the kernel programs know it; `None` as long as nothing is known of its file.
    fn entry(&self, map: &Map, module: Option<usize>) -> Option<Mapping> {
        let (module, bias) = match module {
            Some(module) => self.modules.placement(module, map)?,
            None => (Layout::default(), 0),
        };
        Some(Mapping {
            start: map.start,
            end: map.end,
            bias,
            module,
            ..Mapping::default()
        })
    }

    /// The end of the run: no further table is built, and those under way are given up, which counts
    /// as a failure if they are `wanted`.
    pub fn close(&mut self, wanted: bool) {
        self.modules.close(wanted);
    }

    /// The thread-group id, in the initial namespace, of the process that the agent sees as `pid`.
    pub fn tgid(&self, pid: u32) -> Option<u32> {
        Some(self.list.get(*self.by_pid.get(&pid)?)?.tgid)
    }

    /// What a process has mapped.
    pub fn maps(&self, tgid: u32) -> Option<&Arc<Maps>> {
        Some(&self.list.get(self.find(tgid)?)?.maps)
    }

    /// What is known of the code of a process that maps this, for the walks that userspace finishes.
    pub fn code<'a>(&'a self, maps: &'a Maps) -> ProcessCode<'a> {
        ProcessCode {
            targets: self,
            maps,
        }
    }

    /// Waits for the next table that a builder thread has finished.
    pub async fn next_built(&mut self) -> Option<Built> {
        self.modules.next_built().await
    }

    /// Takes in all finished tables, `first` among them, and shows them to the processes.
    pub fn install(&mut self, first: Option<Built>) {
        let mut next = first.or_else(|| self.modules.try_built());
        if next.is_none() {
            return;
        }
        let mut ready = HashSet::new();
        while let Some(built) = next {
            let slot = built.slot;
            if let Some(blocks) = self.modules.finish(built)
                && let Err(error) = self.tables.put_module(slot, &blocks)
            {
                self.modules.refused(slot, &error.to_string());
            }
            ready.extend(self.modules.index(slot));
            next = self.modules.try_built();
        }
        for index in 0..self.list.len() {
            let maps_one = |tracked: &Tracked| {
                let mut modules = tracked.maps.iter().filter_map(|(_, module)| *module);
                modules.any(|module| ready.contains(&module))
            };
            if !self.list[index].ended && maps_one(&self.list[index]) {
                self.enqueue(index);
            }
        }
    }

    /// Tables still being built.
    pub fn pending(&self) -> usize {
        self.modules.pending()
    }

    /// The process with this thread-group id, as its place in [`Targets::list`].
    pub fn find(&self, tgid: u32) -> Option<usize> {
        self.by_tgid.get(&tgid).copied()
    }

    /// Descriptor that becomes readable when this process ends.
    pub fn pidfd(&self, tgid: u32) -> Option<RawFd> {
        let process = self.list.get(self.find(tgid)?)?.process.as_ref()?;
        Some(process.pidfd()?.as_raw_fd())
    }

    /// All processes that are or were in scope.
    pub fn list(&self) -> &[Tracked] {
        &self.list
    }

    /// All modules seen.
    pub fn modules(&self) -> &[Module] {
        self.modules.list()
    }

    /// Whether every process has ended.
    pub fn all_ended(&self) -> bool {
        self.list.iter().all(Tracked::is_over)
    }

    /// What went wrong without ending the run.
    pub fn notes(&self) -> Notes {
        let mut notes = self.notes.clone();
        for (reason, count) in &self.modules.failed {
            *notes
                .entry(format!("modules without an unwind table: {reason}"))
                .or_default() += count;
        }
        notes.extend(parser::warnings().into_iter().map(|warning| (warning, 1)));
        if self.modules.bad_entries > 0 {
            notes.insert(
                "malformed entries of .eh_frame".to_owned(),
                self.modules.bad_entries,
            );
        }
        notes
    }
}
