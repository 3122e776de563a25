//! The parser: everything that reads files of strangers (ELF headers, unwind information, DWARF,
//! symbol tables, perf maps, names to be demangled) does so in a child process that has no
//! privileges, few system calls, little memory and little time.
//!
//! - [`Parser`] is the agent's side: it starts the child, hands it open files, checks what it answers
//!   (`wire`, `channel`) and ends it when it takes too long. A file that kills its parser costs its
//!   own table or names; the next file gets a new one.
//! - [`run_if_asked`] is the child's side: the agent's own program, run again.
//!
//! What comes back is data about the target and nothing else: a parser that was taken over by a file
//! can lie about the files that it is given, and that is all it can do.

mod allocator;
mod answers;
mod channel;
mod child;
mod notes;
mod sandbox;
mod start;
#[cfg(test)]
mod tests;
mod wire;

use std::cell::Cell;
use std::ffi::CStr;
use std::fs::File;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use crate::elf::{self, Segment};
use crate::process::helper::{Ended, Helper};
use crate::process::regular;
use crate::profile::{Frame, JIT_MODULE, Space, Unnamed};
use crate::symbolize::debug_files::{DebugFiles, Wanted};
use crate::symbolize::{self, Budget};
use crate::unwind::{self, Table};

pub use allocator::Allocator;
pub use child::run_if_asked;
pub use notes::warnings;

use channel::{Channel, Lost, Patience};
use wire::{Kind, NamesRequest, Writer};

/// First argument of the child: no command of the agent.
const MARK: &str = "parser-process";
/// How the child is called (comm(5): 15 bytes).
const NAME: &CStr = c"agent-parser";
/// Address space of a child that builds tables, in bytes: 12 MB of it are the program's own.
/// Chromium's table takes 50 MB in all.
const TABLE_MEMORY: u64 = 56 << 20;
/// Address space of a child that builds a table for which that is not enough, in bytes.
const LARGE_TABLE_MEMORY: u64 = 160 << 20;
/// Address space of a child that looks names up, in bytes.
const NAMES_MEMORY: u64 = 104 << 20;
/// Held for reading while names are looked up, for writing while a large table is built: two children
/// that look up names, or one and two tables, or one large table and another, are what there is
/// room for in 256 MB.
static ROOM: RwLock<()> = RwLock::new(());
/// CPU time that a table may take: hundreds of times what the largest programs' do.
const TABLE_CPU: Duration = Duration::from_secs(5);
/// Time that a table may take on a machine that is busy with other things.
const TABLE_TIME: Duration = Duration::from_secs(10);
/// How much later than its budget a child may be with its names.
const GRACE: Duration = Duration::from_secs(1);
/// Why the parser gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// It was killed, by the kernel or by somebody.
    #[error("the parser died of signal {0}")]
    Killed(i32),
    /// It ended.
    #[error("the parser ended")]
    Ended,
    /// The file asks for more memory than a parser has.
    #[error("the parser ran out of memory")]
    Memory,
    /// It took too long, or the user gave up.
    #[error("the parser took too long")]
    Time,
    /// Its answer is none: it has been taken over, or there is an error in it.
    #[error("the parser's answer makes no sense")]
    Garbled,
    /// No parser could be started.
    #[error("no parser could be started")]
    NotStarted,
    /// Too many have died.
    #[error("too many parsers have died")]
    TooMany,
}

impl Failure {
    /// As the reason for a name that is missing.
    pub fn reason(&self) -> Unnamed {
        match self {
            Failure::Memory | Failure::Time => Unnamed::GaveUp,
            _ => Unnamed::ParserDied,
        }
    }

    /// Whether it was the file that ended the parser, and less of it may not.
    fn is_of_the_file(&self) -> bool {
        matches!(
            self,
            Failure::Killed(_) | Failure::Ended | Failure::Memory | Failure::Garbled
        )
    }
}

/// What a file says to the unwinder.
#[derive(Debug)]
pub struct Parsed {
    /// Whether its segments were told.
    pub segments: Result<(), Failure>,
    /// Its unwind table, or why there is none.
    pub table: Result<Table, String>,
}

/// What a module says to who looks for names.
#[derive(Debug)]
pub struct Named {
    /// The functions at each address, as [`symbolize::module`] gives them.
    pub frames: Vec<Vec<Frame>>,
    /// The build id.
    pub build_id: Option<Vec<u8>>,
}

/// Has questions about files answered, one at a time. Each file gets a child process of its own, so
/// that none can have a hand in what is said of another; those that only the system's administrator
/// can have written share one, which has read no other before.
///
/// The children end with the thread that started them: use a parser from one thread.
#[derive(Debug)]
pub struct Parser {
    memory: u64,
    /// A child that has been started for the next question, and whether it has been heard of.
    ready: Option<(Helper, bool)>,
    /// Whether one is to be ready always.
    keeps_ready: bool,
}

/// How long an answer is waited for.
struct Limit<'a> {
    time: Duration,
    /// CPU time of the child.
    cpu: Duration,
    stop: &'a dyn Fn() -> bool,
}

