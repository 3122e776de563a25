//! What is shown of the connections at one moment: plain rows, for the outputs.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::SocketAddr;

use agent_ebpf::connection::{Report, flag};
use serde::{Deserialize, Serialize};

use super::endless::{self, Buckets};
use super::histogram::{Quantiles, micros};
use super::{Connections, Entry, Role, Times, local_of, remote_of};
use crate::guard;
use crate::profile::Container;

/// Names of the TCP states (net/tcp_states.h), by their number.
const STATES: [&str; 13] = [
    "UNKNOWN",
    "ESTABLISHED",
    "SYN_SENT",
    "SYN_RECV",
    "FIN_WAIT1",
    "FIN_WAIT2",
    "TIME_WAIT",
    "CLOSED",
    "CLOSE_WAIT",
    "LAST_ACK",
    "LISTEN",
    "CLOSING",
    "NEW_SYN_RECV",
];

/// The time that a view is of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Span {
    /// Since the last interval's end; seconds.
    Interval(f64),
    /// Since the attach; seconds.
    Run(f64),
    /// Since a slice ([`Connections::slice_before`]) of a run without an end, seconds; to be used when
    /// an interval has just ended.
    Recent(u64, f64),
}

impl Span {
    /// Its length.
    pub fn seconds(self) -> f64 {
        match self {
            Span::Interval(seconds) | Span::Run(seconds) | Span::Recent(_, seconds) => seconds,
        }
    }

    /// Its length where a document's time does not tell it.
    pub fn apart(self) -> Option<f64> {
        matches!(self, Span::Recent(..)).then(|| self.seconds())
    }
}

/// Times of the parts of requests; `None` where the role has no such part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Parts {
    /// First to last send.
    pub send: Option<Quantiles>,
    /// Client: last send to the answer's first payload.
    pub peer: Option<Quantiles>,
    /// Server: first read to first send.
    pub service: Option<Quantiles>,
    /// Arrival to read.
    pub read_delay: Option<Quantiles>,
}

/// One connection. Times are in microseconds; `None` is "not seen".
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Its owner.
    pub pid: u32,
    /// Its owner's name.
    pub comm: String,
    /// Our address.
    pub local: SocketAddr,
    /// Theirs.
    pub remote: SocketAddr,
    /// Who connected.
    pub role: Role,
    /// TCP state.
    pub state: Cow<'static, str>,
    /// Since its beginning, in seconds.
    pub age_s: Option<f64>,
    /// It is older than the attach.
    pub pre_existing: bool,
    /// More than one process holds it.
    pub shared: bool,
    /// Requests and answers overlap: no requests can be told apart.
    pub overlapped: bool,
    /// Requests answered.
    pub requests: u64,
    /// Requests per second.
    pub rate: f64,
    /// Whole requests.
    pub latency_us: Option<Quantiles>,
    /// Their parts.
    pub parts_us: Parts,
    /// SYN to ESTABLISHED.
    pub connect_us: Option<f64>,
    /// ESTABLISHED to accept.
    pub accept_wait_us: Option<f64>,
    /// Smoothed round trip time.
    pub srtt_us: Option<u32>,
    /// Smallest round trip time.
    pub min_rtt_us: Option<u32>,
    /// Variation of the round trip time.
    pub rttvar_us: Option<u32>,
    /// Segments retransmitted.
    pub retransmits: u32,
    /// Resets sent.
    pub resets_sent: u32,
    /// Resets received.
    pub resets_received: u32,
    /// Payload sent, without retransmissions.
    pub bytes_sent: u64,
    /// Payload received.
    pub bytes_received: u64,
}

