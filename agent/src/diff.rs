//! Two captures held against each other: what share of the time each function has before and after,
//! and whether the difference is more than sampling noise. No I/O.
//!
//! Shares make captures of unequal length comparable: both totals are 1.

mod significance;
mod stacks;
mod traffic;
mod tree;

use std::collections::HashMap;

pub use stacks::{Overflow, Stacks};
pub use traffic::{Failure, Pair, Red, Remote, Traffic};
pub use tree::{Node, Tree};

use significance::{Counts, LEVEL};

/// Functions that grew most, and that shrank most, of which one may explain the rest.
const CANDIDATES: usize = 10;

/// What a capture counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Measure {
    /// CPU time, or samples of a clock of it.
    Cpu,
    /// Something else, as its file names it: `alloc_space/bytes`.
    Other(String),
    /// The file does not say.
    Unstated,
}

impl Measure {
    /// In words, after `% of`.
    pub fn words(&self) -> String {
        match self {
            Measure::Cpu => "CPU time".to_owned(),
            Measure::Other(name) => name.clone(),
            Measure::Unstated => "all samples".to_owned(),
        }
    }
}

/// One capture.
#[derive(Clone, Debug)]
pub struct Side {
    /// Its file, as the user named it.
    pub label: String,
    /// What the weights of its stacks count.
    pub measure: Measure,
    /// The weight of one sample; `None` where nothing tells it.
    pub per_sample: Option<u64>,
    /// How long was sampled, in seconds.
    pub seconds: Option<f64>,
    /// CPU time of all stacks, in seconds.
    pub cpu_seconds: Option<f64>,
    /// Whether the first frame of each stack is the process; `None` where nothing tells it.
    pub processes: Option<bool>,
    /// Its connections and failing calls, if it is a bundle.
    pub traffic: Option<Traffic>,
    /// The call paths and their weights.
    pub stacks: Stacks,
}

impl Side {
    /// The number of samples; `None` where nothing tells it.
    pub fn samples(&self) -> Option<f64> {
        let per_sample = self.per_sample.filter(|&weight| weight > 0)?;
        Some(self.stacks.total() as f64 / per_sample as f64)
    }

    /// CPUs that were busy with it, on average.
    pub fn cpus(&self) -> Option<f64> {
        let seconds = self.seconds.filter(|&seconds| seconds > 0.0)?;
        Some(self.cpu_seconds? / seconds)
    }
}

/// Why two captures cannot be compared.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// They count different things.
    #[error(
        "cannot compare `{before}`, which counts {counted_before}, with `{after}`, which counts \
         {counted_after}: take two captures of the same kind"
    )]
    Unlike {
        /// The capture of before.
        before: String,
        /// What it counts.
        counted_before: String,
        /// The capture of after.
        after: String,
        /// What it counts.
        counted_after: String,
    },
    /// Nothing to compare with.
    #[error("`{label}` has no samples: there is nothing to compare")]
    Empty {
        /// The capture.
        label: String,
    },
}

/// Whether a difference says anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Chance alone would hardly make it.
    Significant,
    /// Two captures of the same program differ as much.
    Noise,
    /// The number of samples is not known.
    Untested,
}

/// A share before and after, each from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Change {
    /// Before.
    pub before: f64,
    /// After.
    pub after: f64,
    /// The probability that chance makes such a difference somewhere, corrected for the number of functions;
    /// `None` where it was not tested.
    pub p: Option<f64>,
}

impl Change {
    /// After minus before: more than 0 where it grew.
    pub fn difference(&self) -> f64 {
        self.after - self.before
    }
}

/// One function of either capture.
#[derive(Clone, Debug, PartialEq)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// Where it was itself on the CPU.
    pub own: Change,
    /// Where it was anywhere on the stack.
    pub total: Change,
}

impl Function {
    /// Whether it calls others in either capture.
    fn calls(&self) -> bool {
        let shares = |change: &Change| (change.before, change.after);
        shares(&self.own) != shares(&self.total)
    }
}

/// What of a function is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// [`Function::own`].
    Own,
    /// [`Function::total`].
    Total,
}

impl By {
    /// That of this function.
    pub fn of(self, function: &Function) -> Change {
        match self {
            By::Own => function.own,
            By::Total => function.total,
        }
    }
}

