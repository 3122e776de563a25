//! The data of the flame graph component: the call tree in columns, each text once.
//!
//! A node is the same function (name, kind, module) under the same callers. Nodes are in preorder,
//! siblings by name; the root, which stands for everything, is left out and has the number 0.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Serialize;

use crate::output::escape;
use crate::output::text::{self, Kind, Processes};
use crate::profile::{Frame, Profile, Stack};

/// What the script's `flame(element, data)` takes, once serialized.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Data {
    /// What is counted: `samples`.
    unit: String,
    /// Every text once; the first is empty.
    strings: Vec<String>,
    frames: Frames,
    nodes: Nodes,
    /// Name of the process and of the thread, as indices into `strings`.
    groups: Vec<(u32, u32)>,
    counts: Counts,
}

/// The functions, most used first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
struct Frames {
    /// Index into [`Data::strings`].
    name: Vec<u32>,
    /// 0 process, 1 compiled, 2 inlined, 3 JIT, 4 kernel, 5 mark of a cut stack.
    kind: Vec<u8>,
    /// Index into [`Data::strings`].
    module: Vec<u32>,
    /// The places in the source where it was seen, most used first.
    places: Vec<Vec<Place>>,
}

/// The tree, from node 1 on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
struct Nodes {
    /// The node's number less its parent's.
    up: Vec<u32>,
    /// Index into [`Frames`].
    frame: Vec<u32>,
    /// Index into the frame's [`Frames::places`]: where most of the node's samples were.
    place: Vec<u32>,
}

/// The samples by the node at which their stacks end and by group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
struct Counts {
    /// The node's number less that of the entry before.
    node: Vec<u32>,
    /// Index into [`Data::groups`].
    group: Vec<u32>,
    count: Vec<u64>,
}

/// A function of the tree.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Function {
    name: String,
    kind: Kind,
    module: String,
}

/// Source file, as an index into the strings, and line, from 1; zeros where they are not known.
type Place = (u32, u32);

impl Data {
    /// The data of this profile. Its names are those of the other formats.
    pub fn new(profile: &Profile) -> Self {
        let mut strings = Numbered::default();
        strings.number(String::new());
        let functions: Vec<Function> = profile.frames.iter().map(function).collect();
        let processes = Processes::new(profile);
        let roots: Vec<Vec<Function>> = profile
            .stacks
            .iter()
            .map(|stack| root(stack, &processes))
            .collect();
        let distinct: BTreeSet<&Function> =
            functions.iter().chain(roots.iter().flatten()).collect();
        let distinct: Vec<&Function> = distinct.into_iter().collect();
        // Every function that is looked up is in there.
        let rank =
            |function: &Function| distinct.binary_search(&function).unwrap_or_default() as u32;
        let ranks: Vec<u32> = functions.iter().map(rank).collect();
        let mut places = Numbered::default();
        let at: Vec<u32> = profile
            .frames
            .iter()
            .map(|frame| places.number(place(frame, &mut strings)))
            .collect();
        let nowhere = places.number((0, 0));

        let mut paths: Vec<(Vec<(u32, u32)>, &Stack)> = Vec::new();
        for (stack, root) in profile.stacks.iter().zip(&roots) {
            let frames = stack.frames.iter().map(|&id| id as usize);
            let known = |id: usize| Some((*ranks.get(id)?, *at.get(id)?));
            let mut path: Vec<(u32, u32)> = root
                .iter()
                .map(|function| (rank(function), nowhere))
                .collect();
            path.extend(frames.filter_map(known));
            paths.push((path, stack));
        }
        paths.sort_by(|(a, _), (b, _)| ranks_of(a).cmp(ranks_of(b)));

        let mut groups = Numbered::default();
        let mut tree = Tree::default();
        for (path, stack) in &paths {
            let process = strings.number(processes.name(stack));
            let thread = strings.number(escape::plain(&stack.thread).into_owned());
            tree.add(path, groups.number((process, thread)), stack.count);
        }
        let mut data = Self {
            unit: match text::is_counted(profile) {
                true => escape::plain(&profile.facts.event).into_owned(),
                false => "samples".to_owned(),
            },
            groups: groups.values,
            ..Self::default()
        };
        data.set_nodes(tree, &distinct, &places.values, nowhere, &mut strings);
        data.strings = strings.values;
        data
    }

