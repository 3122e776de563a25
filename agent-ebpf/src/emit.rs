//! Sends records to userspace.

use agent_ebpf::{
    Counter, DEFERRED_BUDGET, DEFERRED_FRAMES, DEFERRED_REFILL, DEFERRED_STACK_BYTES,
    DeferredRecord, End, MAX_KERNEL_FRAMES, MAX_USER_FRAMES, RepeatRecord, SampleRecord,
    StackRecord, record,
};
use aya_ebpf::helpers::generated::{
    bpf_ktime_get_ns, bpf_probe_read_kernel, bpf_probe_read_user, bpf_ringbuf_output,
    bpf_ringbuf_query,
};

use crate::count;
use crate::maps::{DEFERRED, EVENTS, SEEN, Scratch, config};
use crate::stack::{mask, mix};

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
    let flags = match wake {
        Wake::Now => BPF_RB_FORCE_WAKEUP,
        Wake::WhenFull => wake_flags(),
    };
    // SAFETY: what the caller promises.
    unsafe { bpf_ringbuf_output(ring, data.cast_mut().cast(), size, flags) == 0 }
}

/// Flags for a record that is submitted in place, as [`Wake::WhenFull`].
#[inline(always)]
pub fn wake_flags() -> u64 {
    let ring = (&raw const EVENTS).cast_mut().cast();
    // SAFETY: the helper only reads the map's own state.
    let waiting = unsafe { bpf_ringbuf_query(ring, BPF_RB_AVAIL_DATA) };
    if waiting >= WAKE_BYTES {
        BPF_RB_FORCE_WAKEUP
    } else {
        BPF_RB_NO_WAKEUP
    }
}

/// Sends the stack in the scratch, or only its hash where it was sent before, without the thread's
/// names where they are those of the last time. A walk that came to code not known yet is sent with
/// a copy of the stack.
#[inline(always)]
pub fn sample(slot: u32, scratch: &mut Scratch, hash: u64) -> bool {
    if is_pending(scratch) && may_defer() && deferred(slot, scratch) {
        return true;
    }
    let whose = whose(&scratch.record.sample);
    if let Some(seen) = SEEN.get_ptr_mut(hash) {
        // SAFETY: a value of the map; what another CPU writes at once is as true.
        return unsafe { seen_before(&mut scratch.record.sample, whose, seen) };
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
        let _ = SEEN.insert(hash, whose, 0);
        count(Counter::StacksSent, 1);
    }
    sent
}

/// A hash of process, thread and the thread's name.
#[inline(always)]
fn whose(sample: &SampleRecord) -> u64 {
    let ids = (sample.tgid as u64) << 32 | sample.tid as u64;
    // SAFETY: the name is sixteen bytes; it need not be aligned.
    let [first, second] = unsafe { sample.thread.as_ptr().cast::<[u64; 2]>().read_unaligned() };
    mix(mix(ids, first), second)
}

/// Sends a sample whose stack userspace has; `last` is whose it was the last time.
///
/// # Safety
/// `last` points to a value of a map.
#[inline(always)]
unsafe fn seen_before(sample: &mut SampleRecord, whose: u64, last: *mut u64) -> bool {
    // SAFETY: what the caller promises.
    if sample.tid != 0 && unsafe { *last } == whose {
        let repeat = RepeatRecord {
            kind: record::of_kind(sample.kind, record::REPEAT),
            tid: sample.tid,
            stack: sample.stack,
        };
        let size = size_of::<RepeatRecord>() as u64;
        // SAFETY: the record is as long as that.
        return unsafe { output(&raw const repeat, size, Wake::WhenFull) };
    }
    sample.kind = record::of_kind(sample.kind, record::SAMPLE);
    let size = size_of::<SampleRecord>() as u64;
    // SAFETY: the record is as long as that.
    let sent = unsafe { output(&raw const *sample, size, Wake::WhenFull) };
    if sent {
        // Only now: it promises that the names have arrived.
        // SAFETY: what the caller promises.
        unsafe { *last = whose };
    }
    sent
}

