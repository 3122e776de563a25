//! `agent tcp`: its arguments as typed, and what they mean.

use std::time::Duration;

use clap::{Args as ClapArgs, ValueEnum};

use super::args::TargetArgs;
use super::destination::Target;
use super::guard_args::GuardArgs;
use super::spec::{SpecError, TargetSpec, parse_duration};
use crate::guard::{self, Limit};
use crate::output::escape;
use crate::tcp::filter::{Column, Filter};

/// Arguments of `agent tcp`.
#[derive(Clone, Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  agent tcp --pid 4242                          a live table, slowest connections first
  agent tcp --pid 4242 --by remote              which dependency is slow: rate, errors, duration
  agent tcp --pid 4242 -d 10s --format json -o tcp.json
  agent tcp --pid 4242 --filter 'role=client,p99>10ms' --sort rate
  agent tcp --pid 4242 --filter 10.0.0.0/8

Exit codes: 0 done, 1 failed, 2 usage, 3 no connection was seen.
With a command: its own if it ran to its end; 127 not found, 126 not executable.")]
pub struct TcpArgs {
    /// Whom to look at.
    #[command(flatten)]
    pub target: TargetArgs,
    /// What it may cost.
    #[command(flatten)]
    pub guard: GuardArgs,
    /// Time between two looks
    #[arg(short, long, value_name = "TIME", default_value = "1s")]
    pub interval: String,
    /// Column to sort by; an unknown one lists them [default: p99]
    #[arg(short, long, value_name = "COLUMN")]
    pub sort: Option<String>,
    /// Show so many rows
    #[arg(short = 'n', long, value_name = "N")]
    pub top: Option<usize>,
    /// Show only these: addresses (10.0.0.1, 10.0.0.1:80, :80, 10.0.0.0/8) and comparisons
    /// (p99>10ms, role=client), separated by commas
    #[arg(long, value_name = "EXPR")]
    pub filter: Option<String>,
    /// One row for each connection, or for each remote
    #[arg(long, value_name = "WHAT", default_value = "connection")]
    pub by: By,
    /// table (redrawn in place on a terminal), json (a document a line) or csv; not needed where the
    /// file's extension tells it
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<TcpFormat>,
    /// File to write (.json, .csv or .txt), `-` for standard output [default: -]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<String>,
}

/// What a row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum By {
    /// A connection.
    Connection,
    /// All connections to one remote.
    Remote,
}

/// A format of `agent tcp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TcpFormat {
    /// For people.
    Table,
    /// One document a line and interval.
    Json,
    /// One line per row and interval.
    Csv,
}

impl TcpFormat {
    const fn name(self) -> &'static str {
        match self {
            TcpFormat::Table => "table",
            TcpFormat::Json => "json",
            TcpFormat::Csv => "csv",
        }
    }
}

/// What `agent tcp` is to do.
#[derive(Clone, Debug, PartialEq)]
pub struct TcpSpec {
    /// Whom to look at, and for how long.
    pub target: TargetSpec,
    /// The overhead guard's limit; `None` for none.
    pub limit: Option<Limit>,
    /// Time between two looks.
    pub interval: Duration,
    /// Column to sort by.
    pub sort: Column,
    /// Rows at most.
    pub top: usize,
    /// Rows to show.
    pub filter: Filter,
    /// What a row is.
    pub by: By,
    /// The format.
    pub format: TcpFormat,
    /// Where to.
    pub output: Target,
}