    fn set_nodes(
        &mut self,
        tree: Tree,
        functions: &[&Function],
        places: &[Place],
        nowhere: u32,
        strings: &mut Numbered<String>,
    ) {
        let (order, frame) = by_use(tree.ranks);
        for function in order
            .iter()
            .filter_map(|&rank| functions.get(rank as usize))
        {
            self.frames.name.push(strings.number(function.name.clone()));
            self.frames.kind.push(function.kind as u8);
            self.frames
                .module
                .push(strings.number(function.module.clone()));
        }
        let hottest = hottest(tree.up.len(), &tree.places, nowhere);
        let mut seen: Vec<Vec<u32>> = vec![Vec::new(); order.len()];
        for (&frame, &id) in frame.iter().zip(&hottest) {
            if let Some(ids) = seen.get_mut(frame as usize) {
                ids.push(id);
            }
        }
        // The ids of each frame's nodes, in their order, become indices into the frame's own list.
        let mut indices: Vec<std::vec::IntoIter<u32>> = Vec::new();
        for ids in seen {
            let (order, own) = by_use(ids);
            let known = order.iter().filter_map(|&id| places.get(id as usize));
            self.frames.places.push(known.copied().collect());
            indices.push(own.into_iter());
        }
        let place = frame
            .iter()
            .map(|&frame| indices.get_mut(frame as usize)?.next())
            .map(Option::unwrap_or_default)
            .collect();
        self.nodes = Nodes {
            up: tree.up,
            frame,
            place,
        };
        let mut before = 0;
        for ((node, group), count) in tree.counts {
            self.counts.node.push(node - before);
            self.counts.group.push(group);
            self.counts.count.push(count);
            before = node;
        }
    }
}

fn function(frame: &Frame) -> Function {
    Function {
        name: text::frame_name(frame),
        kind: text::kind(frame),
        module: escape::plain(frame.module.as_deref().unwrap_or_default()).into_owned(),
    }
}

/// The pseudo frames at the root's side: the process, and the mark of a cut stack.
fn root(stack: &Stack, processes: &Processes<'_>) -> Vec<Function> {
    let pseudo = |name, kind| Function {
        name,
        kind,
        module: String::new(),
    };
    let mut root = vec![pseudo(processes.name(stack), Kind::Process)];
    root.extend(text::truncated(stack.end).map(|name| pseudo(name, Kind::Truncated)));
    root
}

fn place(frame: &Frame, strings: &mut Numbered<String>) -> Place {
    match &frame.file {
        Some(file) => (
            strings.number(escape::plain(file).into_owned()),
            frame.line.unwrap_or(0),
        ),
        None => (0, 0),
    }
}

fn ranks_of(path: &[(u32, u32)]) -> impl Iterator<Item = u32> {
    path.iter().map(|&(rank, _)| rank)
}

/// Distinct values, numbered as they come.
#[derive(Debug)]
struct Numbered<T> {
    values: Vec<T>,
    numbers: HashMap<T, u32>,
}

impl<T> Default for Numbered<T> {
    fn default() -> Self {
        Self {
            values: Vec::new(),
            numbers: HashMap::new(),
        }
    }
}

impl<T: Clone + Eq + std::hash::Hash> Numbered<T> {
    fn number(&mut self, value: T) -> u32 {
        if let Some(&number) = self.numbers.get(&value) {
            return number;
        }
        let number = self.values.len() as u32;
        self.values.push(value.clone());
        self.numbers.insert(value, number);
        number
    }
}

/// The tree in preorder, built from paths in order.
#[derive(Debug, Default)]
struct Tree {
    up: Vec<u32>,
    ranks: Vec<u32>,
    /// Samples by node and place.
    places: HashMap<(u32, u32), u64>,
    /// Samples by the node at which they end and by group.
    counts: BTreeMap<(u32, u32), u64>,
    /// The path last added: rank and node.
    open: Vec<(u32, u32)>,
}

impl Tree {
    fn add(&mut self, path: &[(u32, u32)], group: u32, count: u64) {
        let shared = self
            .open
            .iter()
            .zip(path)
            .take_while(|((open, _), (rank, _))| open == rank)
            .count();
        self.open.truncate(shared);
        for &(rank, _) in path.get(shared..).unwrap_or_default() {
            let parent = self.open.last().map_or(0, |&(_, node)| node);
            let node = self.up.len() as u32 + 1;
            self.up.push(node - parent);
            self.ranks.push(rank);
            self.open.push((rank, node));
        }
        for (&(_, node), &(_, place)) in self.open.iter().zip(path) {
            *self.places.entry((node, place)).or_insert(0) += count;
        }
        let end = self.open.last().map_or(0, |&(_, node)| node);
        *self.counts.entry((end, group)).or_insert(0) += count;
    }
}

/// Of each node the place with most samples, the first of equal ones; `nowhere` only if it has no
/// other.
fn hottest(nodes: usize, places: &HashMap<(u32, u32), u64>, nowhere: u32) -> Vec<u32> {
    let mut best = vec![(0, nowhere); nodes];
    for (&(node, place), &count) in places.iter().filter(|((_, place), _)| *place != nowhere) {
        let slot = (node as usize)
            .checked_sub(1)
            .and_then(|index| best.get_mut(index));
        if let Some((most, chosen)) = slot
            && (count > *most || count == *most && place < *chosen)
        {
            (*most, *chosen) = (count, place);
        }
    }
    best.into_iter().map(|(_, place)| place).collect()
}

