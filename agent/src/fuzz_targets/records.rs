//! Records as the kernel sends them: pieces of the input, each behind its length.

use std::time::Instant;

use crate::probe::cpu::{RawStack, Samples};
use crate::probe::{syscalls, tcp};
use crate::session::{deferred::Deferred, records, sideband};
use crate::tcp::view::Span;
use crate::tcp::{Connections, Owner};

/// Most records of one input.
const MAX_RECORDS: usize = 64;

/// Hands each record to every decoder, then makes the views of what they hold.
pub(super) fn take(bytes: &[u8]) {
    let mut samples = Samples::since(Instant::now());
    let mut connections = [Connections::default(), Connections::endless()];
    let mut rest = bytes;
    for _ in 0..MAX_RECORDS {
        let Some((length, after)) = rest.split_first_chunk() else {
            break;
        };
        let length = usize::from(u16::from_le_bytes(*length)).min(after.len());
        let (record, after) = after.split_at(length);
        rest = after;
        samples.take_of(record, |tgid| (tgid < 4).then_some((tgid as usize, "comm")));
        for connections in &mut connections {
            connections.begin_look();
            tcp::take_of(record, owner, connections);
        }
        let _ = syscalls::described(record);
        let _ = records::process_record(record);
        let _ = sideband::decode(record);
        if let Some(deferred) = Deferred::decode(record) {
            let stack = RawStack::decode(&deferred.record());
            assert!(stack.is_some(), "a finished sample cannot be read");
        }
    }
    for connections in &mut connections {
        connections.take_waiting();
        let _ = connections.missed();
        for span in [Span::Run(1.0), Span::Interval(0.1), Span::Recent(0, 1.0)] {
            let _ = (connections.rows(span, 1), connections.sums(span));
            let _ = connections.remotes(span, 1);
        }
        connections.end_interval();
        connections.end(1 << 40);
        let _ = (
            connections.totals(),
            connections.failed(),
            connections.losses(),
        );
    }
    let _ = (samples.total(), samples.timeline(1.0), samples.frames());
    for stack in samples.stacks.values() {
        assert!(stack.kernel.len() + stack.user.len() <= bytes.len() / 8);
    }
}

fn owner(tgid: u32) -> Option<Owner> {
    (tgid < 4).then(|| Owner {
        pid: tgid,
        comm: "comm".to_owned(),
    })
}
