//! Failing system calls: as a table, as CSV, as lines of JSON.

use super::table::{Cell, Column, Style, Table, Tone};
use super::{escape, text};
use crate::syscalls::{CountedStack, Failure, Report};

/// Functions of a stack that the terminal shows, from the failing one.
const SHOWN_FRAMES: usize = 6;

/// The report as one line of JSON.
///
/// # Errors
/// Never for this model.
pub fn json(report: &Report) -> Result<Vec<u8>, serde_json::Error> {
    let mut line = escape::json(report)?;
    line.push(b'\n');
    Ok(line)
}

/// The report as CSV, one row per (system call, errno) pair.
pub fn csv(report: &Report) -> String {
    let mut table = Table::new(columns(true));
    for failure in &report.errors {
        let args: Vec<String> = failure
            .args
            .iter()
            .map(|arg| format!("{} ×{}", arg.value, arg.count))
            .collect();
        let stack = failure
            .stacks
            .first()
            .map(|stack| stack.frames.join(";"))
            .unwrap_or_default();
        let mut row = cells(failure);
        row.push(Cell::new(args.join("; ")));
        row.push(Cell::new(stack));
        table.push(row);
    }
    table.csv()
}

/// The report for a terminal of this width, with a line above that says how far it goes.
pub fn lines(report: &Report, width: usize, style: Style) -> Vec<String> {
    let mut lines = vec![style.paint(Tone::Strong, &headline(report))];
    if report.errors.is_empty() {
        return lines;
    }
    let timed = report
        .errors
        .iter()
        .any(|failure| failure.latency_us.is_some());
    let mut table = Table::new(columns(timed));
    for failure in &report.errors {
        push(&mut table, failure, timed);
    }
    lines.extend(table.lines(width, style));
    lines
}

/// What was lost, for people; `None` when nothing was.
pub fn losses(report: &Report) -> Option<String> {
    let lost: Vec<String> = report
        .losses
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(cause, count)| format!("{} {}", grouped(*count), cause.replace('_', " ")))
        .collect();
    (!lost.is_empty()).then(|| format!("not kept: {}", lost.join(", ")))
}

fn headline(report: &Report) -> String {
    let who = match report.processes {
        0 | 1 => format!(
            "{} ({})",
            escape::plain(&report.target.comm),
            report.target.pid
        ),
        more => format!(
            "{} ({}) and {} more",
            escape::plain(&report.target.comm),
            report.target.pid,
            more - 1
        ),
    };
    let who = who + &text::in_container(report.target.container.as_ref());
    match report.failures() {
        0 => format!("{who}: no system call failed in {:.1} s", report.elapsed_s),
        failures => format!(
            "{who}: {} failed system calls in {:.1} s",
            grouped(failures),
            report.elapsed_s
        ),
    }
}

fn columns(timed: bool) -> Vec<Column> {
    let mut columns = vec![
        Column::text("SYSCALL", "syscall"),
        Column::text("ERRNO", "errno"),
        Column::number("COUNT", "count"),
        Column::number("RATE/s", "rate").priority(3),
    ];
    if timed {
        columns.extend([
            Column::number("FAILED", "share").priority(4),
            Column::number("CALLS", "calls").priority(7),
            Column::number("P50", "p50_us").priority(5),
            Column::number("P99", "p99_us").priority(5),
            Column::number("MAX", "max_us").priority(6),
        ]);
    }
    columns.extend([
        Column::text("RESTARTED", "restarted").priority(8),
        Column::number("FIRST", "first_s").priority(9),
        Column::number("LAST", "last_s").priority(9),
        Column::text("BENIGN", "benign").priority(2),
        Column::text("ARGUMENTS", "arguments").stretch(24),
        Column {
            max: 0,
            min: 0,
            ..Column::text("", "stack")
        }
        .priority(10),
    ]);
    columns
}

