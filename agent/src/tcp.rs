//! The model of `agent tcp`: connections, the times of their requests, and what is shown of them.
//! Pure, no I/O.

pub mod endless;
pub mod filter;
pub mod histogram;
mod remotes;
pub mod view;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use agent_ebpf::connection::{Connection, Report, flag, role, what};
use agent_ebpf::exchange::{Batch, Sample, unpack};

use endless::{Endless, Part};
use histogram::Histogram;
use serde::{Deserialize, Serialize};

/// Closed connections that are kept to be listed at the end; of older ones only the sums by remote.
pub const MAX_CLOSED: usize = 20_000;
/// Failed connects that are told apart, by remote and error.
const MAX_FAILED: usize = 4096;

/// Who opened a connection.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The process connected.
    Client,
    /// The process accepted.
    Server,
    /// It cannot be told.
    #[default]
    Unknown,
}

impl Role {
    fn from_number(number: u32) -> Self {
        match number {
            role::CLIENT => Role::Client,
            role::SERVER => Role::Server,
            _ => Role::Unknown,
        }
    }

    /// Its name in the outputs.
    pub const fn name(self) -> &'static str {
        match self {
            Role::Client => "client",
            Role::Server => "server",
            Role::Unknown => "unknown",
        }
    }
}

/// A process as its connections name it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// Its id in the agent's PID namespace.
    pub pid: u32,
    /// Its name.
    pub comm: String,
}

/// The times of a connection's or a remote's requests.
#[derive(Clone, Debug, Default)]
pub struct Times {
    /// Whole requests.
    pub total: Histogram,
    /// Their send parts.
    pub send: Histogram,
    /// `peer` of a client, `service` of a server.
    pub wait: Histogram,
    /// From arrival to read.
    pub read_delay: Histogram,
}

/// The parts of one request in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Request {
    send: u64,
    wait: u64,
    read_delay: u64,
}

impl Request {
    fn of(sample: &Sample) -> Self {
        Self {
            send: unpack(sample.send),
            wait: unpack(sample.wait),
            read_delay: unpack(sample.read_delay),
        }
    }

    fn total(self) -> u64 {
        self.send + self.wait + self.read_delay
    }
}

impl Times {
    fn add(&mut self, request: Request) {
        self.total.add(request.total());
        self.send.add(request.send);
        self.wait.add(request.wait);
        self.read_delay.add(request.read_delay);
    }

    /// Corrects the send part of a request that was added before; false if it is not among these.
    fn lengthen(&mut self, before: Request, after: Request) -> bool {
        let found = self.total.holds(before.total()) && self.send.holds(before.send);
        if found {
            self.total.remove(before.total());
            self.send.remove(before.send);
            self.total.add(after.total());
            self.send.add(after.send);
        }
        found
    }

    fn merge(&mut self, other: &Self) {
        self.total.merge(&other.total);
        self.send.merge(&other.send);
        self.wait.merge(&other.wait);
        self.read_delay.merge(&other.read_delay);
    }

    fn clear(&mut self) {
        self.total.clear();
        self.send.clear();
        self.wait.clear();
        self.read_delay.clear();
    }
}

/// A socket's address in the kernel and when it was first seen there.
type Key = (u64, u64);

/// One connection.
#[derive(Debug, Default)]
struct Entry {
    /// `None` while only requests of it have come.
    report: Option<Box<Report>>,
    owner: Owner,
    closed: bool,
    /// The last look at which it was there.
    seen: u64,
    /// When it ended, in the count of intervals.
    ended_in: u64,
    /// Requests whose times have been taken in.
    taken: u64,
    /// The last of them, which may have been under way still: its number.
    last: Option<(u64, Request)>,
    /// Requests of the intervals that are over.
    past: Times,
    /// Requests of the interval.
    window: Times,
    /// In a run without an end: requests of the last slices, the oldest first.
    recent: VecDeque<(u64, Times)>,
    /// In a run without an end: what has been added to the sums of its remote.
    added: Option<Added>,
}

