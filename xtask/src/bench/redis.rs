//! Throughput of redis GET while it is profiled.

use super::chain;
use super::machine;
use super::report::Report;
use super::tool::{Running, Tool};
use super::{Bench, peers};
use anyhow::{Context, Result, bail};
use std::net::{Ipv4Addr, TcpListener};
use std::process::Command;

/// A redis server on the first CPU and the load that a client on the last one makes.
pub(crate) struct Redis {
    server: Running,
    port: u16,
    requests: u64,
}

impl Redis {
    /// Starts a server, and finds out how many requests take `seconds`.
    ///
    /// # Errors
    /// It is not installed or does not start.
    pub(crate) fn start(bench: &Bench, seconds: f64) -> Result<Self> {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
            .local_addr()?
            .port();
        let mut command = Command::new("taskset");
        command.args([
            "-c",
            "0",
            "redis-server",
            "--save",
            "",
            "--appendonly",
            "no",
        ]);
        command.args(["--bind", "127.0.0.1", "--port", &port.to_string()]);
        let mut server = Running::start(&mut command, &bench.scratch)?;
        server.ready("Ready to accept")?;
        let mut redis = Self {
            server,
            port,
            requests: 50_000,
        };
        redis.rate()?;
        redis.requests = (redis.rate()? * seconds) as u64 + 1;
        Ok(redis)
    }

    /// The server's process id.
    pub(crate) fn pid(&self) -> u32 {
        self.server.pid()
    }

    /// The server's port.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The command of the load: `requests` times GET from 50 clients, one request each at a time.
    fn load(&self, requests: u64) -> Vec<String> {
        let last = machine::cpus().saturating_sub(1);
        let text = format!(
            "taskset -c {last} redis-benchmark -p {} -t get -n {requests} -c 50 --csv",
            self.port
        );
        text.split(' ').map(str::to_owned).collect()
    }

    /// Requests per second of one run.
    ///
    /// # Errors
    /// The client fails.
    pub(crate) fn rate(&self) -> Result<f64> {
        let words = self.load(self.requests);
        let (program, arguments) = words.split_first().context("no command")?;
        let text = crate::command::output(Command::new(program).args(arguments))?;
        let line = text.lines().find(|line| line.starts_with("\"GET"));
        line.and_then(|line| line.split(',').nth(1))
            .and_then(|field| field.trim_matches('"').parse().ok())
            .with_context(|| format!("cannot understand redis-benchmark: {text}"))
    }

    /// Starts a load that lasts until it is dropped.
    ///
    /// # Errors
    /// The client cannot be started.
    pub(crate) fn endless_load(&self, bench: &Bench) -> Result<Running> {
        let words = self.load(2_000_000_000);
        let (program, arguments) = words.split_first().context("no command")?;
        Running::start(Command::new(program).args(arguments), &bench.scratch)
    }

    /// The commands, for the report.
    pub(crate) fn commands(&self) -> Vec<String> {
        vec![
            format!(
                "taskset -c 0 redis-server --save '' --appendonly no --port {}",
                self.port
            ),
            self.load(self.requests).join(" "),
        ]
    }
}

/// Measures the profilers at 99 and 999 Hz.
///
/// # Errors
/// redis cannot be run.
pub(crate) fn run(bench: &Bench) -> Result<Report> {
    let redis = Redis::start(bench, bench.choose(0.5, 0.4))?;
    let svg = bench.scratch.file("svg");
    let data = bench.scratch.file("data");
    let pid = redis.pid();
    let tools: Vec<Tool> = [99, 999]
        .into_iter()
        .flat_map(|hertz| {
            [
                peers::agent(bench, pid, hertz, &[&svg]),
                peers::perf("dwarf,16384", pid, hertz, &data),
                peers::bee(pid, hertz, &svg),
            ]
        })
        .collect();
    let outcome = chain::run(&tools, bench.choose(15, 1), &bench.scratch, &mut || {
        redis.rate()
    })?;
    if outcome.bare.is_empty() {
        bail!("nothing was measured");
    }
    let mut report = Report::new(
        "redis: throughput while it is profiled",
        "GET from 50 clients without pipelining, server and client each on a CPU of its own, the profiler wherever the \
         scheduler puts it. Attached before the load begins, so this is the steady state.",
    );
    report.table(
        &["profiler", "GET per second", "ratio to unprofiled"],
        &outcome.rows(),
    );
    let mut commands = redis.commands();
    commands.extend(tools.iter().map(Tool::line));
    report.commands(&commands);
    Ok(report)
}
