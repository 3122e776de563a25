//! Failing system calls: counted by row, argument and stack in the kernel.
//!
//! The hooks run for every call of every process: what is looked at first is whether the call
//! failed, then whether the process is in scope.

use agent_ebpf::failure::{Argument, Loss, Part, Row, bucket, row, shape};
use agent_ebpf::{SampleRecord, StackRecord, record, slot};
use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::pt_regs;
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::{
    bpf_get_current_task, bpf_get_current_task_btf, bpf_ktime_get_ns, bpf_probe_read_kernel,
    bpf_task_pt_regs,
};
use aya_ebpf::macros::{raw_tracepoint, tracepoint};
use aya_ebpf::programs::{RawTracePointContext, TracePointContext};

use crate::maps::{
    ARGUMENTS, BUCKETS, CALL, CALLS, CallScratch, ROWS, SEEN, SHAPES, STACK_COUNTS, STARTS,
    SYSCALL_COUNTERS, Scratch, WANTED_ERRNOS, config,
};
use crate::process::{self, read_u32};
use crate::{arguments, emit, stack};

/// Highest errno (`MAX_ERRNO`, linux/err.h).
const MAX_ERRNO: u64 = 4095;
/// The task is in a system call of 32-bit code (arch/x86/include/asm/thread_info.h).
const TS_COMPAT: u32 = 2;
const BPF_NOEXIST: u64 = 1;
const ENOSYS: u16 = 38;
/// System calls that do not come back (asm/unistd_64.h).
const EXIT: u64 = 60;
const EXIT_GROUP: u64 = 231;
/// `rt_sigreturn` puts -1 in the place of its number, and "returns" what the interrupted code
/// had in the register of the result.
const RT_SIGRETURN: u32 = 15;
const NO_CALL: u32 = u32::MAX;

/// `sys_enter(regs, id)`: notes when the call began. Attached only where calls are timed.
#[raw_tracepoint(tracepoint = "sys_enter")]
pub fn syscall_enter(ctx: RawTracePointContext) -> i32 {
    let pid_tgid = bpf_get_current_pid_tgid();
    if process::target((pid_tgid >> 32) as u32).is_none() {
        return 0;
    }
    let tid = pid_tgid as u32;
    let id: u64 = ctx.arg::<u64>(1);
    if id == EXIT || id == EXIT_GROUP {
        let _ = STARTS.remove(tid);
        return 0;
    }
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    match STARTS.get_ptr_mut(tid) {
        // SAFETY: a value of the map; only this thread writes it.
        Some(start) => unsafe { *start = now },
        None => {
            let _ = STARTS.insert(tid, now, 0);
        }
    }
    0
}

/// `sys_exit(regs, result)`.
#[raw_tracepoint(tracepoint = "sys_exit")]
pub fn syscall_exit(ctx: RawTracePointContext) -> i32 {
    exited(ctx.arg::<u64>(1), || ctx.arg::<u64>(0));
    0
}

/// Place of the result in the event `raw_syscalls:sys_exit`, which begins with 8 bytes of its own
/// and the number (`struct trace_event_raw_sys_exit`).
const EVENT_RESULT: usize = 16;

/// The same as [`syscall_exit`], at the perf event of the tracepoint: for kernels that preempt raw
/// tracepoint programs (7.0).
#[tracepoint]
pub fn syscall_exit_event(ctx: TracePointContext) -> u32 {
    // SAFETY: the verifier knows the event's size.
    let result = unsafe {
        ctx.as_ptr()
            .byte_add(EVENT_RESULT)
            .cast::<u64>()
            .read_volatile()
    };
    // SAFETY: the helpers have no preconditions.
    exited(result, || unsafe {
        bpf_task_pt_regs(bpf_get_current_task_btf()) as u64
    });
    0
}

/// Looks at a call's end. `regs`: the address of the saved registers.
#[inline(always)]
fn exited(result: u64, regs: impl FnOnce() -> u64) {
    let errno = result.wrapping_neg();
    let failed = errno.wrapping_sub(1) < MAX_ERRNO;
    if !failed && config::syscall_times() == 0 {
        return;
    }
    let pid_tgid = bpf_get_current_pid_tgid();
    let tgid = (pid_tgid >> 32) as u32;
    let Some(table) = process::target(tgid).map(|target| target.table) else {
        return;
    };
    let regs = regs();
    let mut ns = 0;
    if config::syscall_times() != 0 {
        ns = time(pid_tgid as u32);
        count_call(regs);
    }
    if failed {
        failure(regs, errno as u16, tgid, table, ns);
    }
}

