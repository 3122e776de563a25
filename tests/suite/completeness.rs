//! At least 99.5 % of the samples of every kind of target end at a proven root, and the chains
//! are the ones that the program's source prescribes.

use std::process::Command;

use crate::harness::{
    Agent, ENOUGH, Frame, LIFE, Profile, Stack, Target, alone, host_only, in_vm, program,
};

/// Profiles a program for the standard run; fails unless it is complete.
fn complete(name: &str, arguments: &[&str]) -> Profile {
    let target = Target::spawn(name, arguments);
    let profile = Agent::standard(target.pid()).run_to_profile();
    profile.assert_complete(ENOUGH);
    profile
}

/// Fails unless every sample in `leaf` has exactly these functions, one calling the next, somewhere
/// on its way, and there are enough such samples.
fn assert_chain(profile: &Profile, leaf: &str, chain: &[&str], at_least: f64) {
    let in_leaf = profile.self_share(leaf);
    assert!(
        in_leaf >= at_least,
        "{leaf} has only {in_leaf:.3}\n{}",
        profile.explain()
    );
    for stack in &profile.stacks {
        let frames: Vec<_> = profile
            .frames_of(stack)
            .filter(|frame| frame.space == "user")
            .collect();
        if stack.is_complete() && frames.last().is_some_and(|frame| frame.is(leaf)) {
            let found = frames
                .windows(chain.len())
                .any(|window| window.iter().zip(chain).all(|(frame, name)| frame.is(name)));
            assert!(found, "no {chain:?} in {:?}", profile.names_of(stack));
        }
    }
}

macro_rules! split_variants {
    ($($test:ident: $program:literal),* $(,)?) => { $(
        #[test]
        fn $test() {
            let _alone = alone();
            let profile = complete($program, &[]);
            assert_chain(&profile, "half", &["main", "one_round", "half"], 0.4);
        }
    )* };
}

split_variants! {
    pie: "split",
    not_pie: "split-nopie",
    linked_statically: "split-static",
    static_pie: "split-static-pie",
    musl_style: "split-musl",
    linked_by_lld: "split-lld",
    with_frame_pointers: "split-fp",
}

#[test]
fn stripped() {
    let _alone = alone();
    let profile = complete("split-stripped", &[]);
    let own = |frame: &Frame| frame.module.as_deref() == Some("split-stripped");
    for stack in profile.stacks.iter().filter(|stack| stack.is_complete()) {
        let depth = profile.frames_of(stack).filter(|frame| own(frame)).count();
        assert!(
            depth >= 2,
            "{depth} own frames in {:?}",
            profile.names_of(stack)
        );
    }
    let unnamed = profile
        .frames
        .iter()
        .filter(|frame| own(frame) && frame.function.is_none());
    assert!(
        unnamed.clone().count() > 0,
        "names out of nowhere: {}",
        profile.explain()
    );
    assert!(
        unnamed.clone().all(|frame| frame.unnamed.is_some()),
        "an unnamed frame without a reason"
    );
}

/// The functions that `deep` prescribes: `count` descents in turn.
fn descents(count: usize) -> impl Iterator<Item = &'static str> {
    ["descend_0", "descend_1", "descend_2"]
        .into_iter()
        .cycle()
        .take(count)
}

/// Fails unless most samples are at the bottom, each of them with exactly the chain `expected`.
fn assert_deep(profile: &Profile, expected: &[&str]) {
    let at_bottom = profile.self_share("bottom");
    assert!(
        at_bottom >= 0.5,
        "{at_bottom:.3} at the bottom\n{}",
        profile.explain()
    );
    let known = |name: &&str| {
        ["main", "bottom", "await_signal", "on_signal"].contains(name)
            || name.starts_with("descend_")
    };
    for stack in profile.stacks.iter().filter(|stack| stack.is_complete()) {
        let names = profile.names_of(stack);
        let own: Vec<&str> = names.iter().map(String::as_str).filter(known).collect();
        if own.last() == Some(&"bottom") {
            assert!(
                own == expected,
                "{} frames instead of {}: {names:?}",
                own.len(),
                expected.len()
            );
        }
    }
}

