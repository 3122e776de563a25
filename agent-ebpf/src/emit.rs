//! Sends records to userspace.

use agent_ebpf::{Counter, MAX_KERNEL_FRAMES, MAX_USER_FRAMES, SampleRecord, StackRecord, record};
use aya_ebpf::helpers::generated::{bpf_ringbuf_output, bpf_ringbuf_query};

use crate::count;
use crate::maps::{EVENTS, SEEN, Scratch};

/// Userspace looks at the ring by itself a few times a second; it is woken only when this many
/// bytes wait.
const WAKE_BYTES: u64 = (agent_ebpf::RING_BYTES / 4) as u64;
const BPF_RB_NO_WAKEUP: u64 = 1;
const BPF_RB_FORCE_WAKEUP: u64 = 2;
const BPF_RB_AVAIL_DATA: u64 = 0;

/// Largest record: the header and all the frames there can be.
pub const MAX_BYTES: u64 =
    (size_of::<StackRecord>() + 8 * (MAX_KERNEL_FRAMES + MAX_USER_FRAMES)) as u64;

/// Whether userspace should look at the ring.
#[derive(Clone, Copy)]
pub enum Wake {
    /// At once.
    Now,
    /// When much waits; otherwise it comes by itself.
    WhenFull,
}

/// Copies `size` bytes into the ring.
///
/// # Safety
/// `data` points to at least `size` bytes that the verifier knows of.
#[inline(always)]
pub unsafe fn output<T>(data: *const T, size: u64, wake: Wake) -> bool {
    let ring = (&raw const EVENTS).cast_mut().cast();
    let full = match wake {
        Wake::Now => true,
        // SAFETY: the helper only reads the map's own state.
        Wake::WhenFull => unsafe { bpf_ringbuf_query(ring, BPF_RB_AVAIL_DATA) >= WAKE_BYTES },
    };
    let flags = if full {
        BPF_RB_FORCE_WAKEUP
    } else {
        BPF_RB_NO_WAKEUP
    };
    // SAFETY: what the caller promises.
    unsafe { bpf_ringbuf_output(ring, data.cast_mut().cast(), size, flags) == 0 }
}

/// Sends the stack in the scratch, or only its hash where it was sent before.
#[inline(always)]
pub fn sample(scratch: &mut Scratch, hash: u64) -> bool {
    // SAFETY: only whether there is a value is looked at.
    if unsafe { SEEN.get(hash) }.is_some() {
        scratch.record.sample.kind = record::SAMPLE;
        // SAFETY: the record is as long as that.
        return unsafe {
            output(
                &raw const scratch.record.sample,
                size_of::<SampleRecord>() as u64,
                Wake::WhenFull,
            )
        };
    }
    scratch.record.user_frames = scratch.depth as u16;
    let size = size_of::<StackRecord>() as u64 + 8 * scratch.frames_len as u64;
    if size > MAX_BYTES {
        return false;
    }
    // SAFETY: the frames follow the record and hold more than MAX_BYTES.
    let sent = unsafe { output(&raw const scratch.record, size, Wake::WhenFull) };
    if sent {
        // Only now: a hash that stands in the set promises that its stack has arrived.
        let _ = SEEN.insert(hash, 1, 0);
        count(Counter::StacksSent, 1);
    }
    sent
}
