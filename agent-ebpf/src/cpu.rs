//! CPU sampling: one run of `cpu_sample` for each tick of the clock on each CPU.

use agent_ebpf::{Counter, SampleRecord, TARGET_BEFORE_EXEC, record, slot};
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid};
use aya_ebpf::macros::perf_event;
use aya_ebpf::programs::PerfEventContext;

use crate::maps::Scratch;
use crate::{count, emit, process, stack};

/// A tick: counts it, and if a process in scope is running sends its stack.
#[perf_event]
pub fn cpu_sample(ctx: PerfEventContext) -> u32 {
    count(Counter::Ticks, 1);
    count(outcome(&ctx), 1);
    0
}

#[inline(always)]
fn outcome(ctx: &PerfEventContext) -> Counter {
    let pid_tgid = bpf_get_current_pid_tgid();
    if pid_tgid as u32 == 0 {
        return Counter::Idle;
    }
    let tgid = (pid_tgid >> 32) as u32;
    let Some(target) = process::target(tgid) else {
        return Counter::Other;
    };
    if target.flags & TARGET_BEFORE_EXEC != 0 {
        return Counter::Other;
    }
    // SAFETY: the helper has no preconditions and may be called from an NMI.
    let started = unsafe { bpf_ktime_get_ns() };
    let Some(scratch) = stack::claim(slot::CPU) else {
        return Counter::LostScratchBusy;
    };
    stack::begin(scratch, target.table);
    // SAFETY: the context of a perf_event program begins with the registers.
    let regs = unsafe { &(*ctx.ctx).regs };
    if !stack::registers_from(regs, scratch) {
        stack::kernel(ctx, scratch);
        stack::registers_of_task(scratch);
    }
    stack::user(slot::CPU, scratch);
    scratch.record.sample = SampleRecord {
        kind: record::STACK,
        tgid,
        tid: process::visible_thread(),
        finished: 0,
        stack: 0,
        thread: bpf_get_current_comm().unwrap_or_default(),
    };
    let sent = send(scratch);
    stack::release(scratch);
    // SAFETY: as above.
    count(
        Counter::Nanoseconds,
        unsafe { bpf_ktime_get_ns() } - started,
    );
    if sent {
        Counter::Emitted
    } else {
        Counter::LostRingFull
    }
}

/// Sends the whole stack, or only its hash where userspace has it already.
#[inline(always)]
fn send(scratch: &mut Scratch) -> bool {
    let end = scratch.record.end as u64;
    let hash = scratch.hash ^ end.wrapping_mul(0x517c_c1b7_2722_0a95);
    scratch.record.sample.stack = hash;
    emit::sample(slot::CPU, scratch, hash)
}
