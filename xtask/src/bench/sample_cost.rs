//! Nanoseconds of the kernel program, and bytes to userspace, for each sample of 13 frames.

use super::report::{Report, median, spread};
use super::tool::{Running, Tool};
use super::{Bench, machine, peers, target};
use anyhow::{Context, Result};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

const HERTZ: u32 = 199;
/// `descend` calls: with main, bottom and the three frames below main a stack of 13.
const DESCENTS: &str = "8";
const END: Duration = Duration::from_secs(30);

/// What several runs of one profiler gave.
#[derive(Default)]
struct Found {
    kernel: Vec<f64>,
    own: Vec<f64>,
    bytes: Vec<f64>,
    /// Share of the ticks that were samples, in percent.
    share: Vec<f64>,
}

/// Measures the agent and profile-bee, on targets that keep every CPU busy.
///
/// # Errors
/// The targets or the agent cannot be run.
pub(crate) fn run(bench: &Bench) -> Result<Report> {
    let _stats = machine::BpfStats::on()?;
    let targets: Vec<Running> = (0..machine::cpus())
        .map(|cpu| target::start_on(cpu, "deep", &[DESCENTS], &bench.scratch))
        .collect::<Result<_>>()?;
    let pid = targets.first().context("no CPU")?.pid();
    let json = bench.scratch.file("json");
    let mut agent = peers::agent(bench, pid, HERTZ, &[&json]);
    for other in targets.iter().skip(1) {
        agent
            .words
            .extend(["--pid".to_owned(), other.pid().to_string()]);
    }
    let mut bee = peers::bee(pid, HERTZ, &bench.scratch.file("folded"));
    bee.words.extend(["--cpu", "0"].map(str::to_owned));
    let data = bench.scratch.file("data");
    let perf = peers::perf("dwarf,16384", pid, HERTZ, &data);
    let (mut ours, mut theirs) = (Found::default(), Found::default());
    let mut perf_bytes = Vec::new();
    let mut refused = None;
    for _ in 0..bench.choose(3, 1) {
        ours.kernel.push(per_run(&agent, bench)?);
        ours.take(&json)?;
        match per_run(&bee, bench) {
            Ok(nanoseconds) => theirs.kernel.push(nanoseconds),
            Err(error) => refused = Some(format!("not available: {error:#}")),
        }
        perf_bytes.extend(perf_cost(&perf, &data, bench));
    }
    Ok(report(
        &[agent, bee, perf],
        &ours,
        &theirs,
        &perf_bytes,
        refused,
    ))
}

/// Runs a profiler; gives the nanoseconds per run of its programs on the busy CPUs.
fn per_run(tool: &Tool, bench: &Bench) -> Result<f64> {
    let running = tool.start(&bench.scratch)?;
    // On CPUs that are all taken the start may be slow.
    let deadline = Instant::now() + END;
    while machine::bpf_runs(running.pid()).1 == 0 && Instant::now() < deadline {
        sleep(Duration::from_millis(10));
    }
    sleep(Duration::from_millis(300));
    let before = machine::bpf_runs(running.pid());
    sleep(Duration::from_millis(bench.choose(2000, 1000)));
    let after = machine::bpf_runs(running.pid());
    running.stop(END)?;
    let runs = after.1.saturating_sub(before.1);
    if runs == 0 {
        anyhow::bail!("its programs never ran");
    }
    Ok(after.0.saturating_sub(before.0) as f64 / runs as f64)
}

impl Found {
    /// Adds the agent's own figures.
    fn take(&mut self, json: &Path) -> Result<()> {
        let profile: Value = serde_json::from_slice(&fs::read(json)?)?;
        fs::remove_file(json)?;
        let figure = |path: &str| profile.pointer(path).and_then(Value::as_f64);
        self.own.extend(figure("/cost/bpf_ns_per_sample"));
        self.bytes.extend(figure("/cost/bytes_per_sample"));
        if let (Some(samples), Some(ticks)) = (
            figure("/accounting/emitted"),
            figure("/accounting/ticks").filter(|&ticks| ticks > 0.0),
        ) {
            self.share.push(100.0 * samples / ticks);
        }
        Ok(())
    }
}

/// Bytes that perf wrote per sample.
fn perf_cost(perf: &Tool, data: &Path, bench: &Bench) -> Option<f64> {
    let running = perf.start(&bench.scratch).ok()?;
    sleep(Duration::from_secs(1));
    running.stop(END).ok()?;
    let script = crate::command::output(
        std::process::Command::new("perf")
            .args(["script", "-F", "time", "-G", "-i"])
            .arg(data),
    )
    .ok()?;
    let samples = script
        .lines()
        .filter(|line| !line.trim().is_empty())
        .count();
    (samples > 0).then(|| fs::metadata(data).map_or(0.0, |meta| meta.len() as f64) / samples as f64)
}

fn report(
    tools: &[Tool],
    ours: &Found,
    theirs: &Found,
    perf_bytes: &[f64],
    refused: Option<String>,
) -> Report {
    let mut report = Report::new(
        "Cost of a sample in the kernel",
        "A C program without frame pointers, 13 frames deep, one on each CPU so that every tick is a sample; 199 Hz. \
         Time by the kernel's own statistics (`kernel.bpf_stats_enabled`: run time divided by runs of the program) and as the \
         agent counts it itself. perf has no BPF program: it copies the stack and unwinds later.",
    );
    let bytes =
        |values: &[f64]| median(values).map_or("-".to_owned(), |bytes| format!("{bytes:.0}"));
    report.table(
        &[
            "profiler",
            "ns per run, by the kernel",
            "ns per sample, by its own count",
            "bytes to userspace per sample",
        ],
        &[
            vec![
                "agent profile".into(),
                spread(&ours.kernel, 0),
                spread(&ours.own, 0),
                bytes(&ours.bytes),
            ],
            vec![
                "profile-bee".into(),
                refused.unwrap_or_else(|| spread(&theirs.kernel, 0)),
                "-".into(),
                "-".into(),
            ],
            vec![
                "perf record dwarf,16384".into(),
                "-".into(),
                "-".into(),
                bytes(perf_bytes),
            ],
        ],
    );
    report.paragraph(&format!(
        "{} % of the agent's ticks were samples of the targets; the rest lowers the kernel's figure.",
        median(&ours.share).map_or("-".to_owned(), |share| format!("{share:.1}"))
    ));
    report.commands(&tools.iter().map(Tool::line).collect::<Vec<_>>());
    report
}
