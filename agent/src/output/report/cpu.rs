//! Where the CPU time goes: the flame graph, the heaviest paths, the busiest functions.

use super::document::{Block, Cell, Line, names, numbers};
use super::sections::{section, table};
use super::words;
use crate::output::summary as functions;
use crate::output::text;
use crate::report::Report;

/// Functions listed where there is room.
const FUNCTIONS: usize = 100;
/// Functions shown of a line of the tree: its first and its last ones.
const PATH_ENDS: (usize, usize) = (3, 4);

/// The section.
pub(super) fn cpu(report: &Report<'_>) -> Vec<Block> {
    let profile = &report.capture.profile;
    let samples = profile.samples();
    let mut blocks = vec![section("cpu", "Where the CPU time goes")];
    if samples == 0 {
        blocks.push(Block::Paragraph(Line::text(
            "No sample was taken: the target was idle.",
        )));
        return blocks;
    }
    blocks.push(Block::Flame);
    blocks.push(Block::Heading("Heaviest paths"));
    let share = |part| {
        let share = words::part_of(part, samples);
        Cell::number(words::share(share), share)
    };
    let lines = report.paths.lines.iter().map(|branch| {
        let share = words::share(words::part_of(branch.samples, samples));
        let line = Line::default().stress(share).say(" ");
        (branch.depth, line.then(path_line(report, &branch.frames)))
    });
    blocks.push(Block::Tree(lines.collect()));
    blocks.push(Block::Note(Line::text(format!(
        "Share of all samples in the last function of a line and below. A line goes on into the \
         heaviest callee while that keeps three quarters of what the line began with; where the \
         work divides, callees with at least {} % of all samples begin lines of their own.",
        report.paths.smallest_percent
    ))));
    blocks.push(Block::Heading("Busiest functions"));
    let hottest = functions::hottest(profile);
    let rows = hottest.iter().take(FUNCTIONS).map(|hot| {
        vec![
            share(hot.self_samples),
            share(hot.total_samples),
            Cell::code(&hot.name),
            Cell::code(&hot.module),
        ]
    });
    let columns = vec![
        numbers("self", "samples in the function itself"),
        numbers("total", "and in what it called"),
        names("function", ""),
        names("module", ""),
    ];
    blocks.push(table(columns, rows.collect(), 15, hottest.len()));
    blocks
}

fn path_line(report: &Report<'_>, frames: &[u32]) -> Line {
    let (head, tail) = PATH_ENDS;
    let names: Vec<String> = frames
        .iter()
        .filter_map(|&id| report.capture.profile.frames.get(id as usize))
        .map(text::frame_name)
        .collect();
    let cut = names.len().saturating_sub(head + tail);
    let mut line = Line::default();
    for (at, name) in names.into_iter().enumerate() {
        if cut > 1 && at == head {
            line = line.say(format!(" › … {cut} more …"));
        }
        if cut > 1 && (head..head + cut).contains(&at) {
            continue;
        }
        line = if at == 0 { line } else { line.say(" › ") };
        line = line.name(name);
    }
    line
}