/// How long the call took; 0 where its beginning was not seen.
#[inline(always)]
fn time(tid: u32) -> u64 {
    let Some(start) = STARTS.get_ptr_mut(tid) else {
        return 0;
    };
    // SAFETY: a value of the map; only this thread writes it.
    let began = unsafe { core::mem::replace(&mut *start, 0) };
    // SAFETY: the helper has no preconditions.
    let ns = unsafe { bpf_ktime_get_ns() }.wrapping_sub(began);
    if began == 0 { 0 } else { ns.max(1) }
}

/// Offset of the system call's number in the saved registers.
const ORIG_AX: u32 = core::mem::offset_of!(pt_regs, orig_rax) as u32;

#[inline(always)]
fn count_call(regs: u64) {
    if let Some(calls) = CALLS.get_ptr_mut(read_u32(regs, ORIG_AX)) {
        // SAFETY: a value of this CPU.
        unsafe { *calls += 1 };
    }
}

/// Counts a failure in all its tables.
#[inline(always)]
fn failure(regs: u64, errno: u16, tgid: u32, table: u32, ns: u64) {
    let Some(call) = CALL.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: a per-CPU value that only this program uses, and it does not nest.
    let call = unsafe { &mut *call };
    // SAFETY: the buffer is as large as the size given; the helper checks the address.
    let unread = unsafe {
        let to = &raw mut call.regs;
        bpf_probe_read_kernel(to.cast(), size_of::<pt_regs>() as u32, regs as *const _)
    };
    // SAFETY: the helper has no preconditions.
    let task = unsafe { bpf_get_current_task() };
    if unread != 0 || read_u32(task, config::task_status()) & TS_COMPAT != 0 {
        return lost(Loss::Compat);
    }
    let number = match call.regs.orig_rax as u32 {
        NO_CALL if errno != ENOSYS => RT_SIGRETURN,
        number => number,
    };
    let shape = SHAPES
        .get(number)
        .copied()
        .unwrap_or(config::syscall_others());
    if shape & shape::SKIP != 0 || !errno_wanted(errno) {
        return;
    }
    let row = row::pack(number, errno);
    let Some(counts) = counts_of(row, &call.blank) else {
        return lost(Loss::Rows);
    };
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    if counts.count == 0 {
        counts.first_ns = now;
    }
    counts.count += 1;
    counts.last_ns = now;
    if config::syscall_times() != 0 {
        count_time(row, counts, ns);
    }
    call.record.row = row;
    call.record.tgid = tgid;
    call.record.shape = shape;
    if shape != 0 && !count_argument(row, call) {
        counts.other_arguments += 1;
    }
    if config::syscall_stacks() != 0 && !count_stack(row, call, tgid, table) {
        counts.other_stacks += 1;
    }
}

#[inline(always)]
fn errno_wanted(errno: u16) -> bool {
    if config::syscall_errnos() == 0 {
        return true;
    }
    WANTED_ERRNOS.get(errno as u32).copied() == Some(1)
}

/// This CPU's counts of a row.
#[inline(always)]
fn counts_of(row: u64, blank: &Row) -> Option<&'static mut Row> {
    let counts = match ROWS.get_ptr_mut(row) {
        Some(counts) => counts,
        None => {
            // Another CPU may have been faster: then it is there.
            let _ = ROWS.insert(row, blank, BPF_NOEXIST);
            ROWS.get_ptr_mut(row)?
        }
    };
    // SAFETY: a value of this CPU; the program does not nest.
    Some(unsafe { &mut *counts })
}

#[inline(always)]
fn count_time(row: u64, counts: &mut Row, ns: u64) {
    if ns == 0 {
        return lost(Loss::Untimed);
    }
    counts.timed += 1;
    if ns > counts.max_ns {
        counts.max_ns = ns;
    }
    let part = Part {
        row,
        part: bucket::of(ns),
    };
    if let Some(count) = BUCKETS.get_ptr_mut(part) {
        return add_one(count);
    }
    if BUCKETS.insert(part, 1, BPF_NOEXIST).is_err() {
        match BUCKETS.get_ptr_mut(part) {
            Some(count) => add_one(count),
            None => lost(Loss::Buckets),
        }
    }
}

