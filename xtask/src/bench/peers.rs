//! The command lines of the agent and of its peers.

use super::Bench;
use super::tool::Tool;
use crate::command;
use std::path::Path;
use std::process::Command;

/// What profile-bee writes when its programs are attached.
const BEE_READY: &str = "Waiting for Ctrl-C";

/// `agent profile` until Ctrl-C.
pub(crate) fn agent(bench: &Bench, pid: u32, hertz: u32, outputs: &[&Path]) -> Tool {
    let (pid, hertz) = (pid.to_string(), hertz.to_string());
    let mut words = vec![
        bench.agent.as_str(),
        "profile",
        "-q",
        "--pid",
        &pid,
        "-d",
        "10m",
    ];
    words.extend(["-F", &hertz]);
    let outputs: Vec<String> = outputs
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    for output in &outputs {
        words.extend(["-o", output]);
    }
    Tool::new(&format!("agent profile, {hertz} Hz"), &words)
}

/// `perf record` until Ctrl-C; `graph` as for its `--call-graph`.
pub(crate) fn perf(graph: &str, pid: u32, hertz: u32, data: &Path) -> Tool {
    let words = [
        "perf",
        "record",
        "-q",
        "-k",
        "CLOCK_MONOTONIC",
        "--call-graph",
        graph,
        "-F",
        &hertz.to_string(),
        "-p",
        &pid.to_string(),
        "-o",
        &data.display().to_string(),
    ];
    Tool::new(&format!("perf record {graph}, {hertz} Hz"), &words)
}

/// profile-bee with its DWARF unwinder, until Ctrl-C. It needs tracefs.
pub(crate) fn bee(pid: u32, hertz: u32, output: &Path) -> Tool {
    let words = [
        "probee",
        "--dwarf",
        "true",
        "--pid",
        &pid.to_string(),
        "-f",
        &hertz.to_string(),
        "-t",
        "600000",
        "-o",
        &output.display().to_string(),
    ];
    Tool::new(&format!("profile-bee, {hertz} Hz"), &words)
        .with_tracefs()
        .ready_at(BEE_READY)
}

/// Another subcommand of the agent on one process until Ctrl-C, if this agent has it.
pub(crate) fn subcommand(bench: &Bench, name: &str, pid: u32) -> Tool {
    let pid = pid.to_string();
    let guard = ["--max-overhead", "off"];
    let words = [
        &bench.agent,
        name,
        "--pid",
        &pid,
        "-d",
        "10m",
        guard[0],
        guard[1],
    ];
    Tool::new(&format!("agent {name}"), &words).unless(
        !has(bench, name),
        &format!("this agent has no subcommand `{name}`"),
    )
}

/// A program that does nothing at these raw tracepoints: the least that watching them can cost.
pub(crate) fn floor(tracepoints: &[&str]) -> Tool {
    let program = command::target().join("programs/emptyhook");
    let program = program.display().to_string();
    let words: Vec<&str> = [program.as_str()]
        .into_iter()
        .chain(tracepoints.iter().copied())
        .collect();
    Tool::new("nothing, at the same tracepoints", &words).ready_at("ready")
}

/// Whether the agent has a subcommand.
pub(crate) fn has(bench: &Bench, subcommand: &str) -> bool {
    Command::new(&bench.agent)
        .args([subcommand, "--help"])
        .output()
        .is_ok_and(|output| output.status.success())
}

/// Versions of the agent's peers, as they tell them; those that are not installed are named as such.
pub(crate) fn versions() -> Vec<String> {
    [
        ("perf", "--version"),
        ("probee", "--version"),
        ("strace", "--version"),
        ("bpftrace", "--version"),
        ("redis-server", "--version"),
    ]
    .iter()
    .map(|(program, flag)| {
        command::output(Command::new(program).arg(flag)).map_or_else(
            |_| format!("{program}: not installed"),
            |text| first_words(text.lines().next().unwrap_or_default()),
        )
    })
    .collect()
}

/// The first words of a version line, up to the version.
fn first_words(line: &str) -> String {
    let mut words = Vec::new();
    for word in line.split_whitespace() {
        words.push(word);
        if word.contains(|character: char| character.is_ascii_digit()) {
            break;
        }
    }
    words.join(" ")
}
