//! The comparison as one JSON document, `agent.diff/1`; docs/diff.md describes it.

use std::io;

use serde::Serialize;

use crate::diff::{Change, Diff, Function, Side, Verdict};
use crate::output::escape;
use crate::output::report::diff::sentence;

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
    let entry = |function: &'_ Function| -> (Shares, Shares) {
        (shares(diff, &function.own), shares(diff, &function.total))
    };
    let functions = diff.functions.iter().map(|function| {
        let (own, total) = entry(function);
        Entry {
            function: &function.name,
            own,
            total,
        }
    });
    let document = Document {
        schema: SCHEMA,
        sentence: sentence(diff),
        measure: diff.measure.words(),
        before: capture(&diff.before),
        after: capture(&diff.after),
        tested: diff.is_tested(),
        notes: &diff.notes,
        functions: functions.collect(),
    };
    let mut bytes = escape::json(&document)?;
    bytes.push(b'\n');
    Ok(bytes)
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
