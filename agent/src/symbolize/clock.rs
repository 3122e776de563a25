//! The time that naming may take.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// What one file's debug information, or its table of Go functions, may cost. Gigabytes take a second or two; only a file made
/// to waste time takes more, and then the symbol table names the rest.
const LIMIT: Duration = Duration::from_secs(10);
/// Steps between two looks at the time.
const STEPS: u32 = 1 << 12;

pub(super) struct Clock {
    end: Instant,
    steps: Cell<u32>,
}

impl Clock {
    pub(super) fn start() -> Self {
        Clock {
            end: Instant::now() + LIMIT,
            steps: Cell::new(0),
        }
    }

    /// Counts a small step; whether time is up.
    pub(super) fn step(&self) -> bool {
        let steps = self.steps.get() + 1;
        self.steps.set(steps % STEPS);
        steps == STEPS && self.is_over()
    }

    /// Whether time is up.
    pub(super) fn is_over(&self) -> bool {
        Instant::now() >= self.end
    }
}