fn deep(name: &str, frames: usize) {
    let profile = complete(name, &[&frames.to_string()]);
    let expected: Vec<&str> = ["main"]
        .into_iter()
        .chain(descents(frames))
        .chain(["bottom"])
        .collect();
    assert_deep(&profile, &expected);
}

fn deep_in_handler(mode: &str, frames: usize) {
    let profile = complete("deep", &[&frames.to_string(), mode]);
    let half = frames / 2;
    let above = ["main"]
        .into_iter()
        .chain(descents(frames - half))
        .chain(["await_signal", "on_signal"]);
    let expected: Vec<&str> = above.chain(descents(half)).chain(["bottom"]).collect();
    assert_deep(&profile, &expected);
}

#[test]
fn nine_frames() {
    let _alone = alone();
    deep("deep", 9);
}

#[test]
fn three_hundred_frames() {
    let _alone = alone();
    deep("deep", 300);
}

#[test]
fn thousand_frames() {
    let _alone = alone();
    deep("deep", 1000);
}

#[test]
fn thousand_frames_static() {
    let _alone = alone();
    deep("deep-static", 1000);
}

#[test]
fn three_hundred_frames_musl() {
    let _alone = alone();
    deep("deep-musl", 300);
}

#[test]
fn signal_handler() {
    let _alone = alone();
    deep_in_handler("handler", 300);
}

#[test]
fn signal_handler_on_its_own_stack() {
    let _alone = alone();
    deep_in_handler("altstack", 300);
}

#[test]
fn deeper_than_the_limit_says_so() {
    let _alone = alone();
    let target = Target::spawn("deep", &["3000"]);
    let profile = Agent::standard(target.pid()).run_to_profile();
    let cut = profile.count(|stack| stack.end == "depth_limit");
    // An emulated machine spends much of its time on the way down there.
    let least = if in_vm() { 0.5 } else { 0.9 };
    assert!(
        cut as f64 >= least * profile.samples() as f64,
        "{}",
        profile.explain()
    );
}

#[test]
fn cpp_templates_exceptions_and_threads() {
    let _alone = alone();
    let target = Target::spawn("templates", &[]);
    target.await_word("plugin");
    let profile = Agent::standard(target.pid()).run_to_profile();
    profile.assert_complete(ENOUGH);
    profile.assert_names(&[
        "shapes::Mixer<unsigned long, 20000>::mix",
        "shapes::Circle<long>::area",
        "thrower",
        "catcher",
        "plugin_work",
        "plugin::inner",
        "called_back",
    ]);
    for name in ["virtual", "exceptions", "templates"] {
        let samples = profile.count(|stack| stack.thread == name);
        assert!(
            samples > 0,
            "no sample of the thread {name}\n{}",
            profile.explain()
        );
    }
}

#[test]
fn rust() {
    let _alone = alone();
    let profile = complete("rustprog", &[]);
    profile.assert_names(&["rustprog::recurse", "rustprog::apply"]);
    for stack in profile.stacks.iter().filter(|stack| stack.is_complete()) {
        let names = profile.names_of(stack);
        let depth = names
            .iter()
            .filter(|name| name.as_str() == "rustprog::recurse")
            .count();
        let at_the_leaf = names.last().is_some_and(|name| name.contains("turn"));
        assert!(
            !at_the_leaf || depth == 51,
            "{depth} recursions instead of 51: {names:?}"
        );
    }
    for name in ["engine-0", "engine-1"] {
        assert!(
            profile.count(|stack| stack.thread == name) > 0,
            "no thread {name}\n{}",
            profile.explain()
        );
    }
}

#[test]
fn go() {
    let _alone = alone();
    let profile = complete("goprog", &[]);
    profile.assert_names(&[
        "main.churn",
        "main.recurse",
        "main.consume",
        "main.produce",
        "main.grow",
    ]);
    let deepest = profile.stacks.iter().map(|stack| {
        profile
            .frames_of(stack)
            .filter(|frame| frame.is("main.recurse"))
            .count()
    });
    assert_eq!(deepest.max(), Some(201), "{}", profile.explain());
}

