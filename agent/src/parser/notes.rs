//! What all parsers of the agent share: how many may still be started, whether any can be, and what
//! the user is to be told.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Parsers that may die one after the other.
const BURST: u32 = 128;
/// After that, one in so long.
const PAUSE: Duration = Duration::from_millis(500);

static STATE: Mutex<State> = Mutex::new(State {
    deaths: Deaths {
        left: BURST,
        since: None,
    },
    began: Began::No,
    warnings: BTreeSet::new(),
});

struct State {
    deaths: Deaths,
    began: Began,
    warnings: BTreeSet<String>,
}

/// Whether parsers can be started in these circumstances.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Began {
    /// None was tried.
    No,
    /// One was. What keeps a later one from starting may be the target's work.
    Yes,
    /// The first could not be: the agent parses itself.
    Never,
}

/// Deaths that are left: a storm of them must not keep the machine busy.
#[derive(Debug)]
struct Deaths {
    left: u32,
    /// From when on new ones are counted.
    since: Option<Instant>,
}

impl Deaths {
    fn left(&mut self, now: Instant) -> u32 {
        let since = self.since.get_or_insert(now);
        let pauses = now.saturating_duration_since(*since).as_millis() / PAUSE.as_millis();
        let more = u32::try_from(pauses).unwrap_or(u32::MAX).min(BURST);
        *since = if more == BURST {
            now
        } else {
            *since + PAUSE * more
        };
        self.left = self.left.saturating_add(more).min(BURST);
        self.left
    }

    fn count(&mut self, now: Instant) {
        self.left = self.left(now).saturating_sub(1);
    }
}

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether another parser may be put at risk.
pub(super) fn may_ask(now: Instant) -> bool {
    state().deaths.left(now) > 0
}

/// Counts the death of a parser.
pub(super) fn has_died(now: Instant) {
    state().deaths.count(now);
}

/// Whether no parser has begun yet.
pub(super) fn is_first() -> bool {
    state().began == Began::No
}

/// Notes that parsers can be started, and what protections they lack.
pub(super) fn has_started(lacks: &[String]) {
    let mut state = state();
    state.began = Began::Yes;
    for lack in lacks {
        let text = format!("the parser of files is not fully confined: {lack}");
        state.warnings.insert(text);
    }
}

/// Notes that a parser could not be started. If it is the first, the agent parses itself.
pub(super) fn could_not_start(why: &str) {
    let mut state = state();
    if state.began != Began::Yes {
        state.began = Began::Never;
        let text = format!(
            "files are parsed in the agent itself, with its privileges: no parser could be started ({why})"
        );
        state.warnings.insert(text);
    }
}

/// Whether the agent has to parse files itself.
pub(super) fn parses_here() -> bool {
    state().began == Began::Never
}

/// What is not as it should be with the parsers that were started so far.
pub fn warnings() -> Vec<String> {
    state().warnings.iter().cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_of_deaths_is_slowed_down() {
        let mut deaths = Deaths {
            left: BURST,
            since: None,
        };
        let now = Instant::now();
        let mut dies = |now| {
            let may = deaths.left(now) > 0;
            deaths.count(now);
            may
        };
        assert!((0..BURST).all(|_| dies(now)));
        assert!(!dies(now));
        assert!(!dies(now + PAUSE / 2));
        assert!(dies(now + PAUSE));
        assert!(!dies(now + PAUSE));
        let later = now + PAUSE * (3 * BURST);
        assert!((0..BURST).all(|_| dies(later)));
        assert!(!dies(later));
    }
}
