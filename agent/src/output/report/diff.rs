//! What stands in the comparison of two captures, in its order.

use super::document::{Block, Cell, Document, Inline, Line, Remark, Table, names, numbers};
use crate::diff::{By, Change, Diff, Failure, Measure, Pair, Red, Remote, Side, Verdict};
use crate::output::table::Tone;

/// Rows of a table.
const ROWS: usize = 10;
/// Rows where there is room for more.
const MORE_ROWS: usize = 200;
/// How noise is told from change.
const METHOD: &str = "A difference is noise unless a two-proportion z-test on the numbers of samples calls it \
    significant at 5 % in all (Holm's correction for the number of functions), with twice the variance of \
    independent samples and 2 % by which the same code's speed differs from run to run. Functions with fewer than 5 \
    samples on both sides together are not tested and count as noise.";

/// The comparison as GitHub-flavoured Markdown.
pub fn markdown(diff: &Diff) -> String {
    super::markdown::render(&document(diff))
}

/// The comparison as one HTML page with this picture, which asks for nothing from anywhere.
///
/// # Errors
/// What is embedded cannot be serialized, which is a bug.
pub fn html(diff: &Diff, picture: String) -> serde_json::Result<String> {
    let mut document = document(diff);
    document.blocks.insert(0, Block::Picture(picture));
    document
        .blocks
        .insert(0, Block::Section("graph", "Flame graphs of the change"));
    super::html::render(&document, None)
}

/// The answer in a sentence, without markup; names are as they are.
pub fn sentence(diff: &Diff) -> String {
    plain(&answer(diff))
}

