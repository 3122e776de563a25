//! `agent syscalls`: every failure counted, with its argument and its stack; the same as strace says.

mod arguments;
mod exact;
mod outputs;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use serde::Deserialize;

use crate::harness::{
    Agent, Finished, LIFE, Target, alone, eventually, host_only, in_vm, patience, program,
    skips_programs,
};

/// One line of `--format json`.
#[derive(Deserialize)]
struct Report {
    #[serde(rename = "final")]
    last: bool,
    elapsed_s: f64,
    errors: Vec<Row>,
    losses: BTreeMap<String, u64>,
}

#[derive(Deserialize)]
struct Row {
    syscall: String,
    errno: String,
    count: u64,
    restarted: bool,
    benign: Option<String>,
    calls: Option<u64>,
    args: Vec<Counted>,
    other_args: u64,
    latency_us: Option<Latency>,
    stacks: Vec<Stack>,
}

#[derive(Deserialize)]
struct Counted {
    value: String,
    count: u64,
}

#[derive(Deserialize)]
struct Latency {
    p50: f64,
    p99: f64,
    max: f64,
}

#[derive(Deserialize)]
struct Stack {
    frames: Vec<String>,
    count: u64,
}

/// (system call, errno) to count.
type Counts = BTreeMap<(String, String), u64>;

impl Report {
    fn counts(&self) -> Counts {
        let key = |row: &Row| (row.syscall.clone(), row.errno.clone());
        self.errors
            .iter()
            .map(|row| (key(row), row.count))
            .collect()
    }

    fn row(&self, syscall: &str, errno: &str) -> &Row {
        let found = self
            .errors
            .iter()
            .find(|row| row.syscall == syscall && row.errno == errno);
        found.unwrap_or_else(|| panic!("no row {syscall} {errno} in {:?}", self.counts()))
    }

    fn assert_no_losses(&self) {
        // The hooks of forks and ends may be skipped; what counts failures is not.
        let allowed = |cause: &str| cause == "programs_skipped" && skips_programs();
        assert!(
            self.losses
                .iter()
                .all(|(cause, &count)| count == 0 || allowed(cause)),
            "{:?}",
            self.losses
        );
        for row in &self.errors {
            let named: u64 = row.args.iter().map(|arg| arg.count).sum();
            if !row.args.is_empty() {
                assert_eq!(
                    named + row.other_args,
                    row.count,
                    "{} {}",
                    row.syscall,
                    row.errno
                );
            }
        }
    }
}

impl Row {
    fn arg(&self, value: &str) -> u64 {
        let found = self.args.iter().find(|arg| arg.value == value);
        found.map_or(0, |arg| arg.count)
    }

    fn arguments(&self) -> Vec<&str> {
        self.args.iter().map(|arg| arg.value.as_str()).collect()
    }
}

/// The last document of a run that must have succeeded.
fn report(finished: &Finished) -> Report {
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    serde_json::from_str(&finished.text("r.json")).unwrap()
}

/// Runs a program of `tests/programs` under the agent, children included.
fn run(name: &str, arguments: &[&str], options: &[&str]) -> Report {
    let path = program(name);
    let agent = Agent::syscalls()
        .args(["--children", "-o", "r.json"])
        .args(options);
    report(
        &agent
            .args(["--", path.to_str().unwrap()])
            .args(arguments)
            .run(),
    )
}

/// Runs it under `strace -f` in the same surroundings; `None` in a virtual machine.
fn strace(name: &str, arguments: &[&str]) -> Option<Counts> {
    if host_only("strace is not in the virtual machine") {
        return None;
    }
    let directory = tempfile::TempDir::new().unwrap();
    let log = directory.path().join("log");
    let status = Command::new("strace")
        .args(["-f", "-o", log.to_str().unwrap()])
        .arg(program(name))
        .args(arguments)
        .current_dir(directory.path())
        .env_remove("LD_LIBRARY_PATH")
        .stdin(Stdio::null())
        .stdout(std::fs::File::create(directory.path().join("out")).unwrap())
        .status()
        .unwrap();
    assert!(status.success());
    Some(strace_counts(&log))
}

