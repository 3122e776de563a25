//! How long the programs take, measured only in the moments in which userspace asks for it.

use agent_ebpf::{Counter, control};
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;

use crate::{count, maps};

/// Longest time that one run is counted with, in nanoseconds: from 7.0 on a program may be preempted
/// for longer than it runs.
const LONGEST: u64 = 1_000_000;

/// Whether userspace asks for it.
#[inline(always)]
pub fn is_on() -> bool {
    maps::control(control::MEASURE) != 0
}

/// When the run began; 0 where it is not measured.
#[inline(always)]
pub fn begin() -> u64 {
    if is_on() {
        // SAFETY: the helper has no preconditions.
        unsafe { bpf_ktime_get_ns() }
    } else {
        0
    }
}

/// Adds the time since [`begin`] to one of this CPU's counters.
#[inline(always)]
pub fn end(began: u64, counter: Counter) {
    if began == 0 {
        return;
    }
    // SAFETY: the helper has no preconditions.
    let took = unsafe { bpf_ktime_get_ns() }.wrapping_sub(began);
    count(counter, if took < LONGEST { took } else { LONGEST });
}
