//! The parser's side: gives up everything that it can, and answers one request after the other.

use std::fs::File;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Duration;

use super::channel::{Channel, Lost, Message};
use super::wire::{Function, Kind, NamesRequest, Reader, Writer};
use super::{MARK, NAME, allocator, sandbox};
use crate::profile::{Frame, Unnamed};
use crate::symbolize::debug_files::{DebugFiles, Wanted};
use crate::symbolize::{self, Budget};
use crate::{elf, unwind};

/// Bytes of names that make a message.
const BATCH: usize = 64 << 10;
/// Blocks of a table that make a message.
const BLOCKS: usize = 64;

/// If this process was started as a parser, does what a parser does and gives its exit code. To be
/// called before anything else.
pub fn run_if_asked() -> Option<ExitCode> {
    let mut words = std::env::args_os().skip(1);
    if words.next()? != MARK {
        return None;
    }
    let memory = words.next()?.to_str()?.parse().ok()?;
    // Nobody hears what a panic says; what was being parsed is given up.
    std::panic::set_hook(Box::new(|_| {}));
    // SAFETY: the name is a C string of at most 16 bytes.
    unsafe { libc::prctl(libc::PR_SET_NAME, NAME.as_ptr()) };
    let lacks = sandbox::enter(memory);
    allocator::end_without_memory();
    symbolize::limit_memory(memory / 2);
    let stdin = std::io::stdin();
    let channel = Channel::of_parser(stdin.as_fd());
    let mut hello = Writer::default();
    hello.texts(&lacks);
    let served = channel
        .send(Kind::Hello, &hello, None)
        .and_then(|()| serve(&channel));
    Some(match served {
        Ok(()) | Err(Lost::Closed) => ExitCode::SUCCESS,
        Err(Lost::Time | Lost::Garbled) => ExitCode::FAILURE,
    })
}

/// Answers until the agent has no more to ask.
pub(super) fn serve(channel: &Channel<'_>) -> Result<(), Lost> {
    loop {
        let Message { kind, bytes, file } = channel.receive()?;
        let file = file.ok_or(Lost::Garbled)?;
        match kind {
            Kind::WantTable => table(channel, &file)?,
            Kind::WantNames => names(channel, &file, &request(&bytes)?)?,
            Kind::WantJitNames => {
                let request = request(&bytes)?;
                let frames = symbolize::perf_map(&file, &request.addresses, &budget(&request));
                send_frames(channel, frames)?;
            }
            _ => return Err(Lost::Garbled),
        }
    }
}

fn request(bytes: &[u8]) -> Result<NamesRequest, Lost> {
    Reader(bytes).names_request().ok_or(Lost::Garbled)
}

fn budget(request: &NamesRequest) -> Budget {
    let time = Duration::from_millis;
    Budget::rest(time(request.details_ms), time(request.total_ms))
}

fn table(channel: &Channel<'_>, file: &File) -> Result<(), Lost> {
    let mut content = Writer::default();
    content.segments(&elf::segments(file).unwrap_or_default());
    channel.send(Kind::Segments, &content, None)?;
    let build = AssertUnwindSafe(|| unwind::build(file));
    let table = catch_unwind(build).unwrap_or(Err(unwind::Error::Panicked));
    let mut content = Writer::default();
    let table = match table {
        Ok(table) => table,
        Err(error) => {
            content.text(&error.to_string());
            return channel.send(Kind::Refused, &content, None);
        }
    };
    for blocks in table.blocks.chunks(BLOCKS) {
        content.0.clear();
        content.blocks(blocks);
        channel.send(Kind::Blocks, &content, None)?;
    }
    content.0.clear();
    content.table(&table.module, &table.report);
    channel.send(Kind::Table, &content, None)
}

fn names(channel: &Channel<'_>, file: &File, request: &NamesRequest) -> Result<(), Lost> {
    let budget = budget(request);
    let debug = Asked { channel };
    let frames = symbolize::module(file, "", &debug, &request.addresses, &budget);
    let mut content = Writer::default();
    content.bytes(&symbolize::build_id(file).unwrap_or_default());
    channel.send(Kind::BuildId, &content, None)?;
    send_frames(channel, frames)
}

fn send_frames(channel: &Channel<'_>, frames: Vec<Vec<Frame>>) -> Result<(), Lost> {
    let mut content = Writer::default();
    for frames in frames {
        let functions: Vec<Function> = frames.into_iter().map(function).collect();
        content.functions(&functions);
        if content.0.len() >= BATCH {
            channel.send(Kind::Names, &content, None)?;
            content.0.clear();
        }
    }
    channel.send(Kind::Names, &content, None)?;
    channel.send(Kind::Done, &Writer::default(), None)
}

fn function(frame: Frame) -> Function {
    let reason = frame.unnamed.unwrap_or(Unnamed::NotCovered);
    Function {
        name: frame.function.ok_or(reason),
        file: frame.file,
        line: frame.line,
        start: frame.function_start,
    }
}

/// The agent, which opens files where the parser cannot.
struct Asked<'a> {
    channel: &'a Channel<'a>,
}

impl DebugFiles for Asked<'_> {
    fn find(&self, wanted: &Wanted<'_>, accept: &mut dyn FnMut(&File) -> bool) -> Option<File> {
        let mut content = Writer::default();
        content.wanted(wanted);
        self.channel.send(Kind::Find, &content, None).ok()?;
        loop {
            let answer = self.channel.receive().ok()?;
            let file = answer.file.filter(|_| answer.kind == Kind::Candidate)?;
            let is_it = accept(&file);
            let mut content = Writer::default();
            content.u8(u8::from(is_it));
            self.channel.send(Kind::Verdict, &content, None).ok()?;
            if is_it {
                return Some(file);
            }
        }
    }
}