/// `PID NAME(…) = -1 ERRNO (…)`, `PID <... NAME resumed>…) = ? ERESTARTSYS (…)`.
fn strace_counts(log: &Path) -> Counts {
    let text = String::from_utf8_lossy(&std::fs::read(log).unwrap()).into_owned();
    let mut counts = Counts::new();
    for line in text.lines() {
        let call = line
            .split_once(' ')
            .map_or("", |(_, rest)| rest.trim_start());
        let name = match call.strip_prefix("<... ") {
            Some(resumed) => resumed.split(' ').next(),
            None => call.split('(').next(),
        };
        let result = line.rsplit_once(" = ").map_or("", |(_, result)| result);
        let errno = result
            .strip_prefix("-1 ")
            .or_else(|| result.strip_prefix("? "));
        let errno = errno.and_then(|errno| errno.split(' ').next());
        let (Some(name), Some(errno)) = (name, errno.filter(|errno| errno.starts_with('E'))) else {
            continue;
        };
        let name = match name.strip_prefix("syscall_0x") {
            Some(hex) => format!("syscall_{}", u32::from_str_radix(hex, 16).unwrap()),
            None => name.to_owned(),
        };
        *counts.entry((name, errno.to_owned())).or_default() += 1;
    }
    counts
}

/// Threads and children of `sys_mix` that fail.
const FAILING: u64 = 5;

/// What `sys_mix` fails at in each round of each of them.
const MIX: [(&str, &str, u64); 27] = [
    ("openat", "ENOENT", 3),
    ("openat", "EFAULT", 2),
    ("newfstatat", "ENOTDIR", 1),
    ("mkdir", "EEXIST", 1),
    ("unlink", "ENOENT", 1),
    ("rename", "ENOENT", 1),
    ("renameat", "ENOENT", 1),
    ("symlink", "ENOENT", 1),
    ("access", "ENOENT", 1),
    ("execve", "ENOENT", 1),
    ("connect", "ECONNREFUSED", 1),
    ("connect", "ENOENT", 1),
    ("sendto", "EPIPE", 1),
    ("bind", "EADDRNOTAVAIL", 1),
    ("socket", "EINVAL", 1),
    ("close", "EBADF", 1),
    ("read", "EISDIR", 1),
    ("read", "EAGAIN", 1),
    ("write", "EBADF", 1),
    ("ioctl", "ENOTTY", 1),
    ("fcntl", "EINVAL", 1),
    ("lseek", "ESPIPE", 1),
    ("ftruncate", "EINVAL", 1),
    ("kill", "ESRCH", 1),
    ("mmap", "EINVAL", 1),
    ("syscall_1000", "ENOSYS", 1),
    ("setpriority", "ESRCH", 1),
];

/// Failures of the start and the end of a program that is told to fail no times.
fn at_rest(name: &str) -> Counts {
    let path = program(name);
    let finished = Agent::syscalls()
        .args([
            "--children",
            "-o",
            "r.json",
            "--",
            path.to_str().unwrap(),
            LIFE,
            "0",
        ])
        .run();
    let report: Report = serde_json::from_str(&finished.text("r.json")).unwrap();
    report.counts()
}

/// Exactly what `sys_mix` fails at in so many rounds, beside what it does `at_rest`.
fn assert_mix(report: &Report, rounds: u64, at_rest: &Counts) {
    let counts = report.counts();
    for (syscall, errno, each) in MIX {
        let key = (syscall.to_owned(), errno.to_owned());
        let count = counts.get(&key).copied().unwrap_or(0);
        let expected = each * rounds * FAILING + at_rest.get(&key).copied().unwrap_or(0);
        assert_eq!(count, expected, "{syscall} {errno} {:?}", report.losses);
    }
}

#[test]
fn every_failure_of_threads_and_children_is_counted() {
    let _alone = alone();
    let arguments = [LIFE, "40"];
    let report = run("sys_mix", &arguments, &[]);
    assert_mix(&report, 40, &at_rest("sys_mix"));
    report.assert_no_losses();
    assert!(report.last && report.elapsed_s > 0.0);
    if let Some(strace) = strace("sys_mix", &arguments) {
        assert_eq!(report.counts(), strace);
    }
}