/// A share from 0 to 1: `4.1 %`.
pub fn share(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// A difference of shares in percentage points: `+18.2`.
pub fn points(difference: f64) -> String {
    let rounded = (difference * 1000.0).round() / 10.0;
    match rounded == 0.0 {
        true => "0.0".to_owned(),
        false => format!("{rounded:+.1}"),
    }
}

/// `1,493 samples over 3.0 s, 0.99 CPUs busy`.
pub fn size(side: &Side) -> String {
    let mut text = match side.samples() {
        Some(samples) => super::words::counted(samples.round() as u64, "sample"),
        None => "samples of unknown number".to_owned(),
    };
    if let Some(seconds) = side.seconds {
        text += &format!(" over {seconds:.1} s");
    }
    if let Some(cpus) = side.cpus() {
        text += &format!(", {cpus:.2} CPUs busy");
    }
    text
}

fn plain(line: &Line) -> String {
    let pieces = line.0.iter().map(|piece| match piece {
        Inline::Text(text) | Inline::Strong(text) | Inline::Code(text) => text.as_str(),
    });
    pieces.collect()
}

pub(super) fn document(diff: &Diff) -> Document {
    let mut blocks = vec![Block::Section("own", "By a function's own time")];
    blocks.extend(tables(diff, By::Own));
    blocks.push(Block::Section("total", "With all that it calls"));
    blocks.extend(tables(diff, By::Total));
    if let Some((remotes, failures)) = &diff.traffic {
        blocks.push(Block::Section("connections", "Connections"));
        blocks.push(or_nothing(
            connections(remotes),
            "Neither had connections with requests.",
        ));
        blocks.push(Block::Section("failures", "Failing system calls"));
        blocks.push(or_nothing(failing(failures), "Neither had failing calls."));
    }
    let notes = diff.notes.iter().map(|note| Block::Note(Line::code(note)));
    blocks.extend(notes);
    if diff.is_tested() {
        blocks.push(Block::Note(Line::text(METHOD)));
    }
    Document {
        title: Line::code(&diff.before.label)
            .say(" against ")
            .name(&diff.after.label),
        subtitle: Line::text("Shares of ")
            .then(measure(diff))
            .say("; each side's total is 100 %."),
        summary: vec![
            Remark {
                label: "Change",
                tone: Tone::Normal,
                line: answer(diff),
            },
            Remark {
                label: "Before",
                tone: Tone::Normal,
                line: Line::text(size(&diff.before)),
            },
            Remark {
                label: "After",
                tone: Tone::Normal,
                line: Line::text(size(&diff.after)),
            },
        ],
        blocks,
    }
}

/// The answer: what explains most of the change, and which way it went.
fn answer(diff: &Diff) -> Line {
    let Some((function, part)) = diff.culprit() else {
        return Line::text("No function's own share changed by more than sampling noise.");
    };
    let Change { before, after, .. } = function.own;
    let grew = after > before;
    let verb = match (before == 0.0, after == 0.0, grew) {
        (true, _, _) => "is new: it grew",
        (_, true, _) => "vanished: it shrank",
        (_, _, true) => "grew",
        (_, _, false) => "shrank",
    };
    let part = match part {
        part if part >= 0.9 => "nearly the whole change",
        part if part >= 0.5 => "most of the change",
        _ => "part of the change",
    };
    Line::code(&function.name)
        .say(format!(
            " {verb} from {} to {} of ",
            share(before),
            share(after)
        ))
        .then(measure(diff))
        .say(format!(", {part}."))
}

/// What is compared: what a file says is a name.
fn measure(diff: &Diff) -> Line {
    let words = diff.measure.words();
    match diff.measure {
        Measure::Other(_) => Line::code(words),
        Measure::Cpu | Measure::Unstated => Line::text(words),
    }
}

/// What grew and what shrank.
fn tables(diff: &Diff, by: By) -> Vec<Block> {
    let mut blocks = Vec::new();
    for (grew, title, none) in [
        (true, "Grew", "Nothing grew."),
        (false, "Shrank", "Nothing shrank."),
    ] {
        blocks.push(Block::Heading(title));
        let table = table(diff, grew, by);
        blocks.push(or_nothing(table, none));
    }
    blocks
}

fn table(diff: &Diff, grew: bool, by: By) -> Table {
    let columns = vec![
        names("function", ""),
        numbers("before", "share of before"),
        numbers("after", "share of after"),
        numbers("difference", "after minus before, in percentage points"),
        names("", "noise: two captures of the same program differ as much"),
    ];
    let list = diff.ranked(grew, by);
    let rows = list.iter().take(MORE_ROWS).map(|function| {
        let change = by.of(function);
        vec![
            Cell::code(&function.name),
            Cell::number(share(change.before), change.before),
            Cell::number(share(change.after), change.after),
            Cell::number(points(change.difference()), change.difference()),
            Cell::text(mark(diff.verdict(&change))),
        ]
    });
    Table {
        columns,
        rows: rows.collect(),
        short: ROWS,
        all: list.len(),
    }
}

/// The table, or these words where it has no rows.
fn or_nothing(table: Table, none: &str) -> Block {
    match table.all {
        0 => Block::Paragraph(Line::text(none)),
        _ => Block::Table(table),
    }
}

/// Rate, errors and duration by remote.
fn connections(remotes: &[Remote]) -> Table {
    let columns = vec![
        names("remote", "whom it talks to"),
        names("role", "who connected"),
        numbers("req/s before", "requests per second"),
        numbers("after", ""),
        numbers("p50 before", "median of the requests' times"),
        numbers("after", ""),
        numbers("p99 before", "99th percentile"),
        numbers("after", ""),
        numbers("errors/s before", "resets and failed connects per second"),
        numbers("after", ""),
    ];
    let rows = remotes.iter().take(MORE_ROWS).map(|remote| {
        let mut row = vec![
            Cell::code(&remote.remote),
            Cell::text(format!("{:?}", remote.role).to_lowercase()),
        ];
        row.extend(figures(&remote.red));
        row
    });
    Table {
        columns,
        rows: rows.collect(),
        short: ROWS,
        all: remotes.len(),
    }
}

fn figures(red: &Pair<Red>) -> Vec<Cell> {
    let cells = |value: fn(&Red) -> Option<f64>, show: fn(f64) -> String| {
        red.each_ref()
            .map(|side| match side.as_ref().and_then(value) {
                Some(value) => Cell::number(show(value), value),
                None => Cell::text("–"),
            })
    };
    [
        cells(|red| Some(red.rate), super::words::rate),
        cells(|red| Some(red.latency?.0), super::words::time),
        cells(|red| Some(red.latency?.1), super::words::time),
        cells(|red| Some(red.errors), super::words::rate),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Failing calls by their rates.
fn failing(failures: &[Failure]) -> Table {
    let columns = vec![
        names("call", "system call and error"),
        numbers("per second before", ""),
        numbers("after", ""),
        numbers("difference", ""),
    ];
    let rows = failures.iter().take(MORE_ROWS).map(|failure| {
        let [before, after] = failure.rates;
        let difference = after - before;
        let sign = if difference < 0.0 { "-" } else { "+" };
        vec![
            Cell::code(&failure.name),
            Cell::number(super::words::rate(before), before),
            Cell::number(super::words::rate(after), after),
            Cell::number(
                format!("{sign}{}", super::words::rate(difference.abs())),
                difference,
            ),
        ]
    });
    Table {
        columns,
        rows: rows.collect(),
        short: ROWS,
        all: failures.len(),
    }
}

/// What stands beside a difference.
pub fn mark(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Noise => "noise",
        Verdict::Significant | Verdict::Untested => "",
    }
}
