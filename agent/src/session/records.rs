//! Reads the records that are not for a probe, and the kernel's counters.

use agent_ebpf::{Counter, ProcessRecord, record};

/// The `u32` at an offset. Every record begins with its kind.
fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The process that a record is about, where such a record names it.
pub(super) fn owner(bytes: &[u8]) -> Option<u32> {
    match word(bytes, 0)? {
        record::STACK
        | record::SAMPLE
        | record::DEFERRED
        | record::SYSCALL
        | record::SYSCALL_STACK => word(bytes, 4),
        _ => None,
    }
}

/// Reads what became of a process; `None` for a record of another kind.
pub(crate) fn process_record(bytes: &[u8]) -> Option<ProcessRecord> {
    let kind = word(bytes, 0)?;
    if !matches!(
        kind,
        record::FORK | record::EXEC | record::EXIT | record::GONE
    ) {
        return None;
    }
    let long = |at: usize| Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    Some(ProcessRecord {
        kind,
        tgid: word(bytes, 4)?,
        parent: word(bytes, 8)?,
        visible: word(bytes, 12)?,
        time: long(16)?,
        start: long(24)?,
    })
}

/// The kernel's counters at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters(pub(super) [u64; Counter::ALL.len()]);

impl Counters {
    /// The value of one.
    pub fn get(&self, counter: Counter) -> u64 {
        self.0.get(counter as usize).copied().unwrap_or(0)
    }
}