/// The distinct ids, most used first, and the given ones as indices into that.
fn by_use(ids: Vec<u32>) -> (Vec<u32>, Vec<u32>) {
    let mut uses: BTreeMap<u32, u32> = BTreeMap::new();
    for &id in &ids {
        *uses.entry(id).or_insert(0) += 1;
    }
    let mut order: Vec<u32> = uses.keys().copied().collect();
    order.sort_by_key(|id| std::cmp::Reverse(uses.get(id)));
    let position: HashMap<u32, u32> = order.iter().copied().zip(0..).collect();
    let indices = ids
        .iter()
        .filter_map(|id| position.get(id).copied())
        .collect();
    (order, indices)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;
    use crate::output::fixture;
    use agent_ebpf::End;

    /// The samples by path, as the script decodes them.
    fn decoded(data: &Data) -> BTreeMap<String, u64> {
        let name = |node: usize| {
            let frame = data.nodes.frame[node - 1] as usize;
            &data.strings[data.frames.name[frame] as usize]
        };
        let mut paths = BTreeMap::new();
        let mut node = 0;
        for (step, count) in data.counts.node.iter().zip(&data.counts.count) {
            node += *step as usize;
            let mut path = Vec::new();
            let mut at = node;
            while at > 0 {
                path.insert(0, name(at).as_str());
                at -= data.nodes.up[at - 1] as usize;
            }
            *paths.entry(path.join(";")).or_insert(0) += count;
        }
        paths
    }

    #[test]
    fn the_tree_holds_what_the_folded_stacks_hold() {
        let data = Data::new(&fixture::profile());
        let folded = crate::output::folded::render(&fixture::profile());
        let lines = folded.lines().filter(|line| !line.starts_with("# "));
        let expected: BTreeMap<String, u64> = lines
            .map(|line| line.rsplit_once(' ').unwrap())
            .map(|(path, count)| (path.replace("_[k]", ""), count.parse().unwrap()))
            .collect();
        assert_eq!(decoded(&data), expected);
    }

    #[test]
    fn a_node_is_where_most_of_its_samples_were() {
        let mut profile = fixture::empty();
        let at = |line| Frame {
            file: Some("/src/a.c".to_owned()),
            line: Some(line),
            ..fixture::user("m", "f", u64::from(line))
        };
        fixture::push(&mut profile, &[at(3)], End::Root, 2);
        fixture::push(&mut profile, &[at(7)], End::Root, 5);
        fixture::push(&mut profile, &[fixture::user("m", "f", 9)], End::Root, 50);
        let data = Data::new(&profile);
        assert_eq!(data.nodes.up, [1, 1]);
        let frame = data.nodes.frame[1] as usize;
        let (file, line) = data.frames.places[frame][data.nodes.place[1] as usize];
        assert_eq!(line, 7);
        assert_eq!(data.strings[file as usize], "/src/a.c");
        assert_eq!(data.counts.count, [57]);
    }

    #[test]
    fn functions_of_two_modules_are_two() {
        let mut profile = fixture::empty();
        fixture::push(&mut profile, &[fixture::user("a", "init", 1)], End::Root, 1);
        fixture::push(&mut profile, &[fixture::user("b", "init", 1)], End::Root, 1);
        assert_eq!(Data::new(&profile).nodes.up, [1, 1, 2]);
    }

    #[test]
    fn every_thread_is_a_group() {
        let mut profile = fixture::profile();
        profile.stacks[0].thread = "other".to_owned();
        let data = Data::new(&profile);
        let named: Vec<&str> = data
            .groups
            .iter()
            .map(|&(_, thread)| data.strings[thread as usize].as_str())
            .collect();
        assert_eq!(named.len(), 2);
        assert!(named.contains(&"other") && named.contains(&"worker-1"));
    }

    #[test]
    fn twenty_thousand_stacks_take_less_than_two_megabytes() {
        let mut profile = fixture::empty();
        let mut seed = 1_u32;
        for _ in 0..20_000 {
            let mut frames = Vec::new();
            for depth in 0..30 {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                // Some functions are called more often than others, the more the deeper.
                let chance = f64::from(seed >> 8) / f64::from(1_u32 << 24);
                let function = (chance.powi(12) * f64::from(1 + depth * depth / 16)) as u32;
                frames.push(Frame {
                    file: Some(format!("/usr/src/project/source-{}.cpp", function % 200)),
                    line: Some(depth * 10 + function),
                    ..fixture::user(
                        "server",
                        &format!("project::Class::method_{depth}_{function}(int)"),
                        1,
                    )
                });
            }
            fixture::push(&mut profile, &frames, End::Root, 1);
        }
        let data = Data::new(&profile);
        assert!(
            data.nodes.up.len() > 80_000,
            "{} nodes",
            data.nodes.up.len()
        );
        let json = escape::json_in_script(&data).unwrap();
        assert!(json.len() <= 2_000_000, "{} bytes", json.len());
    }
}