/// Connections to one remote, summed up: rate, errors, duration (RED).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RemoteRow {
    /// `ip:port` of a server, `ip` of whoever connects to us.
    pub remote: String,
    /// Our part.
    pub role: Role,
    /// Connections, closed ones included.
    pub connections: u64,
    /// Requests.
    pub requests: u64,
    /// Requests per second.
    pub rate: f64,
    /// Resets and failed connects.
    pub errors: u64,
    /// Resets, sent and received.
    pub resets: u64,
    /// Connects that failed.
    pub failed_connects: u64,
    /// Whole requests, in microseconds.
    pub latency_us: Option<Quantiles>,
    /// Their parts.
    pub parts_us: Parts,
}

/// Connects that failed alike.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failed {
    /// Where to.
    pub remote: SocketAddr,
    /// The error's number; 0 when the process gave up.
    pub errno: u32,
    /// How often.
    pub count: u64,
    /// The error's name.
    pub error: Cow<'static, str>,
}

/// Sums over all connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sums {
    /// Connections shown.
    pub connections: usize,
    /// Requests.
    pub requests: u64,
    /// Requests per second.
    pub rate: f64,
    /// Failed connects since the attach.
    pub failed: u64,
}

/// All that is known of one moment: a document of `agent tcp --format json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Document {
    /// Whether it is the last one, since the attach; else it is of an interval.
    #[serde(rename = "final")]
    pub last: bool,
    /// Since the attach, in seconds, to the millisecond.
    pub elapsed_s: f64,
    /// The time before that in which the rows were counted, in seconds, in a run without an end; else
    /// `None`: that of the interval or, in the last document, since the attach.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub span_s: Option<f64>,
    /// The first process looked at.
    pub target: Target,
    /// Connections, sorted and cut; `None` where only remotes were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<Vec<Row>>,
    /// Remotes, sorted and cut; `None` where only connections were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remotes: Option<Vec<RemoteRow>>,
    /// Rows that were left out: of the connections, or of the remotes where there are only those.
    pub not_shown: usize,
    /// Over all connections, shown or not.
    #[serde(default)]
    pub sums: Sums,
    /// Connects that failed since the attach.
    pub failed_connects: Vec<Failed>,
    /// What was lost since the attach, by cause; all causes.
    pub losses: BTreeMap<Cow<'static, str>, u64>,
    /// What the overhead guard saw and did, in the last document of a run with a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard: Option<guard::Report>,
}

/// Sums since the attach over all connections to one remote.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RemoteTotal {
    /// `ip:port` of a server, `ip` of whoever connects to us, [`endless::OTHER`] for the rest.
    pub remote: String,
    /// Our part.
    pub role: Role,
    /// Connections that live now.
    pub living: u64,
    /// Whole requests.
    pub requests: Buckets,
    /// Resets, sent and received.
    pub resets: u64,
    /// Segments retransmitted.
    pub retransmits: u64,
    /// Failed connects by the error's name.
    pub failures: Vec<(Cow<'static, str>, u64)>,
}

/// The process that a [`Document`] is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Its id.
    pub pid: u32,
    /// Its name.
    pub comm: String,
    /// The container that it runs in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<Container>,
    /// Its control group, as the agent sees it; `None` for the root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
}

impl Target {
    /// A process of which only this is known.
    pub fn new(pid: u32, comm: String) -> Self {
        Self {
            pid,
            comm,
            ..Self::default()
        }
    }
}

impl Times {
    pub(super) fn parts(&self, role: Role) -> Parts {
        let wait = self.wait.quantiles();
        Parts {
            send: self.send.quantiles(),
            peer: wait.filter(|_| role == Role::Client),
            service: wait.filter(|_| role == Role::Server),
            read_delay: self.read_delay.quantiles(),
        }
    }
}

