//! The heaviest call paths of a profile: not every stack, and not only functions.
//!
//! The stacks of all threads are merged into a tree by function. From the root a path goes into the
//! callee with the most samples for as long as that one has at least half of its caller's, or a
//! tenth of all. Where it ends, the samples below are set aside as that path's, and the next path is
//! looked for in what is left. So each sample is in one path at most, and shares can be added up.

use std::collections::HashMap;

use crate::profile::{Frame, FrameId, Profile, Space};

/// Paths looked for.
const MAX_PATHS: usize = 12;
/// A path with a smaller share of all samples than one in this many is not worth a line.
const SMALLEST: u64 = 100;

/// One of the heaviest call paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HotPath {
    /// Its functions, root first; of each function the frame that was met first.
    pub frames: Vec<FrameId>,
    /// Samples below it that are in no path before it.
    pub samples: u64,
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

/// A function at its place in the tree.
struct Node {
    frame: FrameId,
    parent: usize,
    children: Vec<usize>,
    /// Samples in it and below that are in no path yet.
    left: u64,
}

/// The paths, most samples first.
pub fn hottest(profile: &Profile) -> Vec<HotPath> {
    let mut nodes = tree(profile);
    let all = profile.samples();
    let mut paths = Vec::new();
    while paths.len() < MAX_PATHS {
        let Some(end) = descend(&nodes, all) else {
            break;
        };
        let found = take(&mut nodes, end);
        if found.samples.saturating_mul(SMALLEST) >= all && !found.frames.is_empty() {
            paths.push(found);
        } else if found.frames.is_empty() {
            break;
        }
    }
    paths.sort_by_key(|path| std::cmp::Reverse(path.samples));
    paths
}

/// The merged stacks; the first node is the root, which is no function.
fn tree(profile: &Profile) -> Vec<Node> {
    let mut ids: HashMap<Function<'_>, FrameId> = HashMap::new();
    let functions: Vec<FrameId> = (0..)
        .zip(&profile.frames)
        .map(|(id, frame)| *ids.entry(Function::of(frame)).or_insert(id))
        .collect();
    let mut nodes = vec![Node {
        frame: 0,
        parent: 0,
        children: Vec::new(),
        left: 0,
    }];
    let mut at: HashMap<(usize, FrameId), usize> = HashMap::new();
    for stack in &profile.stacks {
        let mut here = 0;
        add(&mut nodes, here, stack.count);
        for id in &stack.frames {
            let Some(&frame) = functions.get(*id as usize) else {
                continue;
            };
            here = match at.get(&(here, frame)) {
                Some(&child) => child,
                None => {
                    let child = nodes.len();
                    nodes.push(Node {
                        frame,
                        parent: here,
                        children: Vec::new(),
                        left: 0,
                    });
                    at.insert((here, frame), child);
                    if let Some(parent) = nodes.get_mut(here) {
                        parent.children.push(child);
                    }
                    child
                }
            };
            add(&mut nodes, here, stack.count);
        }
    }
    nodes
}

fn add(nodes: &mut [Node], at: usize, count: u64) {
    if let Some(node) = nodes.get_mut(at) {
        node.left += count;
    }
}

/// Where the heaviest path of what is left ends; `None` where nothing is left.
fn descend(nodes: &[Node], all: u64) -> Option<usize> {
    let mut here = 0;
    let mut left = nodes.first()?.left;
    if left == 0 {
        return None;
    }
    loop {
        let heaviest = nodes
            .get(here)?
            .children
            .iter()
            .filter_map(|&child| Some((child, nodes.get(child)?.left)))
            // Of equals the one that was seen first.
            .rev()
            .max_by_key(|(_, left)| *left);
        match heaviest {
            Some((child, below))
                if below > 0
                    && (below.saturating_mul(2) >= left || below.saturating_mul(10) >= all) =>
            {
                (here, left) = (child, below);
            }
            _ => return Some(here),
        }
    }
}

/// Takes the path to this node out of the tree.
fn take(nodes: &mut [Node], end: usize) -> HotPath {
    let samples = nodes.get(end).map_or(0, |node| node.left);
    let mut frames = Vec::new();
    let mut here = end;
    // A parent stands before its children.
    while let Some(node) = nodes.get_mut(here) {
        node.left -= samples.min(node.left);
        if here == 0 {
            break;
        }
        frames.push(node.frame);
        here = node.parent;
    }
    zero_below(nodes, end);
    frames.reverse();
    HotPath { frames, samples }
}

fn zero_below(nodes: &mut [Node], end: usize) {
    let mut pending = vec![end];
    while let Some(at) = pending.pop() {
        if let Some(node) = nodes.get_mut(at) {
            node.left = 0;
            pending.extend(&node.children);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;
    use crate::output::fixture;
    use agent_ebpf::End;

    fn profile(stacks: &[(&str, u64)]) -> Profile {
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

    fn shown(profile: &Profile) -> Vec<(String, u64)> {
        let name = |id: &u32| profile.frames[*id as usize].function.clone().unwrap();
        hottest(profile)
            .iter()
            .map(|path| {
                let names: Vec<String> = path.frames.iter().map(name).collect();
                (names.join(" "), path.samples)
            })
            .collect()
    }

    #[test]
    fn a_path_ends_where_the_work_spreads_out() {
        let profile = profile(&[
            ("main loop write a", 15),
            ("main loop write b", 14),
            ("main loop write c", 9),
            ("main loop write d", 9),
            ("main loop read", 30),
            ("main loop", 3),
            ("main exit", 20),
        ]);
        let shown = shown(&profile);
        let path = |path: &str, samples| (path.to_owned(), samples);
        assert_eq!(
            shown[..4],
            [
                path("main loop read", 30),
                path("main exit", 20),
                path("main loop write a", 15),
                path("main loop write b", 14),
            ]
        );
        assert_eq!(shown.iter().map(|(_, samples)| samples).sum::<u64>(), 100);
    }

    #[test]
    fn many_small_callees_are_one_path() {
        let stacks: Vec<(String, u64)> = (0..50).map(|n| (format!("main loop f{n}"), 2)).collect();
        let stacks: Vec<(&str, u64)> = stacks.iter().map(|(path, n)| (path.as_str(), *n)).collect();
        assert_eq!(shown(&profile(&stacks)), [("main loop".to_owned(), 100)]);
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
        assert_eq!(shown(&profile), [("f".to_owned(), 10)]);
    }

    #[test]
    fn stacks_without_frames_are_no_path() {
        let mut profile = fixture::empty();
        fixture::push(&mut profile, &[], End::Root, 5);
        assert_eq!(hottest(&profile), []);
        assert_eq!(hottest(&fixture::empty()), []);
    }
}
