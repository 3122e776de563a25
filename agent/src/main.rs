//! The command `agent`: parses, runs, prints the chain of errors, exits with a code.

use std::process::ExitCode;

use agent::cli::args::{Args, Command};
use agent::cli::destination::{Destination, Target};
use agent::cli::{Exit, generate, profile, syscalls, tcp};
use clap::Parser;

fn main() -> ExitCode {
    let args = Args::parse();
    agent::process::raise_open_files();
    match run(args) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("agent: {error:#}");
            let usage = error
                .downcast_ref::<agent::cli::spec::SpecError>()
                .is_some();
            ExitCode::from(if usage { Exit::Usage } else { Exit::Failed })
        }
    }
}

fn run(args: Args) -> anyhow::Result<u8> {
    match args.command {
        Command::Profile(profile_args) => {
            let spec = profile_args.resolve()?;
            runtime()?.block_on(profile::run(spec, args.verbosity))
        }
        Command::Tcp(tcp_args) => {
            let spec = tcp_args.resolve()?;
            runtime()?.block_on(tcp::run(spec, args.verbosity))
        }
        Command::Syscalls(syscalls_args) => {
            let spec = syscalls_args.resolve()?;
            runtime()?.block_on(syscalls::run(spec, args.verbosity))
        }
        Command::Completions { shell } => print(&generate::completions(shell)),
        Command::Man { subcommand } => print(&generate::man(subcommand.as_deref())?),
    }
}

fn print(bytes: &[u8]) -> anyhow::Result<u8> {
    Destination::prepare(Target::Stdout)?.write(bytes)?;
    Ok(0)
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?)
}