/// What a connection's counters were.
#[derive(Clone, Copy, Debug)]
struct Added {
    retransmits: u32,
    resets: u32,
}

impl Entry {
    /// Takes in those requests of a batch that are new. One without a gap to those before only:
    /// what lies between is still on its way.
    fn take(&mut self, batch: &Batch) {
        let start = batch.start();
        if start > self.taken {
            return;
        }
        let samples = batch.samples.iter().take(batch.pending as usize);
        for (number, sample) in (start..).zip(samples) {
            let request = Request::of(sample);
            if number >= self.taken {
                self.window.add(request);
                self.last = Some((number, request));
                self.taken = number + 1;
            } else if let Some((last, before)) = self.last
                && last == number
                && before != request
            {
                if !self.window.lengthen(before, request) {
                    self.past.lengthen(before, request);
                }
                self.last = Some((number, request));
            }
        }
    }

    /// Takes in what waits in the kernel, as a report brought it.
    fn take_waiting(&mut self, connection: &Connection) {
        if connection.torn == 0 {
            self.take(&connection.batch);
        }
    }

    /// Adds what is new since the last time to its remote and to its own slices.
    fn sum_up(&mut self, endless: &mut Endless, slice: u64) {
        let Some(report) = &self.report else { return };
        let connection = &report.connection;
        let now = Added {
            retransmits: report.metrics.retransmits,
            resets: connection
                .resets_sent
                .saturating_add(connection.resets_received),
        };
        // The counters of one from before the attach do not begin at zero.
        let from_before = connection.flags & flag::PRE_EXISTING != 0;
        let before = self.added.replace(now).unwrap_or(Added {
            retransmits: if from_before { now.retransmits } else { 0 },
            resets: 0,
        });
        let times = std::mem::take(&mut self.window);
        let part = Part {
            resets: now.resets.saturating_sub(before.resets).into(),
            times: if Self::overlapped(report) {
                Times::default()
            } else {
                times
            },
            ..Part::default()
        };
        let retransmits = now.retransmits.saturating_sub(before.retransmits);
        endless.admit(remote_key(connection));
        if retransmits > 0 || part.resets > 0 || part.times.total.count() > 0 {
            endless.add(remote_key(connection), slice, retransmits.into(), &part);
        }
        if part.times.total.count() > 0 {
            match self.recent.back_mut() {
                Some((last, sum)) if *last == slice => sum.merge(&part.times),
                _ => self.recent.push_back((slice, part.times)),
            }
        }
    }
}

/// How the connections to one remote that are no longer listed add up.
#[derive(Debug, Default)]
struct Folded {
    connections: u64,
    resets: u64,
    times: Times,
}

/// All connections of a run.
#[derive(Debug, Default)]
pub struct Connections {
    entries: HashMap<Key, Entry>,
    closed: VecDeque<Key>,
    folded: BTreeMap<(Role, String), Folded>,
    failed: BTreeMap<(SocketAddr, u32), u64>,
    failed_unlisted: u64,
    /// Closed connections that are no longer listed.
    unlisted: u64,
    look: u64,
    interval: u64,
    /// When the probes were taken away, in nanoseconds of `CLOCK_MONOTONIC`.
    end: Option<u64>,
    /// In a run without an end: what is kept of it.
    endless: Option<Endless>,
    /// Connections from before the attach that are not followed: there was no room.
    pub not_followed: u64,
    /// Records that could not be read.
    pub undecoded: u64,
}

impl Connections {
    /// For a run without an end: what is kept is bounded, and views are of the last minute at most
    /// ([`view::Span::Recent`]); intervals are to be of a second.
    pub fn endless() -> Self {
        Self {
            endless: Some(Endless::default()),
            ..Self::default()
        }
    }

    /// The slice under way.
    fn slice(&self) -> u64 {
        self.interval / endless::SLICE
    }

