//! The files mapped by the processes in scope: each once, held open, with its unwind table.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, mpsc};

use agent_ebpf::unwind::{Block, Module as Layout};
use tokio::sync::mpsc as results;

use crate::elf::{self, Segment};
use crate::process::identity::Entry;
use crate::process::{self, FileId, Map, Root};
use crate::symbolize::debug_files::DebugRoots;
use crate::unwind::{self, Table};

/// How the kernel calls the mapping of its code for user space.
const VDSO: &str = "[vdso]";
/// Threads that build tables.
const BUILDERS: usize = 2;

/// A module: an ELF file, the vDSO, or a file that could not be opened.
#[derive(Debug)]
pub struct Module {
    /// Its slot in the `TABLES` map, which names it in frames.
    pub slot: u16,
    /// Its file's name, to show.
    pub name: String,
    /// Its path as the process sees it.
    pub path: Arc<OsStr>,
    /// The file, if it could be opened.
    pub file: Option<Arc<File>>,
    /// Root directories under which its separate debug files are.
    pub roots: Arc<DebugRoots>,
    segments: Vec<Segment>,
    layout: Layout,
    ready: bool,
}

/// Where the files of a process are found.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The process, while it is there.
    pub process: Option<Entry>,
    /// Its root directory.
    pub root: Root,
    /// Directories under which separate debug files are.
    pub debug: Arc<DebugRoots>,
}

/// A table that a builder thread has finished.
pub struct Built {
    /// The module's slot.
    pub slot: u16,
    table: Result<Table, unwind::Error>,
}

struct Job {
    slot: u16,
    file: Arc<File>,
}

/// All modules of a run.
pub struct Modules {
    by_file: HashMap<FileId, usize>,
    list: Vec<Module>,
    jobs: mpsc::Sender<Job>,
    built: results::UnboundedReceiver<Built>,
    pending: usize,
    /// Modules without a table, by reason.
    pub failed: HashMap<String, u64>,
    /// Malformed entries of `.eh_frame`, left out of the tables.
    pub bad_entries: u64,
}

impl Modules {
    /// Starts the builder threads.
    pub fn new() -> Self {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (done, built) = results::unbounded_channel();
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..BUILDERS {
            let (queue, done) = (Arc::clone(&queue), done.clone());
            std::thread::spawn(move || build_all(&queue, &done));
        }
        Self {
            by_file: HashMap::new(),
            list: Vec::new(),
            jobs,
            built,
            pending: 0,
            failed: HashMap::new(),
            bad_entries: 0,
        }
    }

    /// The module of a mapping, registered with the slot that `reserve` gives if it is new.
    /// `None` for memory without a file.
    pub fn of<E>(
        &mut self,
        map: &Map,
        origin: &Origin,
        reserve: impl FnOnce() -> Result<u16, E>,
    ) -> Result<Option<usize>, E> {
        if map.file.inode == 0 && *map.path != *VDSO {
            return Ok(None);
        }
        // The vDSO's key is the one with inode 0.
        if let Some(&index) = self.by_file.get(&map.file) {
            return Ok(Some(index));
        }
        let file = match *map.path == *VDSO {
            true => process::vdso(),
            false => origin.root.open_mapped(origin.process.as_ref(), map),
        };
        Ok(Some(self.add(map, file, origin, reserve()?)))
    }

    /// Registers a file before it is mapped.
    pub fn add(&mut self, map: &Map, file: Option<File>, origin: &Origin, slot: u16) -> usize {
        let segments = file.as_ref().and_then(|file| elf::segments(file).ok());
        self.list.push(Module {
            slot,
            name: map.name(),
            path: map.path.clone(),
            file: file.map(Arc::new),
            roots: Arc::clone(&origin.debug),
            segments: segments.unwrap_or_default(),
            layout: Layout::default(),
            ready: false,
        });
        let index = self.list.len() - 1;
        self.by_file.insert(map.file, index);
        self.start(index);
        index
    }

