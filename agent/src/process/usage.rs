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
