//! The project's own tasks: `cargo xtask --help` lists them.
//!
//! One file per task. `command` runs programs, `setup` installs what the others need.

mod command;
mod ebpf;
mod vm;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Tasks of the agent's developers.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Compile the kernel programs into agent/bpf/agent.bpf.o
    BuildEbpf(ebpf::Args),
    /// Run the end-to-end tests, or any command, on other kernels in QEMU
    Vm(vm::Args),
}

fn main() -> ExitCode {
    match run(Cli::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    match task {
        Task::BuildEbpf(args) => ebpf::run(&args),
        Task::Vm(args) => vm::run(&args),
    }
}