    /// Whether this file is registered.
    pub fn has(&self, file: FileId) -> bool {
        self.by_file.contains_key(&file)
    }

    fn start(&mut self, index: usize) {
        let Some(module) = self.list.get(index) else {
            return;
        };
        let Some(file) = module.file.clone() else {
            return self.give_up(index, "the file could not be opened");
        };
        if self
            .jobs
            .send(Job {
                slot: module.slot,
                file,
            })
            .is_ok()
        {
            self.pending += 1;
        }
    }

    /// Marks a module as one without rules: its frames are followed by the frame pointer.
    fn give_up(&mut self, index: usize, reason: &str) {
        if let Some(module) = self.list.get_mut(index) {
            module.layout = no_rules(module.slot);
            module.ready = true;
        }
        *self.failed.entry(reason.to_owned()).or_default() += 1;
    }

    /// Tables still being built.
    pub fn pending(&self) -> usize {
        self.pending
    }

    /// Waits for the next finished table.
    pub async fn next_built(&mut self) -> Option<Built> {
        self.built.recv().await
    }

    /// A finished table, if there is one.
    pub fn try_built(&mut self) -> Option<Built> {
        self.built.try_recv().ok()
    }

    /// The place in [`Modules::list`] of the module with this slot.
    pub fn index(&self, slot: u16) -> Option<usize> {
        self.list.iter().position(|module| module.slot == slot)
    }

    /// Takes a finished table in; gives back its blocks for the kernel.
    pub fn finish(&mut self, built: Built) -> Option<Vec<Block>> {
        self.pending = self.pending.saturating_sub(1);
        let index = self.index(built.slot)?;
        match built.table {
            Ok(table) => {
                self.bad_entries += table.report.bad_fdes;
                let module = self.list.get_mut(index)?;
                module.layout = Layout {
                    table: u32::from(module.slot),
                    ..table.module
                };
                module.ready = true;
                Some(table.blocks)
            }
            Err(error) => {
                self.give_up(index, &error.to_string());
                None
            }
        }
    }

    /// Forgets a table that the kernel did not take.
    pub fn refused(&mut self, slot: u16, reason: &str) {
        if let Some(index) = self.index(slot) {
            self.give_up(index, reason);
        }
    }

    /// Where the table of a module lies, and the load bias of a mapping of it.
    pub fn placement(&self, index: usize, map: &Map) -> Option<(Layout, u64)> {
        let module = self.list.get(index)?;
        let bias = match elf::bias(map.start, map.offset, &module.segments) {
            Some(bias) => bias,
            // Not an ELF file: its addresses are offsets in the file.
            None => map.start.wrapping_sub(map.offset),
        };
        let pending = Layout {
            table: u32::from(module.slot),
            ..Layout::default()
        };
        Some((if module.ready { module.layout } else { pending }, bias))
    }

    /// All of them.
    pub fn list(&self) -> &[Module] {
        &self.list
    }
}

impl Default for Modules {
    fn default() -> Self {
        Self::new()
    }
}

/// A layout whose look-ups find no row.
fn no_rules(slot: u16) -> Layout {
    Layout {
        base: u64::MAX,
        buckets: 1,
        rows: 0,
        extended: 0,
        table: u32::from(slot),
    }
}

/// The body of a builder thread: ends when the queue does.
fn build_all(queue: &Mutex<mpsc::Receiver<Job>>, done: &results::UnboundedSender<Built>) {
    loop {
        let job = match queue.lock() {
            Ok(queue) => queue.recv(),
            Err(_) => return,
        };
        let Ok(Job { slot, file }) = job else { return };
        let build = AssertUnwindSafe(|| unwind::build(&*file));
        let table = catch_unwind(build).unwrap_or(Err(unwind::Error::Panicked));
        if done.send(Built { slot, table }).is_err() {
            return;
        }
    }
}
