//! `agent syscalls`: its arguments as typed, and what they mean.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use agent_ebpf::failure::{MAX_ERRNOS, MAX_NUMBERS};
use clap::Args as ClapArgs;

use super::args::TargetArgs;
use super::destination::Target;
use super::guard_args::GuardArgs;
use super::spec::{SpecError, TargetSpec, parse_duration};
use crate::guard::{self, Limit};
use crate::output::{self, escape};
use crate::syscalls::SHOWN_ARGUMENTS;
use crate::syscalls::name::{self, NameError};

/// Arguments of `agent syscalls`.
#[derive(Clone, Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  agent syscalls --pid 4242                     which calls fail, on what, for 30 s
  agent syscalls --pid 4242 --errno EACCES --stacks
  agent syscalls --pid 4242 --latency --format json -d 10s
  agent syscalls --hide-benign -o errors.svg -- ./server --port 8080

Exit codes: 0 done, 1 failed, 2 usage, 3 no system call failed.
With a command: its own if it ran to its end; 127 not found, 126 not executable.")]
pub struct SyscallsArgs {
    /// Whom to look at.
    #[command(flatten)]
    pub target: TargetArgs,
    /// What it may cost.
    #[command(flatten)]
    pub guard: GuardArgs,
    /// Time between two looks: 500ms, 1s, 1m
    #[arg(short, long, value_name = "TIME", default_value = "1s")]
    pub interval: String,
    /// Only failures with this error (ENOENT); may be repeated
    #[arg(short, long, value_name = "ERRNO")]
    pub errno: Vec<String>,
    /// Only failures of this system call (openat); may be repeated
    #[arg(short, long, value_name = "NAME")]
    pub syscall: Vec<String>,
    /// Time the failing calls, and count the calls that succeed
    #[arg(short, long)]
    pub latency: bool,
    /// Count by the stack of functions that made the call
    #[arg(long)]
    pub stacks: bool,
    /// Arguments shown of each row, the most frequent first
    #[arg(long, value_name = "N", default_value_t = SHOWN_ARGUMENTS)]
    pub args: usize,
    /// Leave out failures that are part of normal work
    #[arg(long)]
    pub hide_benign: bool,
    /// What to print: table, json (a line for each interval) or csv (at the end)
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    pub format: String,
    /// File to write at the end: .svg, .html, .folded (flame graph of failures), .json, .csv or
    /// .txt; may be repeated
    #[arg(short, long, value_name = "FILE")]
    pub output: Vec<String>,
}

/// A way to print reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// For people: redrawn in place on a terminal, else the last one only.
    Table,
    /// A line for each.
    Json,
    /// The last one.
    Csv,
}

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileFormat {
    /// Stacks with the failure as their leaf.
    Stacks(output::Format),
    /// The last report.
    Report(Stream),
}

/// What `agent syscalls` is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyscallsSpec {
    /// Whom to look at, and for how long.
    pub target: TargetSpec,
    /// The overhead guard's limit; `None` for none.
    pub limit: Option<Limit>,
    /// Time between two looks.
    pub interval: Duration,
    /// Errors that are wanted; empty for all.
    pub errnos: Vec<u16>,
    /// Numbers of system calls that are wanted; empty for all.
    pub syscalls: Vec<u32>,
    /// Whether calls are timed.
    pub latency: bool,
    /// Whether stacks are taken.
    pub stacks: bool,
    /// Arguments shown of each row.
    pub arguments: usize,
    /// Whether benign failures are left out.
    pub hide_benign: bool,
    /// What to print.
    pub stream: Stream,
    /// What to write where at the end.
    pub files: Vec<(Target, FileFormat)>,
}

impl SyscallsArgs {
    /// Checks the arguments and fills in the defaults.
    ///
    /// # Errors
    /// The arguments contradict each other or one has no meaning; the text names the flag to
    /// change.
    pub fn resolve(&self) -> Result<SyscallsSpec, SpecError> {
        let files = files(&self.output)?;
        let graph = files
            .iter()
            .any(|(_, format)| matches!(format, FileFormat::Stacks(_)));
        Ok(SyscallsSpec {
            target: TargetSpec::resolve(&self.target)?,
            limit: self.guard.resolve(guard::EVENTS)?,
            interval: parse_duration("--interval", &self.interval)?,
            errnos: self
                .errno
                .iter()
                .map(|text| errno(text))
                .collect::<Result<_, _>>()?,
            syscalls: self
                .syscall
                .iter()
                .map(|text| syscall(text))
                .collect::<Result<_, _>>()?,
            latency: self.latency,
            stacks: self.stacks || graph,
            arguments: self.args,
            hide_benign: self.hide_benign,
            stream: stream(&self.format)?,
            files,
        })
    }
}

