//! Formats, exit codes, the terminal.

use std::process::{Command, Stdio};

use serde_json::Value;

use super::Report;
use crate::harness::{
    Agent, LIFE, Target, agent_binary, alone, eventually, host_only, patience, program,
};

fn keys(value: &Value) -> Vec<&str> {
    value
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect()
}

#[test]
fn every_format_tells_the_same() {
    let _alone = alone();
    let files = ["r.json", "r.csv", "r.txt", "r.svg", "r.folded"];
    let finished = Agent::syscalls()
        .args(["--children", "--latency", "--format", "csv"])
        .args(files.iter().flat_map(|file| ["-o", file]))
        .args(["--", program("sys_mix").to_str().unwrap(), LIFE, "10"])
        .run();
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    let document: Value = serde_json::from_str(&finished.text("r.json")).unwrap();
    for key in ["final", "elapsed_s", "target", "errors", "losses"] {
        assert!(keys(&document).contains(&key), "{key}");
    }
    // Where it runs is said only of one that is in a container or a control group of its own.
    let mut target = keys(&document["target"]);
    target.retain(|key| !["cgroup", "container"].contains(key));
    assert_eq!(target, ["comm", "exe", "pid"]);
    let rows = document["errors"].as_array().unwrap();
    for row in rows {
        for key in [
            "syscall",
            "errno",
            "count",
            "rate",
            "restarted",
            "benign",
            "args",
            "latency_us",
            "stacks",
            "calls",
            "share",
            "first_s",
            "last_s",
        ] {
            assert!(keys(row).contains(&key), "{key}");
        }
        assert_eq!(keys(&row["latency_us"]), ["max", "p50", "p99"]);
        assert!(row["rate"].as_f64().unwrap() > 0.0);
        // Of numbers that no system call has, the calls are not counted.
        if !row["syscall"].as_str().unwrap().starts_with("syscall_") {
            let share = row["share"].as_f64().unwrap();
            assert!(row["calls"].as_u64().unwrap() >= row["count"].as_u64().unwrap());
            assert!(share > 0.0 && share <= 1.0, "{row}");
        }
        let (first, last) = (
            row["first_s"].as_f64().unwrap(),
            row["last_s"].as_f64().unwrap(),
        );
        assert!(
            first <= last && last <= document["elapsed_s"].as_f64().unwrap(),
            "{row}"
        );
        assert!(row["args"].as_array().unwrap().len() <= 5);
        let stack = &row["stacks"][0];
        assert_eq!(keys(stack), ["count", "frames"]);
        let argument = &row["args"][0];
        assert!(argument.is_null() || argument["value"].is_string() && argument["count"].is_u64());
    }
    let svg = finished.text("r.svg");
    assert!(svg.contains("Flame graph of failed system calls: sys_mix"));
    assert!(svg.contains("failed system calls = ") && svg.contains(" failures, "));
    assert!(!svg.contains(" Hz") && !svg.contains("ticks"));
    assert_eq!(finished.text("r.csv").lines().count(), rows.len() + 1);
    assert!(finished.stdout().contains(&finished.text("r.csv")));
    for row in rows {
        let (syscall, errno) = (
            row["syscall"].as_str().unwrap(),
            row["errno"].as_str().unwrap(),
        );
        let leaf = format!(";{syscall}:{errno} ");
        let folded = finished.text("r.folded");
        let counted: u64 = folded
            .lines()
            .filter(|line| line.contains(&leaf))
            .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
            .sum();
        assert_eq!(Some(counted), row["count"].as_u64(), "{leaf}");
        assert!(
            finished
                .text("r.svg")
                .contains(&format!("{syscall}:{errno}"))
        );
        assert!(
            finished
                .text("r.txt")
                .lines()
                .any(|line| line.starts_with(syscall) && line.contains(errno))
        );
    }
}

