//! An eBPF live-debugging and profiling agent for Linux.

pub mod cli;
pub mod elf;
pub mod output;
pub mod profile;
pub mod unwind;
