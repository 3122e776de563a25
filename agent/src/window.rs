//! The samples of the last seconds. What leaves the window is forgotten, here and in the kernel, so
//! that a run may last for days.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

use crate::probe::cpu::{Key, Samples};

/// Seconds that a stack is kept after it has left the window: the kernel may have sent only its hash
/// before it was told to forget it.
const GRACE: u64 = 3;
/// Frames of all stacks kept, eight bytes each; with more, the oldest seconds are dropped early.
const MAX_FRAMES: usize = 2 << 20;
/// Names of processes and threads after which those are looked for that nobody has any more.
const MAX_NAMES: usize = 4096;

/// One second's samples.
#[derive(Debug)]
struct Second {
    /// Its real length, in seconds.
    length: f64,
    counts: HashMap<Key, u64>,
}

/// The samples of the last seconds, by second.
#[derive(Debug)]
pub struct Window {
    /// Seconds kept at most.
    limit: usize,
    /// The oldest first.
    seconds: VecDeque<Second>,
    /// In how many of the seconds a stack occurs.
    uses: HashMap<u64, u32>,
    /// Stacks that have left the window, and when.
    leaving: VecDeque<(u64, u64)>,
    /// Seconds since the start.
    now: u64,
    max_frames: usize,
}

impl Window {
    /// An empty one of so many seconds, at least one.
    pub fn new(seconds: u32) -> Self {
        Self {
            limit: seconds.max(1) as usize,
            seconds: VecDeque::new(),
            uses: HashMap::new(),
            leaving: VecDeque::new(),
            now: 0,
            max_frames: MAX_FRAMES,
        }
    }

    /// A second is over, `length` seconds long: its samples are taken into the window and the oldest
    /// leave it. Gives the hashes of the stacks that the kernel should send again if it meets them.
    pub fn turn(&mut self, samples: &mut Samples, length: f64) -> Vec<u64> {
        self.now += 1;
        let counts = samples.take_counts();
        for stack in stacks(&counts) {
            *self.uses.entry(stack).or_default() += 1;
        }
        self.seconds.push_back(Second { length, counts });
        let mut gone = Vec::new();
        while self.seconds.len() > self.limit {
            gone.extend(self.drop_oldest());
        }
        self.drop_gone(samples);
        let mut held = samples.frames();
        while held > self.max_frames && self.seconds.len() > 1 {
            let left = self.drop_oldest();
            held -= left
                .iter()
                .map(|stack| samples.frames_of(*stack))
                .sum::<usize>();
            gone.extend(left);
        }
        if samples.names.len() > MAX_NAMES {
            self.drop_names(samples);
        }
        gone
    }

    /// The stacks that only the oldest second had.
    fn drop_oldest(&mut self) -> Vec<u64> {
        let Some(oldest) = self.seconds.pop_front() else {
            return Vec::new();
        };
        let mut gone = Vec::new();
        for stack in stacks(&oldest.counts) {
            if let Some(uses) = self.uses.get_mut(&stack) {
                *uses -= 1;
                if *uses == 0 {
                    self.uses.remove(&stack);
                    gone.push(stack);
                }
            }
        }
        let now = self.now;
        self.leaving.extend(gone.iter().map(|&stack| (now, stack)));
        gone
    }

    /// Forgets the stacks that left long enough ago and did not come back.
    fn drop_gone(&mut self, samples: &mut Samples) {
        while let Some(&(at, stack)) = self.leaving.front()
            && self.now - at >= GRACE
        {
            self.leaving.pop_front();
            if !self.uses.contains_key(&stack) {
                samples.forget(stack);
            }
        }
    }

    /// Forgets the names that no sample of the window has.
    fn drop_names(&mut self, samples: &mut Samples) {
        let keys = self.seconds.iter().flat_map(|second| second.counts.keys());
        let used: BTreeSet<u32> = keys.flat_map(|key| [key.comm, key.thread]).collect();
        let renumbered = samples.keep_names(&used);
        let new = |old: u32| renumbered.get(&old).copied().unwrap_or(0);
        for second in &mut self.seconds {
            second.counts = std::mem::take(&mut second.counts)
                .into_iter()
                .map(|(key, count)| (key.renumbered(new), count))
                .collect();
        }
    }

    /// The samples of the last `seconds`, to the nearest whole one of ours, and how long those were.
    pub fn last(&self, seconds: u32) -> (HashMap<Key, u64>, f64) {
        let mut sums = HashMap::new();
        let mut length = 0.0;
        for second in self.seconds.iter().rev() {
            // A second is a little longer than a second.
            if length + second.length / 2.0 > f64::from(seconds) {
                break;
            }
            length += second.length;
            for (key, count) in &second.counts {
                *sums.entry(key.clone()).or_default() += count;
            }
        }
        (sums, length)
    }

