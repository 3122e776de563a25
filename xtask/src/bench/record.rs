//! Throughput of redis while all probes look at it at once.

use super::redis::Redis;
use super::report::Report;
use super::tool::Tool;
use super::{Bench, chain, peers};
use anyhow::Result;

/// Measures `agent record` and `agent serve` beside the commands that look at one thing each.
///
/// # Errors
/// redis cannot be run.
pub(crate) fn run(bench: &Bench) -> Result<Report> {
    let redis = Redis::start(bench, bench.choose(0.5, 0.4))?;
    let pid = redis.pid().to_string();
    let zip = bench.scratch.file("zip").display().to_string();
    let svg = bench.scratch.file("svg");
    let record = [
        &bench.agent,
        "record",
        "--pid",
        &pid,
        "-d",
        "10m",
        "-o",
        &zip,
    ];
    let serve = [
        &bench.agent,
        "serve",
        "--pid",
        &pid,
        "--listen",
        "127.0.0.1:0",
    ];
    let absent = |name| !peers::has(bench, name);
    let tools = [
        Tool::new("agent record", &record).unless(absent("record"), "not in this agent"),
        Tool::new("agent serve", &serve).unless(absent("serve"), "not in this agent"),
        peers::agent(bench, redis.pid(), 99, &[&svg]),
        peers::subcommand(bench, "tcp", redis.pid()),
        peers::subcommand(bench, "syscalls", redis.pid()),
    ];
    let outcome = chain::run(&tools, bench.choose(9, 1), &bench.scratch, &mut || {
        redis.rate()
    })?;
    let mut report = Report::new(
        "redis: throughput while everything is recorded",
        "GET from 50 clients without pipelining: all probes in one session, and each by itself. Peak resident memory of \
         the agent, bundle and report included.",
    );
    report.table(
        &[
            "redis under",
            "GET per second",
            "ratio to bare",
            "peak memory",
        ],
        &outcome.rows_with_memory(),
    );
    let mut commands = redis.commands();
    commands.extend(tools.iter().map(Tool::line));
    report.commands(&commands);
    Ok(report)
}
