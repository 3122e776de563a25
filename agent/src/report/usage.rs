//! What the target used of the CPUs, and what it waited for them.

use std::collections::BTreeMap;

use agent_ebpf::End;

use super::seconds;
use crate::capture::Capture;
use crate::profile::{Profile, Space, Stack};

/// Use of the CPUs. Shares are from 0 to 1.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Usage {
    /// CPUs in use on average: 1 is one whole CPU. `None` where neither the kernel's account nor
    /// a sample tells.
    pub cpus: Option<f64>,
    /// CPUs of the machine; 0 where that is not known.
    pub of: u32,
    /// Threads that were runnable and waited for a CPU, on average.
    pub waiting: Option<f64>,
    /// Share of the samples in the kernel; `None` without samples.
    pub in_kernel: Option<f64>,
    /// What the kernel was doing, by its share of the kernel's samples; the largest first.
    pub kernel: Vec<(Entry, f64)>,
    /// The threads by the CPUs each used, the busiest first; where the clock tells CPU time.
    pub threads: Vec<Thread>,
}

/// Why the kernel ran.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Entry {
    /// A system call, by name.
    Syscall(String),
    /// A page was missing.
    PageFault,
    /// A device or a timer.
    Interrupt,
    /// It cannot be told.
    Other,
}

/// A thread and its share of one CPU.
#[derive(Clone, Debug, PartialEq)]
pub struct Thread {
    /// Its id.
    pub tid: u32,
    /// Its name.
    pub name: String,
    /// CPUs it used, 0 to 1.
    pub cpus: f64,
}

impl Usage {
    /// Of this capture.
    pub fn new(capture: &Capture) -> Self {
        let (profile, cpu) = (&capture.profile, &capture.meta.cpu);
        let seconds = seconds(capture);
        let each = capture.seconds_per_sample();
        let samples = profile.samples();
        let in_kernel = in_kernel(profile);
        let of = cpu.cpus.max(profile.facts.cpus);
        Self {
            cpus: cpus(capture, of),
            of,
            waiting: cpu.waited_seconds.map(|waited| waited / seconds),
            in_kernel: (samples > 0).then(|| in_kernel as f64 / samples as f64),
            kernel: entries(profile),
            threads: each.map_or_else(Vec::new, |each| {
                threads(profile, each / capture.sampled_seconds())
            }),
        }
    }

    /// Share of the time in which threads wanted a CPU and had none.
    pub fn waiting_share(&self) -> Option<f64> {
        let (waiting, running) = (self.waiting?, self.cpus?);
        let wanted = waiting + running;
        (wanted > 0.0).then(|| waiting / wanted)
    }
}

/// CPUs in use on average, `of` so many (0: not known): what looks at the processes found, which
/// miss what those did that came and went between two looks, or the samples, where they say more than
/// chance does.
fn cpus(capture: &Capture, of: u32) -> Option<f64> {
    let seconds = capture.sampled_seconds();
    let most = if of > 0 { f64::from(of) } else { f64::INFINITY };
    let samples = capture.profile.samples() as f64;
    let sampled = capture
        .seconds_per_sample()
        .map(|each| (samples * each).min(most * seconds));
    // Three standard deviations of a count.
    let above_chance =
        |&sampled: &f64, used: f64| sampled * (1.0 - 3.0 / samples.max(9.0).sqrt()) > used;
    match capture.meta.cpu.used_seconds {
        Some(used) => {
            let more = sampled.filter(|sampled| above_chance(sampled, used));
            Some(more.unwrap_or(used) / super::seconds(capture))
        }
        None => sampled.map(|used| used / seconds),
    }
}

fn is_in_kernel(profile: &Profile, stack: &Stack) -> bool {
    let leaf = stack.frames.last();
    let leaf = leaf.and_then(|&id| profile.frames.get(id as usize));
    leaf.is_some_and(|frame| frame.space == Space::Kernel)
}

fn in_kernel(profile: &Profile) -> u64 {
    profile
        .stacks
        .iter()
        .filter(|stack| is_in_kernel(profile, stack))
        .map(|stack| stack.count)
        .sum()
}

fn entries(profile: &Profile) -> Vec<(Entry, f64)> {
    let all = in_kernel(profile) as f64;
    let mut counts: BTreeMap<Entry, u64> = BTreeMap::new();
    for stack in &profile.stacks {
        if is_in_kernel(profile, stack) {
            *counts.entry(entry(profile, stack)).or_default() += stack.count;
        }
    }
    let mut entries: Vec<(Entry, f64)> = counts
        .into_iter()
        .map(|(entry, count)| (entry, count as f64 / all))
        .collect();
    entries.sort_by(|a, b| b.1.total_cmp(&a.1));
    entries
}

/// Prefixes of the functions that a system call begins in (the kernel's `SYSCALL_DEFINE` wrappers).
const WRAPPERS: [&str; 6] = [
    "__x64_sys_",
    "__arm64_sys_",
    "__se_sys_",
    "__do_sys_",
    "__ia32_sys_",
    "ksys_",
];

