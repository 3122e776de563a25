//! Connections and failing calls of two captures, matched by remote and by kind of failure.
//!
//! Their figures are counts and times of everything that happened, not samples: there is no sampling noise to
//! tell them from.

use std::collections::BTreeMap;

use crate::capture::Capture;
use crate::tcp::Role;

/// What a capture saw besides the stacks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Traffic {
    remotes: BTreeMap<(String, Role), Red>,
    failures: BTreeMap<String, f64>,
}

/// Rate, errors and duration of the requests of a remote.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Red {
    /// Requests per second.
    pub rate: f64,
    /// Resets and failed connects per second.
    pub errors: f64,
    /// Median and 99th percentile of the requests' times, in microseconds; `None` without requests.
    pub latency: Option<(f64, f64)>,
}

/// A value of each side, where it has one.
pub type Pair<T> = [Option<T>; 2];

/// A remote of either capture.
#[derive(Clone, Debug, PartialEq)]
pub struct Remote {
    /// `ip:port` of a server, `ip` of whoever connects to us.
    pub remote: String,
    /// Our part.
    pub role: Role,
    /// Before and after.
    pub red: Pair<Red>,
}

/// A kind of failing call of either capture.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// `openat: ENOENT`.
    pub name: String,
    /// Failures per second, before and after; 0 where there was none.
    pub rates: [f64; 2],
}

impl Traffic {
    /// That of a capture, over the whole run.
    pub fn of(capture: &Capture) -> Self {
        let mut traffic = Self::default();
        if let Some(document) = capture.all_connections() {
            let seconds = document.elapsed_s.max(1e-3);
            for row in document.remotes.iter().flatten() {
                let red = Red {
                    rate: row.rate,
                    errors: row.errors as f64 / seconds,
                    latency: row.latency_us.map(|times| (times.p50, times.p99)),
                };
                traffic.remotes.insert((row.remote.clone(), row.role), red);
            }
        }
        if let Some(report) = capture.all_syscalls() {
            let seconds = report.elapsed_s.max(1e-3);
            for failure in &report.errors {
                let name = format!("{}: {}", failure.syscall, failure.errno);
                *traffic.failures.entry(name).or_insert(0.0) += failure.count as f64 / seconds;
            }
        }
        traffic
    }

    /// The remotes of both: those with the most requests first.
    pub fn remotes(before: &Self, after: &Self) -> Vec<Remote> {
        let keys = before.remotes.keys().chain(after.remotes.keys());
        let mut list: Vec<Remote> = distinct(keys)
            .map(|key| Remote {
                remote: key.0.clone(),
                role: key.1,
                red: [before, after].map(|side| side.remotes.get(key).copied()),
            })
            .collect();
        let busy =
            |remote: &Remote| -> f64 { remote.red.iter().flatten().map(|red| red.rate).sum() };
        list.sort_by(|a, b| busy(b).total_cmp(&busy(a)));
        list
    }

    /// The failing calls of both: those whose rate changed most first.
    pub fn failures(before: &Self, after: &Self) -> Vec<Failure> {
        let keys = before.failures.keys().chain(after.failures.keys());
        let mut list: Vec<Failure> = distinct(keys)
            .map(|name| Failure {
                name: name.clone(),
                rates: [before, after].map(|side| side.failures.get(name).copied().unwrap_or(0.0)),
            })
            .collect();
        let change = |failure: &Failure| (failure.rates[1] - failure.rates[0]).abs();
        list.sort_by(|a, b| change(b).total_cmp(&change(a)));
        list
    }
}

fn distinct<'a, T: Ord + 'a>(keys: impl Iterator<Item = &'a T>) -> impl Iterator<Item = &'a T> {
    keys.collect::<std::collections::BTreeSet<_>>().into_iter()
}