#[test]
fn an_attached_process_is_counted_from_the_attach_on() {
    let _alone = alone();
    let target = Target::run(Command::new(program("sys_mix")).args([LIFE, "30", "wait"]));
    let pid = target.pid().to_string();
    let running = Agent::syscalls()
        .args([
            "--pid",
            &pid,
            "--children",
            "--format",
            "json",
            "--interval",
            "100ms",
        ])
        .args(["--duration", LIFE, "-o", "r.json"])
        .start();
    assert!(eventually(patience(10.0), || running
        .stdout()
        .contains('\n')));
    // SAFETY: kill has no memory effects; the target lives.
    assert_eq!(unsafe { libc::kill(target.pid() as i32, libc::SIGUSR1) }, 0);
    target.await_word("done");
    let finished = running.wait();
    let last = report(&finished);
    assert_mix(&last, 30, &Counts::new());
    last.assert_no_losses();
    let documents: Vec<Report> = finished
        .stdout()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let finals: Vec<bool> = documents.iter().map(|document| document.last).collect();
    assert_eq!(finals.iter().filter(|last| **last).count(), 1);
    assert_eq!(finals.last(), Some(&true));
    assert_eq!(documents.last().unwrap().counts(), last.counts());
}

#[test]
fn arguments_say_what_failed() {
    let _alone = alone();
    let report = run("sys_mix", &[LIFE, "20"], &[]);
    let all = 20 * FAILING;
    let whole = [
        ("openat", "ENOENT", "/nonexistent/absolute"),
        ("openat", "ENOENT", "/etc/in-a-directory"),
        ("newfstatat", "ENOTDIR", "/proc/version/not-a-directory"),
        ("mkdir", "EEXIST", "/tmp"),
        ("unlink", "ENOENT", "/nonexistent/unlinked"),
        ("rename", "ENOENT", "/nonexistent/from -> /nonexistent/to"),
        (
            "renameat",
            "ENOENT",
            "/etc/old-name -> /nonexistent/new-name",
        ),
        ("symlink", "ENOENT", "target of the link -> /proc/1/link"),
        ("execve", "ENOENT", "/nonexistent/program"),
        ("connect", "ECONNREFUSED", "127.0.0.1:1"),
        ("connect", "ENOENT", "unix:/nonexistent/socket"),
        ("bind", "EADDRNOTAVAIL", "[2001:db8::1]:2"),
        ("kill", "ESRCH", "pid 4194303 SIGTERM"),
        ("close", "EBADF", "fd -1 (not open)"),
    ];
    for (syscall, errno, value) in whole {
        let row = report.row(syscall, errno);
        assert_eq!(
            row.arg(value),
            all,
            "{syscall} {errno}: {:?}",
            row.arguments()
        );
    }
    let relative = report.row("openat", "ENOENT");
    assert!(
        relative
            .args
            .iter()
            .any(|arg| arg.value.ends_with("/relative/missing") && arg.value.starts_with('/'))
    );
    let unreadable = report.row("openat", "EFAULT");
    assert_eq!(unreadable.arg("(unreadable path)"), all);
    assert_eq!(unreadable.arg("NULL"), all);
    assert!(report.row("read", "EISDIR").arg("/etc") >= all * 3 / 5);
    assert!(report.row("read", "EAGAIN").arg("pipe") >= all * 3 / 5);
}

#[test]
fn strings_at_the_border_of_a_page_are_whole() {
    let _alone = alone();
    for length in [1, 6, 7, 8, 9, 100, 199, 200] {
        let report = run(
            "sys_border",
            &[LIFE, "30", &length.to_string()],
            &["--syscall", "openat"],
        );
        report.assert_no_losses();
        let row = report.row("openat", "ENOENT");
        for first in ['n', 'a'] {
            let path = format!("/{first}onexistent/{length:03}/{}", "x".repeat(length));
            assert_eq!(row.arg(&path), 30, "{length}: {:?}", row.arguments());
        }
    }
}

#[test]
fn a_flood_from_four_threads_is_counted_to_the_last() {
    let _alone = alone();
    let each = if in_vm() { 10_000 } else { 250_000 };
    let report = run("sys_flood", &[LIFE, &each.to_string()], &[]);
    report.assert_no_losses();
    let row = report.row("close", "EBADF");
    assert_eq!(row.count, each * 2);
    for thread in 0..4 {
        assert_eq!(
            row.arg(&format!("fd {} (not open)", 1000 + thread)),
            each / 2
        );
    }
    let row = report.row("openat", "ENOENT");
    let loader = at_rest("sys_flood");
    let loader = loader.get(&("openat".to_owned(), "ENOENT".to_owned()));
    assert_eq!(row.count, each * 2 + loader.copied().unwrap_or(0));
    assert_eq!(row.args.len(), 5);
    assert!(
        row.args.iter().all(|arg| arg.count == each / 8),
        "{:?}",
        row.arguments()
    );
    if !in_vm() {
        let rate = (4 * each) as f64 / report.elapsed_s;
        assert!(rate > 100_000.0, "only {rate:.0} failures/s");
    }
}

