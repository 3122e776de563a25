//! Reads the kernel's counts into the model.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};

use agent_ebpf::failure::{Loss, bucket, row};

use super::Failures;
use super::arguments::Known;
use crate::process::priority::Undisturbed;
use crate::session::Attached;
use crate::syscalls::{Counted, CountedStack, Failure, Latency, Report, benign, name, percentile};

const NS: f64 = 1e9;

/// Sums of one row over all CPUs; see [`agent_ebpf::failure::Row`].
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    count: u64,
    first_ns: u64,
    last_ns: u64,
    other_arguments: u64,
    max_ns: u64,
}

/// What one argument, stack or bucket counted.
type Parts = HashMap<u64, Vec<(u64, u64)>>;

/// What the kernel has counted but userspace knows no text or stack of. It may be in the ring
/// buffer still: what is missing in two reports one after the other, or at the end, is lost.
#[derive(Debug, Default)]
pub(super) struct Missing {
    /// What was missing in the last report.
    before: HashSet<u64>,
    /// What is lost.
    keys: HashSet<u64>,
    /// Most failures that were lost at once: it does not fall before the end.
    most: u64,
}

impl Missing {
    /// Takes in the counts of a report; the result is how many failures are lost.
    fn look(&mut self, parts: &Parts, known: impl Fn(u64) -> bool, last: bool) -> u64 {
        let missing = || parts.values().flatten().filter(|(key, _)| !known(*key));
        let lost: Vec<_> = missing()
            .filter(|(key, _)| last || self.before.contains(key))
            .collect();
        let count = lost.iter().map(|(_, count)| count).sum();
        self.keys = lost.iter().map(|(key, _)| *key).collect();
        self.before = missing().map(|(key, _)| *key).collect();
        self.most = if last { count } else { self.most.max(count) };
        self.most
    }

    fn is_lost(&self, key: u64) -> bool {
        self.keys.contains(&key)
    }
}

/// What a row's arguments are judged by.
struct Judge<'a> {
    known: &'a HashMap<u64, Known>,
    missing: &'a Missing,
    /// File names of the libraries that are mapped.
    libraries: HashSet<&'a str>,
    /// Arguments of a row that are shown.
    shown: usize,
    /// Whether the run is over: all counts are of the same moment, and all texts are here.
    last: bool,
}

impl Failures {
    /// The counts as they are now. `last`: the run is over, and the rates are over all of it.
    pub fn report(
        &mut self,
        session: &Attached,
        last: bool,
        stacks: &mut dyn FnMut(u64) -> Vec<String>,
    ) -> Report {
        // Where the hook is a perf event, the kernel skips it on a CPU on which somebody is in the
        // middle of reading a map (`bpf_disable_instrumentation`, kernel/bpf/syscall.c).
        let _undisturbed = self.event.is_some().then(Undisturbed::begin);
        let elapsed = self.elapsed();
        let since = if last {
            elapsed
        } else {
            elapsed - self.counted_at
        };
        let arguments = self.argument_counts();
        let libraries: HashSet<&str> = session
            .targets()
            .modules()
            .iter()
            .map(|module| module.name.as_str())
            .collect();
        let stack_counts = parts(self.stack_counts.iter());
        let texts =
            (self.missing_texts).look(&arguments, |key| self.known.contains_key(&key), last);
        let frames =
            (self.missing_stacks).look(&stack_counts, |hash| self.stacks.contains_key(&hash), last);
        let judge = Judge {
            known: &self.known,
            missing: &self.missing_texts,
            libraries,
            shown: self.shown_arguments,
            last,
        };
        let buckets = parts(self.buckets.iter());
        let mut report = Report {
            last,
            elapsed_s: elapsed,
            ..Report::default()
        };
        for (row, sums) in self.sums() {
            let before = if last {
                0
            } else {
                self.counted.insert(row, sums.count).unwrap_or(0)
            };
            let mut failure = self.failure(row, &sums);
            failure.rate = (sums.count - before) as f64 / since.max(1e-3);
            let own = arguments.get(&row).map(Vec::as_slice).unwrap_or_default();
            judge.fill_arguments(&mut failure, own, sums.other_arguments);
            failure.latency_us = self
                .latency
                .then(|| latency(buckets.get(&row), sums.max_ns));
            failure.stacks = counted_stacks(stack_counts.get(&row), stacks);
            report.errors.push(failure);
        }
        self.counted_at = elapsed;
        self.skipped = self.skipped.max(session.recursion_misses(super::PROGRAMS));
        report.losses = self.losses();
        report
            .losses
            .insert("arguments_not_received".to_owned(), texts);
        report
            .losses
            .insert("stacks_not_received".to_owned(), frames);
        let list = session.targets().list();
        report.processes = list.len();
        report.target = list.first().map(super::target_facts).unwrap_or_default();
        report.sort();
        report
    }

