//! An eBPF live-debugging and profiling agent for Linux.

pub mod cli;
pub mod elf;
pub mod naming;
pub mod output;
pub mod preflight;
pub mod probe;
pub mod process;
pub mod profile;
pub mod session;
pub mod symbolize;
pub mod syscalls;
pub mod unwind;