fn errno(text: &str) -> Result<u16, SpecError> {
    match name::errno(text)? {
        errno if u32::from(errno) < MAX_ERRNOS => Ok(errno),
        _ => Err(NameError::Errno(escape::plain(text).into_owned(), Default::default()).into()),
    }
}

fn syscall(text: &str) -> Result<u32, SpecError> {
    match name::syscall(text)? {
        number if number < MAX_NUMBERS => Ok(number),
        _ => Err(NameError::Syscall(escape::plain(text).into_owned(), Default::default()).into()),
    }
}

fn stream(text: &str) -> Result<Stream, SpecError> {
    match text.to_ascii_lowercase().as_str() {
        "table" => Ok(Stream::Table),
        "json" => Ok(Stream::Json),
        "csv" => Ok(Stream::Csv),
        _ => Err(SpecError::Stream(escape::plain(text).into_owned())),
    }
}

/// The files and what is in them. Standard output is written anyway.
fn files(outputs: &[String]) -> Result<Vec<(Target, FileFormat)>, SpecError> {
    let mut files: Vec<(Target, FileFormat)> = Vec::new();
    let mut seen = HashSet::new();
    for text in outputs {
        let target = Target::parse(text);
        let Target::File(path) = &target else {
            continue;
        };
        let format = file_format(path)?;
        if !seen.insert(target.normalized()) {
            return Err(SpecError::DuplicateOutput(escape::plain(text).into_owned()));
        }
        files.push((target, format));
    }
    Ok(files)
}

fn file_format(path: &Path) -> Result<FileFormat, SpecError> {
    let stacks = output::Format::from_extension(path).ok();
    let extension = path
        .extension()
        .map(|extension| extension.to_string_lossy().to_ascii_lowercase());
    match (stacks, extension.as_deref()) {
        (Some(output::Format::Json), _) => Ok(FileFormat::Report(Stream::Json)),
        (Some(format), _) => Ok(FileFormat::Stacks(format)),
        (None, Some("csv")) => Ok(FileFormat::Report(Stream::Csv)),
        (None, Some("txt")) => Ok(FileFormat::Report(Stream::Table)),
        (None, _) => Err(SpecError::File(
            escape::plain(&path.to_string_lossy()).into_owned(),
        )),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::super::args::{Args, Command};
    use super::*;
    use clap::Parser;

    fn resolve(words: &[&str]) -> Result<SyscallsSpec, SpecError> {
        let words = ["agent", "syscalls", "--pid", "7"].iter().chain(words);
        let Command::Syscalls(args) = Args::try_parse_from(words).unwrap().command else {
            panic!("another subcommand");
        };
        args.resolve()
    }

    #[test]
    fn defaults() {
        let spec = resolve(&[]).unwrap();
        assert_eq!(spec.interval, Duration::from_secs(1));
        assert_eq!(
            (spec.stream, spec.stacks, spec.latency),
            (Stream::Table, false, false)
        );
        assert_eq!(spec.arguments, 5);
        assert!(spec.errnos.is_empty() && spec.syscalls.is_empty() && spec.files.is_empty());
    }

    #[test]
    fn names_become_numbers() {
        let spec = resolve(&["--errno", "ENOENT", "-e", "eacces", "--syscall", "openat"]).unwrap();
        assert_eq!((spec.errnos, spec.syscalls), (vec![2, 13], vec![257]));
        let error = resolve(&["--errno", "ENOENTT"]).unwrap_err().to_string();
        assert!(error.contains("did you mean ENOENT"), "{error}");
        let error = resolve(&["--syscall", "open_at"]).unwrap_err().to_string();
        assert!(error.contains("did you mean openat"), "{error}");
        assert!(resolve(&["--syscall", "syscall_600"]).is_err());
        assert!(resolve(&["--errno", "2000"]).is_err());
    }

    #[test]
    fn a_flame_graph_needs_stacks() {
        let spec = resolve(&["-o", "errors.svg", "-o", "e.json", "-o", "-"]).unwrap();
        assert!(spec.stacks);
        assert_eq!(spec.files.len(), 2);
        assert!(!resolve(&["-o", "e.csv"]).unwrap().stacks);
        assert!(
            resolve(&["-o", "e.pdf"])
                .unwrap_err()
                .to_string()
                .contains(".svg")
        );
        assert!(resolve(&["-o", "e.csv", "-o", "./e.csv"]).is_err());
        assert!(
            resolve(&["--format", "xml"])
                .unwrap_err()
                .to_string()
                .contains("table, json, csv")
        );
    }
}
