//! `agent record`: what all probes saw at the same time, in one bundle.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::harness::{Agent, Finished, Target, agent_binary, alone, host_only, in_vm, patience};
use crate::tcp::redis;

fn agent() -> Agent {
    Agent::subcommand("record", &[], &agent_binary()).args(["-v", "-o", "incident.zip"])
}

/// What the agent says once its probes are in place.
const ATTACHED: &str = "recording,";

/// An entry of the bundle, as `unzip` reads it.
fn entry(finished: &Finished, name: &str) -> String {
    let output = Command::new("unzip")
        .arg("-p")
        .arg(finished.path("incident.zip"))
        .arg(name)
        .output()
        .unwrap();
    assert!(output.status.success(), "{name}: {}", finished.stderr());
    String::from_utf8(output.stdout).unwrap()
}

fn json(finished: &Finished, name: &str) -> Value {
    serde_json::from_str(&entry(finished, name)).unwrap()
}

fn lines(finished: &Finished, name: &str) -> Vec<Value> {
    let text = entry(finished, name);
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value}"))
}

/// The bundle has every entry whole, and is for its owner alone.
fn assert_whole(finished: &Finished) {
    use std::os::unix::fs::MetadataExt;
    let path = finished.path("incident.zip");
    // BusyBox's unzip, which the machines have, does not know -t.
    let test = if in_vm() { "-l" } else { "-t" };
    let test = Command::new("unzip").arg(test).arg(&path).output().unwrap();
    assert!(test.status.success(), "{test:?}");
    let listed = String::from_utf8_lossy(&test.stdout).into_owned();
    for name in [
        "flame.svg",
        "profile.pb.gz",
        "profile.json",
        "connections.json",
        "syscalls.json",
        "meta.json",
    ] {
        assert!(listed.contains(name), "{name} in {listed}");
    }
    assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
    assert_eq!(finished.files(), ["incident.zip"]);
}

/// A program that burns a CPU for as long as the test needs it.
fn busy() -> Target {
    Target::spawn("deep", &["16"])
}

#[test]
fn all_probes_see_a_busy_redis_by_one_clock() {
    if host_only("redis and unzip") {
        return;
    }
    let _alone = alone();
    let (redis, port) = redis();
    let mut load = Command::new("redis-benchmark")
        .args([
            "-p",
            &port,
            "-c",
            "20",
            "-n",
            "100000000",
            "-t",
            "get",
            "-q",
        ])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let before = redis.cpu_seconds();
    let finished = agent()
        .args(["--pid", &redis.pid().to_string(), "-d", "4s"])
        .run();
    let used = redis.cpu_seconds() - before;
    load.kill().unwrap();
    load.wait().unwrap();
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    assert_whole(&finished);

    let meta = json(&finished, "meta.json");
    let duration = number(&meta["duration_seconds"]);
    assert!((4.0..5.0).contains(&duration), "{duration}");
    assert_eq!(meta["target"]["pid"], redis.pid());
    assert_eq!(meta["target"]["comm"], "redis-server");
    assert_eq!(meta["ended"], "duration");
    let libc = meta["modules"]["libc.so.6"].as_str().unwrap();
    assert!(libc.len() >= 32 && libc.bytes().all(|byte| byte.is_ascii_hexdigit()));
    // A little more than the run lies between the two looks of ours.
    let seen = number(&meta["cpu"]["used_seconds"]);
    assert!(seen > 0.3 && seen <= used + 0.05, "{seen} of {used}");
    for causes in meta["losses"].as_object().unwrap().values() {
        let lost = causes.as_object().unwrap().values();
        assert!(lost.map(number).sum::<f64>() == 0.0, "{meta}");
    }

    let documents = lines(&finished, "connections.json");
    let reports = lines(&finished, "syscalls.json");
    let (last, intervals) = documents.split_last().unwrap();
    assert_eq!(last["final"], true);
    assert!((4..=5).contains(&intervals.len()), "{}", intervals.len());
    assert_eq!(reports.len(), documents.len());
    // Each document and its report are of the same moment, but for the time that the first took to
    // be read on a busy machine, and the last ones of the end.
    for (document, report) in documents.iter().zip(&reports) {
        let apart = number(&document["elapsed_s"]) - number(&report["elapsed_s"]);
        assert!(apart.abs() < 0.5, "{document} {report}");
    }
    assert!((number(&last["elapsed_s"]) - duration).abs() < 0.5);
    let requests: f64 = intervals
        .iter()
        .map(|document| number(&document["sums"]["requests"]))
        .sum();
    let all = number(&last["sums"]["requests"]);
    assert!(all > 1000.0, "{last}");
    // What came within the last tenth of a second is in no interval.
    assert!((all - requests).abs() <= all * 0.05, "{all} {requests}");
    assert_eq!(last["connections"].as_array().unwrap().len(), 20);
    let remote = &last["remotes"][0];
    assert_eq!(number(&remote["requests"]), all, "{remote}");
    assert!(number(&remote["latency_us"]["p99"]) > 0.0);

    let profile = json(&finished, "profile.json");
    let samples = number(&profile["totals"]["samples"]);
    assert_eq!(profile["totals"]["balances"], true);
    assert!(number(&profile["totals"]["complete_samples"]) >= 0.98 * samples);
    let timeline = profile["timeline"].as_array().unwrap();
    assert!((4..=5).contains(&timeline.len()), "{timeline:?}");
    assert_eq!(timeline.iter().map(number).sum::<f64>(), samples);
    // The clock of the samples and the kernel's own account of CPU time. Cycles are no time.
    let sampled = samples / 99.0;
    assert!(
        profile["facts"]["event"] == "cycles" || (sampled - seen).abs() < 0.25 * seen + 0.1,
        "{sampled} {seen}"
    );
}

