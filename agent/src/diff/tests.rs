#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
use super::*;

pub(crate) fn side(label: &str, stacks: &[(&str, u64)]) -> Side {
    let mut all = Stacks::default();
    for (stack, weight) in stacks {
        let frames = stack.split(';').map(|name| all.name(name)).collect();
        all.add(frames, *weight).unwrap();
    }
    Side {
        label: label.to_owned(),
        measure: Measure::Cpu,
        per_sample: Some(1),
        seconds: Some(10.0),
        cpu_seconds: Some(5.0),
        processes: Some(true),
        traffic: None,
        stacks: all,
    }
}

fn of<'a>(diff: &'a Diff, name: &str) -> &'a Function {
    diff.functions
        .iter()
        .find(|function| function.name == name)
        .unwrap()
}

fn shares(change: Change) -> (f64, f64) {
    (change.before, change.after)
}

fn example() -> Diff {
    let before = [
        ("s;main;old", 500),
        ("s;main;slow", 100),
        ("s;main;same", 400),
    ];
    // Twice as long.
    let after = [
        ("s;main;new", 400),
        ("s;main;slow", 800),
        ("s;main;same", 800),
    ];
    Diff::new(side("a", &before), side("b", &after)).unwrap()
}

#[test]
fn shares_are_of_each_sides_total() {
    let diff = example();
    assert_eq!(shares(of(&diff, "slow").own), (0.1, 0.4));
    assert_eq!(shares(of(&diff, "same").own), (0.4, 0.4));
    assert_eq!(shares(of(&diff, "new").total), (0.0, 0.2));
    assert_eq!(shares(of(&diff, "old").total), (0.5, 0.0));
    assert_eq!(shares(of(&diff, "main").own), (0.0, 0.0));
    assert_eq!(shares(of(&diff, "main").total), (1.0, 1.0));
    let names = |grew| {
        let list = diff.ranked(grew, By::Own);
        list.iter().map(|it| it.name.as_str()).collect::<Vec<_>>()
    };
    assert_eq!(names(true), ["slow", "new"]);
    assert_eq!(names(false), ["old"]);
    // All of them call nothing, and `main` has all on both sides.
    assert!(diff.ranked(true, By::Total).is_empty());
}

#[test]
fn recursion_counts_once() {
    let before = side("a", &[("f;f;f", 10)]);
    let diff = Diff::new(before, side("b", &[("f;g;f", 10)])).unwrap();
    assert_eq!(shares(of(&diff, "f").total), (1.0, 1.0));
}

#[test]
fn a_large_change_is_significant_and_a_small_one_is_not() {
    let diff = example();
    assert_eq!(diff.verdict(&of(&diff, "slow").own), Verdict::Significant);
    assert_eq!(diff.verdict(&of(&diff, "same").own), Verdict::Noise);
    let diff = Diff::new(
        side("a", &[("f", 500), ("g", 500)]),
        side("b", &[("f", 480), ("g", 520)]),
    );
    let diff = diff.unwrap();
    assert!(
        diff.functions
            .iter()
            .all(|f| diff.verdict(&f.own) == Verdict::Noise)
    );
}

#[test]
fn the_culprit_is_not_what_it_displaced() {
    let before = [("slow", 40), ("most", 900), ("rest", 60)];
    let after = [("slow", 480), ("most", 900), ("rest", 60)];
    // `most` lost more than any other: 27 points. Nothing happened to it.
    let diff = Diff::new(side("a", &before), side("b", &after)).unwrap();
    let (function, part) = diff.culprit().unwrap();
    assert_eq!(function.name, "slow");
    assert!(part > 0.999, "{part}");
    let diff = Diff::new(side("b", &after), side("a", &before)).unwrap();
    assert_eq!(diff.culprit().unwrap().0.name, "slow");
    let one = [("slow", 1000)];
    let diff = Diff::new(side("a", &one), side("b", &after)).unwrap();
    assert_eq!(diff.culprit().unwrap().0.name, "most");
    let same = Diff::new(side("b", &after), side("a", &after)).unwrap();
    assert_eq!(same.culprit(), None);
}