/// Two captures compared.
#[derive(Clone, Debug)]
pub struct Diff {
    /// Before, without its stacks.
    pub before: Side,
    /// After.
    pub after: Side,
    /// What is compared.
    pub measure: Measure,
    /// Every function, by name.
    pub functions: Vec<Function>,
    /// The call paths of both.
    pub tree: Tree,
    /// Remotes and failing calls of both; `None` unless both are bundles.
    pub traffic: Option<(Vec<Remote>, Vec<Failure>)>,
    /// What the reader should know.
    pub notes: Vec<String>,
    tested: bool,
}

impl Diff {
    /// Compares two captures.
    ///
    /// # Errors
    /// They count different things, or one is empty.
    pub fn new(before: Side, after: Side) -> Result<Self, Error> {
        let measure = common_measure(&before, &after)?;
        for side in [&before, &after] {
            if side.stacks.total() == 0 {
                return Err(Error::Empty {
                    label: side.label.clone(),
                });
            }
        }
        // Only one of them has processes: they are no difference.
        let skip = |side: &Side, other: &Side| {
            usize::from(side.processes == Some(true) && other.processes == Some(false))
        };
        let skip = [skip(&before, &after), skip(&after, &before)];
        let tested = before.samples().is_some() && after.samples().is_some();
        let mut functions = Functions::default();
        functions.add(&before, skip[0], 0);
        functions.add(&after, skip[1], 1);
        let mut diff =
            Self {
                tree: Tree::new([(&before.stacks, skip[0]), (&after.stacks, skip[1])]),
                functions: functions.finish(&before, &after),
                traffic: before.traffic.as_ref().zip(after.traffic.as_ref()).map(
                    |(before, after)| {
                        (
                            Traffic::remotes(before, after),
                            Traffic::failures(before, after),
                        )
                    },
                ),
                notes: notes(&before, &after, tested),
                before,
                after,
                measure,
                tested,
            };
        diff.correct();
        Ok(diff)
    }

    /// Whether the numbers of samples are known.
    pub fn is_tested(&self) -> bool {
        self.tested
    }

    /// What the difference says.
    pub fn verdict(&self, change: &Change) -> Verdict {
        match (self.tested, change.p) {
            (false, _) => Verdict::Untested,
            (true, Some(p)) if p < LEVEL => Verdict::Significant,
            (true, _) => Verdict::Noise,
        }
    }

    /// The functions that grew (`grew`) or shrank, by their own time or with all that they call: the
    /// significant ones first, then by the size of the difference. Those that call nothing are among the former
    /// only.
    pub fn ranked(&self, grew: bool, by: By) -> Vec<&Function> {
        let of = |function: &'_ Function| by.of(function);
        let size = |function: &Function| {
            let difference = of(function).difference();
            if grew { difference } else { -difference }
        };
        let mut list: Vec<&Function> = self
            .functions
            .iter()
            .filter(|function| size(function) > 0.0)
            .filter(|function| by == By::Own || function.calls())
            .collect();
        let noise = |function: &Function| self.verdict(&of(function)) == Verdict::Noise;
        list.sort_by(|a, b| {
            let by_size = size(b).total_cmp(&size(a));
            noise(a).cmp(&noise(b)).then(by_size)
        });
        list
    }

    /// The function whose own change explains most of all changes, and the part of them that it
    /// explains (at most 1); `None` where none changed beyond noise.
    ///
    /// Where one function grows, the shares of all others shrink, though nothing happened to them. What it
    /// explains is therefore what is gone once it is left out of both sides.
    pub fn culprit(&self) -> Option<(&Function, f64)> {
        let candidates = [true, false].map(|grew| self.ranked(grew, By::Own));
        let all = self.difference_without(None);
        candidates
            .iter()
            .flat_map(|list| list.iter().take(CANDIDATES))
            .filter(|function| self.verdict(&function.own) != Verdict::Noise)
            .map(|function| {
                (
                    *function,
                    1.0 - self.difference_without(Some(function)) / all,
                )
            })
            .max_by(|(_, a), (_, b)| a.total_cmp(b))
    }

    /// Half the sum of the differences of the own shares, without this function and as if the rest were all.
    fn difference_without(&self, left_out: Option<&Function>) -> f64 {
        let rest = |share: f64| if share < 1.0 { 1.0 - share } else { 1.0 };
        let (before, after) = left_out.map_or((1.0, 1.0), |function| {
            (rest(function.own.before), rest(function.own.after))
        });
        let others = self
            .functions
            .iter()
            .filter(|function| left_out.is_none_or(|it| it.name != function.name));
        let differences = others
            .map(|function| (function.own.after / after - function.own.before / before).abs());
        differences.sum::<f64>() / 2.0
    }

