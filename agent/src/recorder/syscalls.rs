//! Failing system calls: the counts of a moment, with their stacks in names.

use std::collections::{BTreeMap, HashMap, HashSet};

use agent_ebpf::failure::row;

use crate::naming;
use crate::output::text;
use crate::probe::syscalls::{self, Failures, Options};
use crate::profile::{Accounting, Facts, Frame, FrameId, Profile, Space, Stack};
use crate::session::target::Targets;
use crate::session::{Attached, Error};
use crate::syscalls::{Report, name};

/// The counts in the kernel, and the names of the stacks seen so far.
pub struct Syscalls {
    failures: Failures,
    named: Profile,
    stacks: HashMap<u64, Vec<FrameId>>,
}

impl Syscalls {
    /// Counts from now on.
    ///
    /// # Errors
    /// When the kernel refuses a program.
    pub fn attach(session: &mut Attached, options: &Options) -> Result<Self, Error> {
        Ok(Self {
            failures: syscalls::attach(session, options)?,
            named: Profile::default(),
            stacks: HashMap::new(),
        })
    }

    /// Times count from this moment on: nanoseconds of `CLOCK_MONOTONIC`.
    pub fn begin_at(&mut self, time: u64) {
        self.failures.begin_at(time);
    }

    /// Takes in one record of the ring buffer.
    pub fn take(&mut self, bytes: &[u8], targets: &Targets) {
        self.failures.take(bytes, targets);
    }

    /// Whether the counting was stopped.
    pub fn has_ended(&self) -> bool {
        self.failures.has_ended()
    }

    /// Stops counting, if that was not done.
    ///
    /// # Errors
    /// When the bytecode does not hold the programs.
    pub fn detach(&mut self, session: &mut Attached) -> Result<(), Error> {
        if self.has_ended() {
            return Ok(());
        }
        syscalls::detach(session, &mut self.failures)
    }

    /// The counts as they are now. `last`: the run is over.
    pub fn report(&mut self, session: &Attached, last: bool) -> Report {
        self.name_stacks(session);
        let (named, stacks) = (&self.named, &self.stacks);
        self.failures
            .report(session, last, &mut |hash| names(named, stacks.get(&hash)))
    }

    fn name_stacks(&mut self, session: &Attached) {
        let new: Vec<_> = self
            .failures
            .stacks()
            .filter(|(hash, ..)| !self.stacks.contains_key(hash))
            .collect();
        let raw: Vec<_> = new
            .iter()
            .map(|(_, process, stack)| (*process, *stack))
            .collect();
        let frames = naming::frames(&mut self.named, &raw, session.targets());
        let hashes: Vec<u64> = new.iter().map(|(hash, ..)| *hash).collect();
        self.stacks.extend(hashes.into_iter().zip(frames));
    }

    /// The stacks of the report's rows, each with the failure as its leaf, as a profile of failures.
    /// To be called once, at the end.
    pub fn profile(&mut self, session: &Attached, report: &Report, facts: Facts) -> Profile {
        let mut profile = std::mem::take(&mut self.named);
        let shown: HashSet<String> = report
            .errors
            .iter()
            .map(|row| format!("{}:{}", row.syscall, row.errno))
            .collect();
        let list = session.targets().list();
        for (row, hash, count) in self.failures.stack_counts() {
            let (Some((process, end)), Some(frames)) =
                (self.failures.stack_end(hash), self.stacks.get(&hash))
            else {
                continue;
            };
            let Some(tracked) = list.get(process) else {
                continue;
            };
            if !shown.contains(&failure_name(row)) {
                continue;
            }
            let leaf = profile.intern(leaf(row));
            profile.stacks.push(Stack {
                pid: tracked.pid,
                tid: tracked.pid,
                comm: tracked.comm.clone(),
                thread: tracked.comm.clone(),
                frames: frames.iter().copied().chain([leaf]).collect(),
                end,
                count,
            });
        }
        let emitted = profile.samples();
        let without = report.failures().saturating_sub(emitted);
        profile.accounting = Accounting {
            ticks: emitted + without,
            emitted,
            lost: BTreeMap::from([("stack_not_kept".into(), without)]),
            ..Accounting::default()
        };
        profile.facts = Facts {
            event: "failed system calls".to_owned(),
            duration_seconds: self.failures.elapsed(),
            ..facts
        };
        profile
    }
}

/// The names of a stack's functions, root first.
fn names(named: &Profile, frames: Option<&Vec<FrameId>>) -> Vec<String> {
    let Some(frames) = frames else {
        return vec!["[stack not received]".to_owned()];
    };
    frames
        .iter()
        .filter_map(|id| named.frames.get(*id as usize))
        .map(text::frame_name)
        .collect()
}

/// `openat:ENOENT`.
fn failure_name(key: u64) -> String {
    let (number, errno) = (row::number(key), row::errno(key));
    format!("{}:{}", name::of_syscall(number), name::of_errno(errno))
}

/// The failure as a frame.
fn leaf(row: u64) -> Frame {
    Frame {
        function: Some(failure_name(row)),
        ..Frame::at(Space::User, Some("[syscall]".to_owned()), row)
    }
}
