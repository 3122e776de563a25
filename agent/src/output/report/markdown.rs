//! A report as GitHub-flavoured Markdown, to be pasted into a ticket.
//!
//! Whatever others chose is a code span, in which nothing acts; our own words are escaped all the
//! same. No HTML, no links, no images: what a ticket system does with those differs.

use super::document::{Block, Cell, Column, Document, Inline, Line, Remark, Series, Table};
use crate::output::{escape, table::Tone};

/// Columns of a name; what is longer loses its middle.
const NAME: usize = 96;
/// Heights of a bar, from the lowest.
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// Bars of a row; of a longer run each bar is the largest of several seconds.
const WIDTH: usize = 60;

/// The report.
pub(super) fn render(document: &Document) -> String {
    let mut parts = vec![
        format!("# {}", line(&document.title, escape::markdown_code)),
        line(&document.subtitle, escape::markdown_code),
        summary(&document.summary),
    ];
    parts.extend(document.blocks.iter().filter_map(block));
    parts.join("\n\n") + "\n"
}

fn block(block: &Block) -> Option<String> {
    Some(match block {
        Block::Section(_, title) => format!("## {title}"),
        Block::Heading(title) => format!("### {title}"),
        Block::Paragraph(text) => line(text, escape::markdown_code),
        Block::Note(text) => format!("> {}", line(text, escape::markdown_code)),
        Block::List(lines) => list(lines),
        Block::Table(content) => table(content),
        Block::Timeline(series) => timeline(series),
        Block::Tree(lines) => tree(lines),
        Block::Flame | Block::Picture(_) => return None,
        Block::Commands(commands) => fenced(commands),
    })
}

fn list(lines: &[Line]) -> String {
    let lines: Vec<String> = lines
        .iter()
        .map(|text| format!("- {}", line(text, escape::markdown_code)))
        .collect();
    lines.join("\n")
}

/// A nested list.
fn tree(lines: &[(usize, Line)]) -> String {
    let lines: Vec<String> = lines
        .iter()
        .map(|(depth, text)| {
            let indent = "  ".repeat(*depth);
            format!("{indent}- {}", line(text, escape::markdown_code))
        })
        .collect();
    lines.join("\n")
}

/// A line, its names as `code` writes them.
fn line(line: &Line, code: fn(&str) -> String) -> String {
    line.0
        .iter()
        .map(|piece| match piece {
            Inline::Text(text) => words(text),
            Inline::Strong(text) => format!("**{}**", words(text)),
            // Escaped first: the escapes count.
            Inline::Code(name) => code(&escape::truncate_middle(&escape::plain(name), NAME)),
        })
        .collect()
}

/// Our own words: no character of theirs is markup.
fn words(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in escape::plain(text).chars() {
        if matches!(
            c,
            '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '|' | '~' | '#' | '&' | '$'
        ) {
            safe.push('\\');
        }
        safe.push(c);
    }
    safe
}

/// The sentences of the summary; those to be looked at have a sign.
fn summary(remarks: &[Remark]) -> String {
    let lines: Vec<String> = remarks
        .iter()
        .map(|remark| {
            let sign = match remark.tone {
                Tone::Warn | Tone::Bad => "⚠️ ",
                _ => "",
            };
            let text = line(&remark.line, escape::markdown_code);
            format!("- {sign}**{}:** {text}", remark.label)
        })
        .collect();
    lines.join("\n")
}

fn table(table: &Table) -> String {
    let row = |cells: Vec<String>| format!("| {} |", cells.join(" | "));
    let rule = |column: &Column| if column.number { "--:" } else { "---" }.to_owned();
    let titles = table.columns.iter().map(|column| words(column.title));
    let mut lines = vec![
        row(titles.collect()),
        row(table.columns.iter().map(rule).collect()),
    ];
    for cells in table.rows.iter().take(table.short) {
        lines.push(row(cells.iter().map(cell).collect()));
    }
    let shown = table.rows.len().min(table.short);
    if table.all > shown {
        lines.push(String::new());
        lines.push(format!("{} of {} shown.", shown, table.all));
    }
    lines.join("\n")
}

fn cell(cell: &Cell) -> String {
    let text = line(&cell.line, escape::markdown_cell);
    match cell.tone {
        Tone::Bad if !text.is_empty() && !text.contains("**") => format!("**{text}**"),
        _ => text,
    }
}

fn timeline(series: &[Series]) -> String {
    let mut lines = vec![
        "| per second | from start to end | median | largest |".to_owned(),
        "| --- | --- | --: | --: |".to_owned(),
    ];
    for series in series {
        let Some((median, max)) = series.spread() else {
            continue;
        };
        lines.push(format!(
            "| {} | `{}` | {} | {} |",
            words(series.title),
            bars(series),
            words(&median),
            words(&max)
        ));
    }
    lines.join("\n")
}

/// The values as bars of block characters; `·` where there is none.
fn bars(series: &Series) -> String {
    let per_bar = series.values.len().div_ceil(WIDTH).max(1);
    let max = series.max();
    series
        .values
        .chunks(per_bar)
        .map(|chunk| {
            let value = chunk.iter().flatten().copied().reduce(f64::max);
            match value {
                None => '·',
                Some(value) if max > 0.0 => {
                    let height = (value / max * BARS.len() as f64).ceil() as usize;
                    let height = height.clamp(1, BARS.len());
                    BARS.get(height - 1).copied().unwrap_or('█')
                }
                Some(_) => '▁',
            }
        })
        .collect()
}

/// Lines for a shell between fences that none of them can close.
fn fenced(commands: &[String]) -> String {
    let lines: Vec<_> = commands
        .iter()
        .map(|command| escape::plain(command))
        .collect();
    let longest = lines
        .iter()
        .flat_map(|line| line.split(|c| c != '`'))
        .map(str::len)
        .max()
        .unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    format!("{fence}sh\n{}\n{fence}", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::report::document::{names, numbers};

    #[test]
    fn names_are_inert_and_our_words_stay_words() {
        let text = Line::text("a*b_c ").name("<img>`|`").say(" [x]");
        assert_eq!(
            line(&text, escape::markdown_code),
            "a\\*b\\_c `` <img>`|` `` \\[x\\]"
        );
        let table = Table {
            columns: vec![names("n|m", ""), numbers("count", "")],
            rows: vec![
                vec![Cell::code("a|b"), Cell::number("1", 1.0)],
                vec![Cell::code("c"), Cell::number("2", 2.0)],
            ],
            short: 1,
            all: 7,
        };
        assert_eq!(
            self::table(&table),
            "| n\\|m | count |\n| --- | --: |\n| `a\\|b` | 1 |\n\n1 of 7 shown."
        );
    }

    #[test]
    fn commands_cannot_leave_their_fence() {
        let commands = ["a ```` b".to_owned(), "c\nd".to_owned()];
        assert_eq!(fenced(&commands), "`````sh\na ```` b\nc\\u{a}d\n`````");
    }

    #[test]
    fn bars_fit_the_line() {
        let series = |values: Vec<Option<f64>>| Series {
            title: "x",
            values,
            show: |value| value.to_string(),
            marked: Vec::new(),
        };
        assert_eq!(
            bars(&series(vec![Some(0.0), Some(1.0), None, Some(8.0)])),
            "▁▁·█"
        );
        assert_eq!(bars(&series(vec![Some(0.0); 3])), "▁▁▁");
        let long: Vec<Option<f64>> = (0..600).map(|n| Some(f64::from(n))).collect();
        assert_eq!(bars(&series(long)).chars().count(), WIDTH);
        assert_eq!(bars(&series(Vec::new())), "");
    }
}
