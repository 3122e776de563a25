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
mod channel;
mod child;
mod notes;
mod sandbox;
#[cfg(test)]
mod tests;
mod wire;

use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use crate::elf::{self, Segment};
use crate::process::helper::{Ended, Helper};
use crate::profile::{Frame, JIT_MODULE, Space, Unnamed};
use crate::symbolize::debug_files::DebugFiles;
use crate::symbolize::{self, Budget};
use crate::unwind::{self, Table};

pub use allocator::Allocator;
pub use child::run_if_asked;
pub use notes::warnings;

use channel::{Channel, Lost, Patience};
use wire::{Function, Kind, NamesRequest, Reader, Writer};

/// First argument of the child: no command of the agent.
const MARK: &str = "parser-process";
/// How the child is called (comm(5): 15 bytes).
const NAME: &CStr = c"agent-parser";
/// Address space of a child that builds tables, in bytes. Chromium's takes 37 MB in all.
const TABLE_MEMORY: u64 = 64 << 20;
/// Address space of a child that looks names up, in bytes.
const NAMES_MEMORY: u64 = 80 << 20;
/// CPU time that a table may take: hundreds of times what the largest programs' do.
const TABLE_CPU: Duration = Duration::from_secs(5);
/// Time that a table may take on a machine that is busy with other things.
const TABLE_TIME: Duration = Duration::from_secs(10);
/// How long a child may take to begin.
const START: Duration = Duration::from_secs(5);
/// How much later than its budget a child may be with its names.
const GRACE: Duration = Duration::from_secs(1);
/// Files that a parser may ask for while it names one module.
const MAX_FINDS: u32 = 16;
/// Protections that a child can say that it lacks.
const MAX_LACKS: u32 = 16;

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

/// One child process at a time, which answers one question at a time. It is started when it is
/// needed, and anew when it has died.
///
/// The child ends with the thread that started it: use a parser from one thread.
#[derive(Debug)]
pub struct Parser {
    memory: u64,
    child: Option<Helper>,
}

/// How long an answer is waited for.
struct Deadline<'a> {
    until: Instant,
    /// A child, and the CPU time that it may have taken by then.
    cpu: Option<(&'a Helper, Duration)>,
    budget: Option<&'a Budget>,
}

impl Patience for Deadline<'_> {
    fn goes_on(&self) -> bool {
        let cpu_left = |(child, most): &(&Helper, Duration)| {
            child.cpu_time().is_none_or(|taken| taken < *most)
        };
        Instant::now() < self.until
            && self.cpu.as_ref().is_none_or(cpu_left)
            && !self.budget.is_some_and(Budget::is_given_up)
    }
}

impl Parser {
    /// For unwind tables.
    pub fn of_tables() -> Self {
        Self::with_memory(TABLE_MEMORY)
    }

    /// For names.
    pub fn of_names() -> Self {
        Self::with_memory(NAMES_MEMORY)
    }

    fn with_memory(memory: u64) -> Self {
        Self {
            memory,
            child: None,
        }
    }

    /// Starts the child now, for an answer that comes sooner.
    pub fn prepare(&mut self) {
        // What goes wrong is told when it is needed.
        let _ = self.child();
    }

    /// Whether there can be no child, so that the agent has to parse itself.
    fn is_missing(&mut self) -> bool {
        self.prepare();
        notes::parses_here()
    }

