//! What processes take of the CPUs during a run.

use std::collections::HashMap;
use std::fs;

use super::Process;

/// Most threads that one look reads: each takes some ten microseconds.
const MAX_THREADS: usize = 4096;

/// Growing counts of processes and their threads, each from its first look to its last one.
#[derive(Debug, Default)]
pub struct Usage {
    looked: bool,
    /// Clock ticks, by process and its start.
    processes: HashMap<(u32, u64), Growth>,
    /// Nanoseconds, by process and thread.
    threads: HashMap<(u32, u32), Growth>,
    incomplete: bool,
}

#[derive(Clone, Copy, Debug)]
struct Growth {
    first: u64,
    last: u64,
}

impl Usage {
    /// Reads what the processes have taken so far. One that the first look did not find has begun
    /// since; of one that has ended, what the last look found is kept.
    pub fn look<'a>(&mut self, processes: impl IntoIterator<Item = &'a Process>) {
        let mut threads = 0;
        for process in processes {
            let pid = process.pid();
            if let Ok(stat) = process.stat() {
                let key = (pid, stat.start_time);
                grow(&mut self.processes, key, stat.cpu_ticks, self.looked);
            }
            let Ok(entries) = process.path("task").and_then(fs::read_dir) else {
                continue;
            };
            for entry in entries.flatten() {
                threads += 1;
                if threads > MAX_THREADS {
                    self.incomplete = true;
                    break;
                }
                let tid = entry.file_name().to_str().and_then(|tid| tid.parse().ok());
                let waited = fs::read_to_string(entry.path().join("schedstat"))
                    .ok()
                    .and_then(|text| waited(&text));
                if let (Some(tid), Some(waited)) = (tid, waited) {
                    grow(&mut self.threads, (pid, tid), waited, self.looked);
                }
            }
        }
        self.looked = true;
    }

    /// CPU time, in seconds; `None` where it could not be read.
    pub fn used_seconds(&self) -> Option<f64> {
        // SAFETY: takes an integer and touches no memory.
        let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
        let used = sum(&self.processes)?;
        (ticks > 0).then(|| used as f64 / ticks as f64)
    }

    /// Time that threads waited for a CPU while they could have run, in seconds; `None` where it
    /// could not be read, or not of all.
    pub fn waited_seconds(&self) -> Option<f64> {
        sum(&self.threads)
            .filter(|_| !self.incomplete)
            .map(|nanoseconds| nanoseconds as f64 / 1e9)
    }
}

/// Most threads whose waiting is looked at several times a second.
const MAX_PULSE: usize = 256;

/// CPU time and waiting of processes while they run, looked at several times a second. The sums only
/// grow.
#[derive(Debug, Default)]
pub struct Pulse {
    looked: bool,
    /// Clock ticks of each process: its own, and those of its children that it has waited for.
    ticks: HashMap<u32, (u64, u64)>,
    /// Nanoseconds that each thread has waited.
    waits: HashMap<(u32, u32), u64>,
    used: u64,
    waited: u64,
    /// There were too many threads at some look.
    incomplete: bool,
}

impl Pulse {
    /// Since the first look, in nanoseconds: the CPU time of the processes, and how long their
    /// threads waited for a CPU; `None` where that cannot be read, or not of all.
    pub fn look<'a>(
        &mut self,
        processes: impl IntoIterator<Item = &'a Process>,
    ) -> (u64, Option<u64>) {
        let (mut ticks, mut waits) = (HashMap::new(), HashMap::new());
        for process in processes {
            let pid = process.pid();
            if let Ok(stat) = process.stat() {
                ticks.insert(pid, (stat.cpu_ticks, stat.children_ticks));
            }
            let threads = process.path("task").and_then(fs::read_dir).ok();
            for entry in threads.into_iter().flatten().flatten() {
                if waits.len() >= MAX_PULSE {
                    self.incomplete = true;
                    break;
                }
                let text = fs::read_to_string(entry.path().join("schedstat")).ok();
                let tid = entry.file_name().to_str().and_then(|tid| tid.parse().ok());
                if let (Some(tid), Some(waited)) = (tid, text.and_then(|text| waited(&text))) {
                    waits.insert((pid, tid), waited);
                }
            }
        }
        if self.looked {
            self.used += grown_ticks(&self.ticks, &ticks) * nanoseconds_per_tick();
            self.waited += waits
                .iter()
                .map(|(key, &now)| now.saturating_sub(self.waits.get(key).copied().unwrap_or(0)))
                .sum::<u64>();
        }
        self.looked = true;
        (self.ticks, self.waits) = (ticks, waits);
        let known = !self.waits.is_empty() && !self.incomplete;
        (self.used, known.then_some(self.waited))
    }
}

