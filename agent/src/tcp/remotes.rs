//! Connections summed up by remote.

use std::collections::{BTreeMap, BTreeSet};

use super::endless::{Endless, Total};
use super::view::{RemoteRow, RemoteTotal, Row, Span, error_name, rate};
use super::{Connections, Entry, Folded, Role, Times, remote_key};

type RemoteSums = BTreeMap<(Role, String), (RemoteRow, Times)>;

fn finish(sums: RemoteSums, span: Span) -> Vec<RemoteRow> {
    let finish = |((role, remote), (row, times)): ((Role, String), (RemoteRow, Times))| RemoteRow {
        remote,
        role,
        requests: times.total.count(),
        rate: rate(times.total.count(), span),
        errors: row.resets + row.failed_connects,
        latency_us: times.total.quantiles(),
        parts_us: times.parts(role),
        ..row
    };
    sums.into_iter().map(finish).collect()
}

/// `listed`: the connections counted by remote. What they did is in the slices, and so are those that
/// have come and gone.
fn endless_remotes(
    listed: RemoteSums,
    endless: &Endless,
    since: u64,
    span: Span,
) -> Vec<RemoteRow> {
    let mut sums = RemoteSums::new();
    for (key, (listed, _)) in listed {
        let (row, _) = sums.entry(endless.name_of(key)).or_default();
        row.connections += listed.connections;
    }
    for (key, part) in endless.since(since) {
        let is_listed = sums.contains_key(key);
        let happened = part.unlisted + part.resets + part.failed + part.times.total.count();
        if !is_listed && happened == 0 {
            continue;
        }
        let (row, times) = sums.entry(key.clone()).or_default();
        row.connections += part.unlisted;
        row.resets += part.resets;
        row.failed_connects += part.failed;
        times.merge(&part.times);
    }
    finish(sums, span)
}

impl Connections {
    /// The connections summed up by remote. Failed connects are always those since the attach. `now`:
    /// nanoseconds of `CLOCK_MONOTONIC`.
    pub fn remotes(&self, span: Span, now: u64) -> Vec<RemoteRow> {
        self.remotes_where(span, now, |_| true, |_, _| true).0
    }

    /// As [`Connections::remotes`], of the connections of which `holds` is true, and how many remotes
    /// have none. Of failed connects, and of connections that are no longer listed, only the remote
    /// is known: `remote_holds` is asked.
    pub fn remotes_where(
        &self,
        span: Span,
        now: u64,
        holds: impl Fn(&Row) -> bool,
        remote_holds: impl Fn(Role, &str) -> bool,
    ) -> (Vec<RemoteRow>, usize) {
        let mut sums = RemoteSums::new();
        let mut hidden = BTreeSet::new();
        for (entry, report) in self.shown(span) {
            if !holds(&entry.row(report, span, now)) {
                hidden.insert(remote_key(&report.connection));
                continue;
            }
            let (row, times) = sums.entry(remote_key(&report.connection)).or_default();
            row.connections += 1;
            if matches!(span, Span::Recent(..)) {
                continue;
            }
            row.resets += u64::from(report.connection.resets_sent)
                + u64::from(report.connection.resets_received);
            if !Entry::overlapped(report) {
                times.merge(&entry.times(span));
            }
        }
        if let (Span::Recent(since, _), Some(endless)) = (span, &self.endless) {
            return (endless_remotes(sums, endless, since, span), 0);
        }
        if matches!(span, Span::Run(_)) {
            for (
                key,
                Folded {
                    connections,
                    resets,
                    times,
                },
            ) in &self.folded
            {
                if !remote_holds(key.0, &key.1) {
                    hidden.insert(key.clone());
                    continue;
                }
                let (row, sum) = sums.entry(key.clone()).or_default();
                row.connections += connections;
                row.resets += resets;
                sum.merge(times);
            }
        }
        for ((remote, _), count) in &self.failed {
            let key = (Role::Client, remote.to_string());
            if !remote_holds(key.0, &key.1) {
                hidden.insert(key);
                continue;
            }
            let (row, _) = sums.entry(key).or_default();
            row.failed_connects += count;
        }
        hidden.retain(|key| !sums.contains_key(key));
        (finish(sums, span), hidden.len())
    }

    /// The sums since the attach of a run without an end, by remote, and how many of each remote's
    /// connections live.
    pub fn totals(&self) -> Vec<RemoteTotal> {
        let Some(endless) = &self.endless else {
            return Vec::new();
        };
        let mut living: BTreeMap<(Role, String), u64> = BTreeMap::new();
        for entry in self.entries.values().filter(|entry| !entry.closed) {
            if let Some(report) = entry
                .report
                .as_deref()
                .filter(|report| report.connection.tgid != 0)
            {
                let key = endless.name_of(remote_key(&report.connection));
                *living.entry(key).or_default() += 1;
            }
        }
        let mut totals: BTreeMap<_, _> = endless.totals().collect();
        let none = Total::default();
        for key in living.keys() {
            totals.entry(key).or_insert(&none);
        }
        let total = |((role, remote), total): (&(Role, String), &Total)| RemoteTotal {
            remote: remote.clone(),
            role: *role,
            living: living.get(&(*role, remote.clone())).copied().unwrap_or(0),
            failures: total
                .failures
                .iter()
                .map(|(&errno, &count)| (error_name(errno), count))
                .collect(),
            requests: total.requests.clone(),
            resets: total.resets,
            retransmits: total.retransmits,
        };
        totals.into_iter().map(total).collect()
    }
}