#[test]
fn hidden_benign_failures_are_in_no_flame_graph() {
    let _alone = alone();
    let finished = Agent::syscalls()
        .args(["--hide-benign", "-o", "r.svg", "-o", "r.folded", "--"])
        .args([program("sys_mix").to_str().unwrap(), LIFE, "10"])
        .run();
    let folded = finished.text("r.folded");
    assert!(folded.contains(";kill:ESRCH ") && !folded.contains("lseek:ESPIPE"));
    assert!(!finished.text("r.svg").contains("lseek:ESPIPE"));
}

#[test]
fn the_exit_code_is_that_of_the_command() {
    let _alone = alone();
    let of = |options: &[&str], script: &str| {
        Agent::syscalls()
            .args(options)
            .args(["-o", "r.json", "--", "sh", "-c", script])
            .run()
    };
    assert_eq!(of(&[], "exit 7").code(), Some(7));
    assert_eq!(of(&[], "cd /nonexistent; exit 0").code(), Some(0));
    let nothing = of(&["--errno", "EXDEV"], "exit 0");
    assert_eq!(nothing.code(), Some(0), "{}", nothing.stderr());
    assert!(
        nothing.stdout().contains("no system call failed"),
        "{}",
        nothing.stdout()
    );
}

#[test]
fn ctrl_c_ends_the_run_with_its_results() {
    let _alone = alone();
    let target = Target::run(Command::new(program("sys_flood")).args([LIFE, "1000000000"]));
    let running = Agent::syscalls()
        .args(["--pid", &target.pid().to_string(), "--format", "json"])
        .args(["--interval", "100ms", "--duration", "60s", "-o", "r.json"])
        .start();
    assert!(eventually(patience(20.0), || running
        .stdout()
        .lines()
        .count()
        > 1));
    running.signal(libc::SIGINT);
    let finished = running.wait();
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    let report: Report = serde_json::from_str(&finished.text("r.json")).unwrap();
    assert!(report.last && report.row("close", "EBADF").count > 0);
    assert!(finished.took.as_secs_f64() < patience(20.0).as_secs_f64());
}

#[test]
fn a_terminal_shows_a_table_that_fits_with_benign_rows_last_and_dim() {
    let _alone = alone();
    if host_only("script(1) is not in the virtual machine") {
        return;
    }
    let target = Target::run(Command::new(program("sys_mix")).args([LIFE, "1000000000"]));
    let line = format!(
        "stty cols 80 rows 24; exec {} syscalls --pid {} --interval 200ms --duration 1500ms",
        agent_binary().display(),
        target.pid()
    );
    let output = Command::new("script")
        .args(["-qec", &line, "/dev/null"])
        .env("TERM", "xterm-256color")
        .env_remove("NO_COLOR")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // Each table is written over the one before.
    let tables: Vec<&str> = text.split("SYSCALL").collect();
    assert!(tables.len() >= 4, "{text:?}");
    assert!(text.contains("\x1b[2m"), "{text:?}");
    let last = tables.last().unwrap();
    let lines: Vec<String> = last.lines().map(plain).collect();
    for line in &lines[1..] {
        assert!(line.chars().count() <= 80, "{line:?}");
    }
    let place = |start: &str| lines.iter().position(|line| line.starts_with(start));
    let (failure, benign) = (place("kill").unwrap(), place("lseek").unwrap());
    assert!(failure < benign);
    let dim = last.lines().nth(benign).unwrap();
    assert!(dim.contains("\x1b[2m"), "{dim:?}");
    assert!(!last.lines().nth(failure).unwrap().contains("\x1b[2m"));
}

/// The line without the terminal's escape sequences.
fn plain(line: &str) -> String {
    let mut shown = String::new();
    let mut rest = line.trim_end_matches('\r');
    while let Some((before, after)) = rest.split_once("\x1b[") {
        shown += before;
        let end = after.find(|character: char| character.is_ascii_alphabetic());
        rest = end.map_or("", |end| &after[end + 1..]);
    }
    shown + rest
}
