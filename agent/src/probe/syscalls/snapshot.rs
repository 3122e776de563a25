//! Reads the kernel's counts into the model.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};

use agent_ebpf::failure::{Loss, bucket, row};

use super::Failures;
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
            self.fill_arguments(&mut failure, own, &sums, &libraries);
            failure.latency_us = self
                .latency
                .then(|| latency(buckets.get(&row), sums.max_ns));
            failure.stacks = counted_stacks(stack_counts.get(&row), stacks);
            report.errors.push(failure);
        }
        self.counted_at = elapsed;
        self.skipped = self.skipped.max(session.recursion_misses(super::PROGRAMS));
        report.losses = self.losses();
        let missing = |parts: &Parts, known: &dyn Fn(&u64) -> bool| -> u64 {
            let all = parts.values().flatten();
            all.filter(|(key, _)| !known(key))
                .map(|(_, count)| count)
                .sum()
        };
        let texts = missing(&arguments, &|key| self.known.contains_key(key));
        let frames = missing(&stack_counts, &|hash| self.stacks.contains_key(hash));
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

    /// The most frequent arguments, those that are not benign first; and whether all are benign.
    fn fill_arguments(
        &self,
        failure: &mut Failure,
        own: &[(u64, u64)],
        sums: &Sums,
        libraries: &HashSet<&str>,
    ) {
        let reason =
            |facts: &benign::Facts<'_>| benign::reason(&failure.syscall, &failure.errno, facts);
        let mut by_value: BTreeMap<(&str, Option<&'static str>), u64> = BTreeMap::new();
        for (key, count) in own {
            if let Some(known) = self.known.get(key) {
                let reason = reason(&known.facts(|name| libraries.contains(name)));
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
        failure.benign = match args.iter().max_by_key(|arg| arg.count) {
            _ if args.iter().any(|arg| arg.benign.is_none()) => None,
            Some(most) => most.benign.clone(),
            None => always.map(str::to_owned),
        };
        args.truncate(self.shown_arguments);
        let shown: u64 = args.iter().map(|arg| arg.count).sum();
        let kept: u64 = own.iter().map(|(_, count)| count).sum();
        failure.other_args = (kept + sums.other_arguments).saturating_sub(shown);
        failure.args = args;
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