    /// Requests have been timed.
    pub fn requests(&mut self, batch: &Batch) {
        let seen = self.look;
        let new = || Entry {
            seen,
            ..Entry::default()
        };
        let key = (batch.sock, batch.born);
        self.entries.entry(key).or_insert_with(new).take(batch);
    }

    /// Takes in the requests that wait in the kernel, as the last look has found them; to be
    /// called once all batches that were on their way then have come.
    pub fn take_waiting(&mut self) {
        for entry in self.entries.values_mut() {
            if let Some(report) = entry.report.take() {
                entry.take_waiting(&report.connection);
                entry.report = Some(report);
            }
        }
    }

    /// A connection lives, ended or failed.
    pub fn report(&mut self, report: &Report, owner: Owner) {
        if report.what == what::NO_ROOM {
            // Those that begin later are counted by the kernel programs.
            self.not_followed += u64::from(self.look == 1);
            return;
        }
        if report.what == what::FAILED {
            let remote = remote_of(&report.connection);
            let key = (remote, report.metrics.error);
            let slice = self.slice();
            if let Some(endless) = &mut self.endless {
                endless.fail(
                    (Role::Client, remote.to_string()),
                    slice,
                    report.metrics.error,
                );
            }
            if self.failed.len() < MAX_FAILED || self.failed.contains_key(&key) {
                *self.failed.entry(key).or_default() += 1;
            } else {
                self.failed_unlisted += 1;
            }
            return;
        }
        let key = (report.sock, report.connection.batch.born);
        if self.comes_too_late(&report.connection) {
            return;
        }
        let entry = self.entries.entry(key).or_default();
        entry.seen = self.look;
        if entry.closed {
            return;
        }
        // A shared connection is its last user's.
        if entry.report.is_none() || report.holder == report.connection.tgid {
            entry.owner = owner;
        }
        match &mut entry.report {
            Some(old) => **old = *report,
            None => entry.report = Some(Box::new(*report)),
        }
        if report.what == what::CLOSED {
            entry.take_waiting(&report.connection);
            entry.closed = true;
            entry.ended_in = self.interval;
            self.closed.push_back(key);
            if self.endless.is_some() {
                self.drop_closed();
            }
        }
    }

    /// Sockets of living connections that the last look did not find with any process: closed
    /// by it, but not yet gone from the kernel.
    pub fn missed(&self) -> Vec<u64> {
        let missed = |(key, entry): (&Key, &Entry)| {
            (!entry.closed && entry.seen != self.look).then_some(key.0)
        };
        self.entries.iter().filter_map(missed).collect()
    }

    /// What the probes know of a connection that no process holds any more.
    pub fn refresh(
        &mut self,
        sock: u64,
        connection: &Connection,
        owner: impl FnOnce() -> Option<Owner>,
    ) {
        if self.comes_too_late(connection) {
            return;
        }
        let key = (sock, connection.batch.born);
        let known = self
            .entries
            .get(&key)
            .is_some_and(|entry| entry.report.is_some());
        if known {
            if let Some(entry) = self.entries.get_mut(&key) {
                entry.seen = self.look;
                if let Some(report) = &mut entry.report {
                    report.connection = *connection;
                }
            }
        } else if let Some(owner) = owner() {
            let entry = self.entries.entry(key).or_default();
            entry.owner = owner;
            entry.report = Some(Box::new(Report {
                sock,
                what: what::LIVES,
                holder: connection.tgid,
                connection: *connection,
                ..Report::default()
            }));
        }
    }

    /// The probes see nothing from now on: connections that begin later are none of this run.
    /// `now`: nanoseconds of `CLOCK_MONOTONIC`.
    pub fn end(&mut self, now: u64) {
        self.end = Some(now);
    }

    fn comes_too_late(&self, connection: &Connection) -> bool {
        self.end.is_some_and(|end| connection.batch.born > end)
    }

    /// A look at all living connections begins.
    pub fn begin_look(&mut self) {
        self.look += 1;
    }

