//! An eBPF live-debugging and profiling agent for Linux.

pub mod cli;
pub mod output;
pub mod profile;
