//! The sections with tables: what the target uses, serves and asks, and what of it fails.

use super::document::{Block, Cell, Line, Table, names, numbers};
use super::words;
use crate::output::table::Tone;
use crate::report::Report;
use crate::report::usage::Usage;
use crate::syscalls::Failure;
use crate::tcp::histogram::Quantiles;
use crate::tcp::view::{RemoteRow, Row};

/// Rows that a table has at most, where there is room.
const MOST: usize = 400;
/// Rows that a table has where there is little room.
const SHORT: usize = 10;
/// Arguments shown of a failing call.
const ARGUMENTS: usize = 3;

/// The beginning of a section.
pub(super) fn section(id: &'static str, title: &'static str) -> Block {
    Block::Section(id, title)
}

/// Utilisation, saturation and errors.
pub(super) fn used(report: &Report<'_>) -> Vec<Block> {
    let mut rows = cpus(&report.usage);
    rows.push(network(report));
    rows.push(vec![
        Cell::text("system calls"),
        Cell::text(""),
        Cell::text(""),
        Cell::text(format!(
            "{} failures/s that are not benign",
            words::rate(report.failures_per_second())
        )),
    ]);
    let all = rows.len();
    vec![
        section("used", "What it uses"),
        Block::Table(Table {
            columns: vec![
                names("resource", ""),
                names("utilisation", "how much of it was in use"),
                names("saturation", "work that had to wait for it"),
                names("errors", ""),
            ],
            rows,
            short: all,
            all,
        }),
    ]
}

/// The CPUs, and the busiest threads on them.
fn cpus(usage: &Usage) -> Vec<Vec<Cell>> {
    let utilised = usage.cpus.map_or("idle".to_owned(), |cpus| {
        let of = f64::from(usage.of.max(1));
        format!(
            "{} CPUs of {} ({})",
            words::cpus(cpus),
            usage.of,
            words::share(cpus / of)
        )
    });
    let waited = match (usage.waiting, usage.waiting_share()) {
        (Some(waiting), Some(share)) => format!(
            "{} threads runnable and waiting on average ({} of the time they wanted a CPU)",
            words::cpus(waiting),
            words::share(share)
        ),
        _ => "not known".to_owned(),
    };
    let mut rows = vec![vec![
        Cell::text("CPU"),
        Cell::text(utilised),
        Cell::text(waited),
        Cell::text(""),
    ]];
    for thread in usage.threads.iter().take(3) {
        let tone = if thread.cpus >= 0.9 {
            Tone::Warn
        } else {
            Tone::Normal
        };
        rows.push(vec![
            Line::text("thread ")
                .name(&thread.name)
                .say(format!(" ({})", thread.tid))
                .into(),
            Cell::text(format!("{} of one CPU", words::share(thread.cpus))).tone(tone),
            Cell::text(""),
            Cell::text(""),
        ]);
    }
    rows
}

fn network(report: &Report<'_>) -> Vec<Cell> {
    let document = report.capture.all_connections();
    let rows = document.and_then(|document| document.connections.as_deref());
    let sum = |of: fn(&Row) -> u64| {
        rows.unwrap_or_default()
            .iter()
            .fold(0u64, |sum, row| sum.saturating_add(of(row)))
    };
    let resets = report.resets();
    let failed = document.map_or(0, |document| document.sums.failed);
    let tone = if resets > 0 || failed > 0 {
        Tone::Warn
    } else {
        Tone::Normal
    };
    vec![
        Cell::text("TCP"),
        Cell::text(format!(
            "{}, {} requests/s",
            words::counted(
                document.map_or(0, |document| document.sums.connections as u64),
                "connection"
            ),
            words::rate(document.map_or(0.0, |document| document.sums.rate)),
        )),
        Cell::text(words::counted(
            sum(|row| u64::from(row.retransmits)),
            "retransmitted segment",
        )),
        Cell::text(format!(
            "{}, {}",
            words::counted(failed, "failed connect"),
            words::counted(resets, "reset")
        ))
        .tone(tone),
    ]
}

/// Rate, errors and duration.
pub(super) fn requests(report: &Report<'_>) -> Vec<Block> {
    let tables = [
        ("Upstreams: those it connects to", &report.upstreams),
        ("Clients: those that connect to it", &report.clients),
        ("Who connected is not known", &report.unknown),
    ];
    let mut blocks = vec![section("requests", "Requests: rate, errors, duration")];
    for (title, rows) in tables {
        if !rows.is_empty() {
            blocks.push(Block::Heading(title));
            blocks.push(remotes(rows));
        }
    }
    if blocks.len() == 1 {
        blocks.push(Block::Paragraph(Line::text("It had no TCP connection.")));
    }
    blocks
}

fn remotes(rows: &[&RemoteRow]) -> Block {
    let mut columns = vec![
        names("remote", ""),
        numbers("rate", "requests per second"),
        numbers("requests", ""),
        numbers("errors", "resets and failed connects"),
    ];
    columns.extend(["p50", "p90", "p99", "max"].map(|title| numbers(title, "of whole requests")));
    columns.extend([
        names("where the time goes", "shares of the mean"),
        numbers("connections", ""),
    ]);
    let row = |row: &&RemoteRow| {
        let mut cells = vec![
            Cell::code(&row.remote),
            Cell::number(format!("{}/s", words::rate(row.rate)), row.rate),
            number(row.requests),
            wrong(row.errors),
        ];
        cells.extend(latencies(row.latency_us));
        cells.push(Cell::text(words::shares(&row.parts_us)));
        cells.push(number(row.connections));
        cells
    };
    table(
        columns,
        rows.iter().take(MOST).map(row).collect(),
        SHORT,
        rows.len(),
    )
}

