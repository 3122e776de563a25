//! The live page: its document, which is always the same, and the data that it fetches each second.

use std::collections::BTreeMap;

use serde::Serialize;

use super::html::{Page, flame};
use super::{escape, text};
use crate::profile::Profile;
use crate::syscalls::{Failure, Report};
use crate::tcp::view::{Document, RemoteRow, Row};

/// Rows of a table; further ones are counted.
const MAX_ROWS: usize = 500;

/// What of the last seconds is shown.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Length of the samples' window, in seconds.
    pub window_s: f64,
    /// Sampled stacks, with the circumstances and the accounts of the whole run.
    pub profile: Profile,
    /// Addresses that have no name yet.
    pub pending_names: usize,
    /// Connections and remotes of the window, or of up to five seconds more.
    pub connections: Document,
    /// Failing calls of the window, or of up to five seconds more.
    pub syscalls: Report,
    /// Length of theirs, in seconds.
    pub syscalls_s: f64,
    /// What was lost since the start, by probe and cause; all causes.
    pub losses: BTreeMap<String, BTreeMap<String, u64>>,
    /// Share of one CPU that the agent took in the last second, 0 to 1.
    pub agent_cpu: f64,
    /// Resident bytes of the agent.
    pub agent_bytes: u64,
    /// Why the run has ended, if it has; what is shown is of the time before.
    pub ended: Option<String>,
    /// Sums since the start.
    pub totals: Totals,
}

/// Sums since the start, whose growth the page draws.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Samples.
    pub samples: u64,
    /// Requests.
    pub requests: u64,
    /// Failing calls that are not benign.
    pub failures: u64,
}

/// What the page's script takes; see `live.js`.
#[derive(Serialize)]
struct Data<'a> {
    window_s: f64,
    elapsed_s: f64,
    /// See [`crate::profile::Facts::samples_per_cpu_second`].
    frequency: Option<u64>,
    ended: Option<&'a str>,
    processes: usize,
    samples: u64,
    complete: Option<f64>,
    pending_names: usize,
    totals: Totals,
    rate: f64,
    lost: BTreeMap<String, u64>,
    /// What the overhead guard did.
    guard: Vec<String>,
    agent_cpu: f64,
    agent_bytes: u64,
    flame: flame::Data,
    connections: Rows<Row>,
    remotes: Rows<RemoteRow>,
    failed: Vec<FailedConnect<'a>>,
    failures: Rows<FailureRow<'a>>,
}

/// The first rows of a table, and how many there are.
#[derive(Serialize)]
struct Rows<T> {
    rows: Vec<T>,
    all: usize,
}

#[derive(Serialize)]
struct FailedConnect<'a> {
    remote: String,
    error: &'a str,
    count: u64,
}

#[derive(Serialize)]
struct FailureRow<'a> {
    syscall: &'a str,
    errno: &'a str,
    count: u64,
    rate: f64,
    benign: Option<&'a str>,
    args: Vec<(String, u64)>,
    other_args: u64,
}

/// The page of a target, and the Content-Security-Policy to send it with. `windows`: the lengths
/// in seconds to choose from; `window` is the one that it begins with.
///
/// # Errors
/// The data cannot be serialized, which is a bug.
pub fn page(
    comm: &str,
    pid: u32,
    windows: &[u32],
    window: u32,
) -> Result<(String, String), serde_json::Error> {
    #[derive(Serialize)]
    struct Start<'a> {
        windows: &'a [u32],
        window: u32,
    }
    let title = format!("{} ({pid}), live", escape::plain(comm));
    let page = Page::new(&title)
        .live()
        .flame()
        .tables()
        .style(include_str!("live/live.css"))
        .script(include_str!("live/tables.js"))
        .script(include_str!("live/live.js"))
        .data("start", &Start { windows, window })?
        .header(include_str!("live/header.html"))
        .body(include_str!("live/body.html"));
    Ok((page.render(), page.policy_header()))
}