/// All fields but the arguments and the stack; those of the times only where a column is for them.
fn cells(failure: &Failure) -> Vec<Cell> {
    let mut cells = vec![
        Cell::new(&failure.syscall),
        Cell::new(&failure.errno),
        Cell::new(grouped(failure.count)).value(failure.count),
        Cell::new(format!("{:.1}", failure.rate)),
    ];
    let optional = |value: Option<String>| Cell::new(value.unwrap_or_default());
    let share = failure.share.map(|share| format!("{:.1} %", share * 100.0));
    cells.push(
        optional(share).value(
            failure
                .share
                .map_or(String::new(), |share| format!("{share:.6}")),
        ),
    );
    cells.push(
        optional(failure.calls.map(grouped)).value(
            failure
                .calls
                .map_or(String::new(), |calls| calls.to_string()),
        ),
    );
    let times = failure
        .latency_us
        .map(|latency| [latency.p50, latency.p99, latency.max]);
    for index in 0..3 {
        let time = times.and_then(|times| times.get(index).copied());
        cells.push(
            optional(time.map(duration)).value(time.map_or(String::new(), |us| format!("{us:.3}"))),
        );
    }
    cells.extend([
        Cell::new(if failure.restarted { "yes" } else { "" }).value(failure.restarted),
        Cell::new(format!("{:.1}s", failure.first_s)).value(format!("{:.3}", failure.first_s)),
        Cell::new(format!("{:.1}s", failure.last_s)).value(format!("{:.3}", failure.last_s)),
        Cell::new(if failure.benign.is_some() { "yes" } else { "" })
            .value(failure.benign.as_deref().unwrap_or_default()),
    ]);
    cells
}

/// Places of the columns of times in [`cells`].
const TIMES: std::ops::Range<usize> = 4..9;

fn push(table: &mut Table, failure: &Failure, timed: bool) {
    let tone = if failure.benign.is_some() {
        Tone::Dim
    } else {
        Tone::Normal
    };
    let mut cells = cells(failure);
    if !timed {
        cells.drain(TIMES);
    }
    let fields = cells.len();
    let mut details = details(failure).into_iter();
    cells.push(Cell::new(details.next().unwrap_or_default()));
    table.push(cells.into_iter().map(|cell| cell.tone(tone)).collect());
    for detail in details {
        let mut row = vec![Cell::default(); fields];
        row.push(Cell::new(detail).tone(tone));
        table.push(row);
    }
}

/// The lines beside a row: its arguments, why it is benign, its hottest stack.
fn details(failure: &Failure) -> Vec<String> {
    let shown = if failure.benign.is_some() {
        1
    } else {
        failure.args.len()
    };
    let mut details: Vec<String> = failure
        .args
        .iter()
        .take(shown)
        .map(|arg| format!("{} ×{}", arg.value, grouped(arg.count)))
        .collect();
    let hidden: u64 = failure.args.iter().skip(shown).map(|arg| arg.count).sum();
    let others = failure.other_args + hidden;
    if others > 0 {
        details.push(format!("(other arguments) ×{}", grouped(others)));
    }
    details.extend(
        failure
            .benign
            .as_ref()
            .map(|reason| format!("benign: {reason}")),
    );
    details.extend(failure.stacks.first().map(stack));
    details
}

/// The innermost functions of a stack, the failing one first.
fn stack(stack: &CountedStack) -> String {
    let mut frames: Vec<&str> = stack
        .frames
        .iter()
        .rev()
        .take(SHOWN_FRAMES)
        .map(String::as_str)
        .collect();
    if stack.frames.len() > SHOWN_FRAMES {
        frames.push("…");
    }
    format!("in {} ×{}", frames.join(" < "), grouped(stack.count))
}

/// A time in microseconds, for people.
fn duration(us: f64) -> String {
    match us {
        _ if us < 1000.0 => format!("{us:.1}µs"),
        _ if us < 1e6 => format!("{:.1}ms", us / 1e3),
        _ => format!("{:.2}s", us / 1e6),
    }
}

