//! The outputs of `agent tcp`: table, JSON and CSV, of one moment each.

use std::io::{self, Write};
use std::net::SocketAddr;

use serde::Serialize;

use super::table::{Cell, Column, Style, Table, Tone, csv_line};
use super::{escape, guard, text};
use crate::tcp::histogram::Quantiles;
use crate::tcp::view::{Document, Parts, RemoteRow, Row};

/// Writes one line of JSON.
///
/// # Errors
/// What the writer reports.
pub fn json(document: &Document, writer: &mut impl Write) -> io::Result<()> {
    escape::json_to(&mut *writer, document)?;
    writer.write_all(b"\n")
}

/// Writes the rows as CSV (RFC 4180), with a heading where it is asked for. The columns are the
/// fields of the JSON; one within another is named `latency_us.p50`.
///
/// # Errors
/// What the writer reports.
pub fn csv(view: &Document, heading: bool, writer: &mut impl Write) -> io::Result<()> {
    match (&view.connections, &view.remotes) {
        (Some(rows), _) => csv_rows(view, heading, &CONNECTION_CSV, rows, writer),
        (None, rows) => {
            let rows = rows.as_deref().unwrap_or_default();
            csv_rows(view, heading, &REMOTE_CSV, rows, writer)
        }
    }
}

fn csv_rows(
    view: &Document,
    heading: bool,
    names: &[&str],
    rows: &[impl Serialize],
    writer: &mut impl Write,
) -> io::Result<()> {
    let mut columns = vec!["final".to_owned(), "elapsed_s".to_owned()];
    for name in names {
        match name.strip_suffix(".*") {
            Some(group) => columns.extend(
                QUANTILES
                    .iter()
                    .map(|quantile| format!("{group}.{quantile}")),
            ),
            None => columns.push((*name).to_owned()),
        }
    }
    if heading {
        writer.write_all(csv_line(columns.iter().map(String::as_str)).as_bytes())?;
    }
    for row in rows {
        let row = serde_json::to_value(row)?;
        let lead = [view.last.to_string(), format!("{:.3}", view.elapsed_s)];
        let fields = columns.iter().skip(2).map(|name| field(&row, name));
        let fields: Vec<String> = lead.into_iter().chain(fields).collect();
        writer.write_all(csv_line(fields.iter().map(String::as_str)).as_bytes())?;
    }
    Ok(())
}

/// A field of a JSON object, by its path; empty where it is null.
fn field(row: &serde_json::Value, path: &str) -> String {
    let found = path.split('.').try_fold(row, |value, name| value.get(name));
    match found {
        None | Some(serde_json::Value::Null) => String::new(),
        Some(serde_json::Value::String(text)) => escape::plain(text).into_owned(),
        Some(value) => value.to_string(),
    }
}

const QUANTILES: [&str; 5] = ["p50", "p90", "p99", "max", "mean"];

/// `.*` stands for the quantiles.
const CONNECTION_CSV: [&str; 27] = [
    "pid",
    "comm",
    "local",
    "remote",
    "role",
    "state",
    "age_s",
    "pre_existing",
    "shared",
    "overlapped",
    "requests",
    "rate",
    "latency_us.*",
    "parts_us.send.*",
    "parts_us.peer.*",
    "parts_us.service.*",
    "parts_us.read_delay.*",
    "connect_us",
    "accept_wait_us",
    "srtt_us",
    "min_rtt_us",
    "rttvar_us",
    "retransmits",
    "resets_sent",
    "resets_received",
    "bytes_sent",
    "bytes_received",
];

const REMOTE_CSV: [&str; 13] = [
    "remote",
    "role",
    "connections",
    "requests",
    "rate",
    "errors",
    "resets",
    "failed_connects",
    "latency_us.*",
    "parts_us.send.*",
    "parts_us.peer.*",
    "parts_us.service.*",
    "parts_us.read_delay.*",
];

