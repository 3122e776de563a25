//! Which processes are in scope, and what each has mapped: follows fork, exec, mmap and exit.

use std::collections::HashMap;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::sync::Arc;

use agent_ebpf::unwind::{Block, Mapping, Module as Layout, mappings};
use agent_ebpf::{ProcessRecord, TARGET_FOLLOW_CHILDREN, Target, record};
use aya::maps::{HashMap as BpfMap, MapData};

use super::deferred::Code;
use super::modules::{Built, Module, Modules, Origin};
use super::sideband::Event;
use super::tables::{self, Tables, mapping_blocks};
use crate::process::{self, Map, Process};
use crate::symbolize::debug_files::DebugRoots;

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
    /// Held while it lives and could be opened.
    pub process: Option<Process>,
    /// Whether it has ended.
    pub ended: bool,
    origin: Origin,
    slot: u16,
    maps: Vec<(Map, Option<usize>)>,
}

/// What went wrong without ending the run, by cause.
pub type Notes = HashMap<String, u64>;

/// Why a process could not be taken into scope.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be looked at.
    #[error(transparent)]
    Process(#[from] crate::process::Error),
    /// Its table could not be handed over.
    #[error(transparent)]
    Tables(#[from] tables::Error),
    /// The kernel refused the entry.
    #[error("cannot put process {pid} in scope")]
    Scope {
        /// The process.
        pid: u32,
        /// What the kernel answered.
        source: aya::maps::MapError,
    },
}

/// The target's own debug files come first, then the host's or the agent's container's.
fn origin_of(pid: u32, process: Option<&Process>) -> Origin {
    let root = process
        .map(|process| process.root().clone())
        .unwrap_or_default();
    let path = root.path();
    Origin {
        pid,
        debug: Arc::new(DebugRoots::open([path.as_path(), Path::new("/")])),
        root,
    }
}

fn no_table(mapping: &Mapping) -> bool {
    mapping.module.table == 0
}

/// The code of one process.
pub struct ProcessCode<'a> {
    targets: &'a Targets,
    tracked: &'a Tracked,
}

impl Code for ProcessCode<'_> {
    fn mapping(&self, address: u64) -> Option<Mapping> {
        let maps = &self.tracked.maps;
        let after = maps.partition_point(|(map, _)| map.start <= address);
        let (map, module) = maps.get(after.checked_sub(1)?)?;
        (address < map.end).then(|| self.targets.entry(map, *module))
    }

    fn block(&self, table: u32, index: u32) -> Option<Block> {
        self.targets.tables.block(table, index)
    }
}

/// The processes in scope and their modules.
pub struct Targets {
    scope: BpfMap<MapData, u32, [u32; 2]>,
    tables: Tables,
    modules: Modules,
    list: Vec<Tracked>,
    by_tgid: HashMap<u32, usize>,
    by_pid: HashMap<u32, usize>,
    follow: bool,
    mappings: bool,
    notes: Notes,
}

impl Targets {
    /// No process yet. `follow`: what they fork is in scope too; `mappings`: what they map is
    /// followed, for the unwinding of their stacks.
    pub fn new(
        scope: BpfMap<MapData, u32, [u32; 2]>,
        tables: Tables,
        follow: bool,
        mappings: bool,
    ) -> Self {
        Self {
            scope,
            tables,
            modules: Modules::new(),
            list: Vec::new(),
            by_tgid: HashMap::new(),
            by_pid: HashMap::new(),
            follow,
            mappings,
            notes: Notes::new(),
        }
    }

    /// Takes a process into scope: from now on its samples are kept. `flags`: further
    /// `TARGET_…` flags.
    ///
    /// # Errors
    /// When its mappings cannot be read or the kernel refuses the entry.
    pub fn add(&mut self, process: Process, tgid: u32, flags: u32) -> Result<(), Error> {
        if !self.mappings {
            let index = self.track(process.pid(), tgid, Some(process), None, 0);
            return self.enter_scope(index, flags);
        }
        let maps = process.maps()?;
        let slot = self.tables.reserve()?;
        let index = self.track(process.pid(), tgid, Some(process), None, slot);
        self.set_maps(index, maps)?;
        self.enter_scope(index, flags)
    }

    /// `parent`: whose files a process has that is already gone.
    fn track(
        &mut self,
        pid: u32,
        tgid: u32,
        process: Option<Process>,
        parent: Option<usize>,
        slot: u16,
    ) -> usize {
        let stat = process.as_ref().and_then(|process| process.stat().ok());
        let origin = match (&process, parent.and_then(|index| self.list.get(index))) {
            (None, Some(parent)) => Origin {
                pid,
                ..parent.origin.clone()
            },
            _ => origin_of(pid, process.as_ref()),
        };
        self.list.push(Tracked {
            pid,
            tgid,
            comm: stat.map_or_else(|| "?".to_owned(), |stat| stat.comm),
            exe: process
                .as_ref()
                .and_then(Process::exe)
                .map(|path| path.to_string_lossy().into_owned()),
            process,
            ended: false,
            origin,
            slot,
            maps: Vec::new(),
        });
        let index = self.list.len() - 1;
        self.by_tgid.insert(tgid, index);
        self.by_pid.insert(pid, index);
        index
    }

