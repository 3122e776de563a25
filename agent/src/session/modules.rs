//! The files mapped by the processes in scope: each once, held open, with its unwind table.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use agent_ebpf::unwind::{Block, Module as Layout};
use tokio::sync::mpsc as results;

use crate::elf::{self, Segment};
use crate::parser::{Parsed, Parser};
use crate::process::identity::Entry;
use crate::process::{self, FileId, Map, Root, privilege};
use crate::profile::Unnamed;
use crate::symbolize::debug_files::DebugRoots;

/// How the kernel calls the mapping of its code for user space.
const VDSO: &str = "[vdso]";
/// Threads that have tables built, each with a parser.
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
    segments: Segments,
    layout: Layout,
    ready: bool,
}

/// What is known of a file's segments, and so of the addresses in it.
#[derive(Debug)]
enum Segments {
    /// Not yet anything: its mappings are not shown to the kernel.
    Pending,
    /// These; none if it is no ELF file.
    Known(Vec<Segment>),
    /// Nothing, and nothing will be.
    Unknown(Unnamed),
}

impl Module {
    /// Why its addresses cannot be told from its mappings, if they cannot: names for them would be
    /// wrong ones.
    pub fn no_addresses(&self) -> Option<Unnamed> {
        match self.segments {
            Segments::Known(_) => None,
            Segments::Pending => Some(Unnamed::GaveUp),
            Segments::Unknown(reason) => Some(reason),
        }
    }
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

/// What a builder thread has found out about a file.
pub struct Built {
    /// The module's slot.
    pub slot: u16,
    news: News,
}

enum News {
    /// Its segments; the table is being built.
    Segments(Vec<Segment>),
    /// All that will be known of it.
    All(Parsed),
}

struct Job {
    slot: u16,
    file: Arc<File>,
}

/// The threads that have tables built; when this is dropped they give up what they are at.
pub struct Builders {
    jobs: mpsc::Sender<Job>,
    built: results::UnboundedReceiver<Built>,
    stop: Arc<AtomicBool>,
}

impl Builders {
    /// Starts them, and with each a parser.
    pub fn start() -> Self {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (done, built) = results::unbounded_channel();
        let queue = Arc::new(Mutex::new(queue));
        let stop = Arc::new(AtomicBool::new(false));
        for _ in 0..BUILDERS {
            let (queue, done) = (Arc::clone(&queue), done.clone());
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || build_all(&queue, &done, &stop));
        }
        Self { jobs, built, stop }
    }
}

