//! From the start of a profiler to its first sample, and from the end of the capture to its result.

use super::machine::Scratch;
use super::report::{Report, spread};
use super::tool::{Running, Tool};
use super::{Bench, peers, tables, target};
use crate::command::{self, cargo, target as build_directory};
use anyhow::{Context, Result};
use serde_json::Value;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

const HERTZ: u32 = 99;
const END: Duration = Duration::from_secs(120);

/// Starts a target.
type Start = Box<dyn Fn(&Scratch) -> Result<Running>>;

/// A kind of target.
struct Subject {
    name: String,
    start: Start,
}

/// Milliseconds of several runs of one profiler.
#[derive(Default)]
struct Times {
    start: Vec<f64>,
    end: Vec<f64>,
    failure: Option<String>,
}

/// Measures each profiler on a small program and on big ones.
///
/// # Errors
/// A target or the agent cannot be run.
pub(crate) fn run(bench: &Bench) -> Result<Report> {
    let launch = launch_time(bench)?;
    let mut rows = Vec::new();
    for subject in subjects(bench)? {
        let mut times = [Times::default(), Times::default(), Times::default()];
        for _ in 0..bench.choose(3, 1) {
            let running = (subject.start)(&bench.scratch)?;
            let pid = running.pid();
            let [agent, perf, bee] = &mut times;
            agent.take(ours(bench, pid, launch));
            perf.take(perf_times(bench, pid));
            bee.take(bee_times(bench, pid));
        }
        for (name, times) in ["agent", "perf record dwarf,16384", "profile-bee"]
            .iter()
            .zip(&times)
        {
            rows.push(times.row(&subject.name, name));
        }
    }
    let mut report = Report::new(
        "Latency",
        &format!(
            "Start: from the exec of the profiler until it samples. For the agent that is until its clock runs on every CPU \
             (`facts.start_ms`, and {launch:.1} ms for exec and command line; the first sample follows within 1/99 s of the target's CPU time), for perf \
             its first sample's own time, for profile-bee when it says that it waits. End: from Ctrl-C to the end of the process with the flame \
             graph (for the agent SVG and JSON) written; for perf, `perf script` after it, which a flame graph is made of. \
             Milliseconds, medians."
        ),
    );
    report.table(&["target", "profiler", "start", "end"], &rows);
    let svg = Path::new("x.svg");
    report.commands(
        &[
            peers::agent(bench, 1, HERTZ, &[svg, Path::new("x.json")]).line(),
            peers::perf("dwarf,16384", 1, HERTZ, Path::new("x.data")).line(),
            "perf script --no-inline -i x.data".to_owned(),
            peers::bee(1, HERTZ, svg).line(),
        ]
        .map(|line| {
            line.replace("-p 1 ", "-p PID ")
                .replace("--pid 1 ", "--pid PID ")
        }),
    );
    Ok(report)
}

fn subjects(bench: &Bench) -> Result<Vec<Subject>> {
    let subject = |name: String, start: Start| Subject { name, start };
    let deep = Box::new(|scratch: &Scratch| target::start("deep", &["8"], scratch));
    let mut subjects = vec![subject("deep (20 KB and libc)".into(), deep)];
    if let Some(node) = command::find("node") {
        let start = |scratch: &Scratch| {
            target::start_script(&["node", "--perf-basic-prof"], "busy.js", scratch)
        };
        subjects.push(subject(format!("node ({})", size(&node)), Box::new(start)));
    }
    if let Ok(driver) = tables::rustc_driver() {
        let source = bench.scratch.file("rs");
        fs::write(&source, long_source())?;
        let start = move |scratch: &Scratch| compile(&source, scratch);
        subjects.push(subject(
            format!("rustc (driver {})", size(&driver)),
            Box::new(start),
        ));
        command::run(cargo().args([
            "build",
            "--quiet",
            "--package",
            "agent",
            "--example",
            "tables",
        ]))?;
        let program = build_directory().join("debug/examples/tables");
        let name = format!("a debug build ({}, full debug information)", size(&program));
        let start = move |scratch: &Scratch| {
            Running::start(
                Command::new(&program)
                    .args(["--repeat", "600"])
                    .arg(&driver),
                scratch,
            )
        };
        subjects.push(subject(name, Box::new(start)));
    }
    Ok(subjects)
}

fn size(file: &Path) -> String {
    let bytes = fs::metadata(file).map_or(0, |meta| meta.len());
    format!("{:.0} MB", bytes as f64 / 1e6)
}

