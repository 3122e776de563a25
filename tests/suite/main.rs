//! The end-to-end tests: the built `agent` against real programs, as root on a real kernel.
//!
//! `cargo xtask test` builds the targets, the agent and this binary and runs it; `cargo xtask vm`
//! runs the same binary, linked statically, on other kernels. The environment says what to use:
//!
//! - `AGENT_BIN`: the agent (else the newer of `target/release/agent` and `target/debug/agent`);
//! - `AGENT_PROGRAMS`: the built `tests/programs` (else `target/programs`);
//! - `AGENT_SCREENSHOTS`: a directory to which the browser tests write what they see;
//! - `AGENT_KERNEL`: set in a virtual machine, to the kernel's version: without interpreters and
//!   peers, and an order of magnitude slower.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a failed expectation here is a failed test

mod accounting;
mod bad_input;
mod browser;
mod completeness;
mod containers;
mod diff;
mod elf;
mod harness;
mod hostile;
mod identity;
mod kill;
mod lifecycle;
mod names;
mod namespaces;
mod outputs;
mod peers;
mod pprof;
mod record;
mod report;
mod serve;
mod split;
mod syscalls;
mod tcp;