    /// The interval is over: its times are forgotten, and the oldest of the closed connections.
    pub fn end_interval(&mut self) {
        if self.endless.is_some() {
            return self.end_endless_interval();
        }
        self.interval += 1;
        for entry in self.entries.values_mut() {
            if entry.window.total.count() > 0 {
                entry.past.merge(&entry.window);
                entry.window.clear();
            }
        }
        while self.closed.len() > MAX_CLOSED {
            if let Some(key) = self.closed.pop_front()
                && let Some(entry) = self.entries.remove(&key)
            {
                self.fold(&entry);
            }
        }
    }

    /// As [`Connections::end_interval`]: what is over goes into slices and sums.
    fn end_endless_interval(&mut self) {
        let slice = self.slice();
        let Some(endless) = &mut self.endless else {
            return;
        };
        for entry in self.entries.values_mut() {
            entry.sum_up(endless, slice);
        }
        endless.forget(slice);
        self.interval += 1;
        let slices = self.slice();
        let (look, interval) = (self.look, self.interval);
        self.entries.retain(|_, entry| {
            let lost = !entry.closed && entry.seen + endless::MAX_MISSED < look;
            let old = entry.closed && entry.ended_in + endless::SLICES * endless::SLICE < interval;
            endless::drop_old(&mut entry.recent, slices);
            !lost && !old
        });
        let entries = &self.entries;
        self.closed.retain(|key| entries.contains_key(key));
    }

    /// In a run without an end: lists no more closed connections than may be, also within an interval.
    fn drop_closed(&mut self) {
        let slice = self.slice();
        while self.closed.len() > endless::MAX_CLOSED
            && let Some(key) = self.closed.pop_front()
        {
            let Some(mut entry) = self.entries.remove(&key) else {
                continue;
            };
            self.unlisted += 1;
            if let Some(endless) = &mut self.endless {
                entry.sum_up(endless, slice);
                if let Some(report) = &entry.report {
                    let unlisted = Part {
                        unlisted: 1,
                        ..Part::default()
                    };
                    endless.add(remote_key(&report.connection), slice, 0, &unlisted);
                }
            }
        }
    }

    fn fold(&mut self, entry: &Entry) {
        let Some(report) = &entry.report else { return };
        let connection = &report.connection;
        let folded = self.folded.entry(remote_key(connection)).or_default();
        folded.connections += 1;
        folded.resets += u64::from(connection.resets_sent) + u64::from(connection.resets_received);
        if !Entry::overlapped(report) {
            folded.times.merge(&entry.past);
            folded.times.merge(&entry.window);
        }
        self.unlisted += 1;
    }
}

/// An address as the kernel keeps it; a v4-mapped one is folded to IPv4.
fn address(family: u32, bytes: [u64; 2]) -> IpAddr {
    let [low, high] = bytes;
    if family == libc::AF_INET6 as u32 {
        let mut octets = [0; 16];
        octets[..8].copy_from_slice(&low.to_ne_bytes());
        octets[8..].copy_from_slice(&high.to_ne_bytes());
        Ipv6Addr::from(octets).to_canonical()
    } else {
        IpAddr::V4(Ipv4Addr::from((low as u32).to_ne_bytes()))
    }
}

fn local_of(connection: &Connection) -> SocketAddr {
    let port = (connection.ports >> 16) as u16;
    SocketAddr::new(address(connection.family, connection.local), port)
}

fn remote_of(connection: &Connection) -> SocketAddr {
    let port = connection.ports as u16;
    SocketAddr::new(address(connection.family, connection.remote), port)
}

/// What is summed up as one remote: a server that we connect to with its port; whoever connects
/// to us without.
fn remote_key(connection: &Connection) -> (Role, String) {
    let role = Role::from_number(connection.role);
    let remote = remote_of(connection);
    let name = match role {
        Role::Client => remote.to_string(),
        _ => remote.ip().to_string(),
    };
    (role, name)
}
