//! Every tick of the clock is accounted for, and there are as many as there should be.

use std::time::Duration;

use crate::harness::{Agent, FREQUENCY, Profile, Stack, Target, alone, host_only, in_vm};

pub(crate) fn assert_balances(profile: &Profile) {
    let sums = &profile.accounting;
    let lost: u64 = sums.lost.values().sum();
    assert_eq!(
        sums.ticks,
        sums.idle + sums.other + sums.emitted + lost,
        "lost {:?}",
        sums.lost
    );
    assert_eq!(
        sums.emitted,
        profile.samples(),
        "emitted against the stacks' counts"
    );
    let totals = &profile.totals;
    assert_eq!(
        (totals.samples, totals.lost, totals.balances),
        (profile.samples(), lost, true)
    );
    assert_eq!(totals.complete_samples, profile.count(Stack::is_complete));
}

/// How far `value` is from `expected`, as a share of it.
fn off(value: f64, expected: f64) -> f64 {
    (value - expected).abs() / expected
}

#[test]
fn ticks_balance_to_the_tick() {
    let _alone = alone();
    for (name, arguments) in [
        ("split", &[][..]),
        ("deep", &["300", "handler"]),
        ("templates", &[]),
        ("threads", &[]),
    ] {
        let target = Target::spawn(name, arguments);
        assert_balances(&Agent::standard(target.pid()).run_to_profile());
    }
}

/// Keeps every CPU at work: where the hardware counts cycles, a halted CPU does not tick.
pub(crate) fn busy_cpus() -> Vec<Target> {
    let cpus = std::thread::available_parallelism().unwrap().get();
    (0..cpus).map(|_| Target::spawn("split", &[])).collect()
}

/// As [`Agent::timed`], but under emulation with ticks so few that its timers keep up.
fn sampled(pid: u32, seconds: f64) -> Agent {
    let duration = format!("{}ms", (seconds * 1000.0) as u64);
    let frequency = if in_vm() { 49 } else { FREQUENCY };
    Agent::profile()
        .args(["--pid", &pid.to_string(), "--duration", &duration])
        .args(["--frequency", &frequency.to_string(), "-o", "profile.json"])
}

#[test]
fn ticks_are_frequency_times_time_times_cpus() {
    let _alone = alone();
    let targets = busy_cpus();
    let target = &targets[0];
    let profile = sampled(target.pid(), 3.0).run_to_profile();
    let (facts, sums) = (&profile.facts, &profile.accounting);
    let expected = facts.frequency as f64 * facts.duration_seconds * f64::from(facts.cpus);
    assert!(
        off(sums.expected_ticks as f64, expected) < 0.01,
        "{} against {expected}",
        sums.expected_ticks
    );
    // Under emulation timer interrupts come late.
    let tolerance = if in_vm() { 0.5 } else { 0.1 };
    let seen = (sums.ticks + sums.recursion_misses) as f64;
    assert!(
        off(seen, expected) < tolerance,
        "{seen} ticks instead of {expected}"
    );
}

#[test]
fn samples_are_the_cpu_time_of_the_target() {
    let _alone = alone();
    let target = Target::spawn("split", &[]);
    let agent = sampled(target.pid(), 60.0).args(["-v"]).start();
    agent.await_said("sampling by");
    let before = target.cpu_seconds();
    std::thread::sleep(Duration::from_secs(4));
    let used = target.cpu_seconds() - before;
    agent.signal(libc::SIGINT);
    let profile = agent.wait().profile();
    let sampled = profile.samples() as f64 / profile.facts.frequency as f64;
    let tolerance = if in_vm() { 0.5 } else { 0.15 };
    assert!(
        off(sampled, used) < tolerance,
        "{sampled:.2} s sampled of {used:.2} s"
    );
}

#[test]
fn the_frequency_is_what_was_asked_for() {
    let _alone = alone();
    let targets = busy_cpus();
    let target = &targets[0];
    // A clock of 499 Hz is more than an emulated machine keeps up with on a loaded host.
    let frequencies: &[u64] = if in_vm() { &[49] } else { &[49, 499] };
    for &frequency in frequencies {
        let arguments = [
            "--pid",
            &target.pid().to_string(),
            "--duration",
            "2s",
            "-o",
            "profile.json",
        ];
        let agent = Agent::profile()
            .args(arguments)
            .args(["--frequency", &frequency.to_string()]);
        let profile = agent.run_to_profile();
        assert_eq!(profile.facts.frequency, frequency);
        assert_balances(&profile);
        let (facts, ticks) = (&profile.facts, profile.accounting.ticks as f64);
        let rate = ticks / facts.duration_seconds / f64::from(facts.cpus);
        let tolerance = if in_vm() { 0.5 } else { 0.1 };
        assert!(
            off(rate, frequency as f64) < tolerance,
            "{rate:.0} ticks a second at {frequency} Hz"
        );
    }
}

/// From the start to the first sample 300 ms, from the end of the capture to the files 300 ms.
#[test]
fn start_and_finish_are_quick() {
    if host_only("its limits hold for a machine, not for an emulator") {
        return;
    }
    let _alone = alone();
    let target = Target::spawn("split", &[]);
    // Other programs can only add to it: the least of five is the agent's own.
    let overhead = |_| {
        let finished = Agent::timed(target.pid(), 1.0)
            .args(["-o", "flame.svg"])
            .run();
        finished.took.as_secs_f64() - finished.profile().facts.duration_seconds
    };
    let least = (0..5).map(overhead).fold(f64::INFINITY, f64::min);
    assert!(least <= 0.6, "{least:.3} s besides the sampling");
}

#[test]
fn cost_is_reported() {
    let _alone = alone();
    let target = Target::spawn("split", &[]);
    let cost = Agent::standard(target.pid()).run_to_profile().cost;
    assert!(cost.cpu_seconds > 0.0);
    assert!(
        (1 << 20..64 << 20).contains(&cost.peak_rss_bytes),
        "{} bytes",
        cost.peak_rss_bytes
    );
    let per_sample = cost
        .bpf_ns_per_sample
        .expect("root may read the run time of its programs");
    assert!(per_sample > 0.0);
}
