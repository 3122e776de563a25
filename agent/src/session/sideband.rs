//! The perf side band: what processes map and how they name themselves, as the kernel tells it
//! (`perf_event_open(2)`, records MMAP2 and COMM). Needs no kprobes and no tracefs.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{Ordering, fence};

use perf_event_open_sys::bindings::{
    PERF_COUNT_SW_DUMMY, PERF_FLAG_FD_CLOEXEC, PERF_RECORD_COMM, PERF_RECORD_LOST,
    PERF_RECORD_MMAP2, PERF_SAMPLE_TIME, PERF_TYPE_SOFTWARE, perf_event_attr, perf_event_mmap_page,
};

use crate::preflight::refusal::{Operation, Refusal};
use crate::process::{FileId, Map};

/// Bytes of each CPU's ring, without its first page.
const RING_BYTES: usize = 64 << 10;
const PAGE: usize = 4096;
/// `PROT_EXEC` (asm-generic/mman-common.h).
const PROT_EXEC: u32 = 4;

/// What the kernel told. Process and thread ids are those of the agent's PID namespace.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// Executable memory was mapped.
    Map {
        /// The process.
        pid: u32,
        /// The mapping.
        map: Map,
    },
    /// A process (its first thread) took a name, by itself or by an exec.
    Name {
        /// The process.
        pid: u32,
        /// The name.
        name: String,
        /// By an exec: what was mapped is gone, and the new program's mappings follow.
        by_exec: bool,
    },
    /// Events were lost: look at the processes anew.
    Lost(u64),
}

/// Why the kernel does not tell.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It refuses the event.
    #[error("cannot open a perf event on CPU {cpu}")]
    Event {
        /// Where.
        cpu: u32,
        /// What it answered.
        source: io::Error,
    },
    /// It refuses the ring.
    #[error("cannot map the ring buffer of a perf event")]
    Ring(#[source] io::Error),
}

impl Error {
    /// What the kernel was asked for and answered.
    pub fn refusal(&self) -> Option<Refusal> {
        let (operation, source) = match self {
            Error::Event { source, .. } => (Operation::PerfEvent, source),
            Error::Ring(source) => (Operation::PerfRing, source),
        };
        let errno = source.raw_os_error()?;
        Some(Refusal { operation, errno })
    }
}

/// Events that wait to be taken in, in the order in which they happened. The CPUs' rings are read one
/// after the other, so that one look can bring what happened before an event of the last.
#[derive(Debug, Default)]
pub struct Queue(VecDeque<(u64, Event)>);

impl Queue {
    /// Puts events, each with its time, among those that wait.
    pub fn add(&mut self, events: Vec<(u64, Event)>) {
        if !events.is_empty() {
            self.0.extend(events);
            self.0.make_contiguous().sort_by_key(|(time, _)| *time);
        }
    }

    /// The first one, if it happened at a time or before.
    pub fn first_until(&self, time: u64) -> Option<&(u64, Event)> {
        self.0.front().filter(|(at, _)| *at <= time)
    }

    /// Takes the first one away.
    pub fn pop(&mut self) -> Option<(u64, Event)> {
        self.0.pop_front()
    }
}

/// One CPU's event and its ring.
struct Ring {
    fd: OwnedFd,
    base: *mut u8,
}

// SAFETY: the mapping belongs to this value alone; only `&mut self` methods touch it.
unsafe impl Send for Ring {}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: exactly what `open` mapped.
        unsafe { libc::munmap(self.base.cast(), PAGE + RING_BYTES) };
    }
}

/// The side band of all CPUs.
pub struct Sideband {
    rings: Vec<Ring>,
}

impl Sideband {
    /// Opens it on the given CPUs.
    ///
    /// # Errors
    /// What `perf_event_open` or `mmap` answers.
    pub fn open(cpus: &[u32]) -> Result<Self, Error> {
        let rings = cpus
            .iter()
            .map(|&cpu| Ring::open(cpu))
            .collect::<Result<_, Error>>()?;
        Ok(Self { rings })
    }

    /// Descriptors that become readable when there are events.
    pub fn fds(&self) -> impl Iterator<Item = RawFd> + '_ {
        self.rings.iter().map(|ring| ring.fd.as_raw_fd())
    }

    /// Takes all events there are, of all CPUs, each with its time in nanoseconds of the monotonic
    /// clock.
    pub fn drain(&mut self) -> Vec<(u64, Event)> {
        let mut events = Vec::new();
        for ring in &mut self.rings {
            ring.drain(&mut events);
        }
        events
    }
}

