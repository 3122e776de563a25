//! The texts that several formats share: a frame's, a stack's, and the account of the ticks.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use agent_ebpf::End;

use super::escape;
use crate::profile::{
    Accounting, Container, Frame, JIT_MODULE, Profile, Space, Stack, TargetFacts, Unnamed,
};

/// What kind of code a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// The process.
    Process,
    /// Compiled code of the program or a library.
    User,
    /// The same, inlined into its caller.
    Inlined,
    /// Code in no file: made at run time.
    Jit,
    /// The kernel.
    Kernel,
    /// Stands for the frames that a cut stack lacks.
    Truncated,
}

/// The kind of a frame of code.
pub fn kind(frame: &Frame) -> Kind {
    match frame.space {
        Space::Kernel => Kind::Kernel,
        Space::User if frame.inlined => Kind::Inlined,
        Space::User if is_jit(frame) => Kind::Jit,
        Space::User => Kind::User,
    }
}

/// Whether the code lies in no file, listed in a perf map or not.
fn is_jit(frame: &Frame) -> bool {
    frame
        .module
        .as_deref()
        .is_none_or(|module| module == JIT_MODULE)
}

/// The frame's name as one frame of a folded stack, without a mark of its kind.
///
/// Without a function: `[module+0x…]` with the function's start where that is known, so that all
/// of its frames have one name, else with the address; `[unknown]` outside every module. A kernel
/// address is never written: it would give away where the kernel was loaded. JIT code that has no
/// name of its own, `(anonymous)`, is told apart by its place in the source.
pub fn frame_name(frame: &Frame) -> String {
    match (&frame.function, &frame.module) {
        (Some(function), _) if function.starts_with('(') && is_jit(frame) => {
            escape::frame(&(function.clone() + &place(frame)))
        }
        (Some(function), _) => escape::frame(function),
        (None, Some(module)) => {
            let module = escape::frame(module);
            let module = module.trim_start_matches('[').trim_end_matches(']');
            match frame.space {
                Space::User => {
                    let start = frame.function_start.unwrap_or(frame.address);
                    format!("[{module}+{start:#x}]")
                }
                Space::Kernel => format!("[{module}]"),
            }
        }
        (None, None) => "[unknown]".to_owned(),
    }
}

/// ` server.js:12`: the name of the source file and the line, as far as they are known.
fn place(frame: &Frame) -> String {
    let file = frame
        .file
        .as_deref()
        .and_then(|path| path.rsplit('/').next());
    match (file, frame.line) {
        (Some(file), Some(line)) => format!(" {file}:{line}"),
        (Some(file), None) => format!(" {file}"),
        (None, _) => String::new(),
    }
}

/// The pseudo frame that stands for what a cut stack lacks; `None` for a complete one.
pub fn truncated(end: End) -> Option<String> {
    (!end.is_complete()).then(|| format!("[truncated: {}]", end.name()))
}

/// Names processes: by comm, or by `comm-pid` where several processes of the run share it.
#[derive(Debug)]
pub struct Processes<'a> {
    pids: HashMap<&'a str, BTreeSet<u32>>,
}

impl<'a> Processes<'a> {
    /// For the processes of this profile.
    pub fn new(profile: &'a Profile) -> Self {
        let mut pids: HashMap<&str, BTreeSet<u32>> = HashMap::new();
        for stack in &profile.stacks {
            pids.entry(&stack.comm).or_default().insert(stack.pid);
        }
        Self { pids }
    }

    /// The name of the stack's process, as one frame of a folded stack.
    pub fn name(&self, stack: &Stack) -> String {
        let comm = escape::frame(&stack.comm);
        match self.pids.get(stack.comm.as_str()) {
            Some(pids) if pids.len() > 1 => format!("{comm}-{}", stack.pid),
            _ => comm,
        }
    }
}

/// The distinct call paths of a profile, in order.
#[derive(Debug)]
pub struct Paths {
    /// The distinct frames by name and kind, sorted.
    pub names: Vec<(String, Kind)>,
    /// Each path, root first, as indices into `names`, with its samples. Sorted frame by frame:
    /// paths that share a start stand together.
    pub counts: BTreeMap<Vec<usize>, u64>,
}

