//! The call paths of two captures as one tree.

use std::collections::{BTreeMap, HashMap};

use super::Stacks;

/// A function called on one path.
#[derive(Clone, Debug, Default)]
pub struct Node {
    /// Its name's place in [`Tree::names`].
    pub name: usize,
    /// Weight of the path and all below it, before and after.
    pub weights: [u64; 2],
    /// What it calls: place among the names, place among the nodes.
    pub children: BTreeMap<usize, usize>,
}

/// All paths; the first node is the root, which has no name.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    /// The names, sorted.
    pub names: Vec<String>,
    /// The nodes.
    pub nodes: Vec<Node>,
}

impl Tree {
    /// The tree of both, each with the number of frames to leave out at the root.
    pub(super) fn new(sides: [(&Stacks, usize); 2]) -> Self {
        let all = sides.iter().flat_map(|(stacks, _)| stacks.names());
        let mut names: Vec<String> = all.cloned().collect();
        names.sort_unstable();
        names.dedup();
        let places: HashMap<&str, usize> = names
            .iter()
            .enumerate()
            .map(|(at, name)| (name.as_str(), at))
            .collect();
        let mut nodes = vec![Node::default()];
        for (which, (stacks, skip)) in sides.into_iter().enumerate() {
            let ids: Vec<usize> = stacks
                .names()
                .iter()
                .map(|name| places.get(name.as_str()).copied().unwrap_or(0))
                .collect();
            for (frames, weight) in stacks.iter() {
                let path = frames.iter().skip(skip);
                let path = path.filter_map(|&frame| ids.get(frame as usize).copied());
                add(&mut nodes, path, which, weight);
            }
        }
        Self { names, nodes }
    }

    /// The name of a node.
    pub fn name(&self, node: &Node) -> &str {
        self.names.get(node.name).map_or("", String::as_str)
    }
}

fn add(nodes: &mut Vec<Node>, path: impl Iterator<Item = usize>, which: usize, weight: u64) {
    let mut at = 0;
    count(nodes, at, which, weight);
    for name in path {
        let new = nodes.len();
        let Some(node) = nodes.get_mut(at) else {
            return;
        };
        at = *node.children.entry(name).or_insert(new);
        if at == new {
            nodes.push(Node {
                name,
                ..Node::default()
            });
        }
        count(nodes, at, which, weight);
    }
}

fn count(nodes: &mut [Node], at: usize, which: usize, weight: u64) {
    let sum = nodes
        .get_mut(at)
        .and_then(|node| node.weights.get_mut(which));
    if let Some(sum) = sum {
        *sum += weight;
    }
}
