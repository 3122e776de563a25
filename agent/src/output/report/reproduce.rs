//! How the capture was made, and what else can be had of it.

use super::document::{Block, Cell, Line, Table, names};
use super::words;
use crate::capture::Target;
use crate::output::text;
use crate::report::Report;

/// The section.
pub(super) fn reproduce(report: &Report<'_>) -> Vec<Block> {
    let meta = &report.capture.meta;
    let rows: Vec<Vec<Cell>> = facts(report)
        .into_iter()
        .map(|(what, line)| vec![Cell::text(what), line.into()])
        .collect();
    let all = rows.len();
    vec![
        Block::Section("reproduce", "How to reproduce"),
        Block::Table(Table {
            columns: vec![names("", ""), names("", "")],
            rows,
            short: all,
            all,
        }),
        Block::Paragraph(Line::text(
            "The capture, and what can be taken out of its bundle:",
        )),
        Block::Commands(vec![
            command_line(&meta.command_line),
            "agent report incident.zip -o report.html    # or report.md, flame.svg".to_owned(),
            "agent report incident.zip -o profile.pb.gz && go tool pprof profile.pb.gz".to_owned(),
            "agent report incident.zip -o connections.json -o syscalls.json -o meta.json"
                .to_owned(),
        ]),
    ]
}

fn facts(report: &Report<'_>) -> Vec<(&'static str, Line)> {
    let meta = &report.capture.meta;
    let facts = &report.capture.profile.facts;
    let mut rows = vec![
        ("agent", Line::code(&meta.agent_version)),
        ("kernel", Line::code(&meta.kernel)),
        (
            "sampled",
            Line::text(format!("at {} Hz by ", facts.frequency))
                .name(&facts.event)
                .say(format!(" on {} CPUs", facts.cpus)),
        ),
        (
            "started",
            Line::code(&meta.started_at)
                .say(format!(
                    ", for {}; ended: ",
                    words::seconds(report.seconds())
                ))
                .name(text::words(&meta.ended)),
        ),
    ];
    rows.extend(target(&meta.target));
    if !meta.hooks.is_empty() {
        rows.push(("connections seen by", Line::code(meta.hooks.join(", "))));
    }
    let cost = &meta.cost;
    rows.push((
        "the agent took",
        Line::text(format!(
            "{:.2} s CPU ({} of one), {} at its peak",
            cost.cpu_seconds,
            words::share(cost.cpu_seconds / report.capture.seconds_since_start()),
            words::megabytes(cost.peak_rss_bytes)
        )),
    ));
    rows
}

/// What is known of the first process.
fn target(target: &Target) -> Vec<(&'static str, Line)> {
    let mut rows = Vec::new();
    if let Some(exe) = &target.exe {
        rows.push(("program", Line::code(exe)));
    }
    if let Some(command) = &target.command_line {
        rows.push(("its command line", Line::code(command_line(command))));
    }
    if let Some(container) = &target.container {
        rows.push(("container", Line::code(&container.id)));
        let more = [
            ("image", &container.image),
            ("pod", &container.pod_name),
            ("pod's id", &container.pod_uid),
            ("host name", &container.hostname),
        ];
        let known = more.into_iter();
        rows.extend(known.filter_map(|(what, text)| Some((what, Line::code(text.as_ref()?)))));
    }
    if let Some(cgroup) = &target.cgroup {
        rows.push(("control group", Line::code(cgroup)));
    }
    rows
}

fn command_line(words: &[String]) -> String {
    // A program that renames itself leaves empty words behind its name.
    let filled = words.iter().rposition(|word| !word.is_empty());
    let words = words
        .get(..filled.map_or(0, |last| last + 1))
        .unwrap_or(words);
    let words: Vec<String> = words.iter().map(|word| words::shell(word)).collect();
    words.join(" ")
}
