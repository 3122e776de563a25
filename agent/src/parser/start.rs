//! Starting a child.

use std::ffi::OsStr;
use std::time::Duration;

use super::channel::{Channel, Lost};
use super::wire::{Kind, Reader};
use super::{Deadline, Failure, Limit, MARK, NAME, notes};
use crate::process::helper::Helper;

/// How long a child may take to begin.
const START: Duration = Duration::from_secs(5);
/// Protections that a child can say that it lacks.
const MAX_LACKS: u32 = 16;

/// Starts a child with so much address space, in bytes.
pub(super) fn begin(memory: u64) -> Result<Helper, Failure> {
    let memory = memory.to_string();
    let words = [OsStr::new(MARK), OsStr::new(&memory)];
    Helper::start(&NAME.to_string_lossy(), &words).map_err(|error| {
        notes::could_not_start(&error.to_string());
        Failure::NotStarted
    })
}

/// A child once it has begun, and said what protections it lacks.
pub(super) fn greeted(child: Helper) -> Result<Helper, Failure> {
    let limit = Limit {
        time: START,
        cpu: START,
        stop: &|| false,
    };
    let hello = Channel::of_agent(child.socket(), &Deadline::of(&child, &limit)).receive();
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