#[test]
fn more_arguments_than_there_is_room_for_are_counted_as_others() {
    let _alone = alone();
    let script = "
import os
for i in range(50000):
    try: os.stat('/nonexistent/%d' % i)
    except OSError: pass
";
    if host_only("no interpreter in the virtual machine") {
        return;
    }
    let finished = Agent::syscalls()
        .args([
            "-o",
            "r.json",
            "--syscall",
            "newfstatat",
            "--syscall",
            "stat",
            "--",
            "python3",
            "-c",
            script,
        ])
        .run();
    let report = report(&finished);
    let row = report.row("newfstatat", "ENOENT");
    assert!(row.count >= 50_000);
    assert_eq!(
        row.args.iter().map(|arg| arg.count).sum::<u64>() + row.other_args,
        row.count
    );
    assert!(
        report.losses["arguments_full"] >= 50_000 - 32_768,
        "{:?}",
        report.losses
    );
    assert!(
        finished.stderr().contains("arguments full"),
        "{}",
        finished.stderr()
    );
}

#[test]
fn restarted_calls_stand_apart() {
    let _alone = alone();
    let report = run("sys_restart", &[LIFE, "5"], &[]);
    for (syscall, errno, count) in [
        ("read", "ERESTARTSYS", 10),
        ("pause", "ERESTARTNOHAND", 5),
        ("rt_sigreturn", "EINTR", 15),
    ] {
        assert_eq!(report.row(syscall, errno).count, count, "{syscall} {errno}");
    }
    let sleep = report
        .errors
        .iter()
        .find(|row| row.errno == "ERESTART_RESTARTBLOCK");
    assert_eq!(sleep.map(|row| row.count), Some(5));
    for row in &report.errors {
        assert_eq!(
            row.restarted,
            row.errno.starts_with("ERESTART"),
            "{}",
            row.errno
        );
        let signals = row.restarted || row.syscall == "rt_sigreturn";
        assert!(
            !signals || row.benign.is_some(),
            "{} {}",
            row.syscall,
            row.errno
        );
    }
    if let Some(strace) = strace("sys_restart", &[LIFE, "5"]) {
        assert_eq!(report.counts(), strace);
    }
}

#[test]
fn only_what_is_asked_for_is_counted() {
    let _alone = alone();
    let report = run(
        "sys_mix",
        &[LIFE, "10"],
        &[
            "--errno",
            "ENOENT",
            "--errno",
            "esrch",
            "--syscall",
            "kill",
            "--syscall",
            "rename",
        ],
    );
    let keys: Vec<(String, String)> = report.counts().into_keys().collect();
    let pair = |syscall: &str, errno: &str| (syscall.to_owned(), errno.to_owned());
    assert_eq!(keys, [pair("kill", "ESRCH"), pair("rename", "ENOENT")]);
    let report = run("sys_mix", &[LIFE, "10"], &["--hide-benign"]);
    assert!(report.errors.iter().all(|row| row.benign.is_none()));
    assert!(
        report
            .errors
            .iter()
            .all(|row| row.errno != "EAGAIN" && row.errno != "ENOTTY")
    );
    assert_eq!(report.row("kill", "ESRCH").count, 10 * FAILING);
}

#[test]
fn benign_failures_are_marked_and_come_last() {
    let _alone = alone();
    let report = run("sys_mix", &[LIFE, "10"], &[]);
    let benign: Vec<bool> = report
        .errors
        .iter()
        .map(|row| row.benign.is_some())
        .collect();
    assert!(benign.is_sorted(), "{benign:?}");
    for (syscall, errno) in [("read", "EAGAIN"), ("ioctl", "ENOTTY"), ("lseek", "ESPIPE")] {
        assert!(
            report.row(syscall, errno).benign.is_some(),
            "{syscall} {errno}"
        );
    }
    for (syscall, errno) in [
        ("openat", "ENOENT"),
        ("connect", "ECONNREFUSED"),
        ("close", "EBADF"),
    ] {
        assert_eq!(report.row(syscall, errno).benign, None, "{syscall} {errno}");
    }
}