#[test]
fn vdso() {
    let _alone = alone();
    let profile = complete("vdso", &[]);
    assert_chain(
        &profile,
        "__vdso_clock_gettime",
        &["main", "read_clock"],
        0.0,
    );
    let share = profile.frame_share(|frame| frame.module.as_deref() == Some("[vdso]"));
    // Without a clock that user space can read, the vDSO falls back to the system call.
    let least = if in_vm() { 0.001 } else { 0.1 };
    assert!(
        share >= least,
        "{share:.3} in the vDSO\n{}",
        profile.explain()
    );
}

#[test]
fn procedure_linkage_table() {
    let _alone = alone();
    for name in ["plt", "plt-now", "plt-ibt"] {
        let profile = complete(name, &[]);
        let calls = profile.total_share("call_out");
        assert!(
            calls >= 0.9,
            "{name}: {calls:.3} below call_out\n{}",
            profile.explain()
        );
    }
}

#[test]
fn realigned_frames() {
    let _alone = alone();
    for name in ["realign", "realign-O1"] {
        let profile = complete(name, &[]);
        assert_chain(&profile, "leaf", &["use", "leaf"], 0.8);
        profile.assert_names(&["aligned_32", "aligned_64", "aligned_variable", "variable"]);
        let strays = |stack: &Stack| {
            stack.is_complete() && !profile.names_of(stack).contains(&"main".to_owned())
        };
        let share = profile.count(strays) as f64 / profile.samples() as f64;
        assert!(
            share <= 0.005,
            "{name}: {share:.3} not below main\n{}",
            profile.explain()
        );
    }
}

#[test]
fn kernel_mode() {
    let _alone = alone();
    let profile = complete("kern", &[]);
    let share = profile.frame_share(|frame| frame.space == "kernel");
    assert!(
        share >= 0.5,
        "{share:.3} in the kernel\n{}",
        profile.explain()
    );
    for stack in &profile.stacks {
        let spaces: Vec<&str> = profile
            .frames_of(stack)
            .map(|frame| frame.space.as_str())
            .collect();
        assert!(
            spaces.is_sorted_by(|a, b| a >= b),
            "a user frame below a kernel frame: {:?}",
            profile.names_of(stack)
        );
    }
    let named = profile.frames.iter().any(|frame| {
        frame
            .function
            .as_deref()
            .is_some_and(|name| name.contains("read"))
    });
    assert!(named, "no kernel function of read: {}", profile.explain());
    assert_chain(&profile, "read_zeros", &["main", "read_zeros"], 0.0);
}

#[test]
fn jit_code_with_frame_pointers() {
    let _alone = alone();
    let profile = complete("jit", &[]);
    assert!(
        profile.total_share("call_jitted") >= 0.9,
        "{}",
        profile.explain()
    );
    assert!(
        profile.accounting.frame_pointer_frames > 0,
        "the fallback is not counted"
    );
}

#[test]
fn cpython() {
    if host_only("the machine has no interpreter") {
        return;
    }
    let _alone = alone();
    let target = Target::run(
        Command::new("/usr/bin/python3")
            .arg(program("busy.py"))
            .arg(LIFE),
    );
    let profile = Agent::standard(target.pid()).run_to_profile();
    profile.assert_complete(ENOUGH);
    profile.assert_names(&["_PyEval_EvalFrameDefault"]);
}

#[test]
fn node() {
    if host_only("the machine has no Node.js") {
        return;
    }
    let _alone = alone();
    let target = Target::run(
        Command::new("node")
            .arg("--perf-basic-prof")
            .arg(program("busy.js"))
            .arg(LIFE),
    );
    let profile = Agent::standard(target.pid()).run_to_profile();
    // The table of the engine, 50 MB of code, is not ready when the sampling starts.
    let pending = profile.count(|stack| stack.end == "table_pending");
    let known = profile.samples() - pending;
    let complete = profile.count(|stack| stack.is_complete());
    assert!(pending * 20 <= profile.samples(), "{}", profile.explain());
    assert!(
        complete as f64 >= 0.995 * known as f64,
        "{}",
        profile.explain()
    );
}
