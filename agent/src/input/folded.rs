//! Folded stacks of any tool: `root;…;leaf count`, one a line.
//!
//! Comments begin with `# `; those of this agent say what was counted. The marks `_[k]`, `_[j]`, `_[i]` and `_[w]`
//! at a frame's end are taken off, as all readers of the format do.

use crate::diff::{Measure, Overflow, Side, Stacks};

/// Why folded stacks could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Reason {
    #[error(
        "line {0} is no folded stack (`root;…;leaf COUNT`); the formats that can be compared are \
         a bundle (.zip), a pprof profile (.pb.gz) and folded stacks (.folded)"
    )]
    Line(usize),
    #[error(transparent)]
    Overflow(#[from] Overflow),
}

/// What the comments of this agent say.
#[derive(Default)]
struct Header {
    ours: bool,
    measure: Option<Measure>,
    seconds: Option<f64>,
    frequency: Option<f64>,
}

impl Header {
    /// `123 samples over 30.0 s at 99 Hz`, `123 failed system calls over 30.0 s`.
    fn line(&mut self, line: &str) {
        self.ours |= line.starts_with("agent ");
        if !self.ours || self.measure.is_some() {
            return;
        }
        let Some((what, when)) = line.split_once(" over ") else {
            return;
        };
        let (Some((_, what)), Some((seconds, rest))) =
            (what.split_once(' '), when.split_once(" s"))
        else {
            return;
        };
        self.seconds = seconds.parse().ok();
        let clock = rest
            .strip_prefix(" at ")
            .and_then(|rest| rest.split_once(" Hz"));
        // By cycles a sample stands for no fixed time.
        self.frequency = clock
            .filter(|(_, unit)| unit.is_empty())
            .and_then(|(number, _)| number.parse().ok());
        self.measure = Some(match clock {
            Some(_) => Measure::Cpu,
            None => Measure::Other(what.replace(' ', "_") + "/count"),
        });
    }
}

/// The stacks of the text.
pub(super) fn parse(text: &str, label: &str) -> Result<Side, Reason> {
    let mut header = Header::default();
    let mut stacks = Stacks::default();
    for (number, line) in text.lines().enumerate() {
        if let Some(comment) = line.strip_prefix("# ") {
            header.line(comment);
            continue;
        }
        if line.trim().is_empty() {
            continue;
        }
        let parsed = line
            .trim_end()
            .rsplit_once([' ', '\t'])
            .and_then(|(stack, count)| Some((stack.trim(), count.parse::<u64>().ok()?)))
            .filter(|(stack, _)| !stack.is_empty());
        let (stack, count) = parsed.ok_or(Reason::Line(number + 1))?;
        let mut frames = Vec::new();
        for (depth, frame) in stack.split(';').enumerate() {
            let frame = match header.ours && depth == 0 {
                true => super::process_name(frame),
                false => unmarked(frame),
            };
            frames.push(stacks.name(frame));
        }
        stacks.add(frames, count)?;
    }
    let samples = stacks.total() as f64;
    Ok(Side {
        label: label.to_owned(),
        measure: header.measure.unwrap_or(Measure::Unstated),
        per_sample: Some(1),
        seconds: header.seconds,
        cpu_seconds: header.frequency.map(|frequency| samples / frequency),
        processes: header.ours.then_some(true),
        traffic: None,
        stacks,
    })
}

fn unmarked(frame: &str) -> &str {
    ["_[k]", "_[j]", "_[i]", "_[w]"]
        .iter()
        .find_map(|mark| frame.strip_suffix(mark))
        .unwrap_or(frame)
}