    /// Reads an ELF file's segments, which it tells as soon as it knows them (none if it is no ELF
    /// file), and builds its unwind table.
    pub fn table(&mut self, file: &File, segments: impl FnOnce(Vec<Segment>)) -> Parsed {
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
        let answered = self.ask(|child| {
            let deadline = Deadline {
                until: Instant::now() + TABLE_TIME,
                cpu: Some((child, child.cpu_time().unwrap_or_default() + TABLE_CPU)),
                budget: None,
            };
            let channel = Channel::of_agent(child.socket(), &deadline);
            table(&channel, file, &mut tell)
        });
        Parsed {
            segments: match (&tell, &answered) {
                (None, _) => Ok(()),
                (Some(_), Err(failure)) => Err(failure.clone()),
                (Some(_), Ok(_)) => Err(Failure::Garbled),
            },
            table: answered.unwrap_or_else(|failure| Err(failure.to_string())),
        }
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
        let (details_left, left) = budget.left();
        let request = NamesRequest {
            details_ms: if details { millis(details_left) } else { 0 },
            total_ms: millis(left),
            addresses: addresses.to_vec(),
        };
        self.ask(|child| {
            let deadline = of_budget(budget, left);
            let channel = Channel::of_agent(child.socket(), &deadline);
            channel.send(Kind::WantNames, &written(&request), Some(file.as_fd()))?;
            names(&channel, name, debug, addresses)
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
            return symbolize::perf_map(file, addresses);
        }
        let (_, left) = budget.left();
        let request = NamesRequest {
            details_ms: 0,
            total_ms: millis(left),
            addresses: addresses.to_vec(),
        };
        let named = self.ask(|child| {
            let deadline = of_budget(budget, left);
            let channel = Channel::of_agent(child.socket(), &deadline);
            channel.send(Kind::WantJitNames, &written(&request), Some(file.as_fd()))?;
            let mut frames = Vec::new();
            while !take_names(&channel.receive()?, JIT_MODULE, addresses, &mut frames)? {}
            Ok(frames)
        });
        named.unwrap_or_else(|failure| unnamed(addresses, JIT_MODULE, failure.reason()))
    }

    /// Asks the child; one that does not answer as it should is ended.
    fn ask<T>(&mut self, ask: impl FnOnce(&Helper) -> Result<T, Lost>) -> Result<T, Failure> {
        let child = self.child()?;
        let lost = match ask(child) {
            Ok(answer) => return Ok(answer),
            Err(lost) => lost,
        };
        let child = self.child.take();
        Err(match lost {
            Lost::Time => Failure::Time,
            Lost::Garbled => Failure::Garbled,
            Lost::Closed => match child.map(Helper::ended) {
                Some(Ended::Code(allocator::OUT_OF_MEMORY)) => Failure::Memory,
                Some(Ended::Signal(number)) => Failure::Killed(number),
                _ => Failure::Ended,
            },
        })
    }

    /// The child, started if there is none.
    fn child(&mut self) -> Result<&Helper, Failure> {
        // One that was killed while it had nothing to do is no fault of the next file.
        let living = self.child.take().and_then(Helper::if_living);
        let child = match living {
            Some(child) => child,
            None => start(self.memory)?,
        };
        Ok(self.child.insert(child))
    }
}

fn millis(time: Duration) -> u64 {
    time.as_millis() as u64
}

fn of_budget(budget: &Budget, left: Duration) -> Deadline<'_> {
    Deadline {
        until: Instant::now() + left + GRACE,
        cpu: None,
        budget: Some(budget),
    }
}

fn written(request: &NamesRequest) -> Writer {
    let mut content = Writer::default();
    content.names_request(request);
    content
}

/// Starts a child, and hears what protections it lacks.
fn start(memory: u64) -> Result<Helper, Failure> {
    if !notes::may_start(Instant::now()) {
        return Err(Failure::TooMany);
    }
    let memory = memory.to_string();
    let words = [OsStr::new(MARK), OsStr::new(&memory)];
    let child = match Helper::start(&NAME.to_string_lossy(), &words) {
        Ok(child) => child,
        Err(error) => {
            notes::could_not_start(&error.to_string());
            return Err(Failure::NotStarted);
        }
    };
    let until = Instant::now() + START;
    let deadline = Deadline {
        until,
        cpu: None,
        budget: None,
    };
    let hello = Channel::of_agent(child.socket(), &deadline).receive();
    let lacks = hello.map(|message| match message.kind {
        Kind::Hello => Reader(&message.bytes).texts(MAX_LACKS),
        _ => None,
    });
    match lacks {
        Ok(Some(lacks)) => {
            notes::has_started(&lacks);
            return Ok(child);
        }
        // A machine without time for it now will have some later.
        Err(Lost::Time) => {}
        _ => notes::could_not_start(&format!("it ended at once: {:?}", child.ended())),
    }
    Err(Failure::NotStarted)
}

/// Takes in the answer about a table.
fn table(
    channel: &Channel<'_>,
    file: &File,
    tell: &mut Option<impl FnOnce(Vec<Segment>)>,
) -> Result<Result<Table, String>, Lost> {
    channel.send(Kind::WantTable, &Writer::default(), Some(file.as_fd()))?;
    let mut blocks = Vec::new();
    loop {
        let message = channel.receive()?;
        let mut content = Reader(&message.bytes);
        match message.kind {
            Kind::Segments => {
                let segments = content.segments().ok_or(Lost::Garbled)?;
                tell.take().ok_or(Lost::Garbled)?(segments);
            }
            Kind::Blocks => content.blocks(&mut blocks).ok_or(Lost::Garbled)?,
            Kind::Table => {
                let (module, report) = content.table(blocks.len()).ok_or(Lost::Garbled)?;
                return Ok(Ok(Table {
                    blocks,
                    module,
                    report,
                }));
            }
            Kind::Refused => return Ok(Err(content.text().ok_or(Lost::Garbled)?)),
            _ => return Err(Lost::Garbled),
        }
    }
}

