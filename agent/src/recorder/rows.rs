//! Which rows a capture keeps of its intervals: those in which something happened, the busiest
//! first, so that a capture of hours does not grow without bound. The documents of the whole run
//! are kept whole.

use std::cmp::Reverse;
use std::time::Duration;

use crate::syscalls::Report;
use crate::tcp::Connections;
use crate::tcp::filter::{self, Column};
use crate::tcp::view::{Document, Span};

use super::tcp::Listing;

/// Rows of connections that one interval keeps at most.
const CONNECTIONS: usize = 200;
/// Rows of remotes, of failed connects and of failing calls, each.
const OTHERS: usize = 50;
/// Rows that one interval keeps in any case, if there are as many.
const LEAST: usize = 10;
/// Rows of all intervals, beside those [`LEAST`].
const ALL: usize = 24_000;

/// Time between two looks after so much of the run: in the first ten minutes a second, then longer,
/// so that the longest run has some two thousand intervals.
pub fn interval(elapsed: Duration) -> Duration {
    match elapsed.as_secs() {
        0..600 => Duration::from_secs(1),
        600..6000 => Duration::from_secs(10),
        6000..60_000 => Duration::from_secs(100),
        _ => Duration::from_secs(1000),
    }
}

/// What may still be kept.
#[derive(Debug)]
pub struct Budget {
    left: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self { left: ALL }
    }
}

impl Budget {
    /// Rows that the next interval may keep of a kind.
    fn share(&self, most: usize) -> usize {
        (self.left / 100).clamp(LEAST, most)
    }

    fn spend(&mut self, rows: usize) {
        self.left = self.left.saturating_sub(rows);
    }

    /// The rows of an interval.
    pub fn list(&mut self, connections: &Connections, span: Span, now: u64) -> Listing {
        let mut rows = connections.rows(span, now);
        let all = rows.len();
        let new = |age: Option<f64>| age.is_some_and(|age| age <= span.seconds());
        rows.retain(|row| row.requests > 0 || row.state == "CLOSED" || new(row.age_s));
        rows.sort_by_key(|row| Reverse(row.requests));
        rows.truncate(self.share(CONNECTIONS));
        filter::sort(&mut rows, Column::P99);
        let mut remotes = connections.remotes(span, now);
        remotes.retain(|row| row.requests > 0);
        remotes.sort_by_key(|row| Reverse(row.requests));
        remotes.truncate(self.share(OTHERS));
        filter::sort_remotes(&mut remotes, Column::P99);
        self.spend(rows.len() + remotes.len());
        Listing {
            not_shown: all - rows.len(),
            connections: Some(rows),
            remotes: Some(remotes),
        }
    }

    /// Cuts what a document has beside its rows.
    pub fn cut_document(&mut self, document: &mut Document) {
        let failed = &mut document.failed_connects;
        failed.sort_by_key(|failed| Reverse(failed.count));
        failed.truncate(self.share(OTHERS));
        self.spend(failed.len());
    }

    /// Cuts the report of an interval to the calls that failed in it. Arguments and stacks are in
    /// the last one.
    pub fn cut_report(&mut self, report: &mut Report) {
        let all = report.errors.len();
        report.errors.retain(|row| row.rate > 0.0);
        report.errors.truncate(self.share(OTHERS));
        report.not_shown = all - report.errors.len();
        self.spend(report.errors.len());
        for row in &mut report.errors {
            row.args = Vec::new();
            row.stacks = Vec::new();
            row.other_args = row.count;
        }
    }
}

/// All rows, of the whole run.
pub fn all(connections: &Connections, span: Span, now: u64) -> Listing {
    let mut rows = connections.rows(span, now);
    filter::sort(&mut rows, Column::P99);
    let mut remotes = connections.remotes(span, now);
    filter::sort_remotes(&mut remotes, Column::P99);
    Listing {
        connections: Some(rows),
        remotes: Some(remotes),
        not_shown: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::syscalls::Failure;

    #[test]
    fn the_longest_run_has_few_intervals() {
        let (mut elapsed, mut intervals) = (Duration::ZERO, 0);
        while elapsed < Duration::from_secs(7 * 24 * 3600) {
            elapsed += interval(elapsed);
            intervals += 1;
        }
        assert!(intervals < 2500, "{intervals}");
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let row = |count| Failure {
            count,
            rate: count as f64,
            ..Failure::default()
        };
        let mut budget = Budget::default();
        let mut kept = 0;
        for _ in 0..2500 {
            let mut report = Report {
                errors: (0..300).map(row).collect(),
                ..Report::default()
            };
            budget.cut_report(&mut report);
            assert!(report.errors.iter().all(|row| row.rate > 0.0));
            assert_eq!(report.errors.len() + report.not_shown, 300);
            kept += report.errors.len();
        }
        assert!((20_000..60_000).contains(&kept), "{kept}");
    }
}