#[test]
fn the_loaders_search_path_is_benign_and_a_missing_library_is_not() {
    let _alone = alone();
    if host_only("the programs of the virtual machine are linked statically") {
        return;
    }
    let directory = tempfile::TempDir::new().unwrap();
    let finished = Agent::syscalls()
        .env("LD_LIBRARY_PATH", directory.path())
        .args(["-o", "r.json", "--", "sh", "-c", "true"])
        .run();
    let searched = report(&finished);
    let row = searched.row("openat", "ENOENT");
    assert!(
        row.arguments()
            .iter()
            .any(|path| path.ends_with("/libc.so.6"))
    );
    assert!(row.benign.is_some(), "{:?}", row.arguments());
    let finished = Agent::syscalls()
        .env("LD_PRELOAD", "/nonexistent/libmissing.so")
        .args(["-o", "r.json", "--", "sh", "-c", "true"])
        .run();
    let missing = report(&finished);
    let row = missing.row("openat", "ENOENT");
    assert_eq!(row.arg("/nonexistent/libmissing.so"), 1);
    assert_eq!(row.benign, None);
}

#[test]
fn a_program_of_the_search_path_is_started_without_failures() {
    let _alone = alone();
    if host_only("the programs of the virtual machine are linked statically") {
        return;
    }
    let finished = Agent::syscalls().args(["-o", "r.json", "--", "true"]).run();
    let report = report(&finished);
    assert!(
        report.errors.iter().all(|row| row.syscall != "execve"),
        "{:?}",
        report.counts()
    );
}

#[test]
fn latency_is_that_of_the_failing_calls() {
    let _alone = alone();
    let report = run("sys_restart", &[LIFE, "5"], &["--latency"]);
    // The timer comes after 200 ms.
    for row in report.errors.iter().filter(|row| row.restarted) {
        let latency = row.latency_us.as_ref().unwrap();
        let from = 150_000.0;
        let to = if in_vm() { 600_000.0 } else { 300_000.0 };
        assert!(
            (from..to).contains(&latency.p50),
            "{} {}",
            row.syscall,
            latency.p50
        );
        assert!(latency.p50 <= latency.p99 && latency.p99 <= latency.max);
    }
    let read = report.row("read", "ERESTARTSYS");
    assert!(read.calls.unwrap() >= 30, "{:?}", read.calls);
    assert_eq!(report.losses["calls_not_timed"], 0);
    let report = run("sys_mix", &[LIFE, "10"], &["--latency"]);
    assert_mix(&report, 10, &at_rest("sys_mix"));
    let kill = report.row("kill", "ESRCH");
    assert_eq!(kill.calls, Some(10 * FAILING));
}

#[test]
fn stacks_lead_to_the_failing_call() {
    let _alone = alone();
    let target = Target::run(Command::new(program("sys_mix")).args([LIFE, "200", "wait"]));
    let pid = target.pid().to_string();
    let running = Agent::syscalls()
        .args([
            "--pid",
            &pid,
            "--children",
            "--format",
            "json",
            "--interval",
            "200ms",
        ])
        .args([
            "--duration",
            "300s",
            "-o",
            "r.json",
            "-o",
            "errors.folded",
            "-o",
            "errors.svg",
        ])
        .start();
    assert!(eventually(patience(20.0), || running
        .stdout()
        .contains('\n')));
    // SAFETY: kill has no memory effects; the target lives.
    assert_eq!(unsafe { libc::kill(target.pid() as i32, libc::SIGUSR1) }, 0);
    let finished = running.wait();
    let report = report(&finished);
    assert_mix(&report, 200, &Counts::new());
    for (syscall, errno, function) in [
        ("rename", "ENOENT", "fail_on_paths"),
        ("connect", "ECONNREFUSED", "fail_on_sockets"),
        ("ftruncate", "EINVAL", "fail_on_descriptors"),
        ("kill", "ESRCH", "fail_otherwise"),
    ] {
        let row = report.row(syscall, errno);
        let total: u64 = row.stacks.iter().map(|stack| stack.count).sum();
        let named = row
            .stacks
            .iter()
            .filter(|stack| stack.frames.iter().any(|frame| frame == function));
        let named: u64 = named.map(|stack| stack.count).sum();
        assert_eq!(total, row.count, "{syscall}");
        assert!(
            named as f64 >= 0.995 * total as f64,
            "{syscall}: {named} of {total}"
        );
    }
    let folded = finished.text("errors.folded");
    let lines: Vec<&str> = folded
        .lines()
        .filter(|line| !line.starts_with("# "))
        .collect();
    let of = |part: &str| -> u64 {
        let counts = lines.iter().filter(|line| line.contains(part));
        counts
            .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
            .sum()
    };
    assert_eq!(
        of(";fail_otherwise;__kill;kill:ESRCH ") + of(";fail_otherwise;kill;kill:ESRCH "),
        200 * FAILING,
        "{folded}"
    );
    assert!(
        (of("[truncated") as f64) < 0.005 * of("") as f64,
        "{folded}"
    );
    assert!(finished.text("errors.svg").contains("kill:ESRCH"));
}

