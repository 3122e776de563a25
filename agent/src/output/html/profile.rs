//! The page of a profile: the facts, the flame graph, the hottest functions.

use std::io;

use super::{Page, flame};
use crate::output::summary::{self, Hot};
use crate::output::{escape, text};
use crate::profile::Profile;

/// Functions in the table.
const FUNCTIONS: usize = 200;
/// Complete stacks, in percent, below which the figure is a warning.
const COMPLETE_PERCENT: f64 = 99.5;

/// The profile as a page.
///
/// # Errors
/// The data cannot be serialized, which is a bug.
pub(in crate::output) fn render(profile: &Profile) -> io::Result<Vec<u8>> {
    let page = Page::new(&title(profile))
        .flame()
        .tables()
        .script(include_str!("profile.js"))
        .data("profile", &flame::Data::new(profile))?
        .header(&(facts(profile) + &more(profile)))
        .body(concat!(
            r#"<main><div id="flame"><noscript><p>The flame graph needs JavaScript; "#,
            "the table below does not.</p></noscript></div>"
        ))
        .body(&hottest(profile, FUNCTIONS))
        .body("</main>");
    Ok(page.render().into_bytes())
}

fn title(profile: &Profile) -> String {
    let what = match text::is_counted(profile) {
        true => format!("Stacks of {}", escape::plain(&profile.facts.event)),
        false => "CPU profile".to_owned(),
    };
    format!("{what}: {}", text::targets(profile))
}

/// The facts by which to judge a profile, as a `<dl class="facts">`: how many samples, how many of
/// them complete, how many lost, on which kernel.
pub fn facts(profile: &Profile) -> String {
    let lost = profile.accounting.lost_total();
    let unit = match text::is_counted(profile) {
        true => "Counted",
        false => "Samples",
    };
    let run = &profile.facts;
    let mut facts = vec![
        (unit, "", profile.samples().to_string()),
        ("Duration", "", format!("{:.1} s", run.duration_seconds)),
    ];
    if !text::is_counted(profile) {
        facts.push(("Frequency", "", format!("{} Hz", run.frequency)));
    }
    if let Some(complete) = text::complete_percent(profile) {
        let tone = if complete < COMPLETE_PERCENT {
            "warn"
        } else {
            "good"
        };
        facts.push((
            "Complete stacks",
            tone,
            format!("{} %", text::show_percent(complete)),
        ));
    }
    let tone = if lost > 0 { "warn" } else { "good" };
    facts.push(("Lost", tone, lost.to_string()));
    facts.push(("Kernel", "", run.kernel.clone()));
    facts.push(("Agent", "", run.agent_version.clone()));
    let items: String = facts
        .iter()
        .map(|(name, tone, value)| {
            let value = escape::xml(value);
            format!("<div><dt>{name}</dt><dd class=\"{tone}\">{value}</dd></div>\n")
        })
        .collect();
    format!("<dl class=\"facts\">\n{items}</dl>\n")
}

/// What else is known of the run, folded away; the account of the ticks stays visible.
fn more(profile: &Profile) -> String {
    let (facts, cost) = (&profile.facts, &profile.cost);
    let mut lines = vec![
        format!("command line: {}", facts.command_line.join(" ")),
        format!("clock: {} on {} CPUs", facts.event, facts.cpus),
        format!("ended: {}", text::words(&facts.ended)),
        format!(
            "cost: {:.2} s of CPU time, {} MB at most",
            cost.cpu_seconds,
            cost.peak_rss_bytes >> 20
        ),
    ];
    for target in &facts.targets {
        let exe = target.exe.as_deref().unwrap_or("unknown program");
        lines.push(format!("process {}: {}, {exe}", target.pid, target.comm));
    }
    let notes = profile.accounting.notes.iter();
    lines.extend(notes.map(|(cause, count)| format!("{}: {count}", text::words(cause))));
    let items: String = lines
        .iter()
        .map(|line| format!("<li>{}</li>\n", escape::xml(line)))
        .collect();
    format!(
        "<details class=\"more\"><summary>{}</summary>\n<ul>\n{items}</ul></details>\n",
        escape::xml(&text::account(profile))
    )
}

/// The hottest functions, at most `limit`, as a heading and a sortable table. Each function is a
/// `<button data-function="…">`, for a script that looks it up in the graph.
pub fn hottest(profile: &Profile, limit: usize) -> String {
    let samples = profile.samples();
    let hottest = summary::hottest(profile);
    let rows: String = hottest
        .iter()
        .take(limit)
        .map(|hot| row(hot, samples))
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    let left_out = match hottest.len().saturating_sub(limit) {
        0 => String::new(),
        more => format!("<p class=\"soft\">{more} more functions are in the graph.</p>\n"),
    };
    format!(
        r#"<section><h2>Hottest functions</h2>
<table class="sortable">
<thead><tr><th class="number" aria-sort="descending">self</th><th class="number">total</th><th>function</th><th>module</th></tr></thead>
<tbody>
{rows}</tbody>
</table>
{left_out}</section>"#
    )
}

fn row(hot: &Hot, samples: u64) -> String {
    let share = |part: u64| {
        let percent = text::percent(part, samples).unwrap_or(0.0);
        format!(
            r#"<td class="number" data-sort-value="{part}" title="{part} of {samples}">{percent:.2} %</td>"#
        )
    };
    let name = escape::xml(&hot.name);
    format!(
        r#"<tr>{}{}<td class="name"><button type="button" data-function="{}" title="find it in the graph">{name}</button></td><td class="name soft">{}</td></tr>
"#,
        share(hot.self_samples),
        share(hot.total_samples),
        escape::xml(&escape::frame(&hot.name)),
        escape::xml(&hot.module),
    )
}
