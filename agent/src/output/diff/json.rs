//! The comparison as one JSON document, `agent.diff/1`; docs/diff.md describes it.

use std::io;

use serde::Serialize;

use crate::diff::{Change, Diff, Failure, Remote, Side, Verdict};
use crate::output::escape;
use crate::output::report::diff::sentence;
use crate::tcp::Role;

/// Name and version of the schema. A field may be added within a version; a change of meaning or a removal takes
/// a new one.
const SCHEMA: &str = "agent.diff/1";

#[derive(Serialize)]
struct Document<'a> {
    schema: &'static str,
    sentence: String,
    measure: String,
    before: Capture<'a>,
    after: Capture<'a>,
    tested: bool,
    notes: &'a [String],
    functions: Vec<Entry<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    connections: Option<Vec<Connections<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failing_calls: Option<Vec<Failing<'a>>>,
}

#[derive(Serialize)]
struct Connections<'a> {
    remote: &'a str,
    role: Role,
    before: Option<Requests>,
    after: Option<Requests>,
}

#[derive(Serialize)]
struct Requests {
    requests_per_second: f64,
    errors_per_second: f64,
    p50_us: Option<f64>,
    p99_us: Option<f64>,
}

#[derive(Serialize)]
struct Failing<'a> {
    call: &'a str,
    before_per_second: f64,
    after_per_second: f64,
}

#[derive(Serialize)]
struct Capture<'a> {
    file: &'a str,
    samples: Option<f64>,
    seconds: Option<f64>,
    cpus_busy: Option<f64>,
}

#[derive(Serialize)]
struct Entry<'a> {
    function: &'a str,
    own: Shares,
    total: Shares,
}

#[derive(Serialize)]
struct Shares {
    before: f64,
    after: f64,
    difference: f64,
    p: Option<f64>,
    verdict: &'static str,
}

/// The comparison as JSON: every function, by name.
pub(super) fn render(diff: &Diff) -> io::Result<Vec<u8>> {
    let functions = diff.functions.iter().map(|function| Entry {
        function: &function.name,
        own: shares(diff, &function.own),
        total: shares(diff, &function.total),
    });
    let traffic = diff.traffic.as_ref();
    let document = Document {
        schema: SCHEMA,
        sentence: sentence(diff),
        measure: diff.measure.words(),
        before: capture(&diff.before),
        after: capture(&diff.after),
        tested: diff.is_tested(),
        notes: &diff.notes,
        functions: functions.collect(),
        connections: traffic.map(|(remotes, _)| remotes.iter().map(connections).collect()),
        failing_calls: traffic.map(|(_, failures)| failures.iter().map(failing).collect()),
    };
    let mut bytes = escape::json(&document)?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn connections(remote: &Remote) -> Connections<'_> {
    let [before, after] = remote.red.map(|red| {
        let red = red?;
        Some(Requests {
            requests_per_second: red.rate,
            errors_per_second: red.errors,
            p50_us: red.latency.map(|(p50, _)| p50),
            p99_us: red.latency.map(|(_, p99)| p99),
        })
    });
    Connections {
        remote: &remote.remote,
        role: remote.role,
        before,
        after,
    }
}

fn failing(failure: &Failure) -> Failing<'_> {
    let [before_per_second, after_per_second] = failure.rates;
    Failing {
        call: &failure.name,
        before_per_second,
        after_per_second,
    }
}

fn capture(side: &Side) -> Capture<'_> {
    Capture {
        file: &side.label,
        samples: side.samples(),
        seconds: side.seconds,
        cpus_busy: side.cpus(),
    }
}

fn shares(diff: &Diff, change: &Change) -> Shares {
    Shares {
        before: change.before,
        after: change.after,
        difference: change.difference(),
        p: change.p,
        verdict: match diff.verdict(change) {
            Verdict::Significant => "significant",
            Verdict::Noise => "noise",
            Verdict::Untested => "untested",
        },
    }
}