/// The head line and the table, none wider than `width`.
pub fn lines(view: &Document, hooks: &str, width: usize, style: Style) -> Vec<String> {
    let mut lines = heading(view, hooks, width, style);
    let guarded = guard::lines(view.guard.as_ref());
    lines.extend(guarded.iter().map(|line| style.paint(Tone::Warn, line)));
    let (table, empty, what) = match (&view.connections, &view.remotes) {
        (Some(rows), _) => (
            table_of(&CONNECTION_TABLE, rows),
            rows.is_empty(),
            "connection",
        ),
        (None, rows) => {
            let rows = rows.as_deref().unwrap_or_default();
            (table_of(&REMOTE_TABLE, rows), rows.is_empty(), "remote")
        }
    };
    if empty {
        let text = match view.not_shown {
            0 => "no TCP connections".to_owned(),
            count => format!("no {what} matches the filter ({count} do not)"),
        };
        lines.push(style.paint(Tone::Dim, &text));
    } else {
        lines.extend(rendered(table).lines(width, style));
        if view.not_shown > 0 {
            lines.push(style.paint(
                Tone::Dim,
                &format!("{} more not shown (--top, --filter)", view.not_shown),
            ));
        }
    }
    for failed in &view.failed_connects {
        let text = format!(
            "connect to {} failed {} times: {}",
            failed.remote, failed.count, failed.error
        );
        lines.push(style.paint(Tone::Bad, &escape::truncate_middle(&text, width)));
    }
    lines
}

fn heading(view: &Document, hooks: &str, width: usize, style: Style) -> Vec<String> {
    let sums = &view.sums;
    let text = format!(
        "{} ({}){}  {:.1} s{}  {} connections  {} requests, {:.1}/s",
        escape::plain(&view.target.comm),
        view.target.pid,
        text::in_container(view.target.container.as_ref()),
        view.elapsed_s,
        if view.last { " in all" } else { "" },
        sums.connections,
        sums.requests,
        sums.rate,
    );
    let mut lines = vec![style.paint(Tone::Strong, &escape::truncate_middle(&text, width))];
    let lost: Vec<String> = view
        .losses
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(cause, count)| format!("{count} {}", cause.replace('_', " ")))
        .collect();
    let (tone, text) = match lost.is_empty() {
        true => (Tone::Dim, format!("nothing lost  {hooks}")),
        false => (Tone::Bad, format!("LOST: {}", lost.join(", "))),
    };
    lines.push(style.paint(tone, &escape::truncate_middle(&text, width)));
    lines
}

/// A column and what stands in it.
type Field<T> = (Column, fn(&T) -> Cell);

fn table_of<T>(fields: &[Field<T>], rows: &[T]) -> (Vec<Column>, Vec<Vec<Cell>>) {
    let columns = fields.iter().map(|(column, _)| *column).collect();
    let cells = |row| fields.iter().map(|(_, cell)| cell(row)).collect();
    (columns, rows.iter().map(cells).collect())
}

fn rendered((columns, rows): (Vec<Column>, Vec<Vec<Cell>>)) -> Table {
    let mut table = Table::new(columns);
    rows.into_iter().for_each(|row| table.push(row));
    table
}

/// A time in microseconds for people.
pub(super) fn time(micros: Option<f64>) -> String {
    match micros {
        None => "-".to_owned(),
        Some(value) if value < 999.5 => format!("{value:.0} µs"),
        Some(value) if value < 99_950.0 => format!("{:.1} ms", value / 1e3),
        Some(value) if value < 999_500.0 => format!("{:.0} ms", value / 1e3),
        Some(value) => format!("{:.1} s", value / 1e6),
    }
}

/// Coloured by how long people notice it: 100 ms and a second.
fn latency(micros: Option<f64>) -> Cell {
    let tone = match micros {
        Some(value) if value >= 1e6 => Tone::Bad,
        Some(value) if value >= 1e5 => Tone::Warn,
        _ => Tone::Normal,
    };
    Cell::new(time(micros)).tone(tone)
}

fn round_trip(micros: Option<u32>) -> Cell {
    Cell::new(time(micros.map(f64::from)))
}

fn bytes(count: u64) -> Cell {
    let (mut value, mut unit) = (count as f64, "B");
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 999.5 {
            break;
        }
        (value, unit) = (value / 1024.0, next);
    }
    Cell::new(if unit == "B" {
        format!("{count} B")
    } else {
        format!("{value:.1} {unit}")
    })
}

fn wrong(count: u64) -> Cell {
    let tone = if count > 0 { Tone::Warn } else { Tone::Dim };
    Cell::new(count.to_string()).tone(tone)
}

fn address(address: SocketAddr) -> Cell {
    Cell::new(address.to_string())
}

fn median(times: Option<Quantiles>) -> Option<f64> {
    times.map(|times| times.p50)
}

/// The part in which the process itself or its peer works: `service` or `peer`.
fn wait(parts: &Parts) -> Option<Quantiles> {
    parts.service.or(parts.peer)
}

