//! The agent's JSON output, and what the tests ask it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Deserialize;

use super::in_vm;

/// The document. Every field here is part of the format: one that is missing fails the test.
#[derive(Deserialize)]
pub(crate) struct Profile {
    pub(crate) schema: String,
    pub(crate) facts: Facts,
    pub(crate) totals: Totals,
    pub(crate) frames: Vec<Frame>,
    pub(crate) stacks: Vec<Stack>,
    pub(crate) accounting: Accounting,
    pub(crate) cost: Cost,
}

#[derive(Deserialize)]
pub(crate) struct Facts {
    pub(crate) agent_version: String,
    pub(crate) command_line: Vec<String>,
    pub(crate) kernel: String,
    pub(crate) event: String,
    pub(crate) frequency: u64,
    pub(crate) cpus: u32,
    pub(crate) started: u64,
    pub(crate) duration_seconds: f64,
    pub(crate) targets: Vec<TargetFacts>,
    pub(crate) ended: String,
    /// Of the overhead guard; none without a limit.
    pub(crate) guard: Option<Guard>,
}

/// What the overhead guard saw and did.
#[derive(Deserialize)]
pub(crate) struct Guard {
    pub(crate) limit: f64,
    pub(crate) worst: Worst,
    pub(crate) steps: Vec<Step>,
}

#[derive(Deserialize)]
pub(crate) struct Worst {
    pub(crate) target: f64,
    pub(crate) machine: f64,
}

#[derive(Deserialize)]
pub(crate) struct Step {
    pub(crate) at_s: f64,
    pub(crate) probe: String,
    pub(crate) hz: Option<f64>,
    pub(crate) cause: String,
    pub(crate) share: f64,
    pub(crate) limit: f64,
}

#[derive(Deserialize)]
pub(crate) struct Totals {
    pub(crate) samples: u64,
    pub(crate) complete_samples: u64,
    pub(crate) lost: u64,
    pub(crate) balances: bool,
}

#[derive(Deserialize)]
pub(crate) struct TargetFacts {
    pub(crate) pid: u32,
    pub(crate) comm: String,
    pub(crate) exe: Option<String>,
}

#[derive(Deserialize, PartialEq)]
pub(crate) struct Frame {
    pub(crate) space: String,
    pub(crate) module: Option<String>,
    pub(crate) function: Option<String>,
    pub(crate) file: Option<String>,
    pub(crate) line: Option<u32>,
    pub(crate) inlined: bool,
    pub(crate) address: Option<String>,
    pub(crate) function_start: Option<String>,
    pub(crate) unnamed: Option<String>,
}

#[derive(Deserialize)]
pub(crate) struct Stack {
    pub(crate) pid: u32,
    pub(crate) tid: u32,
    pub(crate) comm: String,
    pub(crate) thread: String,
    pub(crate) frames: Vec<usize>,
    pub(crate) end: String,
    pub(crate) count: u64,
}

#[derive(Deserialize)]
pub(crate) struct Accounting {
    pub(crate) ticks: u64,
    pub(crate) idle: u64,
    pub(crate) other: u64,
    pub(crate) emitted: u64,
    pub(crate) lost: BTreeMap<String, u64>,
    pub(crate) expected_ticks: u64,
    pub(crate) recursion_misses: u64,
    pub(crate) frame_pointer_frames: u64,
    pub(crate) notes: BTreeMap<String, u64>,
}

#[derive(Deserialize)]
pub(crate) struct Cost {
    pub(crate) cpu_seconds: f64,
    pub(crate) peak_rss_bytes: u64,
    pub(crate) bpf_ns_per_sample: Option<f64>,
}

impl Frame {
    /// The function, or the module in brackets.
    pub(crate) fn name(&self) -> String {
        let module = || format!("[{}]", self.module.as_deref().unwrap_or("unknown"));
        self.function.clone().unwrap_or_else(module)
    }

    pub(crate) fn is(&self, function: &str) -> bool {
        let bare = |name: &str| name == function || name.starts_with(&format!("{function}("));
        self.function.as_deref().is_some_and(bare)
    }
}

impl Stack {
    pub(crate) fn is_complete(&self) -> bool {
        ["root", "root_frame_pointer", "exiting"].contains(&self.end.as_str())
    }
}

impl Profile {
    pub(crate) fn samples(&self) -> u64 {
        self.count(|_| true)
    }

