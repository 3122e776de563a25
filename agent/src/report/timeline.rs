//! The run second by second, and the seconds that stand out.

use std::collections::BTreeMap;

use super::moments::{self, Kind, Moment};
use super::seconds;
use crate::capture::Capture;
use crate::tcp::Role;
use crate::tcp::view::Document;

/// The longest run that is looked at by the second: a week.
const MAX_SECONDS: f64 = 7.0 * 86_400.0;
/// Part of a second of which something must be known to say something about all of it.
const COVERED: f64 = 0.5;

/// Figures of each second. A row is `None` where the capture has nothing of its kind.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Timeline {
    /// CPUs in use, by the samples.
    pub cpus: Vec<Option<f64>>,
    /// Requests answered to clients.
    pub served: Vec<Option<f64>>,
    /// p99 of these, in microseconds; of the slowest client address.
    pub served_p99: Vec<Option<f64>>,
    /// Requests to upstreams.
    pub asked: Vec<Option<f64>>,
    /// p99 of these, in microseconds; of the slowest upstream.
    pub asked_p99: Vec<Option<f64>>,
    /// Failing system calls that are not benign.
    pub failures: Vec<Option<f64>>,
}

/// What a row of the timeline is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// [`Timeline::cpus`].
    Cpus,
    /// [`Timeline::served`].
    Served,
    /// [`Timeline::served_p99`].
    ServedP99,
    /// [`Timeline::asked`].
    Asked,
    /// [`Timeline::asked_p99`].
    AskedP99,
    /// [`Timeline::failures`].
    Failures,
}

impl Subject {
    /// All of them, in the order of a report.
    pub const ALL: [Subject; 6] = [
        Subject::Cpus,
        Subject::Served,
        Subject::ServedP99,
        Subject::Asked,
        Subject::AskedP99,
        Subject::Failures,
    ];
}

impl Timeline {
    /// Of this capture: its whole seconds.
    pub fn new(capture: &Capture) -> Self {
        // A run of 29.97 s has thirty of them for all that matters here.
        let length = (seconds(capture) + 0.1).min(MAX_SECONDS) as usize;
        let intervals: Vec<&Document> = capture.connection_intervals().collect();
        let served = requests(&intervals, Role::Server, length);
        let asked = requests(&intervals, Role::Client, length);
        Self {
            cpus: cpus(capture, length),
            served: served.0,
            served_p99: served.1,
            asked: asked.0,
            asked_p99: asked.1,
            failures: failures(capture, length),
        }
    }

    /// One row.
    pub fn row(&self, subject: Subject) -> &[Option<f64>] {
        match subject {
            Subject::Cpus => &self.cpus,
            Subject::Served => &self.served,
            Subject::ServedP99 => &self.served_p99,
            Subject::Asked => &self.asked,
            Subject::AskedP99 => &self.asked_p99,
            Subject::Failures => &self.failures,
        }
    }

    /// The seconds of a row that stand out.
    pub fn moments(&self, subject: Subject) -> Vec<Moment> {
        let kind = match subject {
            Subject::Served | Subject::Asked | Subject::Failures => Kind::Counts,
            Subject::Cpus | Subject::ServedP99 | Subject::AskedP99 => Kind::Measures,
        };
        moments::standing_out(self.row(subject), kind)
    }
}

fn cpus(capture: &Capture, length: usize) -> Vec<Option<f64>> {
    let Some(each) = capture.seconds_per_sample() else {
        return Vec::new();
    };
    if capture.profile.timeline.is_empty() {
        return Vec::new();
    }
    let sampled = capture.sampled_seconds();
    // Seconds after the last sample had none; those after the clock are not known.
    let per_second = |(second, samples): (usize, u64)| {
        let covered = (sampled - second as f64).min(1.0);
        (covered > COVERED).then(|| samples as f64 * each / covered)
    };
    let samples = capture.profile.timeline.iter().copied();
    (0..length)
        .zip(samples.chain(std::iter::repeat(0)))
        .map(per_second)
        .collect()
}

/// A figure of the time between two moments, in seconds since the start.
struct Piece {
    begin: f64,
    end: f64,
    /// Events in it.
    count: u64,
    /// Something measured in it.
    measure: Option<f64>,
}

impl Piece {
    /// Seconds of it that lie within this second.
    fn within(&self, second: usize) -> f64 {
        let second = second as f64;
        self.end.min(second + 1.0) - self.begin.max(second)
    }
}

/// What is known of one second.
#[derive(Clone, Copy, Default)]
struct Sum {
    /// Seconds of it that the pieces cover.
    covered: f64,
    events: f64,
    /// Seconds of the piece that covers most.
    longest: f64,
    /// What was measured in that one.
    measure: Option<f64>,
}

/// Events per second and what was measured, of each second: intervals end a little late, and later
/// and later, so that a second is made of the pieces of two. A second that is half covered or less
/// has no value. What was measured is that of the longer piece.
fn by_second(pieces: &[Piece], length: usize) -> (Vec<Option<f64>>, Vec<Option<f64>>) {
    let mut sums = vec![Sum::default(); length];
    for piece in pieces {
        let took = piece.end - piece.begin;
        let first = piece.begin.max(0.0) as usize;
        let last = (piece.end.max(0.0).ceil() as usize).min(length);
        for (second, sum) in sums.iter_mut().enumerate().take(last).skip(first) {
            let within = piece.within(second);
            if within > 0.0 && took > 0.0 {
                sum.covered += within;
                sum.events += piece.count as f64 * within / took;
                if within > sum.longest {
                    (sum.longest, sum.measure) = (within, piece.measure);
                }
            }
        }
    }
    sums.into_iter()
        .map(|sum| {
            let known = sum.covered > COVERED;
            let rate = known.then(|| sum.events / sum.covered);
            (rate, sum.measure.filter(|_| known))
        })
        .unzip()
}