    pub(super) fn seconds(&self, ns: u64) -> f64 {
        ns.saturating_sub(self.started_ns) as f64 / NS
    }

    fn sums(&self) -> Vec<(u64, Sums)> {
        let mut rows = Vec::new();
        for (row, cpus) in self.rows.iter().flatten() {
            let mut sums = Sums {
                first_ns: u64::MAX,
                ..Sums::default()
            };
            for &[count, first, last, other_arguments, _, _, max] in cpus.iter() {
                sums.count += count;
                sums.other_arguments += other_arguments;
                sums.last_ns = sums.last_ns.max(last);
                sums.max_ns = sums.max_ns.max(max);
                if count > 0 {
                    sums.first_ns = sums.first_ns.min(first);
                }
            }
            if sums.count > 0 {
                rows.push((row, sums));
            }
        }
        rows
    }

    fn failure(&self, row: u64, sums: &Sums) -> Failure {
        let (number, errno) = (row::number(row), row::errno(row));
        let calls = self.latency.then(|| self.calls(number)).flatten();
        // The number of some calls is not known at their end: rt_sigreturn's.
        let calls = calls.filter(|&calls| calls >= sums.count);
        Failure {
            syscall: name::of_syscall(number),
            errno: name::of_errno(errno),
            count: sums.count,
            restarted: name::is_restart(errno),
            calls,
            share: calls.map(|calls| sums.count as f64 / calls.max(1) as f64),
            first_s: self.seconds(sums.first_ns),
            last_s: self.seconds(sums.last_ns),
            ..Failure::default()
        }
    }

    /// All calls of a system call.
    fn calls(&self, number: u32) -> Option<u64> {
        let cpus = self.calls.get(&number, 0).ok()?;
        Some(cpus.iter().sum())
    }

    /// By row: keys of arguments and their counts.
    fn argument_counts(&self) -> Parts {
        let mut counts = Parts::new();
        for (key, [count, row, _]) in self.arguments.iter().flatten() {
            counts.entry(row).or_default().push((key, count));
        }
        counts
    }

    /// What could not be kept, by cause.
    fn losses(&self) -> BTreeMap<String, u64> {
        let mut sums = [0; Loss::ALL.len()];
        if let Ok(cpus) = self.losses.get(&0, 0) {
            for cpu in cpus.iter() {
                for (sum, value) in sums.iter_mut().zip(cpu) {
                    *sum += value;
                }
            }
        }
        let mut losses: BTreeMap<String, u64> = Loss::ALL
            .iter()
            .zip(sums)
            .map(|(loss, sum)| (loss.name().to_owned(), sum))
            .collect();
        losses.insert("undecoded".to_owned(), self.undecoded);
        losses.insert("programs_skipped".to_owned(), self.skipped);
        losses
    }
}

impl Judge<'_> {
    /// The most frequent arguments, those that are not benign first; and whether all are benign.
    /// `other`: failures with arguments that were not kept.
    fn fill_arguments(&self, failure: &mut Failure, own: &[(u64, u64)], other: u64) {
        let reason =
            |facts: &benign::Facts<'_>| benign::reason(&failure.syscall, &failure.errno, facts);
        let mut by_value: BTreeMap<(&str, Option<&'static str>), u64> = BTreeMap::new();
        for (key, count) in own {
            if let Some(known) = self.known.get(key) {
                let reason = reason(&known.facts(|name| self.libraries.contains(name)));
                *by_value.entry((&known.value, reason)).or_default() += count;
            }
        }
        let always = reason(&benign::Facts::default());
        let mut args: Vec<Counted> = by_value
            .into_iter()
            .map(|((value, reason), count)| Counted {
                value: value.to_owned(),
                count,
                benign: reason.map(str::to_owned),
            })
            .collect();
        args.sort_by_key(|arg| (arg.benign.is_some(), Reverse(arg.count)));
        failure.benign_count = args
            .iter()
            .filter(|arg| arg.benign.is_some())
            .map(|arg| arg.count)
            .sum();
        // Before the end the counts are not of one moment, and texts may be on their way.
        let doubt = if self.last {
            failure.benign_count < failure.count
        } else {
            other > 0 || own.iter().any(|(key, _)| self.missing.is_lost(*key))
        };
        failure.benign = match args.iter().max_by_key(|arg| arg.count) {
            _ if args.iter().any(|arg| arg.benign.is_none()) => None,
            _ if always.is_none() && doubt => None,
            Some(most) => most.benign.clone(),
            None => always.map(str::to_owned),
        };
        args.truncate(self.shown);
        let shown: u64 = args.iter().map(|arg| arg.count).sum();
        let kept: u64 = own.iter().map(|(_, count)| count).sum();
        failure.other_args = (kept + other).saturating_sub(shown);
        failure.args = args;
    }
}

