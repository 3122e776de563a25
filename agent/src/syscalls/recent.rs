//! Failing calls of the last seconds: the counts since the start, less those of a while ago. Pure.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use super::{Failure, Report};

/// Seconds between two counts that are kept.
pub const STEP: f64 = 5.0;
/// Counts that are kept: a minute's, and the one before.
const KEPT: usize = 14;

/// What was counted at one moment.
#[derive(Debug)]
struct Counts {
    /// Seconds since the start.
    at: f64,
    /// By the hash of system call, error and argument (or what else is counted).
    counts: HashMap<u64, u64>,
}

/// The counts of the last minute.
#[derive(Debug, Default)]
pub struct Recent {
    /// The oldest first.
    kept: VecDeque<Counts>,
}

impl Recent {
    /// Whether it is time for another count, so many seconds after the start.
    pub fn is_due(&self, elapsed_s: f64) -> bool {
        elapsed_s >= self.kept.back().map_or(0.0, |last| last.at) + STEP
    }

    /// Keeps the counts of a report with all its arguments.
    pub fn keep(&mut self, report: &Report) {
        let counts = report.errors.iter().flat_map(|row| {
            let own = [
                (hash(row, ALL), row.count),
                (hash(row, BENIGN), row.benign_count),
            ];
            let args = row.args.iter();
            own.into_iter()
                .chain(args.map(move |arg| (hash(row, &arg.value), arg.count)))
        });
        self.kept.push_back(Counts {
            at: report.elapsed_s,
            counts: counts.collect(),
        });
        if self.kept.len() > KEPT {
            self.kept.pop_front();
        }
    }

    /// The part of a report that is of the last `seconds`, or up to [`STEP`] more, and how many those
    /// are: rows that failed in them, each with at most so many arguments. Times of the first failure
    /// stay those of the run.
    pub fn of(&self, report: &Report, seconds: f64, arguments: usize) -> (Report, f64) {
        let from = report.elapsed_s - seconds;
        let before = self.kept.iter().rev().find(|counts| counts.at <= from);
        let length = report.elapsed_s - before.map_or(0.0, |counts| counts.at);
        let since = |key: u64, count: u64| {
            let before = before.and_then(|counts| counts.counts.get(&key));
            count.saturating_sub(before.copied().unwrap_or(0))
        };
        let rows = report.errors.iter().filter_map(|row| {
            let count = since(hash(row, ALL), row.count);
            let recent = Failure {
                count,
                rate: count as f64 / length.max(1e-3),
                benign_count: since(hash(row, BENIGN), row.benign_count),
                args: Vec::new(),
                ..row.clone()
            };
            (count > 0).then(|| with_arguments(recent, row, &since, arguments))
        });
        let mut recent = Report {
            span_s: Some(length),
            errors: rows.collect(),
            ..report.clone()
        };
        recent.sort();
        (recent, length)
    }
}

fn with_arguments(
    mut recent: Failure,
    row: &Failure,
    since: &impl Fn(u64, u64) -> u64,
    most: usize,
) -> Failure {
    for arg in &row.args {
        let count = since(hash(row, &arg.value), arg.count);
        if count > 0 {
            let mut arg = arg.clone();
            arg.count = count;
            recent.args.push(arg);
        }
    }
    recent
        .args
        .sort_by_key(|arg| (arg.benign.is_some(), std::cmp::Reverse(arg.count)));
    recent.args.truncate(most);
    let shown: u64 = recent.args.iter().map(|arg| arg.count).sum();
    recent.other_args = recent.count.saturating_sub(shown);
    recent
}

/// What a row counts beside its arguments; no argument is such a text, as NUL ends one.
const ALL: &str = "\0all";
const BENIGN: &str = "\0benign";

fn hash(row: &Failure, part: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&row.syscall, &row.errno, part).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::super::Counted;
    use super::*;

    fn report(at: f64, count: u64, args: &[(&str, u64)]) -> Report {
        let arg = |&(value, count): &(&str, u64)| Counted {
            value: value.to_owned(),
            count,
            benign: None,
        };
        Report {
            elapsed_s: at,
            errors: vec![Failure {
                syscall: "openat".to_owned(),
                errno: "ENOENT".to_owned(),
                count,
                args: args.iter().map(arg).collect(),
                ..Failure::default()
            }],
            ..Report::default()
        }
    }

    #[test]
    fn counts_are_of_the_last_seconds() {
        let mut recent = Recent::default();
        assert!(!recent.is_due(4.9) && recent.is_due(5.0));
        recent.keep(&report(5.0, 100, &[("/a", 90)]));
        recent.keep(&report(10.0, 200, &[("/a", 150), ("/b", 40)]));
        assert!(!recent.is_due(14.0));
        let now = report(15.0, 230, &[("/a", 150), ("/b", 60), ("/c", 7)]);
        let (last, length) = recent.of(&now, 5.0, 1);
        let row = &last.errors[0];
        assert!((length - 5.0).abs() < 1e-9 && (row.rate - 6.0).abs() < 1e-9);
        assert_eq!((row.count, row.args.len(), row.other_args), (30, 1, 10));
        assert_eq!((last.span_s, last.elapsed_s), (Some(length), 15.0));
        assert_eq!((&*row.args[0].value, row.args[0].count), ("/b", 20));
        // There is no count of nine seconds ago: the one before is taken.
        let (more, length) = recent.of(&now, 9.0, 5);
        assert!((length - 10.0).abs() < 1e-9);
        assert_eq!(more.errors[0].count, 130);
        let (all, length) = recent.of(&now, 60.0, 5);
        assert!((length - 15.0).abs() < 1e-9);
        assert_eq!(all.errors[0].count, 230);
    }

    #[test]
    fn what_no_longer_fails_is_left_out() {
        let mut recent = Recent::default();
        recent.keep(&report(5.0, 100, &[]));
        assert!(
            recent
                .of(&report(10.0, 100, &[]), 5.0, 5)
                .0
                .errors
                .is_empty()
        );
    }

    #[test]
    fn a_minute_is_kept() {
        let mut recent = Recent::default();
        for step in 1..1000u32 {
            let at = f64::from(step) * STEP;
            recent.keep(&report(at, u64::from(step), &[]));
        }
        assert_eq!(recent.kept.len(), KEPT);
        let (last, length) = recent.of(&report(5001.0, 2000, &[]), 60.0, 5);
        assert!((60.0..=66.0).contains(&length), "{length}");
        assert!(last.errors[0].count > 1000);
    }
}