impl Paths {
    /// The paths of this profile: the process, the mark of a cut stack, then the frames. Stacks
    /// equal in names and kinds are one.
    pub fn new(profile: &Profile) -> Self {
        let processes = Processes::new(profile);
        let frames: Vec<(String, Kind)> = profile
            .frames
            .iter()
            .map(|frame| (frame_name(frame), kind(frame)))
            .collect();
        let roots: Vec<Vec<(String, Kind)>> = profile
            .stacks
            .iter()
            .map(|stack| {
                let mut root = vec![(processes.name(stack), Kind::Process)];
                root.extend(truncated(stack.end).map(|text| (text, Kind::Truncated)));
                root
            })
            .collect();
        let names: BTreeSet<&(String, Kind)> =
            frames.iter().chain(roots.iter().flatten()).collect();
        let names: Vec<(String, Kind)> = names.into_iter().cloned().collect();
        // Every name that is looked up is in there.
        let index = |name: &(String, Kind)| names.binary_search(name).unwrap_or_default();
        let frames: Vec<usize> = frames.iter().map(index).collect();
        let mut counts = BTreeMap::new();
        for (stack, root) in profile.stacks.iter().zip(&roots) {
            let leaves = stack
                .frames
                .iter()
                .filter_map(|&id| frames.get(id as usize).copied());
            let path: Vec<usize> = root.iter().map(index).chain(leaves).collect();
            *counts.entry(path).or_insert(0) += stack.count;
        }
        Self { names, counts }
    }

    /// Every path as the names and kinds of its frames, with its samples, in order.
    pub fn iter(&self) -> impl Iterator<Item = (impl Iterator<Item = &(String, Kind)>, u64)> {
        self.counts.iter().map(|(path, count)| {
            (
                path.iter().filter_map(|&index| self.names.get(index)),
                *count,
            )
        })
    }
}

/// `ticks 4000 = 2900 idle + 800 other + 299 emitted + 1 lost (ring full 1)`: where every tick of
/// the clock went. Says so when the sum does not hold.
pub fn accounting(accounting: &Accounting) -> String {
    let Accounting {
        ticks,
        idle,
        other,
        emitted,
        ..
    } = accounting;
    let lost = accounting.lost_total();
    let mut line =
        format!("ticks {ticks} = {idle} idle + {other} other + {emitted} emitted + {lost} lost");
    let causes: Vec<String> = accounting
        .lost
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(cause, count)| format!("{} {count}", words(cause)))
        .collect();
    if !causes.is_empty() {
        line += &format!(" ({})", causes.join(", "));
    }
    if !accounting.balances() {
        line += " [the sum does not hold]";
    }
    line
}

/// Share of the samples whose stack reaches a proven root, in percent; `None` without samples.
pub fn complete_percent(profile: &Profile) -> Option<f64> {
    percent(profile.complete_samples(), profile.samples())
}

/// `part` of `whole` in percent; `None` of nothing.
pub fn percent(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 * 100.0 / whole as f64)
}

/// A percentage that never rounds up to a full 100: `99.97` of 100 is `99.9`, not `100.0`.
pub fn show_percent(value: f64) -> String {
    if value >= 100.0 {
        return "100".to_owned();
    }
    format!("{:.1}", (value * 10.0).floor() / 10.0)
}

/// A machine-readable name as words: `ring_full` is `ring full`.
pub fn words(name: &str) -> String {
    escape::plain(name).replace('_', " ")
}

/// What a reason for a missing name says to people.
pub fn unnamed_reason(reason: Unnamed) -> &'static str {
    match reason {
        Unnamed::NoModule => "in no file (JIT code)",
        Unnamed::FileUnavailable => "file unavailable",
        Unnamed::Malformed => "malformed file",
        Unnamed::NoSymbols => "no symbols",
        Unnamed::NotCovered => "not covered by the symbols",
        Unnamed::KernelHidden => "hidden by the kernel",
        Unnamed::GaveUp => "given up",
    }
}

/// Whether it holds events that were all counted, and not samples of a clock.
pub fn is_counted(profile: &Profile) -> bool {
    profile.facts.frequency == 0
}

/// Where all ticks went, or all counted events.
pub fn account(profile: &Profile) -> String {
    let facts = &profile.accounting;
    if !is_counted(profile) {
        return accounting(facts);
    }
    let events = escape::plain(&profile.facts.event);
    let (with, without) = (facts.emitted, facts.lost_total());
    format!(
        "{} {events} = {with} with their stack + {without} without",
        facts.ticks
    )
}