/// Why the kernel ran, by the outermost of its functions that tells.
fn entry(profile: &Profile, stack: &Stack) -> Entry {
    stack
        .frames
        .iter()
        .filter_map(|&id| profile.frames.get(id as usize))
        .filter(|frame| frame.space == Space::Kernel)
        .filter_map(|frame| frame.function.as_deref())
        .find_map(|function| {
            let syscall = WRAPPERS
                .iter()
                .find_map(|wrapper| function.strip_prefix(wrapper));
            match function {
                _ if syscall.is_some() => syscall.map(|name| Entry::Syscall(name.to_owned())),
                "asm_exc_page_fault" | "exc_page_fault" | "do_user_addr_fault" => {
                    Some(Entry::PageFault)
                }
                _ if function.starts_with("asm_sysvec_")
                    || function.starts_with("sysvec_")
                    || function == "asm_common_interrupt" =>
                {
                    Some(Entry::Interrupt)
                }
                _ => None,
            }
        })
        .unwrap_or(Entry::Other)
}

fn threads(profile: &Profile, cpus_per_sample: f64) -> Vec<Thread> {
    let mut counts: BTreeMap<u32, (&str, u64)> = BTreeMap::new();
    for stack in &profile.stacks {
        let (_, count) = counts.entry(stack.tid).or_insert((&stack.thread, 0));
        *count += stack.count;
    }
    let mut threads: Vec<Thread> = counts
        .into_iter()
        .map(|(tid, (name, count))| Thread {
            tid,
            name: name.to_owned(),
            cpus: (count as f64 * cpus_per_sample).min(1.0),
        })
        .collect();
    threads.sort_by(|a, b| b.cpus.total_cmp(&a.cpus));
    threads
}

/// The share of samples of stacks that were cut, by their reason; the largest first.
pub fn cut(profile: &Profile) -> Vec<(End, u64)> {
    let mut counts: BTreeMap<&str, (End, u64)> = BTreeMap::new();
    for stack in profile
        .stacks
        .iter()
        .filter(|stack| !stack.end.is_complete())
    {
        counts.entry(stack.end.name()).or_insert((stack.end, 0)).1 += stack.count;
    }
    let mut cut: Vec<(End, u64)> = counts.into_values().collect();
    cut.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    cut
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::fixture;

    fn about(value: Option<f64>, expected: f64) {
        assert!(
            value.is_some_and(|value| (value - expected).abs() < 1e-9),
            "{value:?} is not {expected}"
        );
    }

    #[test]
    fn processes_that_no_look_saw_are_in_the_samples() {
        let mut capture = fixture::capture::capture();
        let sampled = capture.profile.samples() as f64 / 99.0;
        capture.meta.cpu.used_seconds = Some(2.5);
        about(Usage::new(&capture).cpus, sampled / 30.0);
        // What the looks found is exact: a few samples more are chance.
        capture.meta.cpu.used_seconds = Some(sampled - 0.1);
        about(Usage::new(&capture).cpus, (sampled - 0.1) / 30.0);
        capture.meta.cpu.used_seconds = Some(45.0);
        about(Usage::new(&capture).cpus, 1.5);
        // By chance there may be more samples than the CPUs had time for.
        capture.meta.cpu.used_seconds = Some(2.5);
        capture.profile.facts.frequency = 9;
        about(Usage::new(&capture).cpus, 2.0);
    }

    #[test]
    fn samples_of_cycles_do_not_tell_the_cpu_time() {
        let mut capture = fixture::capture::capture();
        capture.profile.facts.event = "cycles".to_owned();
        capture.meta.cpu.used_seconds = Some(2.5);
        about(Usage::new(&capture).cpus, 2.5 / 30.0);
        capture.meta.cpu.used_seconds = None;
        assert_eq!(Usage::new(&capture).cpus, None);
    }

    #[test]
    fn a_clock_that_was_detached_has_sampled_what_came_before() {
        let mut capture = fixture::capture::capture();
        capture.profile.facts.frequency = 297;
        let whole = Usage::new(&capture).threads;
        assert!(whole[0].cpus < 0.5, "{whole:?}");
        capture.profile.facts.duration_seconds = 15.0;
        let (half, sampled) = (
            Usage::new(&capture),
            capture.profile.samples() as f64 / 297.0,
        );
        for (before, now) in whole.iter().zip(&half.threads) {
            about(Some(now.cpus), before.cpus * 2.0);
        }
        about(half.cpus, 27.9 / 30.0);
        capture.meta.cpu.used_seconds = None;
        about(Usage::new(&capture).cpus, sampled / 15.0);
        // By cycles, too: half of the CPU time had no clock.
        capture.meta.cpu.used_seconds = Some(27.9);
        capture.profile.facts.event = "cycles".to_owned();
        let busy: f64 = Usage::new(&capture)
            .threads
            .iter()
            .map(|thread| thread.cpus)
            .sum();
        about(Some(busy), 27.9 / 30.0);
    }
}