impl Entry {
    pub(super) fn times(&self, span: Span) -> Cow<'_, Times> {
        match span {
            Span::Interval(_) => Cow::Borrowed(&self.window),
            Span::Recent(since, _) => {
                let mut times = Times::default();
                let recent = self.recent.iter().filter(|(slice, _)| *slice >= since);
                recent.for_each(|(_, slice)| times.merge(slice));
                Cow::Owned(times)
            }
            Span::Run(_) => {
                let mut times = self.past.clone();
                times.merge(&self.window);
                Cow::Owned(times)
            }
        }
    }

    /// Whether so much overlaps that the rest cannot be trusted to be requests. A rare one (a TLS
    /// session ticket that comes between two requests) only costs its own turn.
    pub(super) fn overlapped(report: &Report) -> bool {
        let overlaps = u64::from(report.connection.exchange.overlaps);
        let requests = report.connection.batch.requests();
        overlaps > 0 && (requests == 0 || overlaps > 1 && overlaps.saturating_mul(8) >= requests)
    }

    /// `now`: nanoseconds of `CLOCK_MONOTONIC`.
    pub(super) fn row(&self, report: &Report, span: Span, now: u64) -> Row {
        let (connection, metrics) = (&report.connection, &report.metrics);
        let seen = |nanoseconds: u64| (nanoseconds > 0).then_some(nanoseconds);
        let overlapped = Self::overlapped(report);
        let pre_existing = connection.flags & flag::PRE_EXISTING != 0;
        let times = self.times(span);
        let role = Role::from_number(connection.role);
        let now = if self.closed { report.time } else { now };
        let requests = match span {
            _ if overlapped => 0,
            Span::Run(_) => connection.batch.requests(),
            Span::Interval(_) | Span::Recent(..) => times.total.count(),
        };
        let state = if self.closed {
            7
        } else {
            connection.state as usize
        };
        let measured = |value: u32| (metrics.srtt > 0).then_some(value);
        Row {
            pid: self.owner.pid,
            comm: self.owner.comm.clone(),
            local: local_of(connection),
            remote: remote_of(connection),
            role,
            state: Cow::Borrowed(STATES.get(state).copied().unwrap_or(STATES[0])),
            age_s: (!pre_existing)
                .then(|| (now.saturating_sub(connection.batch.born) / 1_000_000) as f64 / 1e3),
            pre_existing,
            shared: connection.flags & flag::SHARED != 0,
            overlapped,
            requests,
            rate: rate(requests, span),
            latency_us: times.total.quantiles().filter(|_| !overlapped),
            parts_us: if overlapped {
                Parts::default()
            } else {
                times.parts(role)
            },
            connect_us: seen(connection.connect).map(micros),
            accept_wait_us: seen(connection.accept_wait).map(|wait| micros(wait - 1)),
            // As in TCP_INFO (tcp_get_info, net/ipv4/tcp.c).
            srtt_us: measured(metrics.srtt >> 3),
            min_rtt_us: measured(metrics.min_rtt).filter(|&rtt| rtt != u32::MAX),
            rttvar_us: measured(metrics.mdev >> 2),
            retransmits: metrics.retransmits,
            resets_sent: connection.resets_sent,
            resets_received: connection.resets_received,
            bytes_sent: metrics.bytes_sent.saturating_sub(metrics.bytes_retrans),
            bytes_received: metrics.bytes_received,
        }
    }
}

/// Seconds to the millisecond, as the documents have them.
pub fn to_millis(seconds: f64) -> f64 {
    (seconds * 1e3).round() / 1e3
}

pub(super) fn rate(requests: u64, span: Span) -> f64 {
    let seconds = span.seconds().max(1e-3);
    (requests as f64 / seconds * 10.0).round() / 10.0
}

impl Connections {
    /// The connections to show: those that live and those that ended within the span.
    /// `now`: nanoseconds of `CLOCK_MONOTONIC`.
    pub fn rows(&self, span: Span, now: u64) -> Vec<Row> {
        self.shown(span)
            .map(|(entry, report)| entry.row(report, span, now))
            .collect()
    }

