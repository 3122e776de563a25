//! `agent profile`: its arguments as typed, and what they mean.

use std::num::NonZeroU64;

use clap::Args as ClapArgs;

use super::args::TargetArgs;
use super::guard_args::GuardArgs;
use super::spec::{OutputSpec, SpecError, TargetSpec};
use crate::guard::{self, Limit};

/// Arguments of `agent profile`.
#[derive(Clone, Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  agent profile --pid 4242                      30 s at 99 Hz, profile-COMM-4242-TIME.svg
  agent profile --pid 4242 -d 10s -o cpu.svg -o cpu.json
  agent profile --pid 4242 --children -F 999 -o - --format folded | less
  agent profile -- ./server --port 8080         from its first instruction until it exits

Exit codes: 0 done, 1 failed, 2 usage, 3 the target was idle or gone (the outputs are empty).
With a command: its own if it ran to its end; 127 not found, 126 not executable.")]
pub struct ProfileArgs {
    /// Whom to sample.
    #[command(flatten)]
    pub target: TargetArgs,
    /// What it may cost.
    #[command(flatten)]
    pub guard: GuardArgs,
    /// How often to sample.
    #[command(flatten)]
    pub clock: ClockArgs,
    /// File to write, `-` for standard output; may be repeated. The name tells the format: .svg,
    /// .html, .folded, .json, .pb.gz, .speedscope.json [default: profile-COMM-PID-TIME.svg]
    #[arg(short, long, value_name = "FILE")]
    pub output: Vec<String>,
    /// Format of the outputs whose name does not tell it: svg, folded, json, html, pprof or
    /// speedscope
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
}

/// How often to sample, for every command that does.
#[derive(Clone, Copy, Debug, ClapArgs)]
pub struct ClockArgs {
    /// Samples per second on each CPU
    #[arg(
        short = 'F',
        long,
        value_name = "HZ",
        default_value = "99",
        value_parser = parse_frequency,
        allow_hyphen_values = true
    )]
    pub frequency: u64,
}

impl ClockArgs {
    /// Samples per second on each CPU.
    ///
    /// # Errors
    /// Zero takes no samples.
    pub fn resolve(self) -> Result<NonZeroU64, SpecError> {
        NonZeroU64::new(self.frequency).ok_or(SpecError::FrequencyZero)
    }
}

fn parse_frequency(text: &str) -> Result<u64, String> {
    text.parse()
        .map_err(|_| "samples per second are a whole number, such as 99".to_owned())
}

/// What `agent profile` is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProfileSpec {
    /// Whom to sample, and for how long.
    pub target: TargetSpec,
    /// The overhead guard's limit; `None` for none.
    pub limit: Option<Limit>,
    /// Samples per second on each CPU. Whether the kernel allows as many
    /// (`kernel.perf_event_max_sample_rate`) is for the preflight to say.
    pub frequency: NonZeroU64,
    /// What to write where.
    pub output: OutputSpec,
}

impl ProfileArgs {
    /// Checks the arguments and fills in the defaults.
    ///
    /// # Errors
    /// The arguments contradict each other or one has no meaning; the text names the flag to
    /// change.
    pub fn resolve(&self) -> Result<ProfileSpec, SpecError> {
        Ok(ProfileSpec {
            target: TargetSpec::resolve(&self.target)?,
            limit: self.guard.resolve(guard::SAMPLING)?,
            frequency: self.clock.resolve()?,
            output: OutputSpec::resolve(&self.output, self.format.as_deref())?,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::super::args::{Args, Command};
    use super::super::spec::{Scope, TargetSpec};
    use super::*;
    use crate::output::Format;
    use clap::Parser;
    use std::time::Duration;

    fn resolve(words: &[&str]) -> Result<ProfileSpec, SpecError> {
        let words = ["agent", "profile"].iter().chain(words);
        let Command::Profile(args) = Args::try_parse_from(words).unwrap().command else {
            panic!("another subcommand");
        };
        args.resolve()
    }

    #[test]
    fn defaults() {
        let spec = resolve(&["--pid", "7"]).unwrap();
        assert_eq!(
            spec.target,
            TargetSpec {
                scope: Scope::Processes(vec![7]),
                children: false,
                duration: Some(Duration::from_secs(30)),
            }
        );
        assert_eq!(spec.frequency.get(), 99);
        assert_eq!(spec.output, OutputSpec::Named(Format::Svg));
    }

    #[test]
    fn command_keeps_its_own_flags() {
        let spec = resolve(&["--children", "--", "prog", "-o", "x", "--", "--pid"]).unwrap();
        let command = ["prog", "-o", "x", "--", "--pid"].map(Into::into).to_vec();
        assert_eq!(spec.target.scope, Scope::Command(command));
        assert!(spec.target.children);
        assert_eq!(spec.target.duration, None);
    }

    #[test]
    fn a_frequency_is_a_number() {
        assert_eq!(parse_frequency("999"), Ok(999));
        for bad in ["abc", "-5", "", "1.5", "99999999999999999999"] {
            let words = ["agent", "profile", "--pid", "7", "-F", bad];
            let error = Args::try_parse_from(words).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains("a whole number"), "{error}");
        }
    }

    #[test]
    fn frequency_zero_names_its_flag() {
        let error = resolve(&["--pid", "7", "--frequency", "0"]).unwrap_err();
        assert!(error.to_string().starts_with("--frequency 0"), "{error}");
    }
}