/// What processes have used between two looks: what the living ones show, or, where more, with
/// what those left to their parents that have ended.
fn grown_ticks(before: &HashMap<u32, (u64, u64)>, now: &HashMap<u32, (u64, u64)>) -> u64 {
    let own = |(pid, (own, _)): (&u32, &(u64, u64))| {
        own.saturating_sub(before.get(pid).map_or(0, |before| before.0))
    };
    let all = |looks: &HashMap<u32, (u64, u64)>| -> u64 {
        looks.values().map(|(own, children)| own + children).sum()
    };
    let living = now.iter().map(own).sum::<u64>();
    living.max(all(now).saturating_sub(all(before)))
}

fn nanoseconds_per_tick() -> u64 {
    // SAFETY: takes an integer and touches no memory.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    1_000_000_000 / u64::try_from(ticks).unwrap_or(100).max(1)
}

fn grow<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, Growth>, key: K, now: u64, later: bool) {
    let first = if later { 0 } else { now };
    counts
        .entry(key)
        .or_insert(Growth { first, last: now })
        .last = now;
}

fn sum<K>(counts: &HashMap<K, Growth>) -> Option<u64> {
    let grown = |growth: &Growth| growth.last.saturating_sub(growth.first);
    (!counts.is_empty()).then(|| counts.values().map(grown).sum())
}

/// The second field: nanoseconds on the run queue (Documentation/scheduler/sched-stats.rst).
fn waited(schedstat: &str) -> Option<u64> {
    schedstat.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn work_of_this_process_is_seen() {
        let own = Process::open(std::process::id()).unwrap();
        let mut usage = Usage::default();
        assert_eq!((usage.used_seconds(), usage.waited_seconds()), (None, None));
        usage.look([&own]);
        assert_eq!(usage.used_seconds(), Some(0.0));
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_millis(300) {
            std::hint::black_box(0);
        }
        usage.look([&own]);
        assert!(usage.used_seconds().unwrap() > 0.0);
        assert!(usage.waited_seconds().is_some());
    }

    #[test]
    fn what_ended_children_left_to_their_parent_is_counted_once() {
        let looks = |processes: &[(u32, u64, u64)]| -> HashMap<u32, (u64, u64)> {
            let each = processes.iter();
            each.map(|&(pid, own, children)| (pid, (own, children)))
                .collect()
        };
        let before = looks(&[(1, 10, 5), (2, 7, 0)]);
        // The child took 3 more before it ended.
        assert_eq!(grown_ticks(&before, &looks(&[(1, 11, 15)])), 4);
        // Children that nobody saw.
        assert_eq!(grown_ticks(&before, &looks(&[(1, 10, 25), (2, 7, 0)])), 20);
        // One whose parent is out of scope.
        assert_eq!(grown_ticks(&before, &looks(&[(1, 12, 5)])), 2);
        assert_eq!(
            grown_ticks(&before, &looks(&[(1, 10, 5), (2, 7, 0), (3, 4, 0)])),
            4
        );
    }

    #[test]
    fn the_pulse_of_this_process_is_felt() {
        let mut pulse = Pulse::default();
        let own = Process::open(std::process::id()).unwrap();
        assert_eq!(pulse.look([&own]).0, 0);
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_millis(100) {
            std::hint::black_box(0);
        }
        let (used, waited) = pulse.look([&own]);
        assert!(used > 0);
        assert!(waited.is_some());
    }

    #[test]
    fn what_begins_later_counts_from_nothing() {
        let own = Process::open(std::process::id()).unwrap();
        let mut usage = Usage::default();
        usage.look([]);
        usage.look([&own]);
        let waited = usage
            .threads
            .values()
            .map(|growth| growth.first)
            .sum::<u64>();
        assert_eq!(waited, 0);
        assert_eq!(self::waited("12 34 5"), Some(34));
        assert_eq!(self::waited("12"), None);
    }
}
