//! What `agent doctor` found, as lines or as JSON (`agent.doctor/1`; docs/privileges.md describes it).

use serde::Serialize;

use super::escape;
use super::table::{Style, Tone};
use crate::doctor::{Report, State};
use crate::preflight::checks::Problem;

/// Name and version of the schema. A field may be added within a version; a change of meaning or a
/// removal takes a new one.
const SCHEMA: &str = "agent.doctor/1";
/// Columns of the longest title of a probe.
const TITLE: usize = 18;

#[derive(Serialize)]
struct Document<'a> {
    schema: &'static str,
    agent_version: &'static str,
    #[serde(flatten)]
    report: &'a Report,
}

/// One line of JSON.
///
/// # Errors
/// None that is known: the model has only what JSON has.
pub fn json(report: &Report) -> Result<Vec<u8>, serde_json::Error> {
    let mut bytes = escape::json(&Document {
        schema: SCHEMA,
        agent_version: env!("CARGO_PKG_VERSION"),
        report,
    })?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// A line for each probe, below it what is in the way and what helps.
pub fn text(report: &Report, style: Style) -> String {
    let mut text = format!("{}\n", escape::plain(&report.facts.kernel));
    for finding in &report.probes {
        let title = finding.probe.title().to_owned();
        entry(
            &mut text,
            style,
            finding.state,
            &title,
            &finding.detail,
            &finding.problems,
        );
        if let Some(error) = &finding.error {
            let answer = format!("    answer: {}", escape::plain(error));
            text.push_str(&style.paint(Tone::Dim, &answer));
            text.push('\n');
        }
    }
    if let Some(target) = &report.target {
        let title = match &target.comm {
            Some(comm) => format!("{} {}", escape::plain(comm), target.pid),
            None => format!("process {}", target.pid),
        };
        entry(
            &mut text,
            style,
            target.state,
            &title,
            &target.detail,
            &target.problems,
        );
    }
    text
}

fn entry(
    text: &mut String,
    style: Style,
    state: State,
    title: &str,
    detail: &str,
    problems: &[Problem],
) {
    let (mark, tone) = match state {
        State::Works => ("✓", Tone::Ok),
        State::Degraded => ("!", Tone::Warn),
        State::Blocked => ("✗", Tone::Bad),
    };
    let mark = style.paint(tone, mark);
    let gap = " ".repeat(TITLE.saturating_sub(escape::width(title)));
    let first = problems
        .first()
        .map(|problem| escape::plain(&problem.reason));
    let first = first.unwrap_or_else(|| escape::plain(detail));
    text.push_str(&format!("{mark} {title}{gap}  {first}\n"));
    for (index, problem) in problems.iter().enumerate() {
        if index > 0 {
            text.push_str(&format!("    {}\n", escape::plain(&problem.reason)));
        }
        if let Some(fix) = &problem.fix {
            let fix = escape::plain(fix);
            text.push_str(&format!(
                "    {} {fix}\n",
                style.paint(Tone::Strong, "fix:")
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;
    use crate::doctor::{Finding, TargetFinding};
    use crate::preflight::checks::{Effect, Probe};
    use crate::preflight::facts::Facts;

    fn report() -> Report {
        let problem = Problem {
            check: "capability",
            effect: Effect::Blocks,
            reason: "agent needs CAP_BPF".to_owned(),
            fix: Some("sudo agent doctor".to_owned()),
        };
        let works = Finding {
            probe: Probe::Tcp,
            state: State::Works,
            detail: "hooks".to_owned(),
            problems: Vec::new(),
            error: None,
        };
        let blocked = Finding {
            probe: Probe::Record,
            state: State::Blocked,
            problems: vec![problem],
            error: Some("bpf: EPERM".to_owned()),
            ..works.clone()
        };
        let target = TargetFinding {
            pid: 7,
            comm: Some("\x1b[31mevil".to_owned()),
            uid: Some(0),
            state: State::Works,
            detail: "3 mapped files can be read".to_owned(),
            problems: Vec::new(),
        };
        let facts = Facts {
            kernel: "Linux 6.1.0 x86_64".to_owned(),
            ..Facts::default()
        };
        Report::new(vec![works, blocked], Some(target), facts)
    }

    #[test]
    fn lines() {
        let expected = "\
Linux 6.1.0 x86_64
✓ tcp                 hooks
✗ record, serve       agent needs CAP_BPF
    fix: sudo agent doctor
    answer: bpf: EPERM
✓ \\u{1b}[31mevil 7    3 mapped files can be read
";
        assert_eq!(text(&report(), Style::Plain), expected);
        let coloured = text(&report(), Style::Color);
        assert!(coloured.contains("\x1b[31m✗\x1b[0m record"), "{coloured}");
        assert!(!coloured.contains("\x1b[31mevil"));
    }

    #[test]
    fn json_has_stable_keys() {
        let value: serde_json::Value = serde_json::from_slice(&json(&report()).unwrap()).unwrap();
        assert_eq!(value["schema"], "agent.doctor/1");
        assert_eq!(value["state"], "blocked");
        assert_eq!(value["probes"][0]["probe"], "tcp");
        assert_eq!(value["probes"][1]["problems"][0]["check"], "capability");
        assert_eq!(value["probes"][1]["problems"][0]["effect"], "blocks");
        assert_eq!(value["target"]["pid"], 7);
        assert_eq!(value["facts"]["kernel"], "Linux 6.1.0 x86_64");
    }
}
