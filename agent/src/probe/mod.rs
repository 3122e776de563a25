//! One file for each probe, named like its kernel file: attach and decode.

pub mod cpu;
pub mod syscalls;
pub mod tcp;
