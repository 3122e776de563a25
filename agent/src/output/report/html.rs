//! A report as one HTML page, with the flame graph and tables that can be sorted.
//!
//! What others chose passes [`escape::xml`] and stands in a `<code>` of its own, which also keeps
//! text that runs from right to left from reordering its neighbours.

use std::fmt::Write as _;

use super::document::{Block, Cell, Document, Inline, Line, Series, Table};
use crate::output::escape;
use crate::output::html::{Page, flame};
use crate::output::table::Tone;
use crate::profile::Profile;

/// Columns of a name; what is longer loses its middle.
const NAME: usize = 300;
/// Bars of a chart; of a longer run each bar is the largest of several seconds.
const BARS: usize = 300;
/// Width of a bar with the gap to the next, and height of a chart, in units of its picture.
const BAR: (usize, usize) = (10, 100);

/// The report. The profile is that of its flame graph, if it has one.
///
/// # Errors
/// The data of the flame graph cannot be serialized, which is a bug.
pub(super) fn render(document: &Document, profile: Option<&Profile>) -> serde_json::Result<String> {
    let title: String = document
        .title
        .0
        .iter()
        .map(|piece| match piece {
            Inline::Text(text) | Inline::Strong(text) | Inline::Code(text) => text.as_str(),
        })
        .collect();
    let mut page = Page::new(&title).tables().style(include_str!("report.css"));
    if let Some(profile) = profile {
        page = page.flame().data("profile", &flame::Data::new(profile))?;
    }
    let page = page
        .script(include_str!("report.js"))
        .body(&header(document))
        .body("<main>")
        .body(&summary(document))
        .body(&blocks(&document.blocks))
        .body("</main>");
    Ok(page.render())
}

fn header(document: &Document) -> String {
    let links: String = document
        .blocks
        .iter()
        .filter_map(|block| match block {
            Block::Section(id, title) => Some(format!("<a href=\"#{id}\">{title}</a>\n")),
            _ => None,
        })
        .collect();
    format!(
        r#"<header class="page"><div>
<h1>{}</h1>
<p class="soft">{}</p></div>
<button type="button" class="theme" title="light or dark" hidden="">Dark</button></header>
<nav>{links}</nav>"#,
        line(&document.title),
        line(&document.subtitle)
    )
}

fn summary(document: &Document) -> String {
    let items: String = document
        .summary
        .iter()
        .map(|remark| {
            format!(
                "<li class=\"{}\"><b>{}</b><span>{}</span></li>\n",
                tone(remark.tone),
                remark.label,
                line(&remark.line)
            )
        })
        .collect();
    format!("<ul class=\"summary\">\n{items}</ul>")
}

fn tone(tone: Tone) -> &'static str {
    match tone {
        Tone::Normal | Tone::Strong => "normal",
        Tone::Dim => "soft",
        Tone::Ok => "good",
        Tone::Warn => "warn",
        Tone::Bad => "bad",
    }
}

fn blocks(blocks: &[Block]) -> String {
    let mut out = String::new();
    let mut open = false;
    for block in blocks {
        // Writing to a string cannot fail.
        let _ = match block {
            Block::Section(id, title) => {
                let close = if open { "</section>\n" } else { "" };
                open = true;
                writeln!(out, "{close}<section id=\"{id}\"><h2>{title}</h2>")
            }
            Block::Heading(title) => writeln!(out, "<h3>{}</h3>", escape::xml(title)),
            Block::Paragraph(text) => writeln!(out, "<p>{}</p>", line(text)),
            Block::Note(text) => writeln!(out, "<p class=\"note soft\">{}</p>", line(text)),
            Block::List(lines) => {
                let items = lines.iter().map(|text| format!("<li>{}</li>", line(text)));
                writeln!(out, "<ul>{}</ul>", items.collect::<String>())
            }
            Block::Table(content) => writeln!(out, "{}", table(content)),
            Block::Timeline(series) => {
                let charts = series.iter().map(chart).collect::<String>();
                writeln!(out, "<div class=\"charts\">{charts}</div>")
            }
            Block::Tree(lines) => writeln!(out, "{}", tree(lines)),
            Block::Flame => writeln!(
                out,
                "<div id=\"flame\"><noscript><p>The flame graph needs JavaScript; all else here does \
                 not. <code>flame.svg</code> shows it without.</p></noscript></div>"
            ),
            Block::Picture(svg) => writeln!(out, "<div class=\"scroll\">{svg}</div>"),
            Block::Commands(commands) => {
                let lines: Vec<String> = commands.iter().map(|text| escape::xml(text)).collect();
                writeln!(out, "<pre>{}</pre>", lines.join("\n"))
            }
        };
    }
    if open {
        out += "</section>";
    }
    out
}

