//! What is common to the command lines of all subcommands, as typed.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, Args as ClapArgs, Parser, Subcommand};
use clap_complete::Shell;

use super::diff_args::DiffArgs;
use super::doctor_args::DoctorArgs;
use super::profile_args::ProfileArgs;
use super::record_args::RecordArgs;
use super::report_args::ReportArgs;
use super::serve_args::ServeArgs;
use super::syscalls_args::SyscallsArgs;
use super::tcp_args::TcpArgs;

/// Shows where a running Linux process spends its time, which connections are slow, which calls fail
#[derive(Debug, Parser)]
#[command(
    name = "agent",
    version,
    max_term_width = 100,
    propagate_version = true,
    after_help = "\
Examples:
  sudo agent profile --pid 4242         a flame graph of 30 s of a running process
  sudo agent profile -- ./server -p 80  of a program, from its first instruction to its exit
  sudo agent record --pid 4242          everything at once, to attach to a ticket
  agent doctor                          what works here, and what would help where something does not

`agent COMMAND --help` has more. The agent needs root or the capabilities that it names."
)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// How much to say.
    #[command(flatten)]
    pub verbosity: Verbosity,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Sample where the CPU time of a process goes and draw a flame graph
    Profile(ProfileArgs),
    /// Show how long each TCP connection of a process takes to answer, for any protocol
    Tcp(TcpArgs),
    /// Count which system calls of a process fail, with what, on which argument
    Syscalls(SyscallsArgs),
    /// Record samples, connections and failing calls together into one bundle for a ticket
    Record(RecordArgs),
    /// Take reports and files of any format out of a bundle
    Report(ReportArgs),
    /// Compare two captures: which functions grew, which shrank, and whether that is noise
    Diff(DiffArgs),
    /// Show all three of the last seconds on a live page, and metrics for Prometheus
    Serve(ServeArgs),
    /// Try what works on this machine, and say what would help where something does not
    Doctor(DoctorArgs),
    /// Print the completions for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print a manual page (troff)
    Man {
        /// The subcommand that the page is about; without it, `agent` itself
        subcommand: Option<String>,
    },
}

/// How much to say on standard error.
#[derive(Clone, Copy, Debug, Default, ClapArgs)]
pub struct Verbosity {
    /// Say more: what was attached, and how long it took
    #[arg(short, long, action = ArgAction::Count, global = true, display_order = 100)]
    pub verbose: u8,
    /// Say nothing but errors: no progress, no summary
    #[arg(
        short,
        long,
        global = true,
        display_order = 101,
        conflicts_with = "verbose"
    )]
    pub quiet: bool,
}

/// Whom to look at.
#[derive(Clone, Debug, Default, ClapArgs)]
pub struct TargetArgs {
    /// Process to look at, with all its threads; may be repeated
    #[arg(short, long, value_name = "PID", value_parser = parse_pid)]
    pub pid: Vec<u32>,
    /// All processes of a container
    #[command(flatten)]
    pub group: GroupArgs,
    /// Its child processes too: those that it has and those that it starts later
    #[arg(short, long)]
    pub children: bool,
    /// How long: 10s, 500ms, 2m; a bare number is seconds [default: 30s; `tcp`: until Ctrl-C; with a
    /// command, until it exits]
    #[arg(short, long, value_name = "TIME")]
    pub duration: Option<String>,
    /// Start this program and look at it from its first instruction
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// All processes of a control group, for every command that looks at processes.
#[derive(Clone, Debug, Default, ClapArgs)]
pub struct GroupArgs {
    /// All processes of the container with this id (12 digits or more of it): those that it has,
    /// what they start, and what joins them later
    #[arg(long, value_name = "ID")]
    pub container: Option<String>,
    /// The same for a control group: /system.slice/nginx.service, or its directory
    #[arg(long, value_name = "PATH")]
    pub cgroup: Option<PathBuf>,
}

/// The largest process id that Linux gives out (`PID_MAX_LIMIT`, include/linux/threads.h).
const MAX_PID: u32 = 1 << 22;

/// A process id.
pub(super) fn parse_pid(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(pid) if (1..=MAX_PID).contains(&pid) => Ok(pid),
        _ => Err(format!("a process id is a number from 1 to {MAX_PID}")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn definition_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn pids_are_positive() {
        assert_eq!(parse_pid("1"), Ok(1));
        for bad in ["0", "-1", "4194305", "99999999999", "x", ""] {
            assert!(parse_pid(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn verbosity_goes_anywhere() {
        let before = Args::try_parse_from(["agent", "-vv", "profile", "--pid", "1"]).unwrap();
        let after = Args::try_parse_from(["agent", "profile", "--pid", "1", "-v", "-v"]).unwrap();
        assert_eq!(before.verbosity.verbose, 2);
        assert_eq!(after.verbosity.verbose, 2);
        assert!(Args::try_parse_from(["agent", "-q", "-v", "profile"]).is_err());
    }
}
