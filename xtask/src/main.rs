//! The project's own tasks: `cargo xtask --help` lists them.
//!
//! One file per task. `command` runs programs, `setup` installs what the others need.

mod ci;
mod command;
mod ebpf;
mod programs;
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
    /// Build the programs that the end-to-end tests aim at
    Programs,
    /// Check the invariants of the sources that the compiler does not know
    Ci,
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
        Task::Programs => programs::build().map(|count| eprintln!("{count} programs are ready")),
        Task::Ci => ci::run(),
        Task::Vm(args) => vm::run(&args),
    }
}
