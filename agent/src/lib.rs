//! An eBPF live-debugging and profiling agent for Linux.

pub mod profile;
pub mod symbolize;