/// A limit for a child.
struct Deadline<'a> {
    until: Instant,
    limit: &'a Limit<'a>,
    child: &'a Helper,
}

impl Patience for Deadline<'_> {
    fn goes_on(&self) -> bool {
        let taken = self.child.cpu_time().unwrap_or_default();
        Instant::now() < self.until && taken < self.limit.cpu && !(self.limit.stop)()
    }
}

impl<'a> Deadline<'a> {
    fn of(child: &'a Helper, limit: &'a Limit<'a>) -> Self {
        Self {
            until: Instant::now() + limit.time,
            limit,
            child,
        }
    }
}

impl Parser {
    /// For unwind tables. A child is always ready, for a table that comes soon.
    pub fn of_tables() -> Self {
        let mut parser = Self {
            keeps_ready: true,
            ..Self::with_memory(TABLE_MEMORY)
        };
        parser.prepare();
        parser
    }

    /// For names.
    pub fn of_names() -> Self {
        Self::with_memory(NAMES_MEMORY)
    }

    fn with_memory(memory: u64) -> Self {
        Self {
            memory,
            ready: None,
            keeps_ready: false,
        }
    }

    fn prepare(&mut self) {
        // What goes wrong is told when it is tried again.
        let begin = || Some((start::begin(self.memory).ok()?, false));
        self.ready = self.ready.take().or_else(begin);
    }

    /// Whether there can be no child, so that the agent has to parse itself.
    fn is_missing(&mut self) -> bool {
        if notes::is_first() {
            self.ready = self.child().ok().map(|child| (child, true));
        }
        notes::parses_here()
    }

    /// Reads an ELF file's segments, which it tells as soon as it knows them (none if it is no ELF
    /// file), and builds its unwind table; gives that up as soon as it is told to `stop`.
    pub fn table(
        &mut self,
        file: &File,
        stop: &AtomicBool,
        segments: impl FnOnce(Vec<Segment>),
    ) -> Parsed {
        if self.is_missing() {
            segments(elf::segments(file).unwrap_or_default());
            let build = AssertUnwindSafe(|| unwind::build(file));
            let table = catch_unwind(build).unwrap_or(Err(unwind::Error::Panicked));
            return Parsed {
                segments: Ok(()),
                table: table.map_err(|error| error.to_string()),
            };
        }
        let mut tell = Some(segments);
        let mut answered = self.try_table(file, stop, &mut tell);
        if answered.as_ref().is_err_and(|it| *it == Failure::Memory) {
            // A lock is poisoned only by a panic, and nothing is behind this one.
            let _alone = ROOM.write().unwrap_or_else(PoisonError::into_inner);
            let mut large = Self::with_memory(LARGE_TABLE_MEMORY);
            answered = large.try_table(file, stop, &mut tell);
        }
        Parsed {
            segments: match (&tell, &answered) {
                (None, _) => Ok(()),
                (Some(_), Err(failure)) => Err(failure.clone()),
                (Some(_), Ok(_)) => Err(Failure::Garbled),
            },
            table: answered.unwrap_or_else(|failure| Err(failure.to_string())),
        }
    }

    fn try_table(
        &mut self,
        file: &File,
        stop: &AtomicBool,
        tell: &mut Option<impl FnOnce(Vec<Segment>)>,
    ) -> Result<Result<Table, String>, Failure> {
        let limit = Limit {
            time: TABLE_TIME,
            cpu: TABLE_CPU,
            stop: &|| stop.load(Ordering::Relaxed),
        };
        let nothing = Writer::default();
        let shares = Cell::new(regular::is_of_the_system(file));
        self.ask(
            &limit,
            (Kind::WantTable, &nothing),
            (file, &shares),
            |channel| answers::table(channel, tell),
        )
    }

    /// Names addresses of a module, as [`symbolize::module`] does. If that costs the parser its
    /// life, it is tried once more without the debug information.
    pub fn names(
        &mut self,
        file: &File,
        name: &str,
        debug: &dyn DebugFiles,
        addresses: &[u64],
        budget: &Budget,
    ) -> Named {
        if budget.is_over() {
            return Named {
                frames: unnamed(addresses, name, Unnamed::GaveUp),
                build_id: None,
            };
        }
        if self.is_missing() {
            return Named {
                frames: symbolize::module(file, name, debug, addresses, budget),
                build_id: symbolize::build_id(file),
            };
        }
        let mut named = self.try_names(file, name, debug, addresses, budget, true);
        if named.as_ref().is_err_and(Failure::is_of_the_file) && !budget.is_over() {
            named = self.try_names(file, name, debug, addresses, budget, false);
        }
        named.unwrap_or_else(|failure| Named {
            frames: unnamed(addresses, name, failure.reason()),
            build_id: None,
        })
    }

