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
        let sampled = capture.seconds_per_sample();
        let samples = profile.samples();
        let measured = cpu.used_seconds.map(|used| used / seconds);
        let in_kernel = in_kernel(profile);
        Self {
            cpus: measured.or(sampled.map(|each| samples as f64 * each / seconds)),
            of: cpu.cpus.max(profile.facts.cpus),
            waiting: cpu.waited_seconds.map(|waited| waited / seconds),
            in_kernel: (samples > 0).then(|| in_kernel as f64 / samples as f64),
            kernel: entries(profile),
            threads: sampled.map_or_else(Vec::new, |each| threads(profile, each / seconds)),
        }
    }

    /// Share of the time in which threads wanted a CPU and had none.
    pub fn waiting_share(&self) -> Option<f64> {
        let (waiting, running) = (self.waiting?, self.cpus?);
        let wanted = waiting + running;
        (wanted > 0.0).then(|| waiting / wanted)
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
