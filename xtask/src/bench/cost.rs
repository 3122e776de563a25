//! CPU time and memory of the profilers themselves.

use super::redis::Redis;
use super::report::{Report, median, megabytes};
use super::tool::{Tool, Usage};
use super::{Bench, peers};
use anyhow::Result;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

const END: Duration = Duration::from_secs(120);
const HERTZ: u32 = 99;

/// What the runs of one profiler took.
#[derive(Default)]
struct Costs {
    cpu: Vec<f64>,
    rss: Vec<f64>,
    disk: Vec<f64>,
    failure: Option<String>,
}

/// Profiles a loaded redis with each profiler in turn.
///
/// # Errors
/// redis cannot be run.
pub(crate) fn run(bench: &Bench) -> Result<Report> {
    let redis = Redis::start(bench, 0.5)?;
    let _load = redis.endless_load(bench)?;
    let seconds = bench.choose(10, 2);
    let svg = bench.scratch.file("svg");
    let data = bench.scratch.file("data");
    let pid = redis.pid();
    let tools = [
        (
            peers::agent(bench, pid, HERTZ, &[&svg]),
            svg.as_path(),
            false,
        ),
        (
            peers::perf("dwarf,16384", pid, HERTZ, &data),
            data.as_path(),
            true,
        ),
        (peers::bee(pid, HERTZ, &svg), svg.as_path(), false),
    ];
    let mut costs: [Costs; 3] = Default::default();
    let mut script = Costs::default();
    for _ in 0..bench.choose(2, 1) {
        for ((tool, written, is_perf), costs) in tools.iter().zip(&mut costs) {
            match once(tool, seconds, bench) {
                Ok(usage) => costs.add(usage, written),
                Err(error) => costs.failure = Some(format!("not available: {error:#}")),
            }
            if *is_perf && let Ok(usage) = read_data(bench, &data) {
                script.add(usage, &data);
            }
        }
    }
    let mut rows: Vec<Vec<String>> = tools
        .iter()
        .zip(&costs)
        .map(|((tool, ..), costs)| costs.row(&tool.name))
        .collect();
    rows.insert(2, script.row("perf script, to make stacks of it"));
    let mut report = Report::new(
        "CPU time and memory of the profilers",
        &format!(
            "{seconds} s of a loaded redis. CPU time and peak resident memory of the profiler's process from its start to its end, \
             flame graph included (perf: the raw data), as wait4 tells them; time in kernel programs and in the target's \
             context is not in it (see the ratios above). The last column is the size of the file written."
        ),
    );
    report.table(
        &["profiler", "CPU seconds", "peak memory", "written"],
        &rows,
    );
    let mut commands = redis.commands();
    commands.extend(tools.iter().map(|(tool, ..)| tool.line()));
    report.commands(&commands);
    Ok(report)
}

fn once(tool: &Tool, seconds: u64, bench: &Bench) -> Result<Usage> {
    let running = tool.start(&bench.scratch)?;
    sleep(Duration::from_secs(seconds));
    running.stop(END)
}

fn read_data(bench: &Bench, data: &Path) -> Result<Usage> {
    let mut command = Command::new("perf");
    command
        .args(["script", "--no-inline", "-F", "ip,sym", "-i"])
        .arg(data);
    super::tool::Running::start(&mut command, &bench.scratch)?.wait(END)
}

impl Costs {
    fn add(&mut self, usage: Usage, written: &Path) {
        self.cpu.push(usage.cpu_seconds);
        self.rss.push(usage.peak_rss as f64);
        self.disk
            .extend(fs::metadata(written).map(|meta| meta.len() as f64));
    }

    fn row(&self, name: &str) -> Vec<String> {
        let size =
            |values: &[f64]| median(values).map_or("-".into(), |bytes| megabytes(bytes as u64));
        let cpu = median(&self.cpu).map_or("-".into(), |seconds| format!("{seconds:.3}"));
        let cpu = self.failure.clone().unwrap_or(cpu);
        vec![name.to_owned(), cpu, size(&self.rss), size(&self.disk)]
    }
}