    fn try_names(
        &mut self,
        file: &File,
        name: &str,
        debug: &dyn DebugFiles,
        addresses: &[u64],
        budget: &Budget,
        details: bool,
    ) -> Result<Named, Failure> {
        let shares = Cell::new(regular::is_of_the_system(file));
        let debug = Watched {
            files: debug,
            shares: &shares,
        };
        let question = (Kind::WantNames, addresses, details);
        self.ask_names(budget, question, (file, &shares), |channel| {
            answers::names(channel, name, &debug, addresses)
        })
    }

    /// Names addresses by a perf map, as [`symbolize::perf_map`] does.
    pub fn jit_names(
        &mut self,
        file: &File,
        addresses: &[u64],
        budget: &Budget,
    ) -> Vec<Vec<Frame>> {
        if self.is_missing() {
            return symbolize::perf_map(file, addresses, budget);
        }
        let shares = Cell::new(false);
        let question = (Kind::WantJitNames, addresses, false);
        let named = self.ask_names(budget, question, (file, &shares), |channel| {
            answers::jit_names(channel, addresses)
        });
        named.unwrap_or_else(|failure| unnamed(addresses, JIT_MODULE, failure.reason()))
    }

    /// Asks a child for the names of addresses, with `details` or without, in the time that is left.
    fn ask_names<T>(
        &mut self,
        budget: &Budget,
        (kind, addresses, details): (Kind, &[u64], bool),
        file: (&File, &Cell<bool>),
        answer: impl FnOnce(&Channel<'_>) -> Result<T, Lost>,
    ) -> Result<T, Failure> {
        let (details_left, left) = budget.left();
        let request = NamesRequest {
            details_ms: if details { millis(details_left) } else { 0 },
            total_ms: millis(left),
            addresses: addresses.to_vec(),
        };
        let _room = ROOM.read().unwrap_or_else(PoisonError::into_inner);
        let given_up = || budget.is_given_up();
        let limit = limit_of_names(&given_up, left);
        self.ask(&limit, (kind, &written(&request)), file, answer)
    }

    /// Asks a child about a file, and ends it unless it `shares` this child with the next.
    fn ask<T>(
        &mut self,
        limit: &Limit<'_>,
        (kind, content): (Kind, &Writer),
        (file, shares): (&File, &Cell<bool>),
        answer: impl FnOnce(&Channel<'_>) -> Result<T, Lost>,
    ) -> Result<T, Failure> {
        if !notes::may_ask(Instant::now()) {
            return Err(Failure::TooMany);
        }
        let child = self.child()?;
        let answered = {
            let deadline = Deadline::of(&child, limit);
            let channel = Channel::of_agent(child.socket(), &deadline);
            let asked = channel.send(kind, content, Some(file.as_fd()));
            if self.keeps_ready && !shares.get() {
                self.prepare();
            }
            asked.and_then(|()| answer(&channel))
        };
        let lost = match answered {
            Ok(answer) => {
                if shares.get() {
                    self.ready = Some((child, true));
                }
                return Ok(answer);
            }
            Err(lost) => lost,
        };
        notes::has_died(Instant::now());
        if self.keeps_ready {
            self.prepare();
        }
        Err(match lost {
            Lost::Time => Failure::Time,
            Lost::Garbled => Failure::Garbled,
            Lost::Closed => match child.ended() {
                Ended::Code(allocator::OUT_OF_MEMORY) => Failure::Memory,
                Ended::Signal(number) => Failure::Killed(number),
                _ => Failure::Ended,
            },
        })
    }

    /// The child that is ready, or a new one.
    fn child(&mut self) -> Result<Helper, Failure> {
        // One that was killed while it had nothing to do is no fault of the next file.
        let ready = self.ready.take();
        match ready.and_then(|(child, greeted)| Some((child.if_living()?, greeted))) {
            Some((child, true)) => Ok(child),
            Some((child, false)) => start::greeted(child),
            None => start::greeted(start::begin(self.memory)?),
        }
    }
}

/// Debug files; sees whether all that are handed over are the system's.
struct Watched<'a> {
    files: &'a dyn DebugFiles,
    shares: &'a Cell<bool>,
}

impl DebugFiles for Watched<'_> {
    fn find(&self, wanted: &Wanted<'_>, accept: &mut dyn FnMut(&File) -> bool) -> Option<File> {
        self.files.find(wanted, &mut |file| {
            let shares = self.shares.get() && regular::is_of_the_system(file);
            self.shares.set(shares);
            accept(file)
        })
    }
}

fn millis(time: Duration) -> u64 {
    time.as_millis() as u64
}

fn limit_of_names(given_up: &dyn Fn() -> bool, left: Duration) -> Limit<'_> {
    Limit {
        time: left + GRACE,
        cpu: Duration::MAX,
        stop: given_up,
    }
}

fn written(request: &NamesRequest) -> Writer {
    let mut content = Writer::default();
    content.names_request(request);
    content
}

fn unnamed(addresses: &[u64], module: &str, reason: Unnamed) -> Vec<Vec<Frame>> {
    let frame = |&address: &u64| {
        vec![Frame {
            unnamed: Some(reason),
            ..Frame::at(Space::User, Some(module.to_owned()), address)
        }]
    };
    addresses.iter().map(frame).collect()
}
