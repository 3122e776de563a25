//! Share of complete stacks for each kind of target.

use super::report::Report;
use super::tool::{Running, Tool};
use super::{Bench, peers, target};
use crate::command;
use anyhow::{Context, Result};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

const HERTZ: u32 = 199;
const END: Duration = Duration::from_secs(120);

/// Functions that prove that a stack reaches its root: the start of the process, of a thread, or main. Not the
/// C library's functions between them: a chain of frame pointers that has left out all the
/// program's own frames ends there.
const ROOTS: [&str; 13] = [
    "_start",
    "main",
    "clone",
    "clone3",
    "__clone",
    "__clone3",
    "__GI___clone3",
    "runtime.goexit",
    "runtime.rt0_go",
    "runtime.mstart",
    "runtime.mcall",
    "runtime.systemstack",
    "_rt0_amd64_linux",
];

/// How a target is started.
enum Start {
    /// A program of `tests/programs` with its arguments.
    Program(&'static str, &'static [&'static str]),
    /// A script with its interpreter and that one's options.
    Script(&'static [&'static str], &'static str),
}

static TARGETS: [(&str, Start); 8] = [
    (
        "C -O2 without frame pointers, 13 frames",
        Start::Program("deep", &["8"]),
    ),
    (
        "the same, 300 frames, in a signal handler",
        Start::Program("deep", &["300", "handler"]),
    ),
    (
        "musl, static, 300 frames",
        Start::Program("deep-musl", &["300"]),
    ),
    (
        "C++ templates, exceptions, dlopen, 3 threads",
        Start::Program("templates", &[]),
    ),
    ("Rust release, std threads", Start::Program("rustprog", &[])),
    ("Go", Start::Program("goprog", &[])),
    (
        "CPython, native frames",
        Start::Script(&["/usr/bin/python3"], "busy.py"),
    ),
    (
        "Node.js, JIT",
        Start::Script(&["node", "--perf-basic-prof"], "busy.js"),
    ),
];

/// Complete samples and all samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Rate {
    complete: u64,
    all: u64,
}

/// Profiles each kind of target with each profiler.
///
/// # Errors
/// The agent cannot be run.
pub(crate) fn run(bench: &Bench) -> Result<Report> {
    let mut report = Report::new(
        "Complete stacks",
        "199 Hz, 3 s each, one after the other on the same process. The agent counts a stack as complete when its end is a proven \
         root; for the peers, and in the second column for the agent, it is enough that a frame is named main or \
         is the start of the process or of a thread. Behind each share the number of samples seen.",
    );
    let mut rows = Vec::new();
    let mut commands = Vec::new();
    let wanted = bench.choose(TARGETS.len(), 2);
    for (name, start) in TARGETS.iter().take(wanted) {
        let running = match start {
            Start::Program(name, arguments) => target::start(name, arguments, &bench.scratch),
            Start::Script(words, script) => target::start_script(words, script, &bench.scratch),
        };
        let running = match running {
            Ok(running) => running,
            Err(error) => {
                rows.push(vec![
                    (*name).to_owned(),
                    format!("not available: {error:#}"),
                ]);
                continue;
            }
        };
        let (row, lines) = measure(bench, name, &running)?;
        rows.push(row);
        commands = lines;
    }
    report.table(
        &[
            "target",
            "agent, proven root",
            "agent, by name",
            "perf dwarf,16384",
            "perf fp",
            "profile-bee",
        ],
        &rows,
    );
    report.commands(&commands);
    Ok(report)
}

/// One row, and the commands of it.
fn measure(bench: &Bench, name: &str, running: &Running) -> Result<(Vec<String>, Vec<String>)> {
    let pid = running.pid();
    let json = bench.scratch.file("json");
    let folded = bench.scratch.file("folded");
    let data = bench.scratch.file("data");
    let agent = peers::agent(bench, pid, HERTZ, &[&json, &folded]);
    sample(bench, &agent)?;
    let mut row = vec![
        name.to_owned(),
        proven(&json)?.text(),
        of_folded(&fs::read_to_string(&folded)?).text(),
    ];
    let mut commands = vec![agent.line()];
    for graph in ["dwarf,16384", "fp"] {
        let perf = peers::perf(graph, pid, HERTZ, &data);
        let rate = sample(bench, &perf).and_then(|()| of_perf(&data));
        row.push(rate.map_or_else(|error| format!("not available: {error:#}"), Rate::text));
        commands.push(perf.line());
    }
    let bee = peers::bee(pid, HERTZ, &folded);
    fs::remove_file(&folded)?;
    let rate = sample(bench, &bee).and_then(|()| Ok(of_folded(&fs::read_to_string(&folded)?)));
    row.push(rate.map_or_else(|error| format!("not available: {error:#}"), Rate::text));
    commands.push(bee.line());
    Ok((row, commands))
}

/// Runs a profiler for the standard time.
fn sample(bench: &Bench, tool: &Tool) -> Result<()> {
    let running = tool.start(&bench.scratch)?;
    sleep(Duration::from_millis(bench.choose(2500, 800)));
    running.stop(END).map(drop)
}

impl Rate {
    fn add(&mut self, complete: bool, count: u64) {
        self.all += count;
        self.complete += if complete { count } else { 0 };
    }