/// What the page shows, as JSON. Names of the target in it are safe to show.
///
/// # Errors
/// The data cannot be serialized, which is a bug.
pub fn json(view: &View) -> Result<Vec<u8>, serde_json::Error> {
    let profile = &view.profile;
    let tcp = &view.connections;
    let connections = tcp.connections.as_deref().unwrap_or_default();
    let remotes = tcp.remotes.as_deref().unwrap_or_default();
    let failed = tcp.failed_connects.iter().map(|failed| FailedConnect {
        remote: failed.remote.to_string(),
        error: &failed.error,
        count: failed.count,
    });
    escape::json(&Data {
        window_s: view.window_s,
        elapsed_s: profile.facts.duration_seconds,
        frequency: profile.facts.samples_per_cpu_second(),
        ended: view.ended.as_deref(),
        processes: profile.facts.targets.len(),
        samples: profile.samples(),
        complete: text::complete_percent(profile),
        pending_names: view.pending_names,
        totals: view.totals,
        rate: tcp.sums.rate,
        lost: lost(&view.losses),
        guard: super::guard::lines(profile.facts.guard.as_ref()),
        agent_cpu: view.agent_cpu,
        agent_bytes: view.agent_bytes,
        flame: flame::Data::new(profile),
        connections: first_rows(connections, |row| Row {
            comm: escape::plain(&row.comm).into_owned(),
            ..row.clone()
        }),
        remotes: first_rows(remotes, Clone::clone),
        failed: failed.take(MAX_ROWS).collect(),
        failures: first_rows(&view.syscalls.errors, failure),
    })
}

fn first_rows<'a, T, R>(rows: &'a [T], shown: impl Fn(&'a T) -> R) -> Rows<R> {
    Rows {
        rows: rows.iter().take(MAX_ROWS).map(shown).collect(),
        all: rows.len(),
    }
}

fn failure(row: &Failure) -> FailureRow<'_> {
    let args = row.args.iter();
    FailureRow {
        syscall: &row.syscall,
        errno: &row.errno,
        count: row.count,
        rate: row.rate,
        benign: row.benign.as_deref(),
        args: args
            .map(|arg| (escape::plain(&arg.value).into_owned(), arg.count))
            .collect(),
        other_args: row.other_args,
    }
}

/// The losses that there are, in words.
fn lost(losses: &BTreeMap<String, BTreeMap<String, u64>>) -> BTreeMap<String, u64> {
    let all = losses.iter().flat_map(|(probe, causes)| {
        let named = move |(cause, count): (&String, &u64)| {
            (format!("{probe}: {}", text::words(cause)), *count)
        };
        causes.iter().filter(|(_, count)| **count > 0).map(named)
    });
    all.collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;
    use crate::output::fixture;
    use crate::syscalls::Counted;

    #[test]
    fn the_policy_lets_the_page_ask_its_own_server_only() {
        let (page, policy) = page("redis-server", 7, &[10, 30], 30).unwrap();
        assert!(policy.contains("connect-src 'self'") && policy.contains("default-src 'none'"));
        assert!(policy.ends_with("frame-ancestors 'none'"), "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
        assert!(page.contains("redis-server (7), live"));
        assert!(policy.is_ascii() && !policy.contains('\n'));
    }

    #[test]
    fn hostile_names_are_inert() {
        let hostile = "</script><img src=x onerror=alert(1)>\u{1b}[2J\u{202e}";
        let (page, _) = page(hostile, 7, &[10], 10).unwrap();
        assert!(!page.contains("<img") && !page.contains('\u{1b}') && !page.contains('\u{202e}'));
        let mut view = View {
            profile: fixture::profile(),
            ..View::default()
        };
        view.syscalls.errors = vec![Failure {
            args: vec![Counted {
                value: hostile.to_owned(),
                ..Counted::default()
            }],
            ..Failure::default()
        }];
        let json = String::from_utf8(json(&view).unwrap()).unwrap();
        assert!(!json.chars().any(escape::is_unsafe), "{json}");
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        let shown = value["failures"]["rows"][0]["args"][0][0].as_str().unwrap();
        assert!(
            shown.contains("\\u{1b}") && !shown.contains('\u{202e}'),
            "{shown}"
        );
    }

    #[test]
    fn long_tables_are_cut_and_counted() {
        let errors = (0..3 * MAX_ROWS).map(|_| Failure::default()).collect();
        let mut view = View::default();
        view.syscalls.errors = errors;
        let value: serde_json::Value = serde_json::from_slice(&json(&view).unwrap()).unwrap();
        assert_eq!(
            value["failures"]["rows"].as_array().unwrap().len(),
            MAX_ROWS
        );
        assert_eq!(value["failures"]["all"], 3 * MAX_ROWS);
    }
}