/// Takes in the answer about names.
fn names(
    channel: &Channel<'_>,
    module: &str,
    debug: &dyn DebugFiles,
    addresses: &[u64],
) -> Result<Named, Lost> {
    let mut named = Named {
        frames: Vec::with_capacity(addresses.len()),
        build_id: None,
    };
    let mut finds = 0;
    loop {
        let message = channel.receive()?;
        match message.kind {
            Kind::Find if finds < MAX_FINDS => {
                finds += 1;
                find(channel, &message.bytes, debug)?;
            }
            Kind::BuildId => {
                let id = Reader(&message.bytes).bytes(wire::MAX_BUILD_ID);
                let id = id.ok_or(Lost::Garbled)?;
                named.build_id = (!id.is_empty()).then(|| id.to_vec());
            }
            _ => {
                if take_names(&message, module, addresses, &mut named.frames)? {
                    return Ok(named);
                }
            }
        }
    }
}

/// Takes in the functions at the next addresses; true once these were all.
fn take_names(
    message: &channel::Message,
    module: &str,
    addresses: &[u64],
    frames: &mut Vec<Vec<Frame>>,
) -> Result<bool, Lost> {
    if message.kind == Kind::Done && frames.len() == addresses.len() {
        return Ok(true);
    }
    let mut content = Reader(&message.bytes);
    while message.kind == Kind::Names && !content.is_empty() {
        let address = addresses.get(frames.len()).ok_or(Lost::Garbled)?;
        let functions = content.functions().ok_or(Lost::Garbled)?;
        let physical = functions.len() - 1;
        let functions = functions.into_iter().enumerate();
        let frame = |(at, function)| frame(function, module, *address, at != physical);
        frames.push(functions.map(frame).collect());
    }
    match message.kind {
        Kind::Names => Ok(false),
        _ => Err(Lost::Garbled),
    }
}

fn frame(function: Function, module: &str, address: u64, inlined: bool) -> Frame {
    let (name, unnamed) = match function.name {
        Ok(name) => (Some(name), None),
        Err(reason) => (None, Some(reason)),
    };
    Frame {
        function: name,
        file: function.file,
        line: function.line,
        inlined,
        function_start: function.start,
        unnamed,
        ..Frame::at(Space::User, Some(module.to_owned()), address)
    }
}

/// Offers the parser the files that may be the one it wants.
fn find(channel: &Channel<'_>, bytes: &[u8], debug: &dyn DebugFiles) -> Result<(), Lost> {
    let wanted = Reader(bytes).wanted().ok_or(Lost::Garbled)?;
    let mut lost = None;
    let found = debug.find(&wanted, &mut |file| {
        if !is_program(file) {
            return false;
        }
        let verdict = offer(channel, file.as_fd());
        // Nobody is there to judge the others.
        verdict.unwrap_or_else(|error| {
            lost = Some(error);
            true
        })
    });
    match (lost, found) {
        (Some(lost), _) => Err(lost),
        (None, Some(_)) => Ok(()),
        (None, None) => channel.send(Kind::NoCandidate, &Writer::default(), None),
    }
}

fn offer(channel: &Channel<'_>, file: BorrowedFd<'_>) -> Result<bool, Lost> {
    channel.send(Kind::Candidate, &Writer::default(), Some(file))?;
    let answer = channel.receive()?;
    match (answer.kind, answer.bytes.as_slice()) {
        (Kind::Verdict, [verdict @ (0 | 1)]) => Ok(*verdict == 1),
        _ => Err(Lost::Garbled),
    }
}

/// Whether a file can hold debug information: a parser that was taken over must not get to read
/// others, such as those with passwords, under a name that it makes up. ELF magic; `e_type` is that of
/// an object, a program or a library, and no memory of a process.
fn is_program(file: &File) -> bool {
    let mut head = [0; 18];
    let read = file.read_exact_at(&mut head, 0);
    read.is_ok() && head.starts_with(b"\x7fELF") && matches!(elf::half(&head, 16), 1..=3)
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
