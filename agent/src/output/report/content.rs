//! What stands in a report, in its order: the document of a capture's findings.

use super::document::{Block, Cell, Document, Line, Series, Table, names, numbers};
use super::{sections, summary, words};
use crate::output::table::Tone;
use crate::output::text;
use crate::report::timeline::Subject;
use crate::report::{Report, usage};

/// Moments listed.
const MOMENTS: usize = 12;

/// The whole report.
pub(super) fn document(report: &Report<'_>) -> Document {
    let meta = &report.capture.meta;
    let title = Line::code(&meta.target.comm).say(format!(
        " ({}): {} of ",
        meta.target.pid,
        words::seconds(report.seconds())
    ));
    let parts = [
        timeline(report),
        sections::used(report),
        sections::requests(report),
        sections::cpu(report),
        sections::connections(report),
        sections::failures(report),
        losses(report),
        reproduce(report),
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
        _ => "",
    };
    let processes = match meta.target.processes {
        0 | 1 => String::new(),
        many => format!(", {many} processes"),
    };
    line.say(format!("{processes}{ended}"))
}

fn timeline(report: &Report<'_>) -> Vec<Block> {
    let mut series = Vec::new();
    let mut moments = Vec::new();
    for subject in Subject::ALL {
        let values = report.timeline.row(subject);
        if values.iter().all(Option::is_none) {
            continue;
        }
        let found = report.timeline.moments(subject);
        series.push(Series {
            title: words::subject(subject),
            values: values.to_vec(),
            show: words::subject_value(subject),
            marked: found.iter().map(|moment| moment.second).collect(),
        });
        moments.extend(found.into_iter().map(|moment| (subject, moment)));
    }
    if series.is_empty() {
        return Vec::new();
    }
    let mut blocks = vec![
        Block::Section("timeline", "Second by second"),
        Block::Timeline(series),
    ];
    moments.sort_by(|a, b| b.1.weight().total_cmp(&a.1.weight()));
    let all = moments.len();
    moments.truncate(MOMENTS);
    moments.sort_by_key(|(_, moment)| moment.second);
    let rows = moments.iter().map(|(subject, moment)| {
        let show = words::subject_value(*subject);
        vec![
            Cell::number(format!("{} s", moment.second), moment.second as f64),
            Cell::text(words::subject(*subject)),
            Cell::number(show(moment.value), moment.value).tone(Tone::Warn),
            Cell::number(show(moment.median), moment.median),
        ]
    });
    let rule = "A second stands out if it is further from the median of all seconds than five \
                scaled MADs (1.4826 × the median absolute deviation), a third of the median, and \
                for counts four times the median's root.";
    if all == 0 {
        blocks.push(Block::Note(Line::text(format!(
            "No second stands out. {rule}"
        ))));
    } else {
        let columns = vec![
            numbers("after", "time since the start of the capture"),
            names("what", ""),
            numbers("was", ""),
            numbers("usual", "the median of all seconds"),
        ];
        blocks.push(Block::Table(Table {
            columns,
            rows: rows.collect(),
            short: MOMENTS,
            all,
        }));
        blocks.push(Block::Note(Line::text(rule)));
    }
    blocks
}

fn losses(report: &Report<'_>) -> Vec<Block> {
    let capture = report.capture;
    let probes: Vec<String> = capture
        .meta
        .losses
        .iter()
        .map(|(probe, causes)| format!("{} of {}", causes.len(), text::words(probe)))
        .collect();
    let mut blocks = vec![Block::Section("losses", "What was lost")];
    let lost = report.losses();
    if lost.is_empty() {
        blocks.push(Block::Paragraph(Line::text(format!(
            "Nothing was lost. Causes that were counted, all at 0: {}.",
            probes.join(", ")
        ))));
    } else {
        let rows = lost.iter().map(|(probe, cause, count)| {
            vec![
                Cell::text(text::words(probe)),
                Cell::text(text::words(cause)),
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
    let mut lines = vec![Line::text(format!("Samples: {}.", text::account(profile)))];
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

fn reproduce(report: &Report<'_>) -> Vec<Block> {
    let meta = &report.capture.meta;
    let facts = &report.capture.profile.facts;
    let mut rows = vec![
        ("agent", Line::code(&meta.agent_version)),
        ("kernel", Line::code(&meta.kernel)),
        (
            "sampled",
            Line::text(format!(
                "at {} Hz by {} on {} CPUs",
                facts.frequency,
                text::words(&facts.event),
                facts.cpus
            )),
        ),
        (
            "started",
            Line::code(&meta.started_at).say(format!(
                ", for {}; ended: {}",
                words::seconds(report.seconds()),
                text::words(&meta.ended)
            )),
        ),
    ];
    if let Some(exe) = &meta.target.exe {
        rows.push(("program", Line::code(exe)));
    }
    if let Some(command) = &meta.target.command_line {
        rows.push(("its command line", Line::code(command_line(command))));
    }
    if let Some(container) = &meta.target.container {
        rows.push(("container", Line::code(&container.id)));
        if let Some(image) = &container.image {
            rows.push(("image", Line::code(image)));
        }
    }
    if !meta.hooks.is_empty() {
        rows.push(("connections seen by", Line::code(meta.hooks.join(", "))));
    }
    let cost = &meta.cost;
    rows.push((
        "the agent took",
        Line::text(format!(
            "{:.2} s CPU ({} of one), {} at its peak",
            cost.cpu_seconds,
            words::share(cost.cpu_seconds / report.seconds()),
            words::megabytes(cost.peak_rss_bytes)
        )),
    ));
    let rows: Vec<Vec<Cell>> = rows
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

fn command_line(words: &[String]) -> String {
    let words: Vec<String> = words.iter().map(|word| words::shell(word)).collect();
    words.join(" ")
}