/// The rate of requests and their p99.
fn requests(
    intervals: &[&Document],
    role: Role,
    length: usize,
) -> (Vec<Option<f64>>, Vec<Option<f64>>) {
    let mut begin = 0.0;
    let pieces: Vec<Piece> = intervals
        .iter()
        .map(|document| {
            let remotes = document.remotes.as_deref().unwrap_or_default();
            let of_role = || remotes.iter().filter(|row| row.role == role);
            let end = document.elapsed_s;
            Piece {
                begin: std::mem::replace(&mut begin, end),
                end,
                count: of_role().fold(0, |sum, row| sum.saturating_add(row.requests)),
                measure: of_role()
                    .filter_map(|row| row.latency_us.map(|times| times.p99))
                    .reduce(f64::max),
            }
        })
        .collect();
    if pieces.iter().all(|piece| piece.count == 0) {
        return (Vec::new(), Vec::new());
    }
    by_second(&pieces, length)
}

fn failures(capture: &Capture, length: usize) -> Vec<Option<f64>> {
    let mut begin = 0.0;
    // A report of an interval has only the rows in which something happened.
    let mut before: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    let pieces: Vec<Piece> = capture
        .syscall_intervals()
        .map(|report| {
            let new = super::failing(&report.errors).into_iter().map(|row| {
                let key = (row.failure.syscall.as_str(), row.failure.errno.as_str());
                let until = before.insert(key, row.count).unwrap_or(0);
                row.count.saturating_sub(until)
            });
            let count = new.fold(0, u64::saturating_add);
            let end = report.elapsed_s;
            Piece {
                begin: std::mem::replace(&mut begin, end),
                end,
                count,
                measure: None,
            }
        })
        .collect();
    if pieces.iter().all(|piece| piece.count == 0) {
        return Vec::new();
    }
    by_second(&pieces, length).0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::fixture;

    #[test]
    fn late_intervals_are_put_into_their_seconds() {
        let piece = |begin, end, count, measure| Piece {
            begin,
            end,
            count,
            measure: Some(measure),
        };
        let pieces = [
            piece(0.0, 1.25, 125, 7.0),
            piece(1.25, 2.5, 250, 9.0),
            piece(2.5, 3.25, 75, 8.0),
        ];
        let (rates, measures) = by_second(&pieces, 4);
        assert_eq!(rates, [Some(100.0), Some(175.0), Some(150.0), None]);
        assert_eq!(measures, [Some(7.0), Some(9.0), Some(9.0), None]);
    }

    #[test]
    fn times_that_make_no_sense_do_no_harm() {
        let piece = |begin, end| Piece {
            begin,
            end,
            count: u64::MAX,
            measure: None,
        };
        let pieces = [piece(5.0, 1.0), piece(-1e300, 1e300), piece(3.0, 3.0)];
        assert_eq!(by_second(&pieces, 2).0.len(), 2);
        assert!(by_second(&pieces, 0).0.is_empty());
    }

    #[test]
    fn a_failure_that_is_not_in_every_report_counts_once() {
        let mut capture = fixture::capture::capture();
        for report in capture.syscalls.iter_mut().take(20).skip(10) {
            report.errors.retain(|row| row.errno != "ENOENT");
        }
        let row = Timeline::new(&capture).failures;
        let sum: f64 = row.iter().flatten().sum();
        assert!((sum - 30.0 * 13.0).abs() < 0.01, "{row:?}");
        assert_eq!((row[10], row[20]), (Some(0.0), Some(11.0 * 13.0)));
    }

    #[test]
    fn seconds_without_a_clock_are_not_idle() {
        let mut capture = fixture::capture::capture();
        capture.profile.facts.duration_seconds = 12.75;
        capture.profile.timeline.truncate(13);
        let row = Timeline::new(&capture).cpus;
        let each = 1.0 / 99.0;
        assert_eq!((row.len(), row[11], row[13]), (30, Some(87.0 * each), None));
        assert!(row[12].is_some_and(|cpus| (cpus - 85.0 * each / 0.75).abs() < 1e-9));
        assert!(row[13..].iter().all(Option::is_none), "{row:?}");
        // Less than half of the last second was sampled.
        capture.profile.facts.duration_seconds = 12.25;
        assert_eq!(Timeline::new(&capture).cpus[12], None);
        // The target slept through the end.
        capture.profile.facts.duration_seconds = 30.0;
        assert_eq!(Timeline::new(&capture).cpus[29], Some(0.0));
    }

    #[test]
    fn the_stall_stands_out_in_each_row_that_it_is_in() {
        let timeline = Timeline::new(&fixture::capture::capture());
        let seconds = |subject| -> Vec<usize> {
            let moments = timeline.moments(subject);
            moments.iter().map(|moment| moment.second).collect()
        };
        for subject in [Subject::Cpus, Subject::Served, Subject::ServedP99] {
            assert_eq!(seconds(subject), [14], "{subject:?}");
        }
        for subject in [Subject::Asked, Subject::AskedP99, Subject::Failures] {
            assert!(seconds(subject).is_empty(), "{subject:?}");
        }
    }
}
