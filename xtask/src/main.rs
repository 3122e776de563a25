//! The project's own tasks: `cargo xtask --help` lists them.
//!
//! One file per task. `command` runs programs, `setup` installs what the others need.

mod bench;
mod ci;
mod command;
mod dist;
mod ebpf;
mod fuzz;
mod image;
mod programs;
mod setup;
mod test;
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
    /// Install what building the bytecode and all tests need (Debian)
    Setup,
    /// Run every check: format, clippy, unit tests, bytecode, end-to-end tests here and in VMs
    Test(test::Args),
    /// Compile the kernel programs into agent/bpf/agent.bpf.o
    BuildEbpf(ebpf::Args),
    /// Build the programs that the end-to-end tests aim at
    Programs,
    /// Check the invariants of the sources that the compiler does not know
    Ci,
    /// Measure the agent beside its peers; a full run goes into docs/benchmarks.md
    Bench(bench::Args),
    /// Feed hostile bytes to every parser of outside input
    Fuzz(fuzz::Args),
    /// Build the agent as one static file, with its bill of materials and checksums
    Dist(dist::Args),
    /// Make an OCI image of it, without a daemon
    Image(image::Args),
    /// Run the end-to-end tests, or any command, on other kernels in QEMU
    Vm(vm::Args),
}

fn main() -> ExitCode {
    match run(Cli::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<ExitCode> {
    match task {
        Task::Setup => setup::run()?,
        Task::Test(args) => return Ok(test::run(&args)),
        Task::BuildEbpf(args) => ebpf::run(&args)?,
        Task::Programs => eprintln!("{} programs are ready", programs::build()?),
        Task::Bench(args) => bench::run(&args)?,
        Task::Ci => ci::run()?,
        Task::Fuzz(args) => fuzz::run(&args)?,
        Task::Dist(args) => drop(dist::run(&args)?),
        Task::Image(args) => image::run(&args)?,
        Task::Vm(args) => vm::run(&args)?,
    }
    Ok(ExitCode::SUCCESS)
}
