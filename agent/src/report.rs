//! What a capture says: the findings that a report is written from. A model without I/O.
//!
//! Figures of a service are in RED terms (rate, errors, duration), those of what it uses in USE
//! terms (utilisation, saturation, errors).

pub mod moments;
pub mod paths;
pub mod timeline;
pub mod usage;

use crate::capture::Capture;
use crate::syscalls::Failure;
use crate::tcp::Role;
use crate::tcp::view::{Parts, RemoteRow, Row};

use paths::Paths;
use timeline::Timeline;
use usage::Usage;

/// What a capture says.
#[derive(Clone, Debug)]
pub struct Report<'a> {
    /// What it is about.
    pub capture: &'a Capture,
    /// Utilisation and saturation of the CPUs.
    pub usage: Usage,
    /// The heaviest call paths.
    pub paths: Paths,
    /// Servers that the target connects to: those that only fail first, then by p99, the longest first.
    pub upstreams: Vec<&'a RemoteRow>,
    /// Those that connect to the target, in the same order.
    pub clients: Vec<&'a RemoteRow>,
    /// Remotes of which it is not known who connected.
    pub unknown: Vec<&'a RemoteRow>,
    /// Connections with requests, by p99, the longest first.
    pub slowest: Vec<&'a Row>,
    /// Failing calls that are not benign, the most frequent first.
    pub failing: Vec<Failing<'a>>,
    /// Failing calls that are part of ordinary work.
    pub benign: Vec<&'a Failure>,
    /// Figures by second.
    pub timeline: Timeline,
}

/// A failing call, without its benign part.
#[derive(Clone, Copy, Debug)]
pub struct Failing<'a> {
    /// The call.
    pub failure: &'a Failure,
    /// Failures that are not benign.
    pub count: u64,
}

impl<'a> Report<'a> {
    /// Looks at a capture.
    pub fn new(capture: &'a Capture) -> Self {
        let connections = capture.all_connections();
        let remotes = connections.and_then(|document| document.remotes.as_deref());
        let of_role = |role| remotes_of(remotes.unwrap_or_default(), role);
        let rows = connections.and_then(|document| document.connections.as_deref());
        let failures = capture
            .all_syscalls()
            .map_or(&[][..], |report| &report.errors);
        Self {
            capture,
            usage: Usage::new(capture),
            paths: Paths::new(&capture.profile),
            upstreams: of_role(Role::Client),
            clients: of_role(Role::Server),
            unknown: of_role(Role::Unknown),
            slowest: slowest(rows.unwrap_or_default()),
            failing: failing(failures),
            benign: failures.iter().filter(|row| row.benign.is_some()).collect(),
            timeline: Timeline::new(capture),
        }
    }

    /// What was lost: probe, cause and count; the causes of nothing are not among them.
    pub fn losses(&self) -> Vec<(&'a str, &'a str, u64)> {
        self.capture
            .meta
            .losses
            .iter()
            .flat_map(|(probe, causes)| {
                causes
                    .iter()
                    .map(move |(cause, count)| (probe.as_str(), cause.as_str(), *count))
            })
            .filter(|(_, _, count)| *count > 0)
            .collect()
    }

    /// Failures of the whole run that are not benign.
    pub fn failures(&self) -> u64 {
        self.failing
            .iter()
            .fold(0, |sum, row| sum.saturating_add(row.count))
    }

    /// They, by the time in which they were counted.
    pub fn failures_per_second(&self) -> f64 {
        self.failures() as f64 / self.capture.syscall_seconds()
    }

    /// Resets of connections, sent and received.
    pub fn resets(&self) -> u64 {
        [&self.upstreams, &self.clients, &self.unknown]
            .into_iter()
            .flatten()
            .fold(0, |sum, row| sum.saturating_add(row.resets))
    }

    /// Length of the run in seconds, never 0.
    pub fn seconds(&self) -> f64 {
        seconds(self.capture)
    }
}

/// Length of the run in seconds, never 0.
fn seconds(capture: &Capture) -> f64 {
    capture.meta.duration_seconds.max(1e-3)
}

fn remotes_of(rows: &[RemoteRow], role: Role) -> Vec<&RemoteRow> {
    let mut rows: Vec<&RemoteRow> = rows.iter().filter(|row| row.role == role).collect();
    let key = |row: &RemoteRow| {
        let only_fails = row.requests == 0 && row.errors > 0;
        let p99 = row.latency_us.map_or(0.0, |times| times.p99);
        (only_fails, p99, row.errors, row.requests)
    };
    rows.sort_by(|a, b| {
        let (a_key, b_key) = (key(a), key(b));
        (b_key.0.cmp(&a_key.0))
            .then(b_key.1.total_cmp(&a_key.1))
            .then((b_key.2, b_key.3).cmp(&(a_key.2, a_key.3)))
            .then_with(|| a.remote.cmp(&b.remote))
    });
    rows
}

fn slowest(rows: &[Row]) -> Vec<&Row> {
    let mut rows: Vec<(&Row, f64)> = rows
        .iter()
        .filter(|row| row.requests > 0)
        .filter_map(|row| Some((row, row.latency_us?.p99)))
        .collect();
    rows.sort_by(|(a, a_p99), (b, b_p99)| {
        b_p99
            .total_cmp(a_p99)
            .then(b.requests.cmp(&a.requests))
            .then_with(|| (a.remote, a.local).cmp(&(b.remote, b.local)))
    });
    rows.into_iter().map(|(row, _)| row).collect()
}

fn failing(failures: &[Failure]) -> Vec<Failing<'_>> {
    let mut rows: Vec<Failing<'_>> = failures
        .iter()
        .filter(|row| row.benign.is_none())
        .map(|failure| Failing {
            failure,
            count: failure.count.saturating_sub(failure.benign_count),
        })
        .filter(|row| row.count > 0)
        .collect();
    rows.sort_by(|a, b| {
        b.count.cmp(&a.count).then_with(|| {
            let name =
                |row: &'_ Failing<'_>| (row.failure.syscall.clone(), row.failure.errno.clone());
            name(a).cmp(&name(b))
        })
    });
    rows
}

/// A part of the time of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// First to last send.
    Send,
    /// Waiting for the peer's answer.
    Peer,
    /// The process's own work.
    Service,
    /// From arrival to read.
    ReadDelay,
}

/// Where the time of requests goes: each part's share of the whole, 0 to 1, by the means, which add
/// up. Empty without requests.
pub fn shares(parts: &Parts) -> Vec<(Part, f64)> {
    let means = [
        (Part::Send, parts.send),
        (Part::Peer, parts.peer),
        (Part::Service, parts.service),
        (Part::ReadDelay, parts.read_delay),
    ];
    let means = means.map(|(part, times)| (part, times.map(|times| times.mean)));
    let all: f64 = means.iter().filter_map(|(_, mean)| *mean).sum();
    means
        .into_iter()
        .filter_map(|(part, mean)| Some((part, mean? / all)))
        .filter(|(_, share)| share.is_finite())
        .collect()
}