    fn enter_scope(&mut self, index: usize, flags: u32) -> Result<(), Error> {
        let Some(tracked) = self.list.get(index) else {
            return Ok(());
        };
        let target = Target {
            table: u32::from(tracked.slot),
            flags: self.follow_flag() | flags,
        };
        self.scope
            .insert(tracked.tgid, target.words(), 0)
            .map_err(|source| Error::Scope {
                pid: tracked.pid,
                source,
            })
    }

    /// Replaces what a process has mapped.
    fn set_maps(&mut self, index: usize, maps: Vec<Map>) -> Result<(), Error> {
        let mut with_modules = Vec::with_capacity(maps.len());
        for map in maps {
            let module = self.module_of(index, &map)?;
            with_modules.push((map, module));
        }
        if let Some(tracked) = self.list.get_mut(index) {
            tracked.maps = with_modules;
        }
        self.write_maps(index)
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
        let origin = origin_of(std::process::id(), None);
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

    /// Hands a process's mapping table to the kernel.
    fn write_maps(&mut self, index: usize) -> Result<(), Error> {
        let Some(tracked) = self.list.get(index) else {
            return Ok(());
        };
        let mut entries: Vec<Mapping> = Vec::with_capacity(tracked.maps.len());
        for (map, module) in &tracked.maps {
            let entry = self.entry(map, *module);
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
        Ok(self.tables.put(tracked.slot, &mapping_blocks(&entries))?)
    }

    /// A mapping as the kernel programs know it.
    fn entry(&self, map: &Map, module: Option<usize>) -> Mapping {
        let placement = module.and_then(|module| self.modules.placement(module, map));
        let (module, bias) = placement.unwrap_or((Layout::default(), 0));
        Mapping {
            start: map.start,
            end: map.end,
            bias,
            module,
            ..Mapping::default()
        }
    }

    /// What is known of a process's code, for the walks that userspace finishes.
    pub fn code(&self, tgid: u32) -> Option<ProcessCode<'_>> {
        let tracked = self.list.get(self.find(tgid)?)?;
        Some(ProcessCode {
            targets: self,
            tracked,
        })
    }

    /// Takes in what a kernel program told of a process's life.
    pub fn on_process(&mut self, event: &ProcessRecord) {
        let done = match event.kind {
            record::FORK => self.on_fork(event),
            record::EXEC => self.on_exec(event.tgid),
            _ => {
                self.on_exit(event.tgid);
                Ok(())
            }
        };
        self.note_failure(done);
    }

    fn note_failure(&mut self, done: Result<(), Error>) {
        if let Err(error) = done {
            *self.notes.entry(error.to_string()).or_default() += 1;
        }
    }

    /// The child shares its parent's mapping table, as a copy of its address space, until it maps
    /// or executes something itself.
    fn on_fork(&mut self, event: &ProcessRecord) -> Result<(), Error> {
        let Some(&parent) = self.by_tgid.get(&event.parent) else {
            return Ok(());
        };
        if self
            .by_tgid
            .get(&event.tgid)
            .is_some_and(|&index| !self.list[index].ended)
        {
            return Ok(());
        }
        let process = Process::open(event.visible).ok();
        let slot = if self.mappings {
            self.tables.reserve()?
        } else {
            0
        };
        let index = self.track(event.visible, event.tgid, process, Some(parent), slot);
        let (maps, comm, exe) = {
            let parent = &self.list[parent];
            (parent.maps.clone(), parent.comm.clone(), parent.exe.clone())
        };
        let child = &mut self.list[index];
        child.maps = maps;
        child.comm = comm;
        child.exe = child.exe.take().or(exe);
        if !self.mappings {
            return Ok(());
        }
        self.write_maps(index)?;
        self.point_to_table(index)
    }

    fn follow_flag(&self) -> u32 {
        if self.follow {
            TARGET_FOLLOW_CHILDREN
        } else {
            0
        }
    }

    /// Points a live scope entry at the process's own table; one that ended is not put back.
    fn point_to_table(&mut self, index: usize) -> Result<(), Error> {
        const BPF_EXIST: u64 = 2;
        let Some(tracked) = self.list.get(index) else {
            return Ok(());
        };
        let target = Target {
            table: u32::from(tracked.slot),
            flags: self.follow_flag(),
        };
        // Gone from the scope: it has ended meanwhile.
        let _ = self.scope.insert(tracked.tgid, target.words(), BPF_EXIST);
        Ok(())
    }

    fn on_exec(&mut self, tgid: u32) -> Result<(), Error> {
        let Some(&index) = self.by_tgid.get(&tgid) else {
            return Ok(());
        };
        let tracked = &mut self.list[index];
        let process = tracked.process.as_ref();
        tracked.exe = process
            .and_then(Process::exe)
            .map(|path| path.to_string_lossy().into_owned());
        if let Some(stat) = process.and_then(|process| process.stat().ok()) {
            tracked.comm = stat.comm;
        }
        if !self.mappings {
            return Ok(());
        }
        // Where it is gone already the side band tells what it mapped.
        let maps = process.and_then(|process| process.maps().ok());
        let maps = maps.unwrap_or_default();
        // A slot of its own again: walks under way keep the old program's table.
        tracked.slot = self.tables.reserve()?;
        self.set_maps(index, maps)?;
        self.point_to_table(index)
    }

    /// It stays known by its ids until another process has them: records of it may still come.
    fn on_exit(&mut self, tgid: u32) {
        if let Some(&index) = self.by_tgid.get(&tgid) {
            self.list[index].ended = true;
        }
    }

    /// Tracks a process in scope whose fork record was lost.
    pub fn ensure(&mut self, tgid: u32) {
        if self.by_tgid.contains_key(&tgid) {
            return;
        }
        // In the initial namespace both ids are the same; elsewhere there is no telling which.
        let process = process::in_initial_pid_namespace().then(|| Process::open(tgid).ok());
        let done = self.tables.reserve().map_err(Error::from).and_then(|slot| {
            let index = self.track(tgid, tgid, process.flatten(), None, slot);
            let process = self.list[index].process.as_ref();
            let maps = process.and_then(|process| process.maps().ok());
            self.set_maps(index, maps.unwrap_or_default())?;
            self.point_to_table(index)
        });
        self.note_failure(done);
    }

    /// Takes in what the side band told.
    pub fn on_event(&mut self, event: Event) {
        match event {
            Event::Map { pid, map } => {
                if let Some(&index) = self.by_pid.get(&pid) {
                    let done = self.add_map(index, map);
                    self.note_failure(done);
                }
            }
            Event::Name { pid, name } => {
                if let Some(&index) = self.by_pid.get(&pid) {
                    self.list[index].comm = name;
                }
            }
            Event::Lost(count) => {
                *self
                    .notes
                    .entry("side-band events lost (mappings were read anew)".to_owned())
                    .or_default() += count;
                self.read_all_again();
            }
        }
    }

    fn read_all_again(&mut self) {
        for index in 0..self.list.len() {
            let Some(process) = self.list[index]
                .process
                .as_ref()
                .filter(|process| !process.has_ended())
            else {
                continue;
            };
            if let Ok(maps) = process.maps() {
                let done = self.set_maps(index, maps);
                self.note_failure(done);
            }
        }
    }

    /// Adds a mapping; what it overlaps is gone, as in the process itself.
    fn add_map(&mut self, index: usize, map: Map) -> Result<(), Error> {
        let module = self.module_of(index, &map)?;
        let Some(tracked) = self.list.get_mut(index) else {
            return Ok(());
        };
        tracked
            .maps
            .retain(|(old, _)| old.end <= map.start || old.start >= map.end);
        let at = tracked
            .maps
            .partition_point(|(old, _)| old.start < map.start);
        tracked.maps.insert(at, (map, module));
        self.write_maps(index)
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
        while let Some(built) = next {
            if let Some((slot, blocks)) = self.modules.finish(built)
                && let Err(error) = self.tables.put(slot, &blocks)
            {
                self.modules.refused(slot, &error.to_string());
            }
            next = self.modules.try_built();
        }
        for index in 0..self.list.len() {
            if !self.list[index].ended {
                let done = self.write_maps(index);
                self.note_failure(done);
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
        Some(process.pidfd().as_raw_fd())
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
        self.list
            .iter()
            .all(|tracked| tracked.ended || tracked.process.as_ref().is_none_or(Process::has_ended))
    }

    /// What went wrong without ending the run.
    pub fn notes(&self) -> Notes {
        let mut notes = self.notes.clone();
        for (reason, count) in &self.modules.failed {
            *notes
                .entry(format!("modules without an unwind table: {reason}"))
                .or_default() += count;
        }
        if self.modules.bad_entries > 0 {
            notes.insert(
                "malformed entries of .eh_frame".to_owned(),
                self.modules.bad_entries,
            );
        }
        notes
    }
}
