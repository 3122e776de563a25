//! How often the programs run and, in the moments in which userspace asks for it, how long.

use agent_ebpf::{Timed, control};
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;

use crate::{count, maps};

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

/// Counts a run, with the time since [`begin`] where it is measured.
#[inline(always)]
pub fn end(began: u64, counters: Timed) {
    count(counters.runs, 1);
    if began != 0 {
        add(began, counters);
    }
}

/// Counts a run that began at this time, measured or not.
#[inline(always)]
pub fn end_if_on(began: u64, counters: Timed) {
    count(counters.runs, 1);
    if is_on() {
        add(began, counters);
    }
}

#[inline(always)]
fn add(began: u64, counters: Timed) {
    // SAFETY: the helper has no preconditions.
    let took = unsafe { bpf_ktime_get_ns() }.wrapping_sub(began);
    count(counters.measured, 1);
    let longest = counters.longest;
    count(
        counters.nanoseconds,
        if took < longest { took } else { longest },
    );
}