/// Nested lists.
fn tree(lines: &[(usize, Line)]) -> String {
    let mut out = String::new();
    let mut open = 0;
    for (depth, text) in lines {
        // A line is at most one deeper than the one before.
        if *depth >= open {
            out += if open == 0 {
                "<ul class=\"tree\">"
            } else {
                "<ul>"
            };
            open += 1;
        } else {
            out += "</li>";
            out += &"</ul></li>".repeat(open - depth - 1);
            open = depth + 1;
        }
        let _ = writeln!(out, "<li>{}", line(text));
    }
    if open > 0 {
        out += "</li>";
        out += &"</ul></li>".repeat(open - 1);
        out += "</ul>";
    }
    out
}

fn line(line: &Line) -> String {
    line.0
        .iter()
        .map(|piece| match piece {
            Inline::Text(text) => escape::xml(text),
            Inline::Strong(text) => format!("<strong>{}</strong>", escape::xml(text)),
            Inline::Code(name) => {
                let name = escape::plain(name);
                let shown = escape::xml(&escape::truncate_middle(&name, NAME));
                format!("<code>{shown}</code>")
            }
        })
        .collect()
}

fn table(table: &Table) -> String {
    let headed = table.columns.iter().any(|column| !column.title.is_empty());
    let mut out = String::from(if headed {
        "<div class=\"scroll\"><table class=\"sortable\"><thead><tr>"
    } else {
        "<div class=\"scroll\"><table class=\"facts\">"
    });
    if headed {
        for column in &table.columns {
            let class = if column.number { "number" } else { "text" };
            let _ = write!(
                out,
                "<th class=\"{class}\" title=\"{}\">{}</th>",
                escape::xml(column.meaning),
                escape::xml(column.title)
            );
        }
        out += "</tr></thead>";
    }
    out += "<tbody>\n";
    for cells in &table.rows {
        out += "<tr>";
        for (cell, column) in cells.iter().zip(&table.columns) {
            out += &self::cell(cell, column.number);
        }
        out += "</tr>\n";
    }
    out += "</tbody></table></div>";
    if table.all > table.rows.len() {
        let _ = write!(
            out,
            "<p class=\"note soft\">{} of {} are listed.</p>",
            table.rows.len(),
            table.all
        );
    }
    out
}

fn cell(cell: &Cell, number: bool) -> String {
    let class = if number { "number " } else { "" };
    let value = cell
        .value
        .map(|value| format!(" data-sort-value=\"{value}\""))
        .unwrap_or_default();
    format!(
        "<td class=\"{class}{}\"{value}>{}</td>",
        tone(cell.tone),
        line(&cell.line)
    )
}

/// A figure by second as bars; each says its second and its value where the pointer is.
fn chart(series: &Series) -> String {
    let Some((median, max)) = series.spread() else {
        return String::new();
    };
    let per_bar = series.values.len().div_ceil(BARS).max(1);
    let top = series.max();
    let (step, height) = BAR;
    let mut bars = String::new();
    let mut count = 0;
    for (at, seconds) in series.values.chunks(per_bar).enumerate() {
        count = at + 1;
        let (first, left) = (at * per_bar, at * step);
        let Some(value) = seconds.iter().flatten().copied().reduce(f64::max) else {
            continue;
        };
        let share = if top > 0.0 { value / top } else { 0.0 };
        let bar = ((share * height as f64).round() as usize).clamp(1, height);
        let marked = series
            .marked
            .iter()
            .any(|second| (first..first + per_bar).contains(second));
        let class = if marked { "bar marked" } else { "bar" };
        let _ = writeln!(
            bars,
            "<g><title>{first} s: {}</title><rect class=\"back\" x=\"{left}\" y=\"0\" \
             width=\"{step}\" height=\"{height}\"/><rect class=\"{class}\" x=\"{left}\" y=\"{}\" \
             width=\"{}\" height=\"{bar}\"/></g>",
            escape::xml(&(series.show)(value)),
            height - bar,
            step - 1,
        );
    }
    let title = escape::xml(series.title);
    format!(
        "<figure><figcaption><b>{title}</b> <span class=\"soft\">usually {}, at most {}</span></figcaption>\
         <svg class=\"chart\" viewBox=\"0 0 {} {height}\" preserveAspectRatio=\"none\" role=\"img\" \
         aria-label=\"{title} by second\">\n{bars}</svg>\
         <div class=\"axis soft\"><span>0 s</span><span>{} s</span></div></figure>\n",
        escape::xml(&median),
        escape::xml(&max),
        count * step,
        series.values.len(),
    )
}
