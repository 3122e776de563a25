//! The heaviest call paths of a profile, as a tree that shows no more than matters.
//!
//! The stacks of all threads are merged by function, root first. A line of the tree goes on from a
//! caller into its heaviest callee for as long as that one keeps three quarters of the samples that
//! the line began with. Where the work divides, each callee with at least a certain share of all
//! samples begins a line of its own below; that share is a twenty-fifth, or as much more as it
//! takes to have at most twenty lines.

use std::collections::HashMap;

use crate::profile::{Frame, FrameId, Profile, Space};

/// Most lines of the tree.
const MAX_LINES: usize = 20;
/// Shares of all samples, in percent, that a line must have at least: the first that leaves few
/// enough lines.
const SMALLEST_PERCENT: [u64; 6] = [4, 6, 8, 10, 15, 25];

/// The tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Paths {
    /// Its lines, each before those below it; of siblings the heaviest first.
    pub lines: Vec<Branch>,
    /// Share of all samples, in percent, that a line has at least.
    pub smallest_percent: u64,
}

/// A line of the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Branch {
    /// Lines above it.
    pub depth: usize,
    /// Its functions, caller first; of each the frame that was met first.
    pub frames: Vec<FrameId>,
    /// Samples in the last of its functions and below.
    pub samples: u64,
}

impl Paths {
    /// Of this profile.
    pub fn new(profile: &Profile) -> Self {
        let nodes = tree(profile);
        let all = profile.samples();
        let mut paths = Self::default();
        for percent in SMALLEST_PERCENT {
            let smallest = (all.saturating_mul(percent) / 100).max(1);
            paths = Self {
                lines: lines(&nodes, smallest),
                smallest_percent: percent,
            };
            if paths.lines.len() <= MAX_LINES {
                break;
            }
        }
        paths.lines.truncate(MAX_LINES);
        paths
    }

    /// The heaviest line with at most three quarters of all samples (what has more says nothing
    /// that nobody knew), with the functions from the root to it; else the heaviest one.
    pub fn hottest(&self, all: u64) -> Option<Branch> {
        let divided = |line: &&Branch| line.samples.saturating_mul(4) <= all.saturating_mul(3);
        let heaviest = |a: &(usize, &Branch), b: &(usize, &Branch)| {
            // Of equals the first.
            (a.1.samples.cmp(&b.1.samples)).then(b.0.cmp(&a.0))
        };
        let lines = || self.lines.iter().enumerate();
        let (at, line) = lines()
            .filter(|(_, line)| divided(line))
            .max_by(heaviest)
            .or_else(|| lines().max_by(heaviest))?;
        let mut path = vec![line];
        for above in self.lines.iter().take(at).rev() {
            if path
                .last()
                .is_some_and(|below| above.depth + 1 == below.depth)
            {
                path.push(above);
            }
        }
        Some(Branch {
            frames: path
                .iter()
                .rev()
                .flat_map(|line| line.frames.clone())
                .collect(),
            ..line.clone()
        })
    }
}

/// What makes frames one function: the place in it, its line and the file it came from do not
/// matter. Code without a name is told apart by where its function starts.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Function<'a> {
    space: Space,
    inlined: bool,
    module: Option<&'a str>,
    name: Option<&'a str>,
    start: Option<u64>,
}

impl<'a> Function<'a> {
    fn of(frame: &'a Frame) -> Self {
        Self {
            space: frame.space,
            inlined: frame.inlined,
            module: frame.module.as_deref(),
            name: frame.function.as_deref(),
            start: match frame.function {
                Some(_) => None,
                // A profile that was read back has no addresses of the kernel.
                None => frame
                    .function_start
                    .or((frame.space == Space::User).then_some(frame.address)),
            },
        }
    }
}

/// A function at its place in the merged stacks.
#[derive(Default)]
struct Node {
    frame: FrameId,
    children: Vec<usize>,
    /// Samples in it and below.
    samples: u64,
}

/// The merged stacks; the first node is the root, which is no function.
fn tree(profile: &Profile) -> Vec<Node> {
    let mut ids: HashMap<Function<'_>, FrameId> = HashMap::new();
    let functions: Vec<FrameId> = (0..)
        .zip(&profile.frames)
        .map(|(id, frame)| *ids.entry(Function::of(frame)).or_insert(id))
        .collect();
    let mut nodes = vec![Node::default()];
    let mut at: HashMap<(usize, FrameId), usize> = HashMap::new();
    for stack in &profile.stacks {
        let mut here = 0;
        add(&mut nodes, here, stack.count);
        for id in &stack.frames {
            let Some(&frame) = functions.get(*id as usize) else {
                continue;
            };
            here = *at.entry((here, frame)).or_insert_with(|| {
                let child = nodes.len();
                nodes.push(Node {
                    frame,
                    ..Node::default()
                });
                if let Some(parent) = nodes.get_mut(here) {
                    parent.children.push(child);
                }
                child
            });
            add(&mut nodes, here, stack.count);
        }
    }
    for at in 0..nodes.len() {
        let mut children = nodes
            .get_mut(at)
            .map(|node| std::mem::take(&mut node.children))
            .unwrap_or_default();
        let samples = |child: &usize| nodes.get(*child).map_or(0, |node| node.samples);
        // A stable sort: of equals the one that was met first.
        children.sort_by_key(|child| std::cmp::Reverse(samples(child)));
        if let Some(node) = nodes.get_mut(at) {
            node.children = children;
        }
    }
    nodes
}

