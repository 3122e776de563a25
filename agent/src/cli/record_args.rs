//! `agent record`: its arguments as typed, and what they mean.

use std::num::NonZeroU64;
use std::path::Path;

use clap::Args as ClapArgs;

use super::args::TargetArgs;
use super::destination::Target;
use super::guard_args::GuardArgs;
use super::profile_args::ClockArgs;
use super::spec::{SpecError, TargetSpec};
use crate::guard::{self, Limit};
use crate::output::escape;

/// Arguments of `agent record`.
#[derive(Clone, Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  agent record --pid 4242                       30 s, incident-COMM-4242-TIME.zip
  agent record --pid 4242 --children -d 10s -o incident.zip
  agent record -o incident.zip -- ./server --port 8080

Exit codes: 0 done, 1 failed, 2 usage, 3 nothing was seen (the bundle says so).
With a command: its own if it ran to its end; 127 not found, 126 not executable.")]
pub struct RecordArgs {
    /// Whom to look at.
    #[command(flatten)]
    pub target: TargetArgs,
    /// What it may cost.
    #[command(flatten)]
    pub guard: GuardArgs,
    /// How often to sample.
    #[command(flatten)]
    pub clock: ClockArgs,
    /// Count failing calls by the stack of functions that made them, too
    #[arg(long)]
    pub stacks: bool,
    /// Bundle to write (.zip), `-` for standard output [default: incident-COMM-PID-TIME.zip]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<String>,
}

/// What `agent record` is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordSpec {
    /// Whom to look at, and for how long.
    pub target: TargetSpec,
    /// The overhead guard's limit; `None` for none.
    pub limit: Option<Limit>,
    /// Samples per second on each CPU.
    pub frequency: NonZeroU64,
    /// Whether failing calls are counted by their stacks.
    pub stacks: bool,
    /// Where to; `None` is a file in the working directory, named after the process.
    pub output: Option<Target>,
}

impl RecordArgs {
    /// Checks the arguments and fills in the defaults.
    ///
    /// # Errors
    /// The arguments contradict each other or one has no meaning; the text names the flag to
    /// change.
    pub fn resolve(&self) -> Result<RecordSpec, SpecError> {
        let output = self.output.as_deref().map(Target::parse);
        if let Some(Target::File(path)) = &output {
            check_extension(path)?;
        }
        Ok(RecordSpec {
            target: TargetSpec::resolve(&self.target)?,
            limit: self.guard.resolve(guard::EVENTS)?,
            frequency: self.clock.resolve()?,
            stacks: self.stacks,
            output,
        })
    }
}

fn check_extension(path: &Path) -> Result<(), SpecError> {
    let zip = path
        .extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("zip"));
    if zip {
        return Ok(());
    }
    let shown = path.to_string_lossy();
    Err(SpecError::Flag {
        flag: "-o",
        reason: format!(
            "a bundle is a zip file: call it `{}.zip`",
            escape::plain(&shown)
        ),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::super::args::{Args, Command};
    use super::*;
    use clap::Parser;

    fn resolve(words: &[&str]) -> Result<RecordSpec, SpecError> {
        let words = ["agent", "record"].iter().chain(words);
        let Command::Record(args) = Args::try_parse_from(words).unwrap().command else {
            panic!("another subcommand");
        };
        args.resolve()
    }

    #[test]
    fn a_bundle_is_a_zip_file() {
        let output = |name: &str| resolve(&["--pid", "7", "-o", name]).map(|spec| spec.output);
        assert_eq!(output("-"), Ok(Some(Target::Stdout)));
        assert!(output("a.zip").is_ok() && output("a.ZIP").is_ok());
        for name in ["a", "a.svg", "zip"] {
            let error = output(name).unwrap_err().to_string();
            assert!(error.contains(&format!("`{name}.zip`")), "{error}");
        }
        assert_eq!(resolve(&["--pid", "7"]).unwrap().output, None);
        assert!(resolve(&["--pid", "7", "-F", "0"]).is_err());
        assert!(resolve(&[]).is_err());
    }
}