    pub(super) fn shown(&self, span: Span) -> impl Iterator<Item = (&Entry, &Report)> {
        self.entries.values().filter_map(move |entry| {
            let gone = entry.closed
                && match span {
                    Span::Run(_) => false,
                    Span::Interval(_) => entry.ended_in != self.interval,
                    Span::Recent(since, _) => entry.ended_in / endless::SLICE < since,
                };
            // Unowned: waits in the accept queue.
            let report = entry
                .report
                .as_deref()
                .filter(|report| report.connection.tgid != 0)?;
            (!gone).then_some((entry, report))
        })
    }

    /// The slice that began at most so many seconds ago, and how long ago it began in intervals.
    /// The slice under way is as long as it is: up to a slice more comes along.
    pub fn slice_before(&self, seconds: u32) -> (u64, u64) {
        let begin = self.interval.saturating_sub(u64::from(seconds)) / endless::SLICE;
        (begin, self.interval - begin * endless::SLICE)
    }

    /// Connects that failed since the attach.
    pub fn failed(&self) -> Vec<Failed> {
        let failed = |(&(remote, errno), &count): (&(SocketAddr, u32), &u64)| Failed {
            remote,
            errno,
            count,
            error: error_name(errno),
        };
        self.failed.iter().map(failed).collect()
    }

    /// Sums over all connections of the span, whether they are listed or not.
    pub fn sums(&self, span: Span) -> Sums {
        let mut sums = Sums {
            failed: self.failed.values().sum::<u64>() + self.failed_unlisted,
            ..Sums::default()
        };
        for (entry, report) in self.shown(span) {
            sums.connections += 1;
            if !Entry::overlapped(report) {
                sums.requests += match span {
                    Span::Run(_) => report.connection.batch.requests(),
                    Span::Interval(_) => entry.window.total.count(),
                    Span::Recent(..) => 0,
                };
            }
        }
        if let (Span::Recent(since, _), Some(endless)) = (span, &self.endless) {
            for (_, part) in endless.since(since) {
                sums.connections += part.unlisted as usize;
                sums.requests += part.times.total.count();
            }
        }
        if matches!(span, Span::Run(_)) {
            sums.connections += self.unlisted as usize;
            sums.requests += self
                .folded
                .values()
                .map(|folded| folded.times.total.count())
                .sum::<u64>();
        }
        sums.rate = rate(sums.requests, span);
        sums
    }

    /// What is not shown or was not seen, by cause, besides the kernel's own counters.
    pub fn losses(&self) -> [(&'static str, u64); 3] {
        [
            ("closed_connections_not_listed", self.unlisted),
            ("failed_connects_not_listed", self.failed_unlisted),
            ("undecoded", self.undecoded),
        ]
    }
}

/// The name of an error number as the kernel's headers have it (asm-generic/errno.h); those that a
/// connect can meet.
pub(super) fn error_name(number: u32) -> Cow<'static, str> {
    let known = [
        (libc::ECONNREFUSED, "ECONNREFUSED"),
        (libc::ETIMEDOUT, "ETIMEDOUT"),
        (libc::EHOSTUNREACH, "EHOSTUNREACH"),
        (libc::ENETUNREACH, "ENETUNREACH"),
        (libc::ECONNRESET, "ECONNRESET"),
        (libc::EADDRNOTAVAIL, "EADDRNOTAVAIL"),
        (libc::EADDRINUSE, "EADDRINUSE"),
        (libc::EACCES, "EACCES"),
        (libc::EPERM, "EPERM"),
        (libc::ECONNABORTED, "ECONNABORTED"),
        (libc::ENOPROTOOPT, "ENOPROTOOPT"),
        (libc::EPROTO, "EPROTO"),
        (libc::EHOSTDOWN, "EHOSTDOWN"),
        (libc::ENETDOWN, "ENETDOWN"),
    ];
    match known.iter().find(|(known, _)| *known as u32 == number) {
        Some(&(_, name)) => Cow::Borrowed(name),
        // It closed the socket before the answer came.
        None if number == 0 => Cow::Borrowed("given up"),
        None => Cow::Owned(format!("errno {number}")),
    }
}