/// A number with its thousands apart: `1,234,567`.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;
    use crate::syscalls::{Counted, Latency};

    fn report() -> Report {
        let arg = |value: &str, count| Counted {
            value: value.to_owned(),
            count,
            benign: None,
        };
        let stack = CountedStack {
            frames: ["main", "load", "open64"].map(str::to_owned).to_vec(),
            count: 7,
        };
        Report {
            last: true,
            elapsed_s: 2.0,
            errors: vec![
                Failure {
                    syscall: "openat".to_owned(),
                    errno: "ENOENT".to_owned(),
                    count: 1234,
                    rate: 617.0,
                    args: vec![arg("/srv/x.yaml", 1200), arg("/srv/\x1b[2Jy", 30)],
                    other_args: 4,
                    latency_us: Some(Latency {
                        p50: 1.5,
                        p99: 2500.0,
                        max: 3e6,
                    }),
                    calls: Some(2468),
                    share: Some(0.5),
                    stacks: vec![stack],
                    ..Failure::default()
                },
                Failure {
                    syscall: "futex".to_owned(),
                    errno: "ERESTARTSYS".to_owned(),
                    count: 1,
                    restarted: true,
                    benign: Some("a signal".to_owned()),
                    ..Failure::default()
                },
            ],
            ..Report::default()
        }
    }

    #[test]
    fn the_table_shows_arguments_reasons_and_stacks() {
        let text = lines(&report(), 200, Style::Plain).join("\n");
        for part in [
            "1,235 failed system calls in 2.0 s",
            "/srv/x.yaml ×1,200",
            "(other arguments) ×4",
            "50.0 %",
            "2.5ms",
            "benign: a signal",
            "in open64 < load < main ×7",
            "/srv/\\u{1b}[2Jy ×30",
        ] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
        for width in [20, 40, 60, 80, 120] {
            for line in lines(&report(), width, Style::Plain).iter().skip(1) {
                assert!(escape::width(line) <= width, "{width}: {line}");
            }
        }
    }

    #[test]
    fn without_failures_it_says_so() {
        let empty = Report {
            elapsed_s: 3.0,
            ..Report::default()
        };
        assert_eq!(
            lines(&empty, 80, Style::Plain),
            [" (0): no system call failed in 3.0 s"]
        );
        assert_eq!(csv(&empty).lines().count(), 1);
        assert_eq!(losses(&empty), None);
    }

    #[test]
    fn csv_has_a_row_for_each_pair_and_a_field_for_each_column() {
        let csv = csv(&report());
        let rows: Vec<&str> = csv.lines().collect();
        assert_eq!(rows.len(), 3);
        assert_eq!(
            rows[0],
            "syscall,errno,count,rate,share,calls,p50_us,p99_us,max_us,restarted,first_s,last_s,benign,arguments,stack"
        );
        assert!(rows[1].starts_with(
            "openat,ENOENT,1234,617.0,0.500000,2468,1.500,2500.000,3000000.000,false,"
        ));
        assert!(rows[1].ends_with(",main;load;open64"), "{}", rows[1]);
        assert!(rows[2].starts_with("futex,ERESTARTSYS,1,0.0,,,,,,true,"));
    }

    #[test]
    fn json_is_one_line_with_the_documented_names() {
        let line = String::from_utf8(json(&report()).unwrap()).unwrap();
        assert_eq!(line.lines().count(), 1);
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["final"], true);
        let row = &value["errors"][0];
        assert_eq!(row["args"][0]["value"], "/srv/x.yaml");
        assert_eq!(row["latency_us"]["p99"], 2500.0);
        assert_eq!(row["stacks"][0]["frames"][0], "main");
        assert_eq!(row["benign"], serde_json::Value::Null);
        assert_eq!(value["errors"][1]["restarted"], true);
    }

    #[test]
    fn losses_are_named() {
        let mut report = report();
        report.losses.insert("arguments_full".to_owned(), 12345);
        report.losses.insert("rows_full".to_owned(), 0);
        assert_eq!(losses(&report).unwrap(), "not kept: 12,345 arguments full");
    }
}
