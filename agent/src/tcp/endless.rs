//! What is kept of connections in a run without an end: sums by remote that only grow, and the times
//! of the last minute in slices. Both are bounded, whatever the target does.

use std::collections::{BTreeMap, VecDeque};

use super::histogram::Histogram;
use super::{Role, Times};

/// Remotes that are told apart, the first that come; the rest is summed up as [`OTHER`]. They stay for
/// the run, so that no sum ever falls.
pub const MAX_REMOTES: usize = 100;
/// The name of all further remotes.
pub const OTHER: &str = "other";
/// Intervals in a slice.
pub(super) const SLICE: u64 = 5;
/// Slices that are kept; with the one under way, more than a minute of intervals of a second.
pub(super) const SLICES: u64 = 13;
/// Closed connections that are listed.
pub(super) const MAX_CLOSED: usize = 1024;
/// Looks after which a connection is forgotten that none has found: the record of its end was lost.
pub(super) const MAX_MISSED: u64 = 120;
/// Upper bounds of the buckets of [`Buckets`], in nanoseconds.
pub const BOUNDS: [u64; 16] = [
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
];

/// Durations in few buckets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Buckets {
    /// How many were at most as long as each of [`BOUNDS`] and longer than the one before.
    pub counts: [u64; BOUNDS.len()],
    /// All of them, longer ones too.
    pub count: u64,
    /// Their sum in nanoseconds.
    pub sum: u64,
}

impl Buckets {
    fn add(&mut self, histogram: &Histogram) {
        for (value, count) in histogram.counts() {
            let bucket = BOUNDS.partition_point(|&bound| bound < value);
            if let Some(sum) = self.counts.get_mut(bucket) {
                *sum += count;
            }
        }
        self.count += histogram.count();
        self.sum = self.sum.saturating_add(histogram.sum());
    }
}

/// Sums since the start over all connections to one remote.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Total {
    /// Whole requests.
    pub requests: Buckets,
    /// Resets, sent and received.
    pub resets: u64,
    /// Segments retransmitted.
    pub retransmits: u64,
    /// Failed connects, by the error's number; 0 when the process gave up.
    pub failures: BTreeMap<u32, u64>,
}

/// What happened with one remote in a slice.
#[derive(Clone, Debug, Default)]
pub(super) struct Part {
    /// Connections that have ended and are no longer listed.
    pub(super) unlisted: u64,
    pub(super) resets: u64,
    pub(super) failed: u64,
    pub(super) times: Times,
}

impl Part {
    pub(super) fn merge(&mut self, other: &Self) {
        self.unlisted += other.unlisted;
        self.resets += other.resets;
        self.failed += other.failed;
        self.times.merge(&other.times);
    }
}

#[derive(Debug, Default)]
struct Remote {
    total: Total,
    /// By the slice's number, the oldest first.
    recent: VecDeque<(u64, Part)>,
}

/// The remotes of a run without an end.
#[derive(Debug, Default)]
pub(super) struct Endless {
    remotes: BTreeMap<(Role, String), Remote>,
}

impl Endless {
    /// The name under which a remote is summed up.
    pub(super) fn name_of(&self, key: (Role, String)) -> (Role, String) {
        if self.remotes.contains_key(&key) {
            key
        } else {
            (key.0, OTHER.to_owned())
        }
    }

    /// Has a remote keep its name, if it is one of the first.
    pub(super) fn admit(&mut self, key: (Role, String)) -> (Role, String) {
        let name = self.name_of(key.clone());
        if name == key {
            return key;
        }
        let others = self.remotes.keys().filter(|(_, name)| name == OTHER);
        let known = self.remotes.len() - others.count();
        let name = if known < MAX_REMOTES { key } else { name };
        self.remotes.entry(name.clone()).or_default();
        name
    }

    /// Adds to the sums of a remote and to its slice under way.
    pub(super) fn add(&mut self, key: (Role, String), slice: u64, retransmits: u64, part: &Part) {
        let key = self.admit(key);
        let remote = self.remotes.entry(key).or_default();
        remote.total.requests.add(&part.times.total);
        remote.total.resets += part.resets;
        remote.total.retransmits += retransmits;
        match remote.recent.back_mut() {
            Some((last, sum)) if *last == slice => sum.merge(part),
            _ => remote.recent.push_back((slice, part.clone())),
        }
    }

    /// Counts a failed connect.
    pub(super) fn fail(&mut self, key: (Role, String), slice: u64, errno: u32) {
        let failed = Part {
            failed: 1,
            ..Part::default()
        };
        let name = self.admit(key);
        self.add(name.clone(), slice, 0, &failed);
        if let Some(remote) = self.remotes.get_mut(&name) {
            *remote.total.failures.entry(errno).or_default() += 1;
        }
    }

    /// Forgets the slices that are too old.
    pub(super) fn forget(&mut self, slice: u64) {
        for remote in self.remotes.values_mut() {
            drop_old(&mut remote.recent, slice);
        }
    }

    /// The sums since the start.
    pub(super) fn totals(&self) -> impl Iterator<Item = (&(Role, String), &Total)> {
        self.remotes
            .iter()
            .map(|(key, remote)| (key, &remote.total))
    }