fn add(nodes: &mut [Node], at: usize, count: u64) {
    if let Some(node) = nodes.get_mut(at) {
        node.samples += count;
    }
}

/// The lines of the tree whose samples are `smallest` or more, but no more than one beyond
/// [`MAX_LINES`].
fn lines(nodes: &[Node], smallest: u64) -> Vec<Branch> {
    let mut lines = Vec::new();
    let begin = |node: &Node, depth: usize| {
        let heavy = node.children.iter().copied().filter(|&child| {
            nodes
                .get(child)
                .is_some_and(|child| child.samples >= smallest)
        });
        heavy
            .map(move |child| (child, depth))
            .rev()
            .collect::<Vec<_>>()
    };
    let mut pending = nodes.first().map(|root| begin(root, 0)).unwrap_or_default();
    while let Some((first, depth)) = pending.pop() {
        let Some(mut node) = nodes.get(first) else {
            continue;
        };
        let began = node.samples;
        let mut frames = vec![node.frame];
        while let Some(next) = node.children.first().and_then(|&child| nodes.get(child))
            && next.samples.saturating_mul(4) >= began.saturating_mul(3)
        {
            frames.push(next.frame);
            node = next;
        }
        lines.push(Branch {
            depth,
            frames,
            samples: node.samples,
        });
        if lines.len() > MAX_LINES {
            break;
        }
        pending.extend(begin(node, depth + 1));
    }
    lines
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;
    use crate::output::fixture;
    use agent_ebpf::End;

    fn profile(stacks: &[(String, u64)]) -> Profile {
        let mut profile = fixture::empty();
        for (path, count) in stacks {
            let frames: Vec<Frame> = path
                .split(' ')
                .map(|name| fixture::user("m", name, 1))
                .collect();
            fixture::push(&mut profile, &frames, End::Root, *count);
        }
        profile
    }

    fn named(stacks: &[(&str, u64)]) -> Profile {
        let stacks: Vec<(String, u64)> = stacks
            .iter()
            .map(|&(path, count)| (path.to_owned(), count))
            .collect();
        profile(&stacks)
    }

    fn names(profile: &Profile, branch: &Branch) -> String {
        let name = |id: &u32| profile.frames[*id as usize].function.clone().unwrap();
        let names: Vec<String> = branch.frames.iter().map(name).collect();
        names.join(" ")
    }

    fn shown(profile: &Profile) -> Vec<String> {
        Paths::new(profile)
            .lines
            .iter()
            .map(|line| {
                let indent = "-".repeat(line.depth);
                format!("{indent}{} {}", names(profile, line), line.samples)
            })
            .collect()
    }

    #[test]
    fn lines_begin_where_the_work_divides() {
        let profile = named(&[
            ("main loop write send a", 40),
            ("main loop write send b", 9),
            ("main loop read", 30),
            ("main loop", 3),
            ("main exit", 18),
        ]);
        assert_eq!(
            shown(&profile),
            ["main loop 82", "-write send a 40", "-read 30",]
        );
        let hottest = Paths::new(&profile).hottest(100).unwrap();
        assert_eq!(names(&profile, &hottest), "main loop write send a");
    }

    #[test]
    fn a_trunk_is_the_hottest_path_only_where_there_is_nothing_else() {
        let hottest = |stacks: &[(&str, u64)]| {
            let profile = named(stacks);
            let branch = Paths::new(&profile).hottest(profile.samples()).unwrap();
            (names(&profile, &branch), branch.samples)
        };
        let named = |path: &str, samples| (path.to_owned(), samples);
        assert_eq!(
            hottest(&[("main a", 97), ("main b", 3)]),
            named("main a", 97)
        );
        assert_eq!(
            hottest(&[("m a b x", 30), ("m a b y", 29), ("m c", 41)]),
            named("m a b", 59)
        );
    }

    #[test]
    fn a_tree_is_never_long() {
        let stacks: Vec<(String, u64)> = (0..500)
            .map(|n| (format!("main f{} g{} h{n}", n / 100, n / 20), 2))
            .collect();
        let profile = profile(&stacks);
        let paths = Paths::new(&profile);
        assert!(paths.lines.len() <= MAX_LINES);
        assert!(
            paths.smallest_percent > 4 && paths.lines.len() > 3,
            "{paths:?}"
        );
    }

    #[test]
    fn lines_of_one_function_are_one() {
        let mut profile = fixture::empty();
        for (line, address) in [(1, 10), (2, 20)] {
            let frame = Frame {
                line: Some(line),
                ..fixture::user("m", "f", address)
            };
            fixture::push(&mut profile, &[frame], End::Root, 5);
        }
        assert_eq!(shown(&profile), ["f 10"]);
    }

    #[test]
    fn stacks_without_frames_are_no_path() {
        let mut profile = fixture::empty();
        fixture::push(&mut profile, &[], End::Root, 5);
        assert!(Paths::new(&profile).lines.is_empty());
        assert_eq!(Paths::new(&fixture::empty()).hottest(0), None);
    }
}
