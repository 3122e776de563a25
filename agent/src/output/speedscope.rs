//! speedscope's own format: a sampled profile for each thread, over shared frames.
//!
//! The weights are CPU time, in nanoseconds, at the nominal period of the clock; those of events that were
//! all counted, and of samples by cycles, are counts. A sample is a distinct stack, not a moment: their order
//! is none of time. A frame is a function, named as in folded stacks; that of a cut stack's root is
//! `[truncated: reason]`.
//!
//! Source: `src/lib/file-format-spec.ts` of github.com/jlfwong/speedscope, and the JSON schema made from it.

use std::collections::BTreeMap;
use std::io;

use serde::Serialize;

use super::escape;
use super::intern::Interner;
use super::text;
use crate::profile::{Profile, Stack};

const SCHEMA: &str = "https://www.speedscope.app/file-format-schema.json";

#[derive(Serialize)]
struct File<'a> {
    #[serde(rename = "$schema")]
    schema: &'static str,
    exporter: String,
    name: String,
    #[serde(rename = "activeProfileIndex")]
    active: usize,
    shared: Shared<'a>,
    profiles: Vec<Thread>,
}

#[derive(Serialize)]
struct Shared<'a> {
    frames: Vec<Function<'a>>,
}

#[derive(Clone, PartialEq, Eq, Hash, Serialize)]
struct Function<'a> {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<&'a str>,
}

#[derive(Serialize)]
struct Thread {
    #[serde(rename = "type")]
    kind: &'static str,
    name: String,
    unit: &'static str,
    #[serde(rename = "startValue")]
    start: u64,
    #[serde(rename = "endValue")]
    end: u64,
    samples: Vec<Vec<usize>>,
    weights: Vec<u64>,
}

/// The stack, root first.
fn functions<'a>(profile: &'a Profile, stack: &Stack) -> Vec<Function<'a>> {
    let truncated = text::truncated(stack.end).map(|name| Function { name, file: None });
    let frames = stack
        .frames
        .iter()
        .filter_map(|&id| profile.frames.get(id as usize));
    let named = frames.map(|frame| Function {
        name: text::frame_name(frame),
        file: frame.file.as_deref(),
    });
    truncated.into_iter().chain(named).collect()
}

/// The profile as one JSON document.
pub(super) fn render(profile: &Profile) -> io::Result<Vec<u8>> {
    let (unit, period) = match profile.facts.period_ns() {
        Some(period) => ("nanoseconds", period),
        None => ("none", 1),
    };
    let empty = |name| Thread {
        kind: "sampled",
        name,
        unit,
        start: 0,
        end: 0,
        samples: Vec::new(),
        weights: Vec::new(),
    };
    let mut known = Interner::default();
    let mut threads: BTreeMap<(u32, u32), Thread> = BTreeMap::new();
    for stack in &profile.stacks {
        let thread = threads
            .entry((stack.pid, stack.tid))
            .or_insert_with(|| empty(thread_name(stack)));
        let weight = stack.count.saturating_mul(period);
        let functions = functions(profile, stack).into_iter();
        thread
            .samples
            .push(functions.map(|function| known.index(function)).collect());
        thread.weights.push(weight);
        thread.end = thread.end.saturating_add(weight);
    }
    let mut profiles: Vec<Thread> = threads.into_values().collect();
    if profiles.is_empty() {
        // A file of no profile is none to speedscope.
        profiles.push(empty(text::targets(profile)));
    }
    let hottest = (0..profiles.len()).max_by_key(|&index| {
        let end = profiles.get(index).map(|thread| thread.end);
        (end, std::cmp::Reverse(index))
    });
    let file = File {
        schema: SCHEMA,
        exporter: format!("agent {}", escape::plain(&profile.facts.agent_version)),
        name: format!("{}: {}", text::targets(profile), text::account(profile)),
        active: hottest.unwrap_or(0),
        shared: Shared { frames: known.list },
        profiles,
    };
    let mut bytes = escape::json(&file)?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// `server 4242 · worker-1 4243`.
fn thread_name(stack: &Stack) -> String {
    format!(
        "{} {} · {} {}",
        escape::plain(&stack.comm),
        stack.pid,
        escape::plain(&stack.thread),
        stack.tid
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;
    use crate::output::fixture;
    use serde_json::Value;

    fn document(profile: &Profile) -> Value {
        serde_json::from_slice(&render(profile).unwrap()).unwrap()
    }

    #[test]
    fn golden() {
        fixture::check_golden(
            "profile.speedscope.json",
            &render(&fixture::profile()).unwrap(),
        );
    }

    #[test]
    fn a_thread_is_a_profile_and_the_hottest_is_shown() {
        let mut profile = fixture::profile();
        profile.stacks[1].tid = 1;
        let document = document(&profile);
        let profiles = document["profiles"].as_array().unwrap();
        assert_eq!(profiles.len(), 2);
        assert_eq!(profiles[0]["name"], "server 4242 · worker-1 1");
        assert_eq!(profiles[0]["endValue"], 25 * 10_101_010_u64);
        assert_eq!(document["activeProfileIndex"], 1);
    }

    #[test]
    fn counted_events_have_no_time() {
        let mut profile = fixture::profile();
        profile.facts.frequency = 0;
        let thread = &document(&profile)["profiles"][0];
        assert_eq!(
            (&thread["unit"], &thread["endValue"]),
            (&"none".into(), &100.into())
        );
    }

    #[test]
    fn an_empty_run_is_a_profile_of_nothing() {
        let document = document(&fixture::empty());
        assert_eq!(document["profiles"][0]["samples"], Value::Array(Vec::new()));
    }

    #[test]
    fn hostile_names_are_escaped() {
        let text = String::from_utf8(render(&fixture::hostile()).unwrap()).unwrap();
        assert!(!text.trim_end().chars().any(escape::is_unsafe));
        assert!(!text.contains("</"));
    }
}
