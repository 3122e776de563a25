//! Speed of processes whose failing system calls are watched.

use super::redis::Redis;
use super::report::{Report, median, spread};
use super::tool::{Running, Tool};
use super::{Bench, chain, peers, target};
use anyhow::{Context, Result, bail};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Measures a loop of geteuid, which never fails, and redis GET.
///
/// # Errors
/// The loop or redis cannot be run.
pub(crate) fn run(bench: &Bench) -> Result<Report> {
    let rounds = bench.choose(9, 1);
    let spinner = target::start_on(0, "geteuid", &[], &bench.scratch)?;
    let tools = contenders(bench, spinner.pid());
    let spinning = chain::run(&tools, rounds, &bench.scratch, &mut || {
        calls(&spinner, bench)
    })?;
    let others = bystander(bench, &spinner, rounds)?;
    drop(spinner);
    let redis = Redis::start(bench, bench.choose(0.5, 0.4))?;
    let redis_tools = contenders(bench, redis.pid());
    let serving = chain::run(&redis_tools, rounds, &bench.scratch, &mut || redis.rate())?;
    let mut report = Report::new(
        "Watching failing system calls",
        "A loop of geteuid on a CPU of its own, then redis GET from 50 clients. A BPF program of two instructions \
         that does nothing shows what the kernel's way to a program at the end of each call costs by itself.",
    );
    report.table(
        &["geteuid under", "calls per second", "ratio to bare"],
        &spinning.rows(),
    );
    report.paragraph(&others);
    report.table(
        &["redis under", "GET per second", "ratio to bare"],
        &serving.rows(),
    );
    let mut commands: Vec<String> = tools.iter().map(Tool::line).collect();
    commands.extend(redis.commands());
    report.commands(&commands);
    Ok(report)
}

/// The tracers that count failing calls of a process.
fn contenders(bench: &Bench, pid: u32) -> Vec<Tool> {
    let number = pid.to_string();
    let script = format!(
        "tracepoint:raw_syscalls:sys_exit /pid == {pid} && args->ret < 0/ {{ @[args->id, args->ret] = count(); }}"
    );
    vec![
        peers::subcommand(bench, "syscalls", pid),
        peers::floor(&["sys_exit"]),
        Tool::new("bpftrace, counting failures", &["bpftrace", "-e", &script])
            .with_tracefs()
            .ready_at("Attaching"),
        Tool::new("perf trace -s", &["perf", "trace", "-s", "-p", &number])
            .with_tracefs()
            .slow(Duration::from_secs(2)),
        Tool::new("strace -c", &["strace", "-f", "-c", "-p", &number]).ready_at("attached"),
    ]
}

/// Calls per second: the median of the next few figures that the loop says.
fn calls(spinner: &Running, bench: &Bench) -> Result<f64> {
    let wanted = bench.choose(5, 2);
    // The figure under way and the one before it are of the time before.
    let skip = spinner.said().lines().count() + 1;
    let deadline = Instant::now() + Duration::from_secs(60);
    while Instant::now() < deadline {
        sleep(Duration::from_millis(20));
        let said = spinner.said();
        let complete = said.rsplit_once('\n').map_or("", |(lines, _)| lines);
        let rates: Vec<f64> = complete
            .lines()
            .skip(skip)
            .filter_map(|line| line.parse().ok())
            .collect();
        if rates.len() >= wanted {
            return median(&rates).context("no figures");
        }
    }
    bail!("the loop says nothing")
}

/// What a process pays that is not the target: nanoseconds for each of its calls.
fn bystander(bench: &Bench, spinner: &Running, rounds: usize) -> Result<String> {
    if !peers::has(bench, "syscalls") {
        return Ok("The cost for processes that are not watched: not available.".to_owned());
    }
    let idle = target::start("idle", &[], &bench.scratch)?;
    let tool = peers::subcommand(bench, "syscalls", idle.pid());
    let mut extra = Vec::new();
    let mut before = calls(spinner, bench)?;
    for _ in 0..rounds {
        let running = tool.start(&bench.scratch)?;
        let under = calls(spinner, bench)?;
        running.stop(Duration::from_secs(30))?;
        let after = calls(spinner, bench)?;
        extra.push(1e9 / under - (1e9 / before + 1e9 / after) / 2.0);
        before = after;
    }
    Ok(format!(
        "A process that is not watched pays {} ns for each of its calls while `agent syscalls` watches another.",
        spread(&extra, 0)
    ))
}
