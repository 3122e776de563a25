//! The command `agent`: parses, runs, prints the chain of errors, exits with a code.

use std::io::{self, Write};
use std::process::ExitCode;

use agent::cli::args::{Args, Command};
use agent::cli::destination::{Destination, Target};
use agent::cli::generate::ManError;
use agent::cli::launch::LaunchError;
use agent::cli::spec::SpecError;
use agent::cli::{
    Exit, diff, doctor, generate, profile, record, refusal, report, serve, syscalls, tcp,
};
use agent::output::escape;
use agent::parser;
use agent::preflight;
use clap::Parser;

#[global_allocator]
static ALLOCATOR: parser::Allocator = parser::Allocator;

fn main() -> ExitCode {
    if let Some(code) = parser::run_if_asked() {
        return code;
    }
    let args = Args::parse();
    agent::process::raise_open_files();
    match run(args) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            // Names of the target stand in errors, too. Nobody is left to tell where this fails.
            let text = escape::message(&format!("{error:#}"));
            let _ = writeln!(io::stderr(), "agent: {text}");
            if let Some(advice) = refusal::advice(&error) {
                let _ = writeln!(io::stderr(), "  {}", escape::message(&advice));
            }
            ExitCode::from(exit_code(&error))
        }
    }
}

fn exit_code(error: &anyhow::Error) -> u8 {
    if let Some(error) = error.downcast_ref::<LaunchError>() {
        return error.exit_code();
    }
    let usage = error.is::<SpecError>()
        || matches!(error.downcast_ref(), Some(ManError::Unknown { .. }))
        || matches!(
            error.downcast_ref(),
            Some(preflight::Error::Frequency { .. })
        );
    if usage { Exit::Usage } else { Exit::Failed }.code()
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
        Command::Record(record_args) => {
            let spec = record_args.resolve()?;
            runtime()?.block_on(record::run(spec, args.verbosity))
        }
        Command::Report(report_args) => {
            report::run(report_args.resolve()?, args.verbosity)?;
            Ok(Exit::Ok.code())
        }
        Command::Diff(diff_args) => diff::run(&diff_args.resolve()?, args.verbosity),
        Command::Serve(serve_args) => {
            let spec = serve_args.resolve()?;
            runtime()?.block_on(serve::run(spec, args.verbosity))
        }
        Command::Doctor(doctor_args) => runtime()?.block_on(doctor::run(&doctor_args)),
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