    /// What happened since this slice began, by remote.
    pub(super) fn since(&self, slice: u64) -> impl Iterator<Item = (&(Role, String), Part)> {
        self.remotes.iter().map(move |(key, remote)| {
            let mut sum = Part::default();
            let recent = remote.recent.iter().filter(|(number, _)| *number >= slice);
            recent.for_each(|(_, part)| sum.merge(part));
            (key, sum)
        })
    }
}

/// Drops the slices that are out of all windows; `slice` is the one under way.
pub(super) fn drop_old<T>(recent: &mut VecDeque<(u64, T)>, slice: u64) {
    while recent
        .front()
        .is_some_and(|(number, _)| number + SLICES <= slice)
    {
        recent.pop_front();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::super::view::Span;
    use super::super::{Connections, Owner};
    use super::*;
    use agent_ebpf::connection::{Report, role, what};

    fn part(values: &[u64]) -> Part {
        let mut part = Part::default();
        values.iter().for_each(|&value| part.times.total.add(value));
        part
    }

    fn client(name: &str) -> (Role, String) {
        (Role::Client, name.to_owned())
    }

    #[test]
    fn durations_fall_into_the_bucket_of_their_bound() {
        let mut endless = Endless::default();
        let values = [90_000, 110_000, 900_000, 9_000_000_000, 11_000_000_000];
        endless.add(client("a"), 0, 3, &part(&values));
        endless.add(client("a"), 1, 4, &part(&[90_000]));
        let (_, total) = endless.totals().next().unwrap();
        assert_eq!(total.requests.counts[..4], [2, 1, 0, 1]);
        assert_eq!(total.requests.counts[15], 1);
        assert_eq!(total.requests.count, 6);
        assert_eq!(total.requests.sum, values.iter().sum::<u64>() + 90_000);
        assert_eq!(total.retransmits, 7);
    }

    #[test]
    fn the_first_remotes_keep_their_name_for_the_run() {
        let mut endless = Endless::default();
        for number in 0..3 * MAX_REMOTES {
            endless.add(client(&number.to_string()), 0, 1, &Part::default());
        }
        endless.fail(client("1"), 0, 111);
        endless.fail(client("x"), 0, 111);
        endless.fail((Role::Server, "y".to_owned()), 0, 104);
        let totals: BTreeMap<_, _> = endless.totals().collect();
        assert_eq!(totals.len(), MAX_REMOTES + 2);
        assert_eq!(totals[&client("1")].failures[&111], 1);
        assert!(!totals.contains_key(&client("100")));
        assert_eq!(totals[&client(OTHER)].retransmits, 2 * MAX_REMOTES as u64);
        assert_eq!(totals[&client(OTHER)].failures[&111], 1);
        let server = (Role::Server, OTHER.to_owned());
        assert_eq!(totals[&server].failures[&104], 1);
    }

    #[test]
    fn old_slices_are_forgotten_but_not_their_sums() {
        let mut endless = Endless::default();
        for slice in 0..40 {
            endless.add(client("a"), slice, 0, &part(&[1000 * (slice + 1)]));
            endless.forget(slice);
        }
        let count = |since| endless.since(since).next().unwrap().1.times.total.count();
        assert_eq!((count(38), count(0)), (2, SLICES));
        assert_eq!(endless.totals().next().unwrap().1.requests.count, 40);
    }

    fn closed(number: u64) -> Report {
        let mut report = Report {
            sock: number,
            what: what::CLOSED,
            ..Report::default()
        };
        let connection = &mut report.connection;
        connection.tgid = 1;
        connection.family = libc::AF_INET as u32;
        connection.role = role::SERVER;
        connection.resets_received = 1;
        connection.batch.born = number;
        report
    }

    #[test]
    fn connections_that_come_and_go_are_counted_but_not_all_kept() {
        let mut connections = Connections::endless();
        let many = 3 * MAX_CLOSED as u64;
        for second in 0..4 {
            connections.begin_look();
            for number in 0..many {
                connections.report(&closed(second * many + number + 1), Owner::default());
            }
            assert_eq!(connections.entries.len(), MAX_CLOSED);
            connections.end_interval();
        }
        let (slice, length) = connections.slice_before(60);
        assert_eq!((slice, length), (0, 4));
        let span = Span::Recent(slice, length as f64);
        assert_eq!((span.apart(), Span::Run(4.0).apart()), (Some(4.0), None));
        assert_eq!(connections.rows(span, 0).len(), MAX_CLOSED);
        let remotes = connections.remotes(span, 0);
        assert_eq!(
            (remotes[0].connections, remotes[0].resets),
            (4 * many, 4 * many)
        );
        assert_eq!(connections.totals()[0].resets, 4 * many);
        for _ in 0..SLICES * SLICE + 1 {
            connections.begin_look();
            connections.end_interval();
        }
        assert!(connections.entries.is_empty() && connections.closed.is_empty());
        let (slice, length) = connections.slice_before(60);
        let span = Span::Recent(slice, length as f64);
        assert!(connections.remotes(span, 0).is_empty());
        assert_eq!(connections.totals()[0].resets, 4 * many);
    }
}