/// The agent's own programs are in the stacks that interrupt them. Their symbols go with them, and
/// what comes before their place in the kernel's symbols is another's.
#[test]
fn samples_in_the_agents_own_programs_have_no_strangers_names() {
    let target = Target::spawn("geteuid", &[]);
    let finished = agent()
        .args(["--pid", &target.pid().to_string(), "-d", "3s"])
        .args(["--frequency", "999"])
        .run();
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    let profile = json(&finished, "profile.json");
    let frames = profile["frames"].as_array().unwrap();
    let kernel = frames.iter().filter(|frame| frame["space"] == "kernel");
    let names: Vec<&str> = kernel
        .filter_map(|frame| frame["function"].as_str())
        .collect();
    for stranger in ["_etext", "_einittext", "ftrace_trampoline"] {
        assert!(!names.contains(&stranger), "{names:?}");
    }
    let is_own = |name: &&str| name.starts_with("bpf_prog_") && name.contains("syscall_exit");
    let own = names.iter().any(is_own);
    // From 7.0 on the program runs with interrupts off, and few samples are taken in the machines.
    assert!(own || in_vm(), "{names:?}");
}

#[test]
fn interrupted_early_it_keeps_what_was_seen() {
    let target = busy();
    let agent = agent()
        .args(["--pid", &target.pid().to_string(), "-d", "60s"])
        .start();
    agent.await_said(ATTACHED);
    std::thread::sleep(patience(1.5));
    agent.signal(libc::SIGINT);
    let finished = agent.wait();
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    assert!(finished.took < patience(20.0));
    assert_whole(&finished);
    let meta = json(&finished, "meta.json");
    assert_eq!(meta["ended"], "interrupted");
    assert!(number(&meta["duration_seconds"]) < 55.0);
    assert!(number(&json(&finished, "profile.json")["totals"]["samples"]) > 0.0);
}

#[test]
fn the_targets_end_is_the_end() {
    let target = Target::spawn("idle", &[]);
    let running = agent()
        .args(["--pid", &target.pid().to_string(), "-d", "300s"])
        .start();
    running.await_said(ATTACHED);
    drop(target);
    let finished = running.wait();
    assert_whole(&finished);
    assert_eq!(json(&finished, "meta.json")["ended"], "target_exited");
}

#[test]
fn a_command_is_recorded_from_its_start_without_its_secrets() {
    if host_only("needs bash") {
        return;
    }
    let script = "while [ $((i += 1)) -lt 400 ]; do : < /nowhere/of/this/name; done 2>/dev/null; \
                  kill -0 $$; exec sh -c 'exit 7'";
    let finished = agent()
        .args([
            "--",
            "bash",
            "-c",
            script,
            "--api-token",
            "hunter2",
            "DB_PASSWORD=hunter3",
        ])
        .run();
    assert_eq!(finished.code(), Some(7), "{}", finished.stderr());
    assert_whole(&finished);
    let report = lines(&finished, "syscalls.json").pop().unwrap();
    let rows = report["errors"].as_array().unwrap();
    let openat = rows
        .iter()
        .find(|row| row["syscall"] == "openat" && row["errno"] == "ENOENT")
        .unwrap_or_else(|| panic!("{report}"));
    let argument = |arg: &Value| arg["value"] == "/nowhere/of/this/name" && arg["count"] == 399;
    assert!(
        openat["args"].as_array().unwrap().iter().any(argument),
        "{openat}"
    );
    let meta = json(&finished, "meta.json");
    assert_eq!(meta["ended"], "target_exited");
    let words = meta["target"]["command_line"].as_array().unwrap();
    assert_eq!(words[0], "bash");
    for name in ["meta.json", "profile.json", "syscalls.json", "flame.svg"] {
        assert!(!entry(&finished, name).contains("hunter"), "{name}");
    }
}

#[test]
fn a_place_that_cannot_be_written_is_refused_at_once() {
    let target = busy();
    let pid = target.pid().to_string();
    let record = |output: &str| {
        Agent::subcommand("record", &[], &agent_binary())
            .args(["--pid", &pid, "-d", "60s", "-o", output])
            .run()
    };
    record("incident.svg").assert_refused(2, &["-o", "incident.svg.zip"]);
    record("/nowhere/incident.zip").assert_refused(1, &["/nowhere"]);
    let directory = tempfile::tempdir().unwrap();
    let taken = directory.path().join("taken.zip");
    std::fs::create_dir(&taken).unwrap();
    record(taken.to_str().unwrap()).assert_refused(1, &["directory"]);
}

#[test]
fn standard_output_takes_the_bundle() {
    let target = busy();
    let finished = Agent::subcommand("record", &[], &agent_binary())
        .args([
            "--pid",
            &target.pid().to_string(),
            "-d",
            "1s",
            "-q",
            "-o",
            "-",
        ])
        .run();
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    assert_eq!(finished.stderr(), "");
    let bundle: &Path = &finished.path(".stdout");
    let test = Command::new("unzip").arg("-t").arg(bundle).output();
    assert!(test.unwrap().status.success());
    assert!(finished.files().is_empty());
}
