//! The time that naming may take.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// What a part of one module may cost: its debug information, its table of Go functions, its symbol
/// tables. Gigabytes take a second or two; only a file made to waste time takes more, and then the
/// next part names the rest.
const PART: Duration = Duration::from_secs(2);
/// What all modules together may cost: nobody waits longer for the end of a run.
const RUN: Duration = Duration::from_secs(3);
/// The part of that in tenths in which debug information is read: the rest is for symbol tables,
/// which are quicker.
const DETAILS: u32 = 7;
/// Steps between two looks at the time.
const STEPS: u32 = 1 << 12;

/// Whether the user has had enough.
static GIVEN_UP: AtomicBool = AtomicBool::new(false);
/// Budgets that are being used: names are being looked up.
static NAMING: AtomicU32 = AtomicU32::new(0);

/// If names are being looked up, ends that, now and later: what has no name yet comes back with
/// [`crate::profile::Unnamed::GaveUp`], within a fraction of a second. Says whether it is this call
/// that has ended it. Safe in a signal handler.
pub fn give_up() -> bool {
    NAMING.load(Ordering::Relaxed) > 0 && !GIVEN_UP.swap(true, Ordering::Relaxed)
}

/// The time that the modules of a run have together, from its start on.
#[derive(Debug)]
pub struct Budget {
    details: Instant,
    end: Instant,
    given_up: &'static AtomicBool,
}

impl Budget {
    /// Three seconds, which no honest program takes.
    pub fn start() -> Self {
        Self::lasting(RUN, &GIVEN_UP)
    }

    /// What is left of another process's: of the time in which debug information is read, and of all.
    pub fn rest(details: Duration, all: Duration) -> Self {
        let now = Instant::now();
        let mut budget = Self::start();
        budget.details = now + details.min(RUN);
        budget.end = now + all.min(RUN);
        budget
    }

    /// The times that are left: that in which debug information is read, and all of it.
    pub fn left(&self) -> (Duration, Duration) {
        let now = Instant::now();
        let left = |end: Instant| end.saturating_duration_since(now);
        (left(self.details), left(self.end))
    }

    /// Whether the user has had enough.
    pub fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Relaxed)
    }

    pub(super) fn lasting(time: Duration, given_up: &'static AtomicBool) -> Self {
        NAMING.fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        Budget {
            details: now + time / 10 * DETAILS,
            end: now + time,
            given_up,
        }
    }

    /// Whether it is used up, or the user has given up.
    pub fn is_over(&self) -> bool {
        self.given_up.load(Ordering::Relaxed) || Instant::now() >= self.end
    }
}

impl Drop for Budget {
    fn drop(&mut self) {
        NAMING.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The time of a part of a module.
pub(super) struct Clock {
    end: Instant,
    given_up: &'static AtomicBool,
    steps: Cell<u32>,
    over: Cell<bool>,
    cut: Cell<bool>,
}

impl Clock {
    /// For debug information and tables of Go functions.
    pub(super) fn for_details(budget: &Budget) -> Self {
        Self::until(budget.details, budget)
    }

    /// For symbol tables.
    pub(super) fn for_symbols(budget: &Budget) -> Self {
        Self::until(budget.end, budget)
    }

    fn until(end: Instant, budget: &Budget) -> Self {
        Clock {
            end: end.min(Instant::now() + PART),
            given_up: budget.given_up,
            steps: Cell::new(0),
            over: Cell::new(false),
            cut: Cell::new(false),
        }
    }

    /// Counts a small step; whether time is known to be up.
    pub(super) fn step(&self) -> bool {
        let steps = self.steps.get() + 1;
        self.steps.set(steps % STEPS);
        self.over.get() || steps == STEPS && self.is_over()
    }

    /// Whether time is up.
    pub(super) fn is_over(&self) -> bool {
        if !self.over.get() {
            let given_up = self.given_up.load(Ordering::Relaxed);
            self.over.set(given_up || Instant::now() >= self.end);
        }
        self.over.get()
    }

    /// Notes that something was left out for want of memory.
    pub(super) fn cut(&self) {
        self.cut.set(true);
    }

    /// Whether anybody was told that time is up, or something was left out.
    pub(super) fn has_cut(&self) -> bool {
        self.over.get() || self.cut.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_has_run_out_stays_so() {
        static GIVEN_UP: AtomicBool = AtomicBool::new(false);
        let budget = Budget::lasting(Duration::from_secs(3600), &GIVEN_UP);
        let clock = Clock::for_details(&budget);
        assert!((0..3 * STEPS).all(|_| !clock.step()));
        assert!(!clock.has_cut());
        GIVEN_UP.store(true, Ordering::Relaxed);
        assert!((0..STEPS).any(|_| clock.step()));
        assert!(clock.step() && clock.is_over() && clock.has_cut());
    }

    #[test]
    fn symbol_tables_have_time_of_their_own() {
        static GIVEN_UP: AtomicBool = AtomicBool::new(false);
        let mut budget = Budget::lasting(Duration::from_secs(3600), &GIVEN_UP);
        budget.details = Instant::now();
        assert!(Clock::for_details(&budget).is_over());
        assert!(!Clock::for_symbols(&budget).is_over());
        assert!(!budget.is_over());
    }
}