fn parts<E>(entries: impl Iterator<Item = Result<([u64; 2], u64), E>>) -> Parts {
    let mut parts = Parts::new();
    for ([row, part], count) in entries.flatten() {
        parts.entry(row).or_default().push((part, count));
    }
    parts
}

fn latency(buckets: Option<&Vec<(u64, u64)>>, max_ns: u64) -> Latency {
    let mut buckets = buckets.cloned().unwrap_or_default();
    buckets.sort_unstable();
    let counts: Vec<(f64, u64)> = buckets
        .iter()
        .map(|&(number, count)| (bucket::middle(number), count))
        .collect();
    let max = max_ns as f64;
    let at = |share| percentile(&counts, share).unwrap_or(0.0).min(max) / 1000.0;
    Latency {
        p50: at(0.5),
        p99: at(0.99),
        max: max / 1000.0,
    }
}

fn counted_stacks(
    counts: Option<&Vec<(u64, u64)>>,
    name: &mut dyn FnMut(u64) -> Vec<String>,
) -> Vec<CountedStack> {
    let mut stacks: Vec<CountedStack> = counts
        .into_iter()
        .flatten()
        .map(|&(hash, count)| CountedStack {
            frames: name(hash),
            count,
        })
        .collect();
    stacks.sort_by_key(|stack| Reverse(stack.count));
    stacks
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEARCHED: &str = "/usr/lib/python3.11/yaml.py";

    /// A row of `openat` that failed so many times: its arguments are of a search path, the texts
    /// of those from number 10 on are missing.
    fn judged(
        count: u64,
        own: &[(u64, u64)],
        other: u64,
        missing: &Missing,
        last: bool,
    ) -> Failure {
        let known = Known {
            value: SEARCHED.to_owned(),
            path: SEARCHED.to_owned(),
            ..Known::default()
        };
        let known: HashMap<u64, Known> = (0..10).map(|key| (key, known.clone())).collect();
        let judge = Judge {
            known: &known,
            missing,
            libraries: HashSet::new(),
            shown: 5,
            last,
        };
        let mut failure = Failure {
            syscall: "openat".to_owned(),
            errno: "ENOENT".to_owned(),
            count,
            ..Failure::default()
        };
        judge.fill_arguments(&mut failure, own, other);
        failure
    }

    #[test]
    fn a_row_with_failures_of_unknown_arguments_is_not_benign() {
        let mut missing = Missing::default();
        let benign = |row: &Failure| row.benign.is_some();
        for last in [false, true] {
            let all_known = judged(30, &[(1, 10), (2, 20)], 0, &missing, last);
            assert!(benign(&all_known) && all_known.benign_count == 30);
            let full = judged(10_030, &[(1, 10), (2, 20)], 10_000, &missing, last);
            assert!(!benign(&full), "the map was full");
            assert_eq!((full.benign_count, full.other_args), (30, 10_000));
        }
        // On its way; still missing when the next report is made; missing at the end.
        let own = [(1, 10), (11, 20)];
        let parts = Parts::from([(0, own.to_vec())]);
        missing.look(&parts, |key| key < 10, false);
        assert!(benign(&judged(30, &own, 0, &missing, false)));
        missing.look(&parts, |key| key < 10, false);
        assert!(!benign(&judged(30, &own, 0, &missing, false)));
        assert!(!benign(&judged(30, &own, 0, &Missing::default(), true)));
        // A count that was read a moment after its arguments.
        assert!(benign(&judged(31, &own[..1], 0, &missing, false)));
    }

    #[test]
    fn a_rule_for_the_whole_row_needs_no_arguments() {
        let judge = Judge {
            known: &HashMap::new(),
            missing: &Missing::default(),
            libraries: HashSet::new(),
            shown: 5,
            last: true,
        };
        let mut failure = Failure {
            syscall: "futex".to_owned(),
            errno: "EAGAIN".to_owned(),
            count: 9,
            ..Failure::default()
        };
        judge.fill_arguments(&mut failure, &[(1, 4)], 5);
        assert!(failure.benign.is_some());
    }

    #[test]
    fn what_is_on_its_way_is_not_lost_and_losses_do_not_fall() {
        let mut missing = Missing::default();
        let mut look = |own: &[(u64, u64)], known: u64, last: bool| {
            let parts = Parts::from([(0, own.to_vec())]);
            missing.look(&parts, |key| key < known, last)
        };
        assert_eq!(look(&[(1, 3)], 1, false), 0, "in the ring buffer");
        assert_eq!(look(&[(1, 3), (2, 5)], 2, false), 0, "another one");
        assert_eq!(look(&[(1, 3), (2, 6)], 2, false), 6, "missing twice");
        assert_eq!(look(&[(1, 3), (2, 7)], 3, false), 6, "sent again");
        assert_eq!(look(&[(3, 1)], 3, false), 6);
        assert_eq!(look(&[(3, 1)], 4, false), 6);
        assert_eq!(look(&[(4, 2)], 4, true), 2, "at the end it is known");
    }
}
