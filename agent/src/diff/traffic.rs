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
    /// That of a capture, over the whole run, or the window of one without an end.
    pub fn of(capture: &Capture) -> Self {
        let mut traffic = Self::default();
        if let Some(document) = capture.all_connections() {
            let seconds = capture.connection_seconds();
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
            let seconds = capture.syscall_seconds();
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;
    use crate::output::fixture;

    #[test]
    fn windows_are_compared_by_their_own_length() {
        let recorded = fixture::capture::capture();
        let mut window = recorded.clone();
        // Of half a minute, up to a step more, an hour after the attach.
        window.connections.retain(|document| document.last);
        window.syscalls.retain(|report| report.last);
        let (document, report) = (&mut window.connections[0], &mut window.syscalls[0]);
        (document.elapsed_s, document.span_s) = (3600.0, Some(33.0));
        (report.elapsed_s, report.span_s) = (3600.0, Some(34.0));
        let sides = [Traffic::of(&recorded), Traffic::of(&window)];
        let failures = Traffic::failures(&sides[0], &sides[1]);
        let of = |name: &str| failures.iter().find(|row| row.name == name).unwrap().rates;
        assert_eq!(of("openat: ENOENT"), [412.0 / 30.0, 412.0 / 34.0]);
        let remotes = Traffic::remotes(&sides[0], &sides[1]);
        let refused = remotes.iter().find(|row| row.remote == "10.0.0.9:11211");
        let errors = refused.unwrap().red.map(|red| red.unwrap().errors);
        assert_eq!(errors, [12.0 / 30.0, 12.0 / 33.0]);
        // One that does not say how long it is.
        window.connections[0].span_s = None;
        window.syscalls[0].span_s = None;
        assert_eq!(Traffic::of(&window), sides[0]);
    }
}