impl TcpArgs {
    /// Checks the arguments and fills in the defaults: without a duration the look goes on until
    /// Ctrl-C.
    ///
    /// # Errors
    /// The arguments contradict each other or one has no meaning; the text names the flag to
    /// change.
    pub fn resolve(&self) -> Result<TcpSpec, SpecError> {
        let mut target = TargetSpec::resolve(&self.target)?;
        if self.target.duration.is_none() {
            target.duration = None;
        }
        let flag = |flag: &'static str| {
            move |error: crate::tcp::filter::FilterError| SpecError::Flag {
                flag,
                reason: escape::plain(&error.to_string()).into_owned(),
            }
        };
        let output = Target::parse(self.output.as_deref().unwrap_or("-"));
        Ok(TcpSpec {
            target,
            limit: self.guard.resolve(guard::EVENTS)?,
            interval: parse_duration("--interval", &self.interval)?,
            sort: Column::parse(self.sort.as_deref().unwrap_or("p99")).map_err(flag("--sort"))?,
            top: self.top.unwrap_or(usize::MAX),
            filter: match &self.filter {
                Some(text) => Filter::parse(text).map_err(flag("--filter"))?,
                None => Filter::default(),
            },
            by: self.by,
            format: format_of(&output, self.format)?,
            output,
        })
    }
}

/// By the file's extension, else the given one; a table on standard output.
fn format_of(output: &Target, given: Option<TcpFormat>) -> Result<TcpFormat, SpecError> {
    let Target::File(path) = output else {
        return Ok(given.unwrap_or(TcpFormat::Table));
    };
    let extension = path
        .extension()
        .map(|extension| extension.to_string_lossy());
    let by_name = match extension.as_deref() {
        Some("json" | "jsonl" | "ndjson") => TcpFormat::Json,
        Some("csv") => TcpFormat::Csv,
        Some("txt" | "table") => TcpFormat::Table,
        _ => {
            let path = escape::plain(&path.to_string_lossy()).into_owned();
            return given.ok_or(SpecError::TcpFile(path));
        }
    };
    match given {
        Some(given) if given != by_name => Err(SpecError::FormatUnused(given.name())),
        _ => Ok(by_name),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::super::args::{Args, Command};
    use super::*;
    use clap::Parser;

    fn resolve(words: &[&str]) -> Result<TcpSpec, SpecError> {
        let words = ["agent", "tcp", "--pid", "7"].iter().chain(words);
        let Command::Tcp(args) = Args::try_parse_from(words).unwrap().command else {
            panic!("another subcommand");
        };
        args.resolve()
    }

    #[test]
    fn defaults() {
        let spec = resolve(&[]).unwrap();
        assert_eq!(
            (spec.interval, spec.target.duration),
            (Duration::from_secs(1), None)
        );
        assert_eq!((spec.format, spec.sort), (TcpFormat::Table, Column::P99));
    }

    #[test]
    fn the_extension_names_the_format() {
        assert_eq!(resolve(&["-o", "x.json"]).unwrap().format, TcpFormat::Json);
        assert_eq!(resolve(&["-o", "x.csv"]).unwrap().format, TcpFormat::Csv);
        assert_eq!(resolve(&["-o", "x.txt"]).unwrap().format, TcpFormat::Table);
        let other = resolve(&["-o", "x.log", "--format", "json"]);
        assert_eq!(other.unwrap().format, TcpFormat::Json);
        let refused = |words: &[&str], reason: &str| {
            let error = resolve(words).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        };
        refused(&["-o", "x.csv", "--format", "json"], "contradicts");
        refused(&["-o", "x.svg"], ".json, .csv, .txt");
        refused(&["-o", "x"], ".json, .csv, .txt");
    }

    #[test]
    fn an_unknown_column_lists_the_known_ones() {
        let error = resolve(&["--sort", "speed"]).unwrap_err().to_string();
        assert!(
            error.starts_with("--sort") && error.contains("p50, p90, p99"),
            "{error}"
        );
        let error = resolve(&["--filter", "speed>1"]).unwrap_err().to_string();
        assert!(
            error.starts_with("--filter") && error.contains("retransmits"),
            "{error}"
        );
        for filter in [
            "nonsense",
            "10.0.0.0/33",
            "10.0.0.0/99",
            "::1/129",
            "10.0.0.0/x",
            "::ffff:10.0.0.0/129",
        ] {
            assert!(resolve(&["--filter", filter]).is_err(), "{filter}");
        }
        for filter in ["10.0.0.0/32", "0.0.0.0/0", "::1/128", "::ffff:10.0.0.0/104"] {
            assert!(resolve(&["--filter", filter]).is_ok(), "{filter}");
        }
    }
}
