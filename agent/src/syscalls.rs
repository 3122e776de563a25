//! The model of failing system calls: one row for each (system call, errno) pair. No I/O.

pub mod benign;
pub mod name;
pub mod recent;
pub mod table;
pub mod totals;
pub mod values;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::guard;
use crate::profile::TargetFacts;

/// Arguments shown of each row, where nothing else is asked for.
pub const SHOWN_ARGUMENTS: usize = 5;

/// What was seen until one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Whether the run is over.
    #[serde(rename = "final")]
    pub last: bool,
    /// Time since the start of the run, in seconds.
    pub elapsed_s: f64,
    /// The time before that in which the failures were counted, in seconds, in a run without an end;
    /// else `None`: since the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub span_s: Option<f64>,
    /// The first process in scope.
    pub target: TargetFacts,
    /// Processes that are or were in scope.
    pub processes: usize,
    /// The rows: the most frequent first, benign ones last.
    pub errors: Vec<Failure>,
    /// Rows left out: in a capture, those of an interval in which they did not fail.
    #[serde(default)]
    pub not_shown: usize,
    /// What could not be kept, by cause; all zero when nothing was lost.
    pub losses: BTreeMap<String, u64>,
    /// What the overhead guard saw and did, in the last report of a run with a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard: Option<guard::Report>,
}

/// One (system call, errno) pair.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// Name of the system call, or `syscall_NNN`.
    pub syscall: String,
    /// Name of the error.
    pub errno: String,
    /// Failures since the start.
    pub count: u64,
    /// Failures per second: since the last report, in the last one over the whole run.
    pub rate: f64,
    /// Whether this is one of the kernel's internal `ERESTART…` codes: a signal came, and the kernel
    /// restarts the call or answers `EINTR` after the handler.
    pub restarted: bool,
    /// Why this failure is to be expected; `None` where it is not.
    pub benign: Option<String>,
    /// Of the failures, those with an argument that makes them benign. Where some are and some are
    /// not, the row is not benign.
    pub benign_count: u64,
    /// All calls of this system call; `None` where they are not counted (without `--latency`).
    pub calls: Option<u64>,
    /// The share of them that failed with this error, 0 to 1.
    pub share: Option<f64>,
    /// Time of the first failure, in seconds since the start.
    pub first_s: f64,
    /// Time of the last.
    pub last_s: f64,
    /// The most frequent arguments, as many as asked for; those that are not benign first.
    pub args: Vec<Counted>,
    /// Failures with other arguments, or with ones that were not kept.
    pub other_args: u64,
    /// How long the failing calls took; `None` without `--latency`.
    pub latency_us: Option<Latency>,
    /// Stacks, the most frequent first; empty where none were taken.
    pub stacks: Vec<CountedStack>,
}

/// An argument and how often it was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// The argument, for people.
    pub value: String,
    /// Failures with it.
    pub count: u64,
    /// Why failures with it are to be expected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub benign: Option<String>,
}

/// A stack and how often it was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CountedStack {
    /// Names of the functions, root first.
    pub frames: Vec<String>,
    /// Failures with it.
    pub count: u64,
}

/// Times in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Median.
    pub p50: f64,
    /// 99th percentile.
    pub p99: f64,
    /// The longest.
    pub max: f64,
}

impl Report {
    /// Puts the rows in order: what is not benign first, then by count.
    pub fn sort(&mut self) {
        self.errors.sort_by(|a, b| {
            let key = |row: &Failure| (row.benign.is_some(), std::cmp::Reverse(row.count));
            key(a)
                .cmp(&key(b))
                .then_with(|| (&a.syscall, &a.errno).cmp(&(&b.syscall, &b.errno)))
        });
    }

    /// Drops the benign rows, and the benign failures of the others.
    pub fn hide_benign(&mut self) {
        self.errors.retain(|row| row.benign.is_none());
        for row in &mut self.errors {
            row.hide_benign();
        }
        self.sort();
    }

    /// Failures in all rows.
    pub fn failures(&self) -> u64 {
        self.errors.iter().map(|row| row.count).sum()
    }
}

impl Failure {
    fn hide_benign(&mut self) {
        if self.benign_count == 0 {
            return;
        }
        let left = self.count.saturating_sub(self.benign_count);
        let part = left as f64 / self.count.max(1) as f64;
        self.rate *= part;
        self.share = self.share.map(|share| share * part);
        self.args.retain(|arg| arg.benign.is_none());
        let shown: u64 = self.args.iter().map(|arg| arg.count).sum();
        self.other_args = left.saturating_sub(shown);
        self.count = left;
        self.benign_count = 0;
    }
}

/// The value below which `share` (0 to 1) of the counts lie; `None` without any. The values are in
/// ascending order.
pub fn percentile(counts: &[(f64, u64)], share: f64) -> Option<f64> {
    let total: u64 = counts.iter().map(|(_, count)| count).sum();
    let rank = ((total as f64 * share).ceil() as u64).max(1);
    let mut below = 0;
    counts.iter().find_map(|(value, count)| {
        below += count;
        (below >= rank).then_some(*value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(syscall: &str, count: u64, benign: bool) -> Failure {
        let benign = benign.then(|| "why".to_owned());
        Failure {
            syscall: syscall.to_owned(),
            count,
            benign,
            ..Failure::default()
        }
    }

    #[test]
    fn benign_rows_come_last_and_can_be_dropped() {
        let mut report = Report {
            errors: vec![
                row("futex", 900, true),
                row("open", 3, false),
                row("stat", 30, false),
            ],
            ..Report::default()
        };
        report.sort();
        let names: Vec<&str> = report
            .errors
            .iter()
            .map(|row| row.syscall.as_str())
            .collect();
        assert_eq!(names, ["stat", "open", "futex"]);
        assert_eq!(report.failures(), 933);
        report.hide_benign();
        assert_eq!(report.failures(), 33);
    }

    #[test]
    fn benign_failures_of_a_mixed_row_can_be_dropped() {
        let arg = |value: &str, count, benign: bool| Counted {
            value: value.to_owned(),
            count,
            benign: benign.then(|| "why".to_owned()),
        };
        let mut mixed = Failure {
            rate: 10.0,
            args: vec![arg("/a", 2, false), arg("/b", 70, true)],
            other_args: 28,
            benign_count: 90,
            ..row("openat", 100, false)
        };
        mixed.hide_benign();
        assert_eq!(
            (mixed.count, mixed.other_args, mixed.args.len()),
            (10, 8, 1)
        );
        assert!((mixed.rate - 1.0).abs() < 1e-9);
    }

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let counts = [(1.0, 50), (2.0, 49), (9.0, 1)];
        assert_eq!(percentile(&counts, 0.5), Some(1.0));
        assert_eq!(percentile(&counts, 0.99), Some(2.0));
        assert_eq!(percentile(&counts, 1.0), Some(9.0));
        assert_eq!(percentile(&[], 0.5), None);
    }
}
