//! The kernel programs. One file for each probe; what they share is in `stack`, `emit` and `maps`.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]
#![allow(unreachable_pub, reason = "a program of modules, no library")]

#[cfg(target_arch = "bpf")]
mod arguments;
#[cfg(target_arch = "bpf")]
mod cpu;
#[cfg(target_arch = "bpf")]
mod emit;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod measure;
#[cfg(target_arch = "bpf")]
mod process;
#[cfg(target_arch = "bpf")]
mod sock;
#[cfg(target_arch = "bpf")]
mod stack;
#[cfg(target_arch = "bpf")]
mod syscalls;
#[cfg(target_arch = "bpf")]
mod tcp;

/// Adds to one of this CPU's counters.
#[cfg(target_arch = "bpf")]
#[inline(always)]
fn count(counter: agent_ebpf::Counter, n: u64) {
    if let Some(counters) = maps::COUNTERS.get_ptr_mut(0) {
        // SAFETY: a per-CPU value; a counter's number is below the array's length.
        unsafe { *counters.cast::<u64>().add(counter as usize) += n };
    }
}

/// One of this CPU's counters.
#[cfg(target_arch = "bpf")]
#[inline(always)]
fn counted(counter: agent_ebpf::Counter) -> u64 {
    match maps::COUNTERS.get_ptr(0) {
        // SAFETY: as in `count`.
        Some(counters) => unsafe { *counters.cast::<u64>().add(counter as usize) },
        None => 0,
    }
}

/// The kernel programs use GPL-only helpers.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