fn marks(row: &Row) -> Cell {
    let marks = [
        (row.pre_existing, "old"),
        (row.shared, "shared"),
        (row.overlapped, "overlapped"),
    ];
    let marks: Vec<&str> = marks
        .iter()
        .filter(|(set, _)| *set)
        .map(|&(_, mark)| mark)
        .collect();
    Cell::new(marks.join(" ")).tone(Tone::Dim)
}

const CONNECTION_TABLE: [Field<Row>; 21] = [
    (Column::text("REMOTE", "remote").stretch(15), |row| {
        address(row.remote)
    }),
    (Column::text("LOCAL", "local").priority(6), |row| {
        address(row.local)
    }),
    (Column::text("ROLE", "role"), |row| {
        Cell::new(row.role.name())
    }),
    (Column::number("PID", "pid").priority(5), |row| {
        Cell::new(row.pid.to_string())
    }),
    (Column::text("STATE", "state").priority(7), |row| {
        Cell::new(&*row.state)
    }),
    (Column::number("AGE", "age").priority(9), |row| {
        Cell::new(time(row.age_s.map(|age| age * 1e6)))
    }),
    (Column::number("REQ", "requests"), |row| {
        Cell::new(row.requests.to_string())
    }),
    (Column::number("REQ/S", "rate").priority(3), |row| {
        Cell::new(format!("{:.1}", row.rate))
    }),
    (Column::number("P50", "p50"), |row| {
        latency(row.latency_us.map(|times| times.p50))
    }),
    (Column::number("P90", "p90").priority(2), |row| {
        latency(row.latency_us.map(|times| times.p90))
    }),
    (Column::number("P99", "p99"), |row| {
        latency(row.latency_us.map(|times| times.p99))
    }),
    (Column::number("MAX", "max").priority(4), |row| {
        latency(row.latency_us.map(|times| times.max))
    }),
    (Column::number("SEND", "send").priority(10), |row| {
        Cell::new(time(median(row.parts_us.send)))
    }),
    (Column::number("PEER/SVC", "wait").priority(2), |row| {
        Cell::new(time(median(wait(&row.parts_us))))
    }),
    (Column::number("READ", "read").priority(8), |row| {
        Cell::new(time(median(row.parts_us.read_delay)))
    }),
    (Column::number("SRTT", "srtt").priority(8), |row| {
        round_trip(row.srtt_us)
    }),
    (Column::number("RETR", "retransmits").priority(9), |row| {
        wrong(u64::from(row.retransmits))
    }),
    (Column::number("RST", "resets").priority(9), |row| {
        wrong(u64::from(row.resets_sent) + u64::from(row.resets_received))
    }),
    (Column::number("SENT", "sent").priority(11), |row| {
        bytes(row.bytes_sent)
    }),
    (Column::number("RECV", "received").priority(11), |row| {
        bytes(row.bytes_received)
    }),
    (Column::text("", "marks").priority(3), marks),
];

const REMOTE_TABLE: [Field<RemoteRow>; 13] = [
    (Column::text("REMOTE", "remote").stretch(15), |row| {
        Cell::new(&row.remote)
    }),
    (Column::text("ROLE", "role"), |row| {
        Cell::new(row.role.name())
    }),
    (Column::number("CONN", "connections").priority(3), |row| {
        Cell::new(row.connections.to_string())
    }),
    (Column::number("REQ", "requests"), |row| {
        Cell::new(row.requests.to_string())
    }),
    (Column::number("REQ/S", "rate"), |row| {
        Cell::new(format!("{:.1}", row.rate))
    }),
    (Column::number("ERR", "errors"), |row| wrong(row.errors)),
    (Column::number("P50", "p50"), |row| {
        latency(row.latency_us.map(|times| times.p50))
    }),
    (Column::number("P90", "p90").priority(2), |row| {
        latency(row.latency_us.map(|times| times.p90))
    }),
    (Column::number("P99", "p99"), |row| {
        latency(row.latency_us.map(|times| times.p99))
    }),
    (Column::number("MAX", "max").priority(4), |row| {
        latency(row.latency_us.map(|times| times.max))
    }),
    (Column::number("SEND", "send").priority(6), |row| {
        Cell::new(time(median(row.parts_us.send)))
    }),
    (Column::number("PEER/SVC", "wait").priority(2), |row| {
        Cell::new(time(median(wait(&row.parts_us))))
    }),
    (Column::number("READ", "read").priority(5), |row| {
        Cell::new(time(median(row.parts_us.read_delay)))
    }),
];
