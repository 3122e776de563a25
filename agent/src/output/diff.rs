//! The comparison of two captures: a picture, a page, Markdown, JSON, and tables for a terminal.
//!
//! What is said, and how noise is told from change, is [`super::report::diff`]'s.

mod json;
mod svg;

use std::io;

use super::report::diff::{self as content, points, share};
use super::table::{Cell, Column, Style, Table, Tone};
use crate::diff::{By, Diff, Function, Verdict};

/// Rows of a table on a terminal.
const ROWS: usize = 10;

/// A format of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// Two flame graphs in the colours of the change.
    Svg,
    /// One page with the picture and tables that can be sorted.
    Html,
    /// GitHub-flavoured Markdown.
    Markdown,
    /// `agent.diff/1`.
    Json,
}

impl Format {
    /// Every format.
    pub const ALL: [Format; 4] = [Format::Svg, Format::Html, Format::Markdown, Format::Json];

    /// Its name, which is the extension of its files too.
    pub const fn name(self) -> &'static str {
        match self {
            Format::Svg => "svg",
            Format::Html => "html",
            Format::Markdown => "md",
            Format::Json => "json",
        }
    }

    /// The format with this name, in whatever case.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|format| format.name().eq_ignore_ascii_case(name))
    }
}

/// The comparison in this format.
///
/// # Errors
/// Its library refused it, which is a bug.
pub fn render(format: Format, diff: &Diff) -> io::Result<Vec<u8>> {
    match format {
        Format::Svg => Ok(svg::render(diff).into_bytes()),
        Format::Html => Ok(content::html(diff, svg::element(diff))?.into_bytes()),
        Format::Markdown => Ok(content::markdown(diff).into_bytes()),
        Format::Json => json::render(diff),
    }
}

/// The answer and the tables for a terminal of this width.
pub fn text(diff: &Diff, style: Style, width: usize) -> String {
    let mut lines = vec![
        style.paint(
            Tone::Strong,
            &super::escape::plain(&content::sentence(diff)),
        ),
        String::new(),
    ];
    for (name, side) in [("before", &diff.before), ("after", &diff.after)] {
        let label = super::escape::plain(&side.label);
        lines.push(format!("{name:>6}  {label}: {}", content::size(side)));
    }
    let parts = [
        ("grew, own time", true, By::Own),
        ("shrank, own time", false, By::Own),
        ("grew, with all it calls", true, By::Total),
        ("shrank, with all it calls", false, By::Total),
    ];
    for (title, grew, by) in parts {
        let list = diff.ranked(grew, by);
        if list.is_empty() {
            continue;
        }
        lines.push(String::new());
        lines.extend(table(diff, title, &list, by).lines(width, style));
        if list.len() > ROWS {
            lines.push(style.paint(Tone::Dim, &format!("{ROWS} of {} shown", list.len())));
        }
    }
    if diff.traffic.is_some() {
        lines.push(String::new());
        lines.push("connections and failing calls: -o diff.md or -o diff.html".to_owned());
    }
    lines.push(String::new());
    let notes = diff.notes.iter().map(|note| super::escape::plain(note));
    lines.extend(notes.map(|note| format!("note: {note}")));
    if diff.is_tested() {
        lines.push(style.paint(
            Tone::Dim,
            "noise: two captures of the same program differ as much (see `agent diff --help`)",
        ));
    }
    lines.join("\n") + "\n"
}

fn table(diff: &Diff, title: &'static str, list: &[&Function], by: By) -> Table {
    let mut table = Table::new(vec![
        Column::text(title, "function").stretch(24),
        Column::number("before", "before"),
        Column::number("after", "after"),
        Column::number("points", "points"),
        Column::text("", "verdict"),
    ]);
    for function in list.iter().take(ROWS) {
        let change = by.of(function);
        let verdict = diff.verdict(&change);
        let tone = match verdict {
            Verdict::Noise => Tone::Dim,
            Verdict::Significant | Verdict::Untested => Tone::Normal,
        };
        table.push(vec![
            Cell::new(&function.name).tone(tone),
            Cell::new(share(change.before)).tone(tone),
            Cell::new(share(change.after)).tone(tone),
            Cell::new(points(change.difference())).tone(tone),
            Cell::new(content::mark(verdict)).tone(tone),
        ]);
    }
    table
}

#[cfg(test)]
mod tests;