/// A table of which `short` rows are shown where there is little room, of `all` that there are.
pub(super) fn table(
    columns: Vec<super::document::Column>,
    rows: Vec<Vec<Cell>>,
    short: usize,
    all: usize,
) -> Block {
    Block::Table(Table {
        columns,
        rows,
        short,
        all,
    })
}

fn number(count: u64) -> Cell {
    Cell::number(words::count(count), count as f64)
}

fn wrong(count: u64) -> Cell {
    let tone = if count > 0 { Tone::Bad } else { Tone::Dim };
    number(count).tone(tone)
}

fn latencies(times: Option<Quantiles>) -> [Cell; 4] {
    let Some(times) = times else {
        return [(); 4].map(|()| Cell::number("–", -1.0).tone(Tone::Dim));
    };
    [times.p50, times.p90, times.p99, times.max]
        .map(|time| Cell::number(words::time(time), time).tone(words::latency_tone(time)))
}

/// The slowest connections.
pub(super) fn connections(report: &Report<'_>) -> Vec<Block> {
    let mut blocks = vec![section("connections", "Slowest connections")];
    if report.slowest.is_empty() {
        blocks.push(Block::Paragraph(Line::text(
            "No connection had a request that was answered.",
        )));
        return blocks;
    }
    let mut columns = vec![
        names("remote", ""),
        names("local", ""),
        names("role", "the target's part"),
        numbers("requests", ""),
    ];
    columns.extend(["p50", "p90", "p99", "max"].map(|title| numbers(title, "of whole requests")));
    columns.extend([
        names("where the time goes", "shares of the mean"),
        numbers("srtt", "the kernel's smoothed round trip time"),
        numbers("retransmits", "segments sent again"),
        names("state", ""),
    ]);
    let row = |row: &&Row| {
        let mut cells = vec![
            Cell::code(row.remote.to_string()),
            Cell::code(row.local.to_string()),
            Cell::text(row.role.name()),
            number(row.requests),
        ];
        cells.extend(latencies(row.latency_us));
        cells.push(Cell::text(words::shares(&row.parts_us)));
        cells.push(match row.srtt_us {
            Some(srtt) => Cell::number(words::time(f64::from(srtt)), f64::from(srtt)),
            None => Cell::number("–", -1.0).tone(Tone::Dim),
        });
        cells.push(wrong(u64::from(row.retransmits)));
        cells.push(Cell::code(row.state.as_ref()));
        cells
    };
    let rows = report.slowest.iter().take(MOST).map(row).collect();
    blocks.push(table(columns, rows, SHORT, report.slowest.len()));
    blocks
}

/// The failing system calls.
pub(super) fn failures(report: &Report<'_>) -> Vec<Block> {
    let seconds = report.capture.syscall_seconds();
    let mut blocks = vec![section("failures", "Failing system calls")];
    let columns = |last| {
        vec![
            names("call", ""),
            names("error", ""),
            numbers("failures", ""),
            numbers("rate", "failures per second"),
            numbers("from", "first failure, since the start"),
            numbers("to", "last failure, since the start"),
            last,
        ]
    };
    if report.failing.is_empty() {
        blocks.push(Block::Paragraph(Line::text(
            "None failed but in the way of ordinary work.",
        )));
    } else {
        let rows = report.failing.iter().take(MOST).map(|row| {
            let mut cells = failure(row.failure, row.count, seconds);
            cells.push(arguments(row.failure).into());
            cells
        });
        let rows = rows.collect();
        blocks.push(table(
            columns(names("on", "arguments")),
            rows,
            15,
            report.failing.len(),
        ));
    }
    if !report.benign.is_empty() {
        blocks.push(Block::Heading("To be expected"));
        let rows = report.benign.iter().take(MOST).map(|row| {
            let mut cells = failure(row, row.count, seconds);
            let reason = row.benign.as_deref().unwrap_or_default();
            // A bundle is a file like any other: this is what it says, not what we say.
            cells.push(Cell::code(reason));
            cells.into_iter().map(|cell| cell.tone(Tone::Dim)).collect()
        });
        let rows = rows.collect();
        blocks.push(table(
            columns(names("why", "")),
            rows,
            5,
            report.benign.len(),
        ));
    }
    blocks
}

fn failure(failure: &Failure, count: u64, seconds: f64) -> Vec<Cell> {
    let rate = count as f64 / seconds;
    let moment = |second: f64| Cell::number(format!("{second:.1} s"), second);
    vec![
        Cell::code(&failure.syscall),
        Cell::code(&failure.errno),
        number(count),
        Cell::number(format!("{}/s", words::rate(rate)), rate),
        moment(failure.first_s),
        moment(failure.last_s),
    ]
}

/// The most frequent arguments that are not benign.
fn arguments(failure: &Failure) -> Line {
    let shown = failure.args.iter().filter(|arg| arg.benign.is_none());
    let mut line = Line::default();
    for (at, arg) in shown.take(ARGUMENTS).enumerate() {
        line = if at == 0 { line } else { line.say(", ") };
        line = line
            .name(&arg.value)
            .say(format!(" ×{}", words::count(arg.count)));
    }
    line
}