/// Whether the walk came to code not known yet.
#[inline(always)]
pub fn is_pending(scratch: &Scratch) -> bool {
    let end = scratch.record.end;
    end == End::TablePending as u32 || end == End::NoMapping as u32
}

/// Whether there is room for one more sample that is finished later.
#[inline(always)]
pub fn may_defer() -> bool {
    let sent = crate::counted(Counter::Deferred);
    if sent < DEFERRED_BUDGET {
        return true;
    }
    // SAFETY: the helper has no preconditions.
    let age = unsafe { bpf_ktime_get_ns() }.wrapping_sub(config::loaded_at());
    sent - DEFERRED_BUDGET < (age >> DEFERRED_REFILL)
}

/// Sends the scratch's stack with what is needed to finish its walk.
#[inline(always)]
pub fn deferred(slot: u32, scratch: &mut Scratch) -> bool {
    let Some(deferred) = DEFERRED.get_ptr_mut(slot) else {
        return false;
    };
    if scratch.frames_len > DEFERRED_FRAMES as u32 {
        return false;
    }
    // SAFETY: a per-CPU map value that only this run uses, while it holds the scratch.
    let deferred = unsafe { &mut *deferred };
    let record = &mut deferred.record;
    record.stack = scratch.record;
    record.stack.sample.kind = record::of_kind(scratch.record.sample.kind, record::DEFERRED);
    record.stack.user_frames = scratch.depth as u16;
    record.regs = scratch.regs;
    record.leaf = scratch.leaf;
    // SAFETY: both arrays are as long as the sizes given.
    unsafe {
        bpf_probe_read_kernel(
            record.general.as_mut_ptr().cast(),
            size_of_val(&record.general) as u32,
            scratch.general.as_ptr().cast(),
        );
        bpf_probe_read_kernel(
            record.frames.as_mut_ptr().cast(),
            size_of_val(&record.frames) as u32,
            scratch.frames.as_ptr().cast(),
        );
    }
    let bytes = copy_stack(scratch.regs.sp, &mut deferred.stack);
    deferred.record.stack_bytes = bytes;
    let size = size_of::<DeferredRecord>() as u64 + (bytes as u64 & STACK_MASK);
    // SAFETY: the stack follows the record, and its size is below its room.
    let sent = unsafe { output(&raw const *deferred, size, Wake::Now) };
    if sent {
        count(Counter::Deferred, 1);
    }
    sent
}

/// Bytes of a page, the granularity of what can be read.
const PAGE: u64 = 4096;
/// A stack's copy is at most one byte shorter than its room, for the sake of this mask.
const STACK_MASK: u64 = DEFERRED_STACK_BYTES as u64 - 1;

/// Copies the stack from `sp` upwards: to the end of its page, then whole pages while there are
/// any. Returns how many bytes.
#[inline(always)]
fn copy_stack(sp: u64, stack: &mut [u8; DEFERRED_STACK_BYTES]) -> u32 {
    let first = mask::<{ PAGE - 1 }>(0u64.wrapping_sub(sp));
    let base = stack.as_mut_ptr();
    // SAFETY: less than a page fits; the helper checks the address.
    let failed = unsafe { bpf_probe_read_user(base.cast(), first as u32, sp as *const _) };
    if failed != 0 {
        return 0;
    }
    let mut copied = first;
    let mut page = 0;
    while page < DEFERRED_STACK_BYTES / PAGE as usize - 1 {
        let at = mask::<{ PAGE - 1 }>(first as u64) + page * PAGE as usize;
        // SAFETY: `at` is less than a page and `page` pages: one more fits; the helper checks the
        // address.
        let failed = unsafe {
            bpf_probe_read_user(
                base.add(at).cast(),
                PAGE as u32,
                (sp + at as u64) as *const _,
            )
        };
        if failed != 0 {
            break;
        }
        copied = at + PAGE as usize;
        page += 1;
    }
    copied as u32
}
