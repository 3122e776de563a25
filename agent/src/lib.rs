//! An eBPF live-debugging and profiling agent for Linux.

pub mod elf;
pub mod profile;
pub mod unwind;