impl Ring {
    fn open(cpu: u32) -> Result<Self, Error> {
        let mut attr = perf_event_attr {
            type_: PERF_TYPE_SOFTWARE,
            size: size_of::<perf_event_attr>() as u32,
            config: PERF_COUNT_SW_DUMMY as u64,
            ..perf_event_attr::default()
        };
        attr.__bindgen_anon_2.wakeup_events = 1;
        attr.sample_type = u64::from(PERF_SAMPLE_TIME);
        attr.clockid = libc::CLOCK_MONOTONIC;
        attr.set_use_clockid(1);
        attr.set_sample_id_all(1);
        attr.set_mmap(1);
        attr.set_mmap2(1);
        attr.set_comm(1);
        attr.set_comm_exec(1);
        attr.set_watermark(1);
        attr.__bindgen_anon_2.wakeup_watermark = 1;
        // SAFETY: the attribute is a whole, initialised structure.
        let fd = unsafe {
            perf_event_open_sys::perf_event_open(
                &raw mut attr,
                -1,
                cpu as i32,
                -1,
                u64::from(PERF_FLAG_FD_CLOEXEC),
            )
        };
        if fd < 0 {
            let source = io::Error::last_os_error();
            return Err(Error::Event { cpu, source });
        }
        // SAFETY: the kernel has just given this descriptor to us alone.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: a fresh shared mapping of the descriptor's ring, of a size the kernel accepts.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                PAGE + RING_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(Error::Ring(io::Error::last_os_error()));
        }
        Ok(Self {
            fd,
            base: base.cast(),
        })
    }

    fn drain(&mut self, events: &mut Vec<(u64, Event)>) {
        let page = self.base.cast::<perf_event_mmap_page>();
        // SAFETY: the first page of the ring is this structure; the kernel writes the head.
        let (head, mut tail) = unsafe {
            (
                (&raw const (*page).data_head).read_volatile(),
                (*page).data_tail,
            )
        };
        fence(Ordering::Acquire);
        let mut record = Vec::new();
        while tail < head {
            let size = self.copy(tail, 8, &mut record);
            let size = size.filter(|&size| size >= 8 && size as u64 <= head - tail);
            let Some(size) = size else { break };
            self.copy(tail, size, &mut record);
            tail += size as u64;
            // The last field of each record, as `sample_id_all` asks for.
            let time = u64_at(&record, size - 8).unwrap_or(0);
            events.extend(decode(&record).map(|event| (time, event)));
        }
        fence(Ordering::Release);
        // SAFETY: the tail is ours to write.
        unsafe { (&raw mut (*page).data_tail).write_volatile(head) };
    }

    /// Copies bytes out of the ring and returns the size that the record's header gives.
    fn copy(&self, at: u64, size: usize, record: &mut Vec<u8>) -> Option<usize> {
        record.clear();
        let start = at as usize & (RING_BYTES - 1);
        let first = size.min(RING_BYTES - start);
        // SAFETY: both parts lie in the data area of the ring, which the kernel has finished writing.
        unsafe {
            let data = self.base.add(PAGE);
            record.extend_from_slice(std::slice::from_raw_parts(data.add(start), first));
            record.extend_from_slice(std::slice::from_raw_parts(data, size - first));
        }
        Some(usize::from(u16::from_le_bytes(
            record.get(6..8)?.try_into().ok()?,
        )))
    }
}

/// `PERF_RECORD_MISC_COMM_EXEC` (linux/perf_event.h).
const COMM_EXEC: u16 = 1 << 13;

fn u16_at(record: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(record.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(record: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(record.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(record: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(record.get(at..at + 8)?.try_into().ok()?))
}

/// The zero-terminated bytes from `at` on.
fn text_at(record: &[u8], at: usize) -> Option<&[u8]> {
    record.get(at..)?.split(|&byte| byte == 0).next()
}

pub(crate) fn decode(record: &[u8]) -> Option<Event> {
    match u32_at(record, 0)? {
        PERF_RECORD_MMAP2 => mapping(record),
        PERF_RECORD_COMM if u32_at(record, 8)? == u32_at(record, 12)? => Some(Event::Name {
            pid: u32_at(record, 8)?,
            name: String::from_utf8_lossy(text_at(record, 16)?).into_owned(),
            by_exec: u16_at(record, 4)? & COMM_EXEC != 0,
        }),
        PERF_RECORD_LOST => Some(Event::Lost(u64_at(record, 16)?)),
        _ => None,
    }
}

/// `header, pid, tid, addr, len, pgoff, maj, min, ino, ino_generation, prot, flags, filename`.
fn mapping(record: &[u8]) -> Option<Event> {
    if u32_at(record, 64)? & PROT_EXEC == 0 {
        return None;
    }
    let start = u64_at(record, 16)?;
    let path = text_at(record, 72)?;
    // The kernel's name for memory without a file.
    let path = if path == b"//anon" { b"" } else { path };
    Some(Event::Map {
        pid: u32_at(record, 8)?,
        map: Map {
            start,
            end: start.checked_add(u64_at(record, 24)?)?,
            offset: u64_at(record, 32)?,
            file: FileId {
                major: u32_at(record, 40)?,
                minor: u32_at(record, 44)?,
                inode: u64_at(record, 48)?,
            },
            path: OsStr::from_bytes(path).into(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_later_look_brings_of_before_comes_first() {
        let mut queue = Queue::default();
        queue.add(vec![(30, Event::Lost(3)), (10, Event::Lost(1))]);
        queue.add(vec![(20, Event::Lost(2))]);
        queue.add(Vec::new());
        let mut taken = Vec::new();
        while queue.first_until(25).is_some() {
            taken.extend(queue.pop());
        }
        assert_eq!(taken, [(10, Event::Lost(1)), (20, Event::Lost(2))]);
        assert_eq!(queue.pop(), Some((30, Event::Lost(3))));
        assert_eq!(queue.pop(), None);
    }
}