    /// Corrects the probabilities for their number.
    fn correct(&mut self) {
        let mut changes: Vec<&mut Change> = self
            .functions
            .iter_mut()
            .flat_map(|function| [&mut function.own, &mut function.total])
            .filter(|change| change.p.is_some())
            .collect();
        let single: Vec<f64> = changes.iter().filter_map(|change| change.p).collect();
        let corrected = significance::holm(&single);
        for (change, p) in changes.iter_mut().zip(corrected) {
            change.p = Some(p);
        }
    }
}

fn common_measure(before: &Side, after: &Side) -> Result<Measure, Error> {
    match (&before.measure, &after.measure) {
        (Measure::Unstated, other) | (other, Measure::Unstated) => Ok(other.clone()),
        (one, other) if one == other => Ok(one.clone()),
        (one, other) => Err(Error::Unlike {
            before: before.label.clone(),
            counted_before: one.words(),
            after: after.label.clone(),
            counted_after: other.words(),
        }),
    }
}

fn notes(before: &Side, after: &Side, tested: bool) -> Vec<String> {
    let mut notes = Vec::new();
    if before.label == after.label {
        notes.push("both sides are the same file".to_owned());
    }
    if !tested {
        notes.push(
            "the number of samples is not known: no difference is tested against sampling noise"
                .to_owned(),
        );
    }
    for side in [before, after] {
        if let Some(samples) = side.samples()
            && tested
            && samples < 100.0
        {
            notes.push(format!(
                "{} has {samples:.0} samples only: small differences cannot be told from noise",
                side.label
            ));
        }
    }
    notes
}

/// The weights of each function, before and after.
#[derive(Default)]
struct Functions {
    ids: HashMap<String, usize>,
    weights: Vec<Weights>,
}

#[derive(Clone, Copy, Default)]
struct Weights {
    own: [u64; 2],
    total: [u64; 2],
    /// The last stack that counted, so that recursion counts once.
    seen: Option<(usize, usize)>,
}

impl Functions {
    fn add(&mut self, side: &Side, skip: usize, which: usize) {
        let ids: Vec<usize> = side
            .stacks
            .names()
            .iter()
            .map(|name| self.id(name))
            .collect();
        for (number, (frames, weight)) in side.stacks.iter().enumerate() {
            let frames = frames.get(skip.min(frames.len())..).unwrap_or_default();
            for (from_leaf, &frame) in frames.iter().rev().enumerate() {
                let place = ids.get(frame as usize).copied();
                let Some(weights) = place.and_then(|place| self.weights.get_mut(place)) else {
                    continue;
                };
                // No sum exceeds the total of the side, which is a u64.
                let add = |sums: &mut [u64; 2]| {
                    if let Some(sum) = sums.get_mut(which) {
                        *sum += weight;
                    }
                };
                if from_leaf == 0 {
                    add(&mut weights.own);
                }
                if weights.seen != Some((which, number)) {
                    weights.seen = Some((which, number));
                    add(&mut weights.total);
                }
            }
        }
    }

    fn id(&mut self, name: &str) -> usize {
        if let Some(&id) = self.ids.get(name) {
            return id;
        }
        self.weights.push(Weights::default());
        self.ids.insert(name.to_owned(), self.weights.len() - 1);
        self.weights.len() - 1
    }

    fn finish(self, before: &Side, after: &Side) -> Vec<Function> {
        let change = |weights: [u64; 2]| change(weights, before, after);
        let mut functions: Vec<Function> = self
            .ids
            .into_iter()
            .filter_map(|(name, id)| {
                let weights = self.weights.get(id)?;
                // A process that is left out has none.
                (weights.total != [0, 0]).then(|| Function {
                    name,
                    own: change(weights.own),
                    total: change(weights.total),
                })
            })
            .collect();
        functions.sort_by(|a, b| a.name.cmp(&b.name));
        functions
    }
}

fn change(weights: [u64; 2], before: &Side, after: &Side) -> Change {
    let [weight_before, weight_after] = weights.map(|weight| weight as f64);
    let shares = (
        weight_before / before.stacks.total() as f64,
        weight_after / after.stacks.total() as f64,
    );
    let p = before.samples().zip(after.samples()).and_then(|all| {
        let counts = Counts { shares, all };
        counts.p()
    });
    Change {
        before: shares.0,
        after: shares.1,
        p,
    }
}

#[cfg(test)]
mod tests;