/// Counts the argument; false where there was no room for it.
#[inline(always)]
fn count_argument(row: u64, call: &mut CallScratch) -> bool {
    let key = arguments::read(call);
    call.record.key = key;
    let entry = match ARGUMENTS.get_ptr_mut(key) {
        Some(entry) => entry,
        None => {
            let _ = ARGUMENTS.insert(
                key,
                Argument {
                    count: 0,
                    row,
                    sent: 0,
                },
                BPF_NOEXIST,
            );
            match ARGUMENTS.get_ptr_mut(key) {
                Some(entry) => entry,
                None => {
                    lost(Loss::Arguments);
                    return false;
                }
            }
        }
    };
    // SAFETY: a value of the map.
    let entry = unsafe { &mut *entry };
    add_one(&raw mut entry.count);
    if entry.sent == 0 {
        // Where the ring buffer is full the next such failure tries again.
        entry.sent = arguments::send(call) as u64;
    }
    true
}

/// Counts the stack; false where there was no room for it.
#[inline(always)]
fn count_stack(row: u64, call: &CallScratch, tgid: u32, table: u32) -> bool {
    let Some(scratch) = stack::claim(slot::SYSCALLS) else {
        lost(Loss::Busy);
        return false;
    };
    stack::begin(scratch, table);
    stack::registers_from(&call.regs, scratch);
    stack::user(slot::SYSCALLS, scratch);
    let mut hash = stack::mix(scratch.hash ^ tgid as u64, scratch.record.end as u64);
    if emit::is_pending(scratch) {
        // Only userspace will know the frames: what tells stacks apart is where they end.
        hash = stack::mix(hash, call.regs.rip ^ call.regs.rsp << 16);
    }
    scratch.record.sample = SampleRecord {
        kind: record::SYSCALL_STACK,
        tgid,
        tid: 0,
        finished: record::SYSCALL_STACK,
        stack: hash,
        thread: [0; 16],
    };
    // SAFETY: only whether there is a value is looked at.
    if unsafe { SEEN.get(hash) }.is_none() && send_stack(scratch) {
        // Only now: where the ring buffer is full the next such failure tries again.
        let _ = SEEN.insert(hash, 1, 0);
    }
    stack::release(scratch);
    let part = Part { row, part: hash };
    if let Some(count) = STACK_COUNTS.get_ptr_mut(part) {
        add_one(count);
        return true;
    }
    if STACK_COUNTS.insert(part, 1, BPF_NOEXIST).is_ok() {
        return true;
    }
    match STACK_COUNTS.get_ptr_mut(part) {
        Some(count) => {
            add_one(count);
            true
        }
        None => {
            lost(Loss::Stacks);
            false
        }
    }
}

/// Sends the frames, or what is needed to find them.
#[inline(always)]
fn send_stack(scratch: &mut Scratch) -> bool {
    if emit::is_pending(scratch) && emit::may_defer() {
        return emit::deferred(slot::SYSCALLS, scratch);
    }
    scratch.record.user_frames = scratch.depth as u16;
    let size = size_of::<StackRecord>() as u64 + 8 * scratch.frames_len as u64;
    if size > emit::MAX_BYTES {
        return false;
    }
    // SAFETY: the frames follow the record and hold more than MAX_BYTES.
    unsafe { emit::output(&raw const scratch.record, size, emit::Wake::WhenFull) }
}

/// Adds one to a count that all CPUs share.
#[inline(always)]
fn add_one(count: *mut u64) {
    // SAFETY: a value of a map, aligned to 8 bytes, that is only ever added to. `BPF_XADD`, which
    // the target's atomics cannot express.
    unsafe {
        core::arch::asm!("lock *(u64 *)({to} + 0) += {one}", to = in(reg) count, one = in(reg) 1u64)
    };
}

#[inline(always)]
fn lost(loss: Loss) {
    if let Some(counters) = SYSCALL_COUNTERS.get_ptr_mut(0) {
        // SAFETY: a per-CPU value; a loss's number is below the array's length.
        unsafe { *counters.cast::<u64>().add(loss as usize) += 1 };
    }
}
