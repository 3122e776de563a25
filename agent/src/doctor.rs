//! What works on this machine, and what keeps the rest from it: the model of `agent doctor`.

pub mod target;
pub mod trial;

use serde::Serialize;

use crate::preflight::checks::{Effect, Probe, Problem};
use crate::preflight::facts::Facts;

/// How well something works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// As it should.
    Works,
    /// It shows less than it could.
    Degraded,
    /// Not at all.
    Blocked,
}

impl State {
    /// As the problems make it.
    fn of(problems: &[Problem]) -> Self {
        let effects = problems.iter().map(|problem| match problem.effect {
            Effect::Degrades => State::Degraded,
            Effect::Blocks => State::Blocked,
        });
        effects.max().unwrap_or(State::Works)
    }
}

/// What was found out about a probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The probe.
    pub probe: Probe,
    /// How well it works.
    pub state: State,
    /// What was seen when it was tried, in few words.
    pub detail: String,
    /// What is in the way.
    pub problems: Vec<Problem>,
    /// What the kernel answered when it was tried and refused.
    pub error: Option<String>,
}

/// What was found out about a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TargetFinding {
    /// Its id.
    pub pid: u32,
    /// Its name, where there is such a process.
    pub comm: Option<String>,
    /// Its owner.
    pub uid: Option<u32>,
    /// How well it can be looked into.
    pub state: State,
    /// What was seen, in few words.
    pub detail: String,
    /// What is in the way.
    pub problems: Vec<Problem>,
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The worst state of all that was asked for.
    pub state: State,
    /// The probes asked for.
    pub probes: Vec<Finding>,
    /// The process asked for.
    pub target: Option<TargetFinding>,
    /// What the checks looked at.
    pub facts: Facts,
}

impl Report {
    /// Puts it together.
    pub fn new(probes: Vec<Finding>, target: Option<TargetFinding>, facts: Facts) -> Self {
        let states = probes.iter().map(|finding| finding.state);
        let target_state = target.iter().map(|finding| finding.state);
        Self {
            state: states.chain(target_state).max().unwrap_or(State::Works),
            probes,
            target,
            facts,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_state_counts() {
        let problem = |effect| Problem {
            check: "x",
            effect,
            reason: String::new(),
            fix: None,
        };
        assert_eq!(State::of(&[]), State::Works);
        let degrades = problem(Effect::Degrades);
        assert_eq!(State::of(std::slice::from_ref(&degrades)), State::Degraded);
        assert_eq!(
            State::of(&[problem(Effect::Blocks), degrades]),
            State::Blocked
        );
    }
}
