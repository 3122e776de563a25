//! Folded stacks: `process;root;…;leaf count`, one line per distinct path, sorted.
//!
//! The format of Brendan Gregg's FlameGraph tools; its readers, taken together, decide what is
//! safe here:
//! - lines that start with `# ` carry the facts and the account of the ticks. `inferno` skips
//!   them as comments; `flamegraph.pl` and speedscope skip every line without a count, so none of
//!   these ends in a number;
//! - kernel frames end in `_[k]`, which the tools colour and do not show;
//! - a stack that was cut carries `[truncated: reason]` after the process, on the root's side,
//!   where its missing frames would be.

use std::collections::BTreeMap;

use super::text::{self, Kind, Paths};
use crate::profile::Profile;

/// The profile as folded stacks.
pub(super) fn render(profile: &Profile) -> String {
    let mut out = header(profile);
    let mut lines: BTreeMap<String, u64> = BTreeMap::new();
    for (path, count) in Paths::new(profile).iter() {
        let mut line = String::new();
        for (name, kind) in path {
            line += name;
            line += if *kind == Kind::Kernel { "_[k];" } else { ";" };
        }
        line.pop();
        *lines.entry(line).or_insert(0) += count;
    }
    for (line, count) in lines {
        out += &format!("{line} {count}\n");
    }
    out
}

fn header(profile: &Profile) -> String {
    let facts = &profile.facts;
    let mut lines = vec![
        format!(
            "agent {}, {}",
            facts.agent_version,
            super::escape::plain(&facts.kernel)
        ),
        text::sampled(profile),
        text::account(profile),
    ];
    if let Some(complete) = text::complete_percent(profile) {
        lines.push(format!(
            "complete stacks {} %",
            text::show_percent(complete)
        ));
    }
    lines
        .iter()
        .map(|line| {
            // A line that ends in a number would be a stack to some readers.
            let last = line.rsplit(' ').next().unwrap_or_default();
            let end = if last.parse::<f64>().is_ok() { ":" } else { "" };
            format!("# {line}{end}\n")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;
    use crate::output::fixture;

    #[test]
    fn golden() {
        fixture::check_golden("profile.folded.txt", render(&fixture::profile()).as_bytes());
    }

    /// What the most careless reader (`flamegraph.pl`, speedscope) takes for a stack.
    fn stacks(folded: &str) -> Vec<(&str, u64)> {
        folded
            .lines()
            .filter_map(|line| {
                let (stack, count) = line.rsplit_once(' ')?;
                Some((stack, count.parse().ok()?))
            })
            .collect()
    }

    #[test]
    fn every_sample_and_nothing_else_is_a_stack() {
        let mut profile = fixture::profile();
        profile.facts.kernel = "Linux 6".to_owned();
        let folded = render(&profile);
        let stacks = stacks(&folded);
        assert!(stacks.iter().all(|(stack, _)| !stack.starts_with('#')));
        assert_eq!(
            stacks.iter().map(|(_, n)| n).sum::<u64>(),
            profile.samples()
        );
    }

    #[test]
    fn hostile_names_stay_one_line_and_one_frame() {
        let profile = fixture::hostile();
        let folded = render(&profile);
        let stacks = stacks(&folded);
        assert_eq!(stacks.len(), profile.stacks.len());
        for (stack, _) in stacks {
            assert_eq!(stack.split(';').count(), 2, "{stack}");
            assert!(!stack.chars().any(super::super::escape::is_unsafe));
        }
    }

    #[test]
    fn empty_profile_keeps_the_account() {
        let folded = render(&fixture::empty());
        assert!(folded.contains("# ticks 200 = 200 idle + 0 other + 0 emitted + 0 lost\n"));
        assert!(stacks(&folded).is_empty());
    }
}
