//! What becomes of the processes in scope: fork, exec, exit, new mappings and names.

use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_ebpf::{ProcessRecord, Start, TARGET_FOLLOW_CHILDREN, Target, record};

use super::{Error, Targets, shown_program};
use crate::process::{self, Listed, Map, Process};
use crate::session::sideband::Event;

/// After the mappings of a process were read, they are not for so many times as long as it took.
const REST: u64 = 10;

impl Targets {
    /// Takes in what a kernel program told of a process's life.
    pub fn on_process(&mut self, event: &ProcessRecord) {
        let done = match event.kind {
            record::FORK => {
                self.on_fork(event);
                Ok(())
            }
            record::EXEC => self.on_exec(event),
            record::EXIT => {
                self.on_exit(event);
                Ok(())
            }
            _ => {
                self.on_gone(event);
                Ok(())
            }
        };
        self.note_failure(done);
    }

    /// The process that a record is about, as its place in the list: not another one that has had its
    /// id.
    fn subject(&self, event: &ProcessRecord) -> Option<usize> {
        let index = *self.by_tgid.get(&event.tgid)?;
        let tracked = self.list.get(index)?;
        tracked.start.is(event.start).then_some(index)
    }

    /// Counts what went wrong, by cause.
    pub fn note_failure(&mut self, done: Result<(), Error>) {
        if let Err(error) = done {
            *self.notes.entry(error.to_string()).or_default() += 1;
        }
    }

    /// The child shares its parent's mapping table, as a copy of its address space, until it maps
    /// or executes something itself.
    fn on_fork(&mut self, event: &ProcessRecord) {
        let Some(&parent) = self.by_tgid.get(&event.parent) else {
            return;
        };
        if self.subject(event).is_some() {
            return;
        }
        let start = Start::exactly(event.start);
        let process = Process::open_begun(event.visible, start).ok();
        let index = self.track(event.visible, event.tgid, start, process, Some(parent));
        let (slot, maps, comm, exe) = {
            let parent = &self.list[parent];
            let maps = Arc::clone(&parent.maps);
            (parent.slot, maps, parent.comm.clone(), parent.exe.clone())
        };
        let child = &mut self.list[index];
        (child.slot, child.maps, child.comm) = (slot, maps, comm);
        child.forked_at = event.time;
        child.exe = child.exe.take().or(exe);
        if !self.mappings {
            return;
        }
        if self.list[parent].changed || slot == 0 {
            self.list[index].changed = true;
            self.enqueue(index);
        }
        self.tables.share(slot);
        let executed = |target: Target| target.table == 0;
        if !self.in_scope(event.tgid).is_some_and(executed) {
            self.point_to_table(index);
        }
    }

    /// What the kernel programs know of the process of this id.
    fn in_scope(&self, tgid: u32) -> Option<Target> {
        self.scope.get(&tgid, 0).map(Target::from_words).ok()
    }

    pub(super) fn follow_flag(&self) -> u32 {
        if self.follow {
            TARGET_FOLLOW_CHILDREN
        } else {
            0
        }
    }

    /// Points a live scope entry at the process's own table; one that ended is not put back, and
    /// one of a process that has the id now is left alone.
    pub(super) fn point_to_table(&mut self, index: usize) {
        const BPF_EXIST: u64 = 2;
        let Some(tracked) = self.list.get(index) else {
            return;
        };
        let target = self.target(tracked);
        let known = self.in_scope(tracked.tgid);
        if known.is_none_or(|known| known.start != target.start || known == target) {
            return;
        }
        // A child that has the id of one that has ended comes into scope between look and write.
        if tracked.exited_at.is_some() || tracked.is_over() {
            return;
        }
        // Gone from the scope: it has ended meanwhile.
        let _ = self.scope.insert(tracked.tgid, target.words(), BPF_EXIST);
    }

    fn on_exec(&mut self, event: &ProcessRecord) -> Result<(), Error> {
        let Some(index) = self.subject(event) else {
            return Ok(());
        };
        let tracked = &mut self.list[index];
        if let Some(process) = &mut tracked.process {
            process.renew_root();
            let root = process.root().clone();
            let entry = process.entry().cloned();
            let origin = self.origin(entry, &root);
            if let Some(process) = &mut self.list[index].process {
                process.share_root(&origin.root);
            }
            self.list[index].origin = origin;
        }
        let tracked = &mut self.list[index];
        tracked.flags = 0;
        let process = tracked.process.as_ref();
        tracked.program = process.and_then(Process::program);
        tracked.exe = process.and_then(shown_program);
        if let Some(stat) = process.and_then(|process| process.stat().ok()) {
            tracked.comm = stat.comm;
        }
        if !self.mappings {
            return Ok(());
        }
        // A slot of its own again: walks under way keep the old program's table.
        self.tables.give_back(std::mem::take(&mut tracked.slot));
        let read_at = process::monotonic_ns();
        if let Some(Ok(maps)) = process.map(Process::maps) {
            return self.set_maps(index, maps, read_at);
        }
        // It is gone already: what it mapped is known from the side band.
        tracked.changed = true;
        self.enqueue(index);
        Ok(())
    }

    fn on_exit(&mut self, event: &ProcessRecord) {
        if let Some(index) = self.subject(event) {
            self.list[index].exited_at = Some(event.time);
        }
    }