    /// Seconds that are over since the start.
    pub fn seconds(&self) -> u64 {
        self.now
    }

    /// Places among the targets of the processes that have samples in the window.
    pub fn processes(&self) -> HashSet<usize> {
        let keys = self.seconds.iter().flat_map(|second| second.counts.keys());
        keys.map(|key| key.process).collect()
    }
}

/// The distinct stacks.
fn stacks(counts: &HashMap<Key, u64>) -> HashSet<u64> {
    counts.keys().map(|key| key.stack).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;
    use crate::probe::cpu::RawStack;
    use agent_ebpf::End;

    fn sample(samples: &mut Samples, stack: u64, name: &str) {
        samples.stacks.entry(stack).or_insert_with(|| RawStack {
            kernel: Vec::new(),
            user: vec![stack; 10],
            end: End::Root,
        });
        let thread = samples.name(name);
        let key = Key {
            process: 0,
            tid: 1,
            comm: thread,
            thread,
            stack,
        };
        *samples.counts.entry(key).or_default() += 1;
    }

    fn total(window: &Window, seconds: u32) -> u64 {
        window.last(seconds).0.values().sum()
    }

    #[test]
    fn old_seconds_leave() {
        let (mut window, mut samples) = (Window::new(3), Samples::since(std::time::Instant::now()));
        for second in 1..=5u64 {
            for _ in 0..second {
                sample(&mut samples, 7, "a");
            }
            assert!(window.turn(&mut samples, 1.1).is_empty());
        }
        assert_eq!(total(&window, 3), 3 + 4 + 5);
        assert_eq!(total(&window, 1), 5);
        assert_eq!(total(&window, 0), 0);
        assert_eq!(total(&window, 100), 12);
        assert!((window.last(2).1 - 2.2).abs() < 1e-9);
        assert!(samples.counts.is_empty());
    }

    #[test]
    fn a_stack_is_forgotten_after_it_has_left_and_not_before() {
        let (mut window, mut samples) = (Window::new(2), Samples::since(std::time::Instant::now()));
        sample(&mut samples, 7, "a");
        assert!(window.turn(&mut samples, 1.0).is_empty());
        assert!(window.turn(&mut samples, 1.0).is_empty());
        assert_eq!(window.turn(&mut samples, 1.0), [7]);
        for _ in 0..GRACE - 1 {
            assert!(window.turn(&mut samples, 1.0).is_empty());
            assert!(samples.stacks.contains_key(&7));
        }
        window.turn(&mut samples, 1.0);
        assert!(samples.stacks.is_empty());
    }

    #[test]
    fn a_stack_that_comes_back_in_time_stays() {
        let (mut window, mut samples) = (Window::new(2), Samples::since(std::time::Instant::now()));
        sample(&mut samples, 7, "a");
        for _ in 0..3 {
            window.turn(&mut samples, 1.0);
        }
        sample(&mut samples, 7, "a");
        for _ in 0..2 {
            assert!(window.turn(&mut samples, 1.0).is_empty());
        }
        assert!(samples.stacks.contains_key(&7));
        assert_eq!(total(&window, 2), 1);
    }

    #[test]
    fn a_flood_of_stacks_shortens_the_window() {
        let (mut window, mut samples) =
            (Window::new(60), Samples::since(std::time::Instant::now()));
        window.max_frames = 1000;
        for second in 0..200u64 {
            for stack in 0..30 {
                sample(&mut samples, second * 100 + stack, "a");
            }
            window.turn(&mut samples, 1.0);
            assert!(samples.frames() <= 1000 + 300 * (GRACE as usize + 1));
        }
        // 300 frames a second; those that are leaving count too.
        assert!(
            (1..=3).contains(&window.seconds.len()),
            "{}",
            window.seconds.len()
        );
        assert!(window.uses.len() <= 90 && window.leaving.len() <= 200);
    }

    #[test]
    fn names_that_nobody_has_any_more_are_dropped() {
        let (mut window, mut samples) = (Window::new(2), Samples::since(std::time::Instant::now()));
        for number in 0..3 * MAX_NAMES {
            sample(&mut samples, 7, &format!("thread {number}"));
            window.turn(&mut samples, 1.0);
            assert!(samples.names.len() <= MAX_NAMES + 1);
        }
        let (counts, _) = window.last(1);
        let last = counts.keys().next().unwrap();
        let name = &samples.names[last.thread as usize];
        assert_eq!(*name, format!("thread {}", 3 * MAX_NAMES - 1));
    }
}
