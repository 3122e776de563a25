//! What stands in a report, in its order: the document of a capture's findings.

use super::document::{Block, Cell, Document, Line, Table, names, numbers};
use super::{cpu, reproduce, seconds, sections, summary, words};
use crate::output::table::Tone;
use crate::output::text;
use crate::report::{Report, usage};

/// The whole report.
pub(super) fn document(report: &Report<'_>) -> Document {
    let meta = &report.capture.meta;
    let title = Line::code(&meta.target.comm).say(format!(
        " ({}): {} of ",
        meta.target.pid,
        words::seconds(report.seconds())
    ));
    let parts = [
        seconds::timeline(report),
        sections::used(report),
        sections::requests(report),
        cpu::cpu(report),
        sections::connections(report),
        sections::failures(report),
        losses(report),
        reproduce::reproduce(report),
    ];
    Document {
        title: title.name(&meta.host),
        subtitle: subtitle(report),
        summary: summary::remarks(report),
        blocks: parts.into_iter().flatten().collect(),
    }
}

fn subtitle(report: &Report<'_>) -> Line {
    let meta = &report.capture.meta;
    let mut line = Line::code(&meta.started_at).say(", ").name(&meta.kernel);
    if let Some(container) = &meta.target.container {
        line = line.say(", container ");
        line = match (&container.pod_name, &container.image) {
            (Some(pod), _) => line.name(pod),
            (None, Some(image)) => line.name(image),
            (None, None) => line.name(container.id.chars().take(12).collect::<String>()),
        };
    }
    let ended = match meta.ended.as_str() {
        "target_exited" => ", until the target exited",
        "interrupted" => ", until it was interrupted",
        "overhead" => ", until the overhead guard ended it",
        _ => "",
    };
    let processes = match meta.target.processes {
        0 | 1 => String::new(),
        many => format!(", {many} processes"),
    };
    line.say(format!("{processes}{ended}"))
}

fn losses(report: &Report<'_>) -> Vec<Block> {
    let capture = report.capture;
    let mut blocks = vec![Block::Section("losses", "What was lost")];
    let lost = report.losses();
    if lost.is_empty() {
        let mut line = Line::text("Nothing was lost. Causes that were counted, all at 0: ");
        for (at, (probe, causes)) in capture.meta.losses.iter().enumerate() {
            let before = if at == 0 { "" } else { ", " };
            line = line
                .say(format!("{before}{} of ", causes.len()))
                .name(text::words(probe));
        }
        blocks.push(Block::Paragraph(line.say(".")));
    } else {
        let rows = lost.iter().map(|(probe, cause, count)| {
            vec![
                Cell::code(text::words(probe)),
                Cell::code(text::words(cause)),
                Cell::number(words::count(*count), *count as f64).tone(Tone::Warn),
            ]
        });
        blocks.push(Block::Table(Table {
            columns: vec![names("probe", ""), names("cause", ""), numbers("lost", "")],
            rows: rows.collect(),
            short: 20,
            all: lost.len(),
        }));
    }
    let profile = &capture.profile;
    let mut lines = vec![Line::text("Samples: ").name(text::account(profile))];
    let cut: Vec<String> = usage::cut(profile)
        .iter()
        .map(|(end, count)| format!("{} {}", text::words(end.name()), words::count(*count)))
        .collect();
    lines.push(match (text::complete_percent(profile), cut.is_empty()) {
        (None, _) => Line::text("No stacks were taken."),
        (Some(_), true) => Line::text("Every stack is complete."),
        (Some(percent), false) => Line::text(format!(
            "{} % of the stacks are complete; cut: {}.",
            text::show_percent(percent),
            cut.join(", ")
        )),
    });
    if !capture.meta.not_seen.is_empty() {
        lines.push(Line::text("Not seen on this kernel: ").name(capture.meta.not_seen.join(", ")));
    }
    blocks.push(Block::List(lines));
    blocks
}