#[test]
fn other_processes_are_not_counted() {
    let _alone = alone();
    let other = Target::run(Command::new(program("sys_flood")).args([LIFE, "100000000"]));
    let idle = Target::spawn("idle", &[]);
    let finished = Agent::syscalls()
        .args([
            "--pid",
            &idle.pid().to_string(),
            "--duration",
            "1s",
            "-o",
            "r.json",
        ])
        .run();
    drop(other);
    assert_eq!(finished.code(), Some(3), "{}", finished.stderr());
    assert!(
        finished.stdout().contains("no system call failed"),
        "{}",
        finished.stdout()
    );
    let report: Report = serde_json::from_str(&finished.text("r.json")).unwrap();
    assert!(report.errors.is_empty() && report.last);
}

#[test]
fn the_end_of_the_target_ends_the_run() {
    let _alone = alone();
    let target = Target::run(Command::new(program("sys_flood")).args([LIFE, "1000000000"]));
    let running = Agent::syscalls()
        .args([
            "--pid",
            &target.pid().to_string(),
            "--duration",
            "300s",
            "--format",
            "json",
            "--interval",
            "100ms",
            "-o",
            "r.json",
        ])
        .start();
    assert!(eventually(patience(20.0), || running
        .stdout()
        .contains('\n')));
    drop(target);
    let finished = running.wait();
    let report = report(&finished);
    assert!(report.elapsed_s < 290.0);
    assert!(report.row("close", "EBADF").count > 0);
}

#[test]
fn wrong_names_are_answered_with_the_nearest() {
    let refused = |arguments: &[&str], words: &[&str]| {
        Agent::syscalls()
            .args(["--pid", "1"])
            .args(arguments)
            .run()
            .assert_refused(2, words);
    };
    refused(&["--errno", "ENOENTT"], &["ENOENTT", "did you mean ENOENT"]);
    refused(&["--syscall", "open_at"], &["open_at", "openat"]);
    refused(&["-o", "x.pdf"], &["x.pdf", ".svg"]);
    refused(&["--format", "xml"], &["xml", "table, json, csv"]);
    refused(&["--interval", "soon"], &["--interval", "soon"]);
}

#[test]
fn a_32_bit_program_is_refused() {
    let _alone = alone();
    let target = Target::run(&mut Command::new(program("sys_compat")));
    Agent::syscalls()
        .args(["--pid", &target.pid().to_string()])
        .run()
        .assert_refused(1, &["32-bit", "not supported", &target.pid().to_string()]);
}

#[test]
fn failures_of_32_bit_code_are_counted_apart() {
    let _alone = alone();
    let finished = Agent::syscalls()
        .args([
            "--children",
            "--duration",
            if in_vm() { "10s" } else { "1s" },
            "-o",
            "r.json",
            "--",
            "sh",
            "-c",
        ])
        .args([format!("exec {}", program("sys_compat").display())])
        .run();
    let report: Report = serde_json::from_str(&finished.text("r.json")).unwrap();
    assert!(
        report.losses["calls_of_32_bit_code"] > 1000,
        "{:?}",
        report.losses
    );
    assert!(
        finished.stderr().contains("32 bit"),
        "{}",
        finished.stderr()
    );
}
