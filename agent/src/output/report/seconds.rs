//! The run second by second: charts, and the seconds that stand out.

use super::document::{Block, Cell, Line, Series, Table, names, numbers};
use super::words;
use crate::output::table::Tone;
use crate::report::Report;
use crate::report::moments::Moment;
use crate::report::timeline::Subject;

/// Moments listed.
const MOMENTS: usize = 12;
/// How they are found.
const RULE: &str = "Of several remotes the p99 is that of the slowest. A second stands out if it is \
                    further from the median of all seconds than five scaled MADs (1.4826 × the \
                    median absolute deviation), a third of the median, and for counts four times \
                    the median's root.";

/// The section.
pub(super) fn timeline(report: &Report<'_>) -> Vec<Block> {
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
    if moments.is_empty() {
        blocks.push(Block::Note(Line::text(format!(
            "No second stands out. {RULE}"
        ))));
    } else {
        blocks.push(Block::Table(table(moments)));
        blocks.push(Block::Note(Line::text(RULE)));
    }
    blocks
}

/// The moments that are furthest out, in the order of time.
fn table(mut moments: Vec<(Subject, Moment)>) -> Table {
    let all = moments.len();
    moments.sort_by(|a, b| b.1.weight().total_cmp(&a.1.weight()));
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
    Table {
        columns: vec![
            numbers("after", "time since the start of the capture"),
            names("what", ""),
            numbers("was", ""),
            numbers("usual", "the median of all seconds"),
        ],
        rows: rows.collect(),
        short: MOMENTS,
        all,
    }
}