    /// Samples of the stacks for which `keep` holds.
    pub(crate) fn count(&self, keep: impl Fn(&Stack) -> bool) -> u64 {
        self.stacks
            .iter()
            .filter(|stack| keep(stack))
            .map(|stack| stack.count)
            .sum()
    }

    /// The frames of a stack, root first.
    pub(crate) fn frames_of<'a>(
        &'a self,
        stack: &'a Stack,
    ) -> impl DoubleEndedIterator<Item = &'a Frame> {
        stack.frames.iter().map(|&index| &self.frames[index])
    }

    /// The names of a stack, root first.
    pub(crate) fn names_of(&self, stack: &Stack) -> Vec<String> {
        self.frames_of(stack).map(Frame::name).collect()
    }

    fn share(&self, keep: impl Fn(&Stack) -> bool) -> f64 {
        self.count(keep) as f64 / self.samples().max(1) as f64
    }

    /// Share of the samples whose stack ends at a proven root, 0 to 1.
    pub(crate) fn complete_rate(&self) -> f64 {
        self.share(Stack::is_complete)
    }

    /// Share of the samples taken in this function itself (or in the kernel on its behalf), 0 to 1.
    pub(crate) fn self_share(&self, function: &str) -> f64 {
        self.share(|stack| {
            let leaf = self.frames_of(stack).rfind(|frame| frame.space == "user");
            leaf.is_some_and(|frame| frame.is(function))
        })
    }

    /// Share of the samples with this function anywhere on the stack, 0 to 1.
    pub(crate) fn total_share(&self, function: &str) -> f64 {
        self.frame_share(|frame| frame.is(function))
    }

    /// Share of the samples with such a frame anywhere on the stack, 0 to 1.
    pub(crate) fn frame_share(&self, wanted: impl Fn(&Frame) -> bool) -> f64 {
        self.share(|stack| self.frames_of(stack).any(&wanted))
    }

    /// Fails with the reasons and the worst stacks unless at least `samples` were taken and 99.5 % of
    /// them are complete. One sample may always be cut: a page of the stack that the kernel is just
    /// copying (`fork`, then a write) cannot be read, and of few samples one is more than 0.5 %.
    ///
    /// Under emulation the agent takes ten times as long to learn of a mapping and to build its table,
    /// and a thread to start and to end: there what came before a table was ready is set aside, and
    /// 95 % of the rest is asked for.
    pub(crate) fn assert_complete(&self, samples: u64) {
        let early = |stack: &Stack| {
            in_vm() && ["table_pending", "no_mapping"].contains(&stack.end.as_str())
        };
        let early = self.count(early);
        let all = self.samples();
        assert!(all >= samples, "only {all} samples\n{}", self.explain());
        let counted = all - early;
        assert!(
            counted >= samples,
            "{early} of {all} without tables\n{}",
            self.explain()
        );
        let complete = self.count(Stack::is_complete);
        let rate = complete as f64 / counted.max(1) as f64;
        let least = if in_vm() { 0.95 } else { 0.995 };
        assert!(
            rate >= least || counted - complete <= 1,
            "{:.2} % complete\n{}",
            100.0 * rate,
            self.explain()
        );
    }

    /// Fails unless every function is on some stack.
    pub(crate) fn assert_names(&self, functions: &[&str]) {
        for function in functions {
            assert!(
                self.total_share(function) > 0.0,
                "no {function}\n{}",
                self.explain()
            );
        }
    }

    /// Why the incomplete stacks ended, the most frequent of them, the losses, and what was hot.
    pub(crate) fn explain(&self) -> String {
        let mut text = String::new();
        let mut ends: BTreeMap<&str, u64> = BTreeMap::new();
        for stack in &self.stacks {
            *ends.entry(&stack.end).or_default() += stack.count;
        }
        let _ = writeln!(
            text,
            "ends {ends:?}, lost {:?}, notes {:?}",
            self.accounting.lost, self.accounting.notes
        );
        for (title, complete) in [("incomplete", false), ("complete", true)] {
            let mut stacks: Vec<&Stack> = self
                .stacks
                .iter()
                .filter(|s| s.is_complete() == complete)
                .collect();
            stacks.sort_by_key(|stack| std::cmp::Reverse(stack.count));
            for stack in stacks.iter().take(5) {
                let names = self.names_of(stack);
                let shown = names.len().saturating_sub(12);
                let _ = writeln!(
                    text,
                    "{title} {} × {} ({}): …{}",
                    stack.count,
                    stack.end,
                    names.len(),
                    names[shown..].join(";")
                );
            }
        }
        text
    }
}