    fn text(self) -> String {
        if self.all == 0 {
            return "no samples".to_owned();
        }
        let share = 100.0 * self.complete as f64 / self.all as f64;
        format!("{share:.1} % of {}", self.all)
    }
}

/// What the agent itself says.
fn proven(json: &Path) -> Result<Rate> {
    let profile: Value = serde_json::from_slice(&fs::read(json)?)?;
    let total = |name: &str| {
        profile
            .pointer(&format!("/totals/{name}"))
            .and_then(Value::as_u64)
    };
    Ok(Rate {
        complete: total("complete_samples").context("no totals")?,
        all: total("samples").context("no totals")?,
    })
}

/// Whether a function is a root; what a symbol's version or offset adds to its name does not count.
fn is_root(name: &str) -> bool {
    let name = name.trim();
    let name = name.split(['+', '@']).next().unwrap_or(name);
    let name = name.strip_suffix(".abi0").unwrap_or(name);
    ROOTS.contains(
        &name
            .strip_prefix("runtime.rt0_go.")
            .map_or(name, |_| "runtime.rt0_go"),
    )
}

/// From folded stacks: the first frame is the process's name.
fn of_folded(text: &str) -> Rate {
    let mut rate = Rate::default();
    for line in text.lines() {
        if let Some((stack, count)) = line.rsplit_once(' ')
            && let Ok(count) = count.parse()
        {
            rate.add(stack.split(';').skip(1).any(is_root), count);
        }
    }
    rate
}

/// From `perf script`: a block of `ADDRESS FUNCTION` lines for each sample.
fn of_perf(data: &Path) -> Result<Rate> {
    let mut command = Command::new("perf");
    command
        .args(["script", "--no-inline", "-F", "ip,sym", "-i"])
        .arg(data);
    Ok(of_script(&command::output(&mut command)?))
}

fn of_script(text: &str) -> Rate {
    let mut rate = Rate::default();
    for sample in text
        .split("\n\n")
        .filter(|sample| !sample.trim().is_empty())
    {
        let mut names = sample
            .lines()
            .filter_map(|line| line.trim().split_once(' '));
        rate.add(names.any(|(_, name)| is_root(name)), 1);
    }
    rate
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folded_stacks_are_judged_by_their_frames_and_not_by_the_process_name() {
        let rate = of_folded("main;[unknown];leaf 3\ndeep;_start;main;leaf 7\nno count\n");
        assert_eq!(
            rate,
            Rate {
                complete: 7,
                all: 10
            }
        );
    }

    #[test]
    fn perf_samples_are_blocks() {
        let text = "    55 leaf\n    66 main\n    77 _start+0x7a\n\n    55 leaf\n\n  1 runtime.goexit.abi0\n\n";
        assert_eq!(
            of_script(text),
            Rate {
                complete: 2,
                all: 3
            }
        );
    }
}