#[test]
fn noise_stands_after_what_is_significant() {
    // `big` differs by more, but so few samples of the other side prove less.
    let diff = Diff::new(
        side("a", &[("big", 50), ("rare", 0), ("rest", 50)]),
        side("b", &[("big", 57), ("new", 6), ("rest", 37)]),
    );
    let diff = diff.unwrap();
    let all = diff.ranked(true, By::Own);
    let verdicts: Vec<_> = all.iter().map(|it| diff.verdict(&it.own)).collect();
    let mut sorted = verdicts.clone();
    sorted.sort_by_key(|verdict| *verdict == Verdict::Noise);
    assert_eq!(verdicts, sorted);
}

#[test]
fn equal_sides_have_no_difference() {
    let stacks = [("s;main;a", 5), ("s;main;b", 700)];
    let diff = Diff::new(side("x", &stacks), side("x", &stacks)).unwrap();
    assert!(diff.ranked(true, By::Own).is_empty());
    assert!(diff.notes.iter().any(|note| note.contains("same file")));
}

#[test]
fn unknown_numbers_of_samples_are_not_tested() {
    let mut before = side("a", &[("f", 1_000_000), ("g", 1)]);
    before.per_sample = None;
    let diff = Diff::new(before, side("b", &[("f", 1), ("g", 1)])).unwrap();
    assert_eq!(diff.verdict(&of(&diff, "f").own), Verdict::Untested);
    assert!(!diff.is_tested() && diff.notes[0].contains("not known"));
}

#[test]
fn a_process_that_one_side_lacks_is_no_difference() {
    let mut after = side("b", &[("main;f", 10)]);
    after.processes = Some(false);
    let diff = Diff::new(side("a", &[("server;main;f", 10)]), after).unwrap();
    assert!(
        diff.functions
            .iter()
            .all(|function| function.name != "server")
    );
    assert_eq!(diff.tree.nodes.len(), 3);
}

#[test]
fn unlike_and_empty_sides_are_refused() {
    let stacks = [("f", 1)];
    let mut heap = side("heap.pb.gz", &stacks);
    heap.measure = Measure::Other("alloc_space/bytes".to_owned());
    let error = Diff::new(heap.clone(), side("cpu.pb.gz", &stacks)).unwrap_err();
    assert!(error.to_string().contains("alloc_space/bytes"), "{error}");
    assert!(Diff::new(heap.clone(), heap.clone()).is_ok());
    heap.measure = Measure::Unstated;
    assert!(Diff::new(heap, side("b", &stacks)).is_ok());
    let error = Diff::new(side("a", &[]), side("b", &stacks)).unwrap_err();
    assert!(error.to_string().contains("`a` has no samples"), "{error}");
}

#[test]
fn the_tree_has_both_sides() {
    let diff = example();
    let root = &diff.tree.nodes[0];
    assert_eq!(root.weights, [1000, 2000]);
    let main = &diff.tree.nodes[*root.children.values().next().unwrap()];
    let main = &diff.tree.nodes[*main.children.values().next().unwrap()];
    let below: Vec<(&str, [u64; 2])> = main
        .children
        .values()
        .map(|&at| {
            let node = &diff.tree.nodes[at];
            (diff.tree.name(node), node.weights)
        })
        .collect();
    assert_eq!(
        below,
        [
            ("new", [0, 400]),
            ("old", [500, 0]),
            ("same", [400, 800]),
            ("slow", [100, 800])
        ]
    );
}

#[test]
fn very_deep_stacks_are_cut_at_the_root() {
    let mut stacks = Stacks::default();
    let (f, leaf) = (stacks.name("f"), stacks.name("leaf"));
    let mut frames = vec![f; 100_000];
    frames.push(leaf);
    stacks.add(frames, 1).unwrap();
    let (frames, _) = stacks.iter().next().unwrap();
    assert_eq!((frames.len(), frames.last()), (4097, Some(&leaf)));
    assert_eq!(stacks.names()[frames[0] as usize], "[truncated: too deep]");
}
