//! Throughput of redis while the latency of its connections is measured.

use super::redis::Redis;
use super::report::Report;
use super::tool::Tool;
use super::{Bench, chain, peers};
use anyhow::Result;

/// Measures `agent tcp` and the tools that watch TCP connections.
///
/// # Errors
/// redis cannot be run.
pub(crate) fn run(bench: &Bench) -> Result<Report> {
    let redis = Redis::start(bench, bench.choose(0.5, 0.4))?;
    let (pid, port) = (redis.pid().to_string(), redis.port());
    let script = format!(
        "tracepoint:tcp:tcp_probe /args->sport == {port} || args->dport == {port}/ {{ @srtt[args->sport, args->dport] = hist(args->srtt); }}"
    );
    let tools = [
        peers::subcommand(bench, "tcp", redis.pid()),
        peers::floor(&[
            "tcp_sendmsg_locked",
            "sk_data_ready",
            "tcp_rcv_space_adjust",
        ]),
        Tool::new(
            "bpftrace, srtt of each connection",
            &["bpftrace", "-e", &script],
        )
        .with_tracefs()
        .ready_at("Attaching"),
        Tool::new("bcc tcplife", &["tcplife-bpfcc", "-p", &pid]).ready_at("LADDR"),
        Tool::new("bcc tcprtt", &["tcprtt-bpfcc", "-P", &port.to_string()]).ready_at("Tracing"),
    ];
    let outcome = chain::run(&tools, bench.choose(15, 1), &bench.scratch, &mut || {
        redis.rate()
    })?;
    let mut report = Report::new(
        "redis: throughput while its connections are watched",
        "GET from 50 clients without pipelining. The peers see less than the agent: none of them times \
         requests. BPF programs that do nothing show what the kernel's way to the three hooks of each request costs.",
    );
    report.table(
        &["redis under", "GET per second", "ratio to bare"],
        &outcome.rows(),
    );
    let mut commands = redis.commands();
    commands.extend(tools.iter().map(Tool::line));
    report.commands(&commands);
    Ok(report)
}
