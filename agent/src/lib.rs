//! An eBPF live-debugging and profiling agent for Linux.

pub mod cli;
pub mod elf;
pub mod preflight;
pub mod probe;
pub mod process;
pub mod output;
pub mod profile;
pub mod session;
pub mod syscalls;
pub mod unwind;
