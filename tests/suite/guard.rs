//! The overhead guard: what costs too much is slowed or detached, and said; what does not is left alone.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::accounting::{assert_balances, busy_cpus};
use crate::harness::{
    Agent, Finished, Guard, Profile, Target, agent_binary, alone, host_only, in_vm, patience,
};

/// A program whose every system call fails, some hundred thousand a second.
fn failing() -> Target {
    Target::spawn("sys_flood", &["1000000000"])
}

/// The last line on standard output, a document.
fn last(finished: &Finished) -> Value {
    let text = finished.stdout();
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

fn guard_of(document: &Value) -> Guard {
    serde_json::from_value(document["guard"].clone()).unwrap()
}

/// The one step of a run is that a probe was detached.
fn assert_detached(guard: &Guard, probe: &str) {
    let [step] = &guard.steps[..] else {
        panic!("{} steps", guard.steps.len());
    };
    assert_eq!((step.probe.as_str(), step.hz), (probe, None));
    assert_eq!(step.cause, "target");
    assert!(step.share > step.limit, "{} of {}", step.share, step.limit);
    assert!((step.limit - guard.limit).abs() < 1e-9);
}

#[test]
fn a_flood_of_failing_calls_is_let_go_within_seconds() {
    let _alone = alone();
    let target = failing();
    let finished = Agent::syscalls()
        .args(["--pid", &target.pid().to_string(), "--duration", "60s"])
        .args(["--max-overhead", "0.1%", "--format", "json"])
        .run();
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    let report = last(&finished);
    let guard = guard_of(&report);
    assert_detached(&guard, "syscalls");
    if !in_vm() {
        assert!(guard.steps[0].at_s < 4.0, "after {} s", guard.steps[0].at_s);
        assert!(
            finished.took < Duration::from_secs(20),
            "{:?}",
            finished.took
        );
    }
    assert_eq!(report["final"], true);
    assert!(report["errors"][0]["count"].as_u64().unwrap() > 1000);
    let said = finished.stderr();
    for word in [
        "overhead guard",
        "limit 0.1 %",
        "agent syscalls was detached",
        "--max-overhead",
    ] {
        assert!(said.contains(word), "no {word:?} in: {said}");
    }
}

#[test]
fn the_table_says_that_the_guard_ended_it() {
    let _alone = alone();
    let target = failing();
    let finished = Agent::syscalls()
        .args(["--pid", &target.pid().to_string(), "--duration", "60s"])
        .args(["--max-overhead", "0.1%"])
        .run();
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    let table = finished.stdout();
    let second = table.lines().nth(1).unwrap_or_default();
    assert!(second.starts_with("overhead guard: after "), "{table}");
    assert!(table.contains("EBADF"), "{table}");
}

#[test]
fn without_a_limit_nothing_is_detached() {
    let _alone = alone();
    let target = failing();
    let finished = Agent::syscalls()
        .args(["--pid", &target.pid().to_string(), "--duration", "4s"])
        .args(["--max-overhead", "off", "--format", "json"])
        .run();
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    let report = last(&finished);
    assert!(report["guard"].is_null(), "{}", report["guard"]);
    assert!(report["elapsed_s"].as_f64().unwrap() > 3.9);
}

#[test]
fn a_slowed_clock_still_tells_the_cpu_time() {
    if host_only("what a sample costs under emulation changes from one to the next") {
        return;
    }
    let _alone = alone();
    let targets = busy_cpus();
    let target = &targets[0];
    // A third of what it costs here, so that a quarter of the frequency will do, and a sixteenth if
    // others make each sample dearer.
    let pid = target.pid().to_string();
    let unlimited = Agent::profile()
        .args(["--pid", &pid, "--duration", "2s", "--frequency", "999"])
        .args(["-o", "profile.json"])
        .run_to_profile();
    let each = unlimited.cost.bpf_ns_per_sample.unwrap();
    let limit = format!("{:.4}%", each * 999.0 / 1e9 / 3.0 * 100.0);
    let agent = Agent::profile()
        .args(["--pid", &pid, "-v", "--frequency", "999"])
        .args(["--max-overhead", &limit])
        .args(["-o", "profile.json", "-o", "profile.svg"])
        .start();
    agent.await_said("sampling by");
    let before = target.cpu_seconds();
    agent.await_said("sampling was slowed");
    std::thread::sleep(patience(5.0));
    let used = target.cpu_seconds() - before;
    agent.signal(libc::SIGINT);
    let finished = agent.wait();
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    let profile = finished.profile();
    assert_balances(&profile);
    let guard = profile.facts.guard.as_ref().unwrap();
    let step = &guard.steps[0];
    assert_eq!(
        (step.probe.as_str(), step.cause.as_str()),
        ("profile", "target")
    );
    let slowed = step.hz.expect("the clock is slowed before it is detached");
    assert!((60.0..500.0).contains(&slowed), "{slowed} Hz");
    assert_eq!(profile.facts.frequency, 999);
    assert!(finished.text("profile.svg").contains("slowed to"));

    // As of a clock that was never slowed.
    let (facts, sums) = (&profile.facts, &profile.accounting);
    let sampled = profile.samples() as f64 / facts.frequency as f64;
    let tolerance = 0.15;
    assert!(
        (sampled / used - 1.0).abs() < tolerance,
        "{sampled:.2} s sampled of {used:.2} s"
    );
    let expected = facts.frequency as f64 * facts.duration_seconds * f64::from(facts.cpus);
    assert!((sums.expected_ticks as f64 / expected - 1.0).abs() < 0.01);
    if facts.event == "cpu-clock" {
        let ticks = (sums.ticks + sums.recursion_misses) as f64;
        let off = (ticks / expected - 1.0).abs();
        assert!(off < tolerance, "{ticks} of {expected}");
    }
    // Each is counted with its own cost, whatever it counts for.
    let each = profile.cost.bpf_ns_per_sample.unwrap();
    assert!((500.0..100_000.0).contains(&each), "{each} ns");
}

#[test]
fn what_costs_too_much_at_any_frequency_is_detached() {
    let _alone = alone();
    let target = Target::spawn("split", &[]);
    let duration = if in_vm() { "300s" } else { "60s" };
    let finished = Agent::profile()
        .args(["--pid", &target.pid().to_string(), "--duration", duration])
        .args(["--frequency", "999", "--max-overhead", "0.0001%"])
        .args(["-o", "profile.json"])
        .run();
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    let profile = finished.profile();
    assert_balances(&profile);
    let steps = &profile.facts.guard.as_ref().unwrap().steps;
    let rates: Vec<Option<f64>> = steps.iter().map(|step| step.hz).collect();
    assert_eq!(rates, [Some(999.0 / 16.0), None], "{}", finished.stderr());
    assert_eq!(profile.facts.ended, "overhead");
    assert!(profile.facts.duration_seconds < patience(28.0).as_secs_f64());
    assert!(profile.samples() > 0);
}

#[test]
fn a_program_that_we_started_runs_to_its_end() {
    let _alone = alone();
    let program = crate::harness::program("split");
    // Under emulation a look at the cost takes long, and the looks are the rarer for it.
    let seconds = if in_vm() { 60.0 } else { 9.0 };
    let finished = Agent::profile()
        .args([
            "-F",
            "999",
            "--max-overhead",
            "0.0001%",
            "-o",
            "profile.json",
            "--",
        ])
        .args([program.as_os_str()])
        .args([seconds.to_string()])
        .run();
    let profile = finished.profile();
    assert_eq!(
        profile.facts.ended,
        "target_exited",
        "{}",
        finished.stderr()
    );
    let took = finished.took.as_secs_f64();
    assert!(took > seconds - 1.0, "{took} s");
    let watched = profile.facts.duration_seconds;
    assert!(watched < seconds - 0.5, "{watched} s of {seconds} s");
    assert_balances(&profile);
}

#[test]
fn ordinary_targets_are_left_alone() {
    if host_only("under emulation everything costs ten times as much") {
        return;
    }
    let _alone = alone();
    let target = Target::spawn("threads", &[]);
    let profile = Agent::limited("profile", &[], &agent_binary())
        .args([
            "--pid",
            &target.pid().to_string(),
            "-d",
            "5s",
            "-o",
            "profile.json",
        ])
        .run_to_profile();
    let guard = profile.facts.guard.unwrap();
    assert!((guard.limit - 0.01).abs() < 1e-9);
    assert!(guard.steps.is_empty(), "{} steps", guard.steps.len());
    assert!(
        guard.worst.target > 0.0 && guard.worst.target < 0.01,
        "{}",
        guard.worst.target
    );
    assert!(guard.worst.machine < 0.1, "{}", guard.worst.machine);
}

#[test]
fn a_busy_redis_is_left_alone() {
    if host_only("redis is not in the machines") {
        return;
    }
    let _alone = alone();
    let (redis, port) = crate::tcp::redis();
    let mut load = Command::new("redis-benchmark");
    load.args(["-p", &port, "-l", "-t", "get", "-c", "1", "-q"]);
    let _load = Target::run_unready(&mut load);
    let pid = redis.pid().to_string();
    for name in ["tcp", "syscalls"] {
        let watch = || {
            let finished = Agent::limited(name, &[], &agent_binary())
                .args(["--pid", &pid, "-d", "4s", "--format", "json"])
                .run();
            let guard = guard_of(&last(&finished));
            assert!((guard.limit - 0.2).abs() < 1e-9);
            (guard.steps.is_empty(), finished.stderr())
        };
        // Other programs can only add to it.
        let tries: Vec<(bool, String)> = (0..3).map(|_| watch()).collect();
        assert!(
            tries.iter().any(|(left_alone, _)| *left_alone),
            "{name}: {tries:?}"
        );
    }
}

#[test]
fn a_recording_loses_the_costliest_probe_only() {
    if host_only("its bundle is read with the host's unzip") {
        return;
    }
    let _alone = alone();
    let target = failing();
    let finished = Agent::limited("record", &[], &agent_binary())
        .args([
            "--pid",
            &target.pid().to_string(),
            "-d",
            "6s",
            "-o",
            "incident.zip",
            "--max-overhead",
            "3%",
        ])
        .run();
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    let said = finished.stderr();
    assert!(said.contains("agent syscalls was detached"), "{said}");
    let bundle = finished.path("incident.zip");
    let entry = |name: &str| {
        let output = Command::new("unzip")
            .arg("-p")
            .arg(&bundle)
            .arg(name)
            .output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    };
    let meta: Value = serde_json::from_str(&entry("meta.json")).unwrap();
    assert_detached(&guard_of(&meta), "syscalls");
    assert_eq!(meta["ended"], "duration");
    assert!(meta["duration_seconds"].as_f64().unwrap() > 5.9);
    let profile: Profile = serde_json::from_str(&entry("profile.json")).unwrap();
    assert!(profile.facts.duration_seconds > 5.9);
    assert_balances(&profile);
    assert!(
        entry("report.md").contains("overhead guard: after"),
        "{}",
        entry("report.md")
    );
}

#[test]
fn limits_without_a_meaning_are_refused() {
    let me = std::process::id().to_string();
    for name in ["profile", "tcp", "syscalls", "record", "serve"] {
        for (bad, reason) in [
            ("5", "write 1%"),
            ("-1%", "write 1%"),
            ("0%", "more than 0%"),
            ("101%", "at most 100%"),
        ] {
            Agent::subcommand(name, &[], &agent_binary())
                .args(["--pid", &me, "--max-overhead", bad])
                .run()
                .assert_refused(2, &["--max-overhead", reason]);
        }
    }
}