/// `123 samples over 30.0 s at 99 Hz`, with ` (cycles)` where these were the clock, `123 failed system calls over 30.0 s`.
pub fn sampled(profile: &Profile) -> String {
    let samples = profile.samples();
    if is_counted(profile) {
        let events = escape::plain(&profile.facts.event);
        return format!(
            "{samples} {events} over {:.1} s",
            profile.facts.duration_seconds
        );
    }
    let plural = if samples == 1 { "" } else { "s" };
    let clock = if profile.facts.by_cycles() {
        " (cycles)"
    } else {
        ""
    };
    format!(
        "{samples} sample{plural} over {:.1} s at {} Hz{clock}",
        profile.facts.duration_seconds, profile.facts.frequency
    )
}

/// Where a process runs: ` in container 0123456789ab`, ` in pod shop-7d4f (container 0123456789ab)`;
/// empty outside of containers.
pub fn in_container(container: Option<&Container>) -> String {
    let Some(container) = container else {
        return String::new();
    };
    let id: String = container.id.chars().take(12).collect();
    let id = escape::plain(&id);
    match &container.pod_name {
        Some(pod) => format!(" in pod {} (container {id})", escape::plain(pod)),
        None => format!(" in container {id}"),
    }
}

/// The processes in scope, `redis-server 4242`, the first three by name, and the container of the
/// first.
pub fn targets(profile: &Profile) -> String {
    let targets = &profile.facts.targets;
    let container = targets.first().and_then(|first| first.container.as_ref());
    named_targets(targets) + &in_container(container)
}

fn named_targets(targets: &[TargetFacts]) -> String {
    let shown: Vec<String> = targets
        .iter()
        .take(3)
        .map(|target| format!("{} {}", escape::plain(&target.comm), target.pid))
        .collect();
    match targets.len() {
        0 => "no process".to_owned(),
        1..=3 => shown.join(", "),
        more => format!("{} and {} more", shown.join(", "), more - 3),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;
    use crate::output::fixture;

    #[test]
    fn accounting_says_where_every_tick_went() {
        let mut sum = Accounting {
            ticks: 4000,
            idle: 2900,
            other: 800,
            emitted: 299,
            lost: [("ring_full".into(), 1), ("scratch_busy".into(), 0)].into(),
            ..Accounting::default()
        };
        let line = "ticks 4000 = 2900 idle + 800 other + 299 emitted + 1 lost (ring full 1)";
        assert_eq!(accounting(&sum), line);
        sum.ticks += 1;
        assert!(accounting(&sum).ends_with("[the sum does not hold]"));
    }

    #[test]
    fn a_hundred_percent_is_only_all() {
        assert_eq!(show_percent(99.99), "99.9");
        assert_eq!(show_percent(100.0), "100");
        assert_eq!(show_percent(0.0), "0.0");
    }

    #[test]
    fn jit_code_is_one_kind_with_and_without_a_perf_map() {
        let mut frame = fixture::user(JIT_MODULE, "(anonymous)", 1);
        frame.file = Some("/srv/app/server.js".to_owned());
        frame.line = Some(12);
        assert_eq!(kind(&frame), Kind::Jit);
        assert_eq!(frame_name(&frame), "(anonymous) server.js:12");
        frame.function = Some("handle".to_owned());
        assert_eq!(frame_name(&frame), "handle");
        frame.module = None;
        assert_eq!(kind(&frame), Kind::Jit);
        frame.module = Some("app".to_owned());
        assert_eq!(kind(&frame), Kind::User);
    }

    fn process_names(profile: &Profile) -> BTreeSet<String> {
        let names = Paths::new(profile).names.into_iter();
        names
            .filter(|(_, kind)| *kind == Kind::Process)
            .map(|(name, _)| name)
            .collect()
    }

    #[test]
    fn a_container_is_named_by_its_pod_and_a_short_id() {
        let mut profile = fixture::profile();
        let mut container = Container {
            id: "0123456789abcdef".repeat(4),
            ..Container::default()
        };
        profile.facts.targets[0].container = Some(container.clone());
        assert_eq!(targets(&profile), "server 4242 in container 0123456789ab");
        container.pod_name = Some("a\u{1b}[31m".to_owned());
        let text = in_container(Some(&container));
        assert!(text.contains("(container 0123456789ab)"), "{text}");
        assert!(!text.chars().any(escape::is_unsafe), "{text}");
    }

    #[test]
    fn equal_comms_are_told_apart() {
        let mut profile = fixture::profile();
        let names = process_names(&profile);
        assert_eq!(names, BTreeSet::from(["server".to_owned()]));
        profile.stacks[0].pid += 1;
        let names = process_names(&profile);
        let expected = ["server-4242", "server-4243"].map(str::to_owned);
        assert_eq!(names, BTreeSet::from(expected));
    }
}
