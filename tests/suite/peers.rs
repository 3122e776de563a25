//! Never fewer complete stacks than `perf record --call-graph dwarf,65528` on the same run.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::harness::{Agent, LIFE, Target, alone, host_only, program};

/// The functions that a complete stack may end at (perf ends its stacks there or at the raw
/// clone system call).
const ROOTS: [&str; 8] = [
    "_start",
    "__clone3",
    "clone3",
    "__clone",
    "clone",
    "__GI___clone3",
    "runtime.goexit",
    "runtime.goexit.abi0",
];

/// Share of the samples in the output of `perf script -F ip,sym` whose outermost function is a root.
fn complete_rate(script: &str) -> f64 {
    let mut ends: BTreeMap<String, u64> = BTreeMap::new();
    for sample in script
        .split("\n\n")
        .filter(|sample| !sample.trim().is_empty())
    {
        let outermost = sample.trim_end().lines().next_back().unwrap();
        let symbol = outermost
            .trim()
            .split_once(' ')
            .map_or("", |(_, symbol)| symbol);
        *ends
            .entry(symbol.split('+').next().unwrap().to_owned())
            .or_default() += 1;
    }
    let all: u64 = ends.values().sum();
    assert!(all > 100, "perf saw only {all} samples");
    let complete: u64 = ROOTS.iter().filter_map(|&root| ends.get(root)).sum();
    println!("perf: {complete} of {all}, {ends:?}");
    complete as f64 / all as f64
}

fn perf(arguments: &[&str], data: &Path) -> Command {
    let mut command = Command::new("perf");
    command
        .args(&arguments[..1])
        .arg(if arguments[0] == "record" { "-o" } else { "-i" })
        .arg(data);
    command
        .args(&arguments[1..])
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// Runs both at once on one target and compares.
fn compare(target: &Target) {
    let directory = TempDir::new().unwrap();
    let data = directory.path().join("perf.data");
    let pid = target.pid().to_string();
    let arguments = [
        "record",
        "-q",
        "--call-graph",
        "dwarf,65528",
        "-F",
        "199",
        "-p",
        &pid,
        "--",
        "sleep",
        "3",
    ];
    let mut recording = perf(&arguments, &data)
        .spawn()
        .unwrap_or_else(|error| panic!("perf does not start ({error}): run `cargo xtask setup`"));
    let ours = Agent::standard(target.pid()).run_to_profile();
    assert!(recording.wait().unwrap().success(), "perf record failed");
    let output = perf(&["script", "--no-inline", "-F", "ip,sym"], &data)
        .output()
        .unwrap();
    let theirs = complete_rate(&String::from_utf8_lossy(&output.stdout));
    let rate = ours.complete_rate();
    println!("agent: {rate:.4}, perf: {theirs:.4}");
    assert!(
        rate >= 0.995 && rate >= theirs,
        "agent {rate:.4}, perf {theirs:.4}\n{}",
        ours.explain()
    );
}

macro_rules! against_perf {
    ($($test:ident: $program:literal $arguments:expr),* $(,)?) => { $(
        #[test]
        fn $test() {
            if host_only("perf is not on the machine") {
                return;
            }
            let _alone = alone();
            compare(&Target::spawn($program, &$arguments));
        }
    )* };
}

against_perf! {
    split: "split" [],
    deep: "deep" ["300"],
    deep_in_a_signal_handler: "deep" ["300", "handler"],
    rust: "rustprog" [],
    go: "goprog" [],
    realigned: "realign" [],
}

/// With its plugin loaded: perf reads the mappings afterwards, so it has no gap after a dlopen;
/// ours is measured by `lifecycle::code_loaded_after_the_attach`.
#[test]
fn cpp() {
    if host_only("perf is not on the machine") {
        return;
    }
    let _alone = alone();
    let target = Target::spawn("templates", &[]);
    target.await_word("plugin");
    compare(&target);
}

#[test]
fn cpython() {
    if host_only("perf and python3 are not on the machine") {
        return;
    }
    let _alone = alone();
    compare(&Target::run(
        Command::new("/usr/bin/python3")
            .arg(program("busy.py"))
            .arg(LIFE),
    ));
}