impl Drop for Builders {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// All modules of a run.
pub struct Modules {
    by_file: HashMap<FileId, usize>,
    list: Vec<Module>,
    /// `None`: no table is wanted.
    builders: Option<Builders>,
    pending: usize,
    /// Modules without a table, by reason.
    pub failed: HashMap<String, u64>,
    /// Malformed entries of `.eh_frame`, left out of the tables.
    pub bad_entries: u64,
}

impl Modules {
    /// None yet.
    pub fn new(builders: Option<Builders>) -> Self {
        Self {
            by_file: HashMap::new(),
            list: Vec::new(),
            builders,
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
        self.list.push(Module {
            slot,
            name: map.name(),
            path: map.path.clone(),
            file: file.map(Arc::new),
            roots: Arc::clone(&origin.debug),
            segments: Segments::Pending,
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
            return self.give_up(
                index,
                Unnamed::FileUnavailable,
                "the file could not be opened",
            );
        };
        let slot = module.slot;
        let jobs = self.builders.as_ref().map(|builders| &builders.jobs);
        if jobs.is_some_and(|jobs| jobs.send(Job { slot, file }).is_ok()) {
            self.pending += 1;
        }
    }

    /// Marks a module as one without rules: its frames are followed by the frame pointer. Where its
    /// segments are not known either, `unnamed` is why its addresses have no names.
    fn give_up(&mut self, index: usize, unnamed: Unnamed, reason: &str) {
        if let Some(module) = self.list.get_mut(index) {
            module.layout = no_rules(module.slot);
            module.ready = true;
            if matches!(module.segments, Segments::Pending) {
                module.segments = Segments::Unknown(unnamed);
            }
        }
        *self.failed.entry(reason.to_owned()).or_default() += 1;
    }

    /// The end of the run: no further table is built, and those under way are given up, which counts
    /// as a failure if they are `wanted`.
    pub fn close(&mut self, wanted: bool) {
        self.builders = None;
        self.pending = 0;
        for index in 0..self.list.len() {
            let module = self.list.get_mut(index).filter(|module| !module.ready);
            if module.is_some() && wanted {
                self.give_up(index, Unnamed::GaveUp, "not built by the end of the run");
            }
        }
    }

    /// Tables still being built.
    pub fn pending(&self) -> usize {
        self.pending
    }

    /// Waits for the next finished table.
    pub async fn next_built(&mut self) -> Option<Built> {
        match &mut self.builders {
            Some(builders) => builders.built.recv().await,
            None => std::future::pending().await,
        }
    }

    /// A finished table, if there is one.
    pub fn try_built(&mut self) -> Option<Built> {
        self.builders.as_mut()?.built.try_recv().ok()
    }

    /// The place in [`Modules::list`] of the module with this slot.
    pub fn index(&self, slot: u16) -> Option<usize> {
        self.list.iter().position(|module| module.slot == slot)
    }

    /// Takes in what was found out; gives back the blocks of a finished table for the kernel.
    pub fn finish(&mut self, built: Built) -> Option<Vec<Block>> {
        let index = self.index(built.slot)?;
        let module = self.list.get_mut(index)?;
        let parsed = match built.news {
            News::Segments(segments) => {
                if !module.ready {
                    module.segments = Segments::Known(segments);
                }
                return None;
            }
            News::All(parsed) => parsed,
        };
        self.pending = self.pending.saturating_sub(1);
        if module.ready {
            return None;
        }
        if let (Err(failure), Segments::Pending) = (&parsed.segments, &module.segments) {
            module.segments = Segments::Unknown(failure.reason());
        }
        match parsed.table {
            Ok(table) => {
                module.layout = Layout {
                    table: u32::from(module.slot),
                    ..table.module
                };
                module.ready = true;
                let bad = table.report.bad_fdes;
                self.bad_entries = self.bad_entries.saturating_add(bad);
                Some(table.blocks)
            }
            Err(reason) => {
                self.give_up(index, Unnamed::GaveUp, &reason);
                None
            }
        }
    }

    /// Forgets a table that the kernel did not take.
    pub fn refused(&mut self, slot: u16, reason: &str) {
        if let Some(index) = self.index(slot) {
            self.give_up(index, Unnamed::GaveUp, reason);
        }
    }

    /// Where the table of a module lies, and the load bias of a mapping of it; `None` while neither
    /// is known.
    pub fn placement(&self, index: usize, map: &Map) -> Option<(Layout, u64)> {
        let module = self.list.get(index)?;
        let bias = match &module.segments {
            Segments::Pending => return None,
            Segments::Known(segments) => elf::bias(map.start, map.offset, segments),
            Segments::Unknown(_) => None,
        };
        let pending = Layout {
            table: u32::from(module.slot),
            ..Layout::default()
        };
        Some((
            if module.ready { module.layout } else { pending },
            // Not an ELF file: its addresses are offsets in the file.
            bias.unwrap_or(map.start.wrapping_sub(map.offset)),
        ))
    }

    /// All of them.
    pub fn list(&self) -> &[Module] {
        &self.list
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
fn build_all(
    queue: &Mutex<mpsc::Receiver<Job>>,
    done: &results::UnboundedSender<Built>,
    stop: &AtomicBool,
) {
    // The first parser is started with all privileges, so that it can become another user.
    let mut parser = Parser::of_tables();
    // The files are open already. A filter that forbids even this has said so to the main thread.
    let _ = privilege::drop_to(&[]);
    loop {
        let job = match queue.lock() {
            Ok(queue) => queue.recv(),
            Err(_) => return,
        };
        let Some(Job { slot, file }) = job.ok().filter(|_| !stop.load(Ordering::Relaxed)) else {
            return;
        };
        // False once nobody listens any more.
        let tell = |news| done.send(Built { slot, news }).is_ok();
        let parsed = parser.table(&file, stop, |segments| {
            tell(News::Segments(segments));
        });
        if !tell(News::All(parsed)) {
            return;
        }
    }
}
