//! An eBPF live-debugging and profiling agent for Linux.
//!
//! The data's way, from the command line down; imports point the same way:
//!
//! - [`cli`]: arguments as typed, what they mean, the run; the only place that prints;
//! - [`recorder`]: a run under way: records of the probes into the models of a moment;
//! - [`bundle`]: a capture as one zip file, and back;
//! - [`output`]: the models as SVG, folded stacks, JSON, pages, or a summary;
//! - [`capture`]: the model of what all probes saw at the same time;
//! - [`naming`]: raw samples into the model, each distinct address named once;
//! - [`probe`]: one file for each kernel probe: attach, decode;
//! - [`session`]: loads the bytecode, follows processes and their mappings, drains the ring buffer.
//!   With [`probe`] the only user of aya;
//! - [`symbolize`]: addresses of an open file into names; [`unwind`]: an ELF file into the table that
//!   the kernel unwinds by. Both distrust every byte, take open files and need no privileges;
//! - [`process`], [`preflight`]: the only readers of `/proc` and `/sys`, kernel symbols aside;
//! - [`elf`], `gopclntab`, [`protobuf`], [`profile`]: the parts of ELF files that others share; a wire
//!   format; the model.
//!
//! The kernel's side and the interface between the two are in the crate `agent_ebpf`.
//!
//! What always holds: a tick of the clock is counted under exactly one cause; a stack that was cut is
//! shown with the reason; a name of the target is escaped before it reaches a terminal or a file;
//! nothing outlives the agent in the kernel. `cargo xtask ci` checks who may do what, and
//! ARCHITECTURE.md says why.

pub mod bundle;
pub mod calendar;
pub mod capture;
pub mod cli;
pub mod diff;
pub mod elf;
#[cfg(any(test, fuzzing))]
pub mod fuzz_targets;
mod gopclntab;
pub mod input;
pub mod naming;
pub mod output;
pub mod preflight;
pub mod probe;
pub mod process;
pub mod profile;
pub mod protobuf;
pub mod recorder;
pub mod report;
pub mod serve;
pub mod session;
pub mod symbolize;
pub mod syscalls;
pub mod tcp;
pub mod unwind;
pub mod window;
