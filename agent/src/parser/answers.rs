//! The agent's side of an answer: taken in piece by piece, and believed only as far as it can be true.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use super::Named;
use super::channel::{Channel, Lost, Message};
use super::wire::{Function, Kind, MAX_BUILD_ID, Reader, Writer};
use crate::elf::{self, Segment};
use crate::profile::{Frame, JIT_MODULE, Space};
use crate::symbolize::debug_files::DebugFiles;
use crate::unwind::Table;

/// Files that a parser may ask for while it names one module.
const MAX_FINDS: u32 = 16;

/// Takes in the answer about a table.
pub(super) fn table(
    channel: &Channel<'_>,
    tell: &mut Option<impl FnOnce(Vec<Segment>)>,
) -> Result<Result<Table, String>, Lost> {
    let (mut blocks, mut told) = (Vec::new(), false);
    loop {
        let message = channel.receive()?;
        let mut content = Reader(&message.bytes);
        match message.kind {
            Kind::Segments if !told => {
                told = true;
                let segments = content.segments().ok_or(Lost::Garbled)?;
                // Where a table is tried again, they are known from the first time.
                if let Some(tell) = tell.take() {
                    tell(segments);
                }
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
pub(super) fn names(
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
                let id = Reader(&message.bytes).bytes(MAX_BUILD_ID);
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

/// Takes in the answer about a perf map.
pub(super) fn jit_names(channel: &Channel<'_>, addresses: &[u64]) -> Result<Vec<Vec<Frame>>, Lost> {
    let mut frames = Vec::new();
    while !take_names(&channel.receive()?, JIT_MODULE, addresses, &mut frames)? {}
    Ok(frames)
}

/// Takes in the functions at the next addresses; true once these were all.
fn take_names(
    message: &Message,
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
