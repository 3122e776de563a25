//! The run second by second, and the seconds that stand out.

use super::moments::{self, Kind, Moment};
use super::seconds;
use crate::capture::Capture;
use crate::tcp::Role;
use crate::tcp::view::Document;

/// The longest run that is looked at by the second: a week.
const MAX_SECONDS: f64 = 7.0 * 86_400.0;
/// Shortest piece of an interval, in seconds, that says anything about a second.
const PIECE: f64 = 0.5;

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
    let frequency = capture.profile.facts.frequency;
    if frequency == 0 || capture.profile.timeline.is_empty() {
        return Vec::new();
    }
    let per_second = |&samples: &u64| Some(samples as f64 / frequency as f64);
    let mut row: Vec<Option<f64>> = capture
        .profile
        .timeline
        .iter()
        .take(length)
        .map(per_second)
        .collect();
    // Seconds after the last sample had none.
    row.resize(length, Some(0.0));
    row
}

/// The second (from 0) that an interval is of, and its length; `None` for a piece of one.
/// Both ends in seconds since the start.
fn second(begin: f64, end: f64, length: usize) -> Option<(usize, f64)> {
    let took = end - begin;
    let second = (end.round() as usize).checked_sub(1)?;
    (took >= PIECE && second < length).then_some((second, took))
}

/// The rate of requests and their p99.
fn requests(
    intervals: &[&Document],
    role: Role,
    length: usize,
) -> (Vec<Option<f64>>, Vec<Option<f64>>) {
    let mut rates = vec![None; length];
    let mut times = vec![None; length];
    let (mut begin, mut any) = (0.0, false);
    for document in intervals {
        let remotes = document.remotes.as_deref().unwrap_or_default();
        let of_role = || remotes.iter().filter(|row| row.role == role);
        let count = of_role().fold(0u64, |sum, row| sum.saturating_add(row.requests));
        let p99 = of_role()
            .filter_map(|row| row.latency_us.map(|times| times.p99))
            .reduce(f64::max);
        any |= count > 0;
        if let Some((second, took)) = second(begin, document.elapsed_s, length) {
            set(&mut rates, second, count as f64 / took);
            if let Some(p99) = p99 {
                set(&mut times, second, p99);
            }
        }
        begin = document.elapsed_s;
    }
    if any {
        (rates, times)
    } else {
        (Vec::new(), Vec::new())
    }
}

fn failures(capture: &Capture, length: usize) -> Vec<Option<f64>> {
    let mut row = vec![None; length];
    let (mut begin, mut before, mut any) = (0.0, 0u64, false);
    for report in capture.syscall_intervals() {
        let count = super::failing(&report.errors)
            .iter()
            .fold(0u64, |sum, row| sum.saturating_add(row.count));
        if let Some((second, took)) = second(begin, report.elapsed_s, length) {
            set(&mut row, second, count.saturating_sub(before) as f64 / took);
        }
        any |= count > 0;
        (begin, before) = (report.elapsed_s, count);
    }
    if any { row } else { Vec::new() }
}

/// Two intervals that end nearest to the same second: the larger one counts.
fn set(row: &mut [Option<f64>], second: usize, value: f64) {
    if let Some(entry) = row.get_mut(second) {
        *entry = Some(entry.map_or(value, |old: f64| old.max(value)));
    }
}