/// A program that rustc works on for a good while.
fn long_source() -> String {
    let mut text = String::from("use std::collections::*;\n");
    for i in 0..1500 {
        let _ = writeln!(
            text,
            "pub fn f{i}(x: &[u64]) -> BTreeMap<String, Vec<[u64; {}]>> {{ let mut m = BTreeMap::new(); for v in x.iter().filter(|v| **v % {} > 3).map(|v| v ^ {i}) {{ m.entry(format!(\"{i} {{v}}\")).or_insert_with(Vec::new).push([v; {}]); }} m }}",
            i % 97 + 1,
            i + 5,
            i % 97 + 1
        );
    }
    text
}

/// Starts the compiler itself, not rustup's, and lets it get going.
fn compile(source: &Path, scratch: &Scratch) -> Result<Running> {
    let rustc: PathBuf = tables::sysroot()?.join("bin/rustc");
    let mut command = Command::new(rustc);
    command.args([
        "--edition=2021",
        "--crate-type=rlib",
        "-O",
        "-Ccodegen-units=1",
        "-o",
    ]);
    command.arg(scratch.file("rlib")).arg(source);
    let running = Running::start(&mut command, scratch)?;
    sleep(Duration::from_secs(1));
    Ok(running)
}

/// Median milliseconds of `agent --version`: exec, dynamic linking, command line.
fn launch_time(bench: &Bench) -> Result<f64> {
    let mut times = Vec::new();
    for _ in 0..11 {
        let started = Instant::now();
        command::output(Command::new(&bench.agent).arg("--version"))?;
        times.push(milliseconds(started.elapsed()));
    }
    super::report::median(&times).context("no time")
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Lets a profiler that samples do so for a while, ends it, and says how long that took.
fn finish(bench: &Bench, running: Running) -> Result<f64> {
    sleep(Duration::from_millis(bench.choose(1000, 700)));
    Ok(milliseconds(running.stop(END)?.ending))
}

fn ours(bench: &Bench, pid: u32, launch: f64) -> Result<(f64, f64)> {
    let (svg, json) = (bench.scratch.file("svg"), bench.scratch.file("json"));
    let running = peers::agent(bench, pid, HERTZ, &[&svg, &json]).start(&bench.scratch)?;
    let end = finish(bench, running)?;
    fs::metadata(&svg).context("no flame graph was written")?;
    let profile: Value = serde_json::from_slice(&fs::read(&json)?)?;
    let start = profile.pointer("/facts/start_ms").and_then(Value::as_f64);
    Ok((launch + start.context("no start_ms")?, end))
}

fn perf_times(bench: &Bench, pid: u32) -> Result<(f64, f64)> {
    let data = bench.scratch.file("data");
    let tool: Tool = peers::perf("dwarf,16384", pid, HERTZ, &data);
    let before = monotonic();
    let running = tool.start(&bench.scratch)?;
    let end = finish(bench, running)?;
    let started = Instant::now();
    let mut script = Command::new("perf");
    script
        .args(["script", "--no-inline", "-F", "ip,sym", "-i"])
        .arg(&data);
    Running::start(&mut script, &bench.scratch)?.wait(END)?;
    let end = end + milliseconds(started.elapsed());
    let mut script = Command::new("perf");
    script
        .args(["script", "--ns", "-G", "-F", "time", "-i"])
        .arg(&data);
    let text = command::output(&mut script)?;
    let first: f64 = text
        .split_whitespace()
        .next()
        .context("perf has no sample")?
        .trim_end_matches(':')
        .parse()?;
    Ok(((first - before) * 1e3, end))
}

fn bee_times(bench: &Bench, pid: u32) -> Result<(f64, f64)> {
    let svg = bench.scratch.file("svg");
    let running = peers::bee(pid, HERTZ, &svg).start(&bench.scratch)?;
    let start = milliseconds(running.ready_at.duration_since(running.started));
    let end = finish(bench, running)?;
    fs::metadata(&svg).context("no flame graph was written")?;
    Ok((start, end))
}

/// Seconds of `CLOCK_MONOTONIC`.
fn monotonic() -> f64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the structure is ours.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

impl Times {
    fn take(&mut self, times: Result<(f64, f64)>) {
        match times {
            Ok((start, end)) => {
                self.start.push(start);
                self.end.push(end);
            }
            Err(error) => self.failure = Some(format!("not available: {error:#}")),
        }
    }

    fn row(&self, target: &str, name: &str) -> Vec<String> {
        let start = self.failure.clone().filter(|_| self.start.is_empty());
        let start = start.unwrap_or_else(|| spread(&self.start, 0));
        vec![
            target.to_owned(),
            name.to_owned(),
            start,
            spread(&self.end, 0),
        ]
    }
}