    /// It stays known by its ids until another process in scope has them: records of it may still
    /// come.
    fn on_gone(&mut self, event: &ProcessRecord) {
        if let Some(index) = self.subject(event) {
            let tracked = &mut self.list[index];
            // One that joined lately may have the id of one whose end is told only now.
            if tracked
                .process
                .as_ref()
                .is_some_and(|process| !process.has_ended())
            {
                return;
            }
            tracked.ended = true;
            tracked.exited_at.get_or_insert(event.time);
            tracked.origin.process = None;
            tracked.maps = Arc::default();
            self.tables.give_back(std::mem::take(&mut tracked.slot));
            if let Some(process) = &mut tracked.process {
                process.let_go();
            }
        }
    }

    /// Tracks a process in scope whose fork record was lost.
    pub fn ensure(&mut self, tgid: u32) {
        let known = self.by_tgid.get(&tgid);
        // No record of a process comes after the one of its end: it is another.
        if known.is_some_and(|&index| !self.list[index].ended) {
            return;
        }
        let start = self.in_scope(tgid).map(|target| target.start);
        let start = start.unwrap_or_default();
        // In the initial namespace both ids are the same; elsewhere there is no telling which.
        let process = process::in_initial_pid_namespace()
            .then(|| Process::open_begun(tgid, start).ok())
            .flatten();
        let index = self.track(tgid, tgid, start, process, None);
        if !self.mappings {
            return;
        }
        let read_at = process::monotonic_ns();
        let process = self.list[index].process.as_ref();
        let maps = process.and_then(|process| process.maps().ok());
        let done = self.set_maps(index, maps.unwrap_or_default(), read_at);
        self.note_failure(done);
    }

    /// Whether an event's name may be that of another process that has the id now, since the process
    /// has ended and its end was not told.
    pub fn may_be_anothers(&self, event: &Event) -> bool {
        let Event::Name { pid, .. } = event else {
            return false;
        };
        let tracked = self.by_pid.get(pid).and_then(|&index| self.list.get(index));
        tracked.is_some_and(|tracked| tracked.exited_at.is_none() && tracked.is_over())
    }

    /// Takes in what the side band told.
    pub fn on_event(&mut self, time: u64, event: Event) {
        match event {
            Event::Map { pid, map } => {
                if let Some(&index) = self.by_pid.get(&pid)
                    && self.list[index].exited_at.is_none()
                    && time >= self.list[index].read_at.max(self.list[index].forked_at)
                {
                    let done = self.add_map(index, map);
                    self.note_failure(done);
                }
            }
            Event::Name { pid, name, by_exec } => {
                if let Some(&index) = self.by_pid.get(&pid)
                    && self.list[index].exited_at.is_none()
                    && time >= self.list[index].forked_at
                    && !self.list[index].may_have_ended_untold()
                {
                    let tracked = &mut self.list[index];
                    tracked.comm = name;
                    if by_exec && time >= tracked.read_at {
                        tracked.maps = Arc::default();
                    }
                }
            }
            Event::Lost(count) => {
                *self
                    .notes
                    .entry("side-band events lost (mappings were read anew)".to_owned())
                    .or_default() += count;
                self.lost_at = self.lost_at.max(time);
            }
        }
    }

    /// Reads the mappings anew of which events were lost, as far as the time allows. One list of a
    /// process may take half a second, so a tenth of the time is spent on that at most.
    pub fn renew(&mut self, time: Duration) {
        let deadline = Instant::now() + time;
        let mut all = true;
        for index in 0..self.list.len() {
            let tracked = &self.list[index];
            let current = tracked.ended || tracked.read_at >= self.lost_at;
            let living = |process: &&Process| !process.has_ended();
            let process = tracked.process.as_ref().filter(|_| !current);
            let Some(process) = process.filter(living) else {
                continue;
            };
            let read_at = process::monotonic_ns();
            let due = tracked.read_at + REST * tracked.read_for;
            if read_at < due || Instant::now() >= deadline {
                all = false;
                continue;
            }
            if let Ok(maps) = process.maps() {
                let done = self.set_maps(index, maps, read_at);
                self.note_failure(done);
            }
        }
        if all {
            self.lost_at = 0;
        }
    }

    /// Replaces what a process has mapped; `read_at` is when it was read.
    pub(super) fn set_maps(
        &mut self,
        index: usize,
        listed: Listed,
        read_at: u64,
    ) -> Result<(), Error> {
        self.look_at_program(index);
        let read_for = process::monotonic_ns().saturating_sub(read_at);
        if listed.cut {
            let note = "mappings left out, since reading them took too long".to_owned();
            *self.notes.entry(note).or_default() += 1;
        }
        let mut with_modules = Vec::with_capacity(listed.maps.len());
        for map in listed.maps {
            let module = self.module_of(index, &map)?;
            with_modules.push((map, module));
        }
        if let Some(tracked) = self.list.get_mut(index) {
            tracked.maps = Arc::new(with_modules);
            (tracked.read_at, tracked.read_for) = (read_at, read_for);
            tracked.changed = true;
        }
        self.enqueue(index);
        Ok(())
    }

    /// Adds a mapping; what it overlaps is gone, as in the process itself.
    fn add_map(&mut self, index: usize, mut map: Map) -> Result<(), Error> {
        let module = self.module_of(index, &map)?;
        let known = module.and_then(|module| self.modules.list().get(module));
        if let Some(known) = known.filter(|known| known.path == map.path) {
            map.path = Arc::clone(&known.path);
        }
        let Some(tracked) = self.list.get_mut(index) else {
            return Ok(());
        };
        let maps = Arc::make_mut(&mut tracked.maps);
        maps.retain(|(old, _)| old.end <= map.start || old.start >= map.end);
        let at = maps.partition_point(|(old, _)| old.start < map.start);
        maps.insert(at, (map, module));
        tracked.changed = true;
        self.enqueue(index);
        Ok(())
    }
}
