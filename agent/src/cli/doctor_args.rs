//! `agent doctor`: its arguments as typed, and what they mean.

use clap::{Args as ClapArgs, ValueEnum};

use super::args::parse_pid;
use crate::preflight::checks::Probe;

/// Arguments of `agent doctor`.
#[derive(Clone, Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  agent doctor                       what works here, and what would help where something does not
  sudo agent doctor --pid 4242       and whether this process can be looked into
  agent doctor profile --pid 4242    only what `agent profile` needs
  agent doctor --format json | jq '.probes[] | {probe, state}'

Each probe is really tried: its programs are loaded, attached and let go again, with the agent
itself as the target. Nothing stays behind.

Exit codes: 0 all that was asked for works, 1 something is blocked, 2 usage, 3 something works but
shows less than it could.")]
pub struct DoctorArgs {
    /// What to try [default: everything]
    #[arg(value_enum, value_name = "PROBE")]
    pub probes: Vec<ProbeName>,
    /// Process to look into, too
    #[arg(short, long, value_name = "PID", value_parser = parse_pid)]
    pub pid: Option<u32>,
    /// How to tell it
    #[arg(long, value_enum, default_value = "text")]
    pub format: DoctorFormat,
}

/// A probe, as it is called on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProbeName {
    /// `agent profile`
    Profile,
    /// Names of the kernel's functions
    KernelNames,
    /// `agent tcp`
    Tcp,
    /// `agent syscalls`
    Syscalls,
    /// `agent syscalls --latency`
    SyscallsLatency,
    /// `agent record`
    Record,
    /// `agent serve`
    Serve,
}

/// How the findings are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DoctorFormat {
    /// A line for each, with what helps
    Text,
    /// One JSON document
    Json,
}

impl DoctorArgs {
    /// The probes to try, each once.
    pub fn probes(&self) -> Vec<Probe> {
        if self.probes.is_empty() {
            return Probe::ALL.to_vec();
        }
        let mut wanted = Vec::new();
        for name in &self.probes {
            let probe = match name {
                ProbeName::Profile => Probe::Profile,
                ProbeName::KernelNames => Probe::KernelNames,
                ProbeName::Tcp => Probe::Tcp,
                ProbeName::Syscalls => Probe::Syscalls,
                ProbeName::SyscallsLatency => Probe::SyscallsLatency,
                ProbeName::Record | ProbeName::Serve => Probe::Record,
            };
            if !wanted.contains(&probe) {
                wanted.push(probe);
            }
        }
        wanted
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::super::args::{Args, Command};
    use super::*;
    use clap::Parser;

    fn doctor(words: &[&str]) -> DoctorArgs {
        let words = ["agent", "doctor"].iter().chain(words);
        let Command::Doctor(args) = Args::try_parse_from(words).unwrap().command else {
            panic!("another subcommand");
        };
        args
    }

    #[test]
    fn everything_is_tried_unless_some_is_named() {
        assert_eq!(doctor(&[]).probes(), Probe::ALL);
        let some = doctor(&["serve", "kernel-names", "record", "--pid", "7"]);
        assert_eq!(some.probes(), [Probe::Record, Probe::KernelNames]);
        assert_eq!(some.pid, Some(7));
        assert_eq!(doctor(&["--format", "json"]).format, DoctorFormat::Json);
        assert!(Args::try_parse_from(["agent", "doctor", "diff"]).is_err());
    }
}
