//! Programs that are not ours, and restarts: the same counts and the same paths as strace says.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use super::{Counts, Report, run, strace_counts};
use crate::harness::{Agent, LIFE, Target, alone, eventually, host_only, patience, program};

/// Programs of the distribution that fail the same way each time, with their exit codes.
const OTHERS: [(&[&str], i32); 6] = [
    (
        &[
            "ls",
            "-l",
            "/nonexistent/a",
            "/etc/hostname",
            "/proc/1/nothing",
        ],
        2,
    ),
    (&["find", "/etc", "/no/where", "-xdev", "-name", "*.d"], 1),
    (
        &[
            "/usr/bin/python3",
            "-I",
            "-B",
            "-c",
            "import json, ssl; open('/no/config.yaml')",
        ],
        1,
    ),
    (&["git", "--no-optional-locks", "status"], 128),
    (
        &[
            "sh",
            "-c",
            "for i in 1 2 3; do cat /no/$i; done; test -e not/here || exit 3",
        ],
        3,
    ),
    (
        &[
            "perl",
            "-e",
            "eval { require Not::There }; mkdir '/tmp' or exit 5",
        ],
        5,
    ),
];

/// System calls whose failures strace shows with one path: whether a directory comes before it.
const PATH_CALLS: [(&str, bool); 10] = [
    ("openat", true),
    ("newfstatat", true),
    ("faccessat2", true),
    ("statx", true),
    ("access", false),
    ("execve", false),
    ("readlink", false),
    ("stat", false),
    ("mkdir", false),
    ("chdir", false),
];

/// (system call, errno, path) to count; the directory that the program runs in is `.`.
type Paths = BTreeMap<(String, String, String), u64>;

#[test]
fn programs_that_are_not_ours_fail_as_strace_says() {
    let _alone = alone();
    if host_only("neither strace nor the programs are in the virtual machine") {
        return;
    }
    for (words, code) in OTHERS {
        let agent = Agent::syscalls()
            .args(["--children", "--args", "100000", "-o", "r.json", "--"])
            .args(words);
        let directory = agent.directory().to_owned();
        let finished = agent.run();
        assert_eq!(
            finished.code(),
            Some(code),
            "{words:?}: {}",
            finished.stderr()
        );
        let report: Report = serde_json::from_str(&finished.text("r.json")).unwrap();
        report.assert_no_losses();
        let (counts, paths) = strace_of(words, code);
        assert!(!counts.is_empty() && !paths.is_empty());
        assert_eq!(report.counts(), counts, "{words:?}");
        assert_eq!(agent_paths(&report, &directory), paths, "{words:?}");
    }
}

/// Runs it under `strace -f -y`.
fn strace_of(words: &[&str], code: i32) -> (Counts, Paths) {
    let directory = tempfile::TempDir::new().unwrap();
    // The program runs in an empty directory, as the agent's does.
    let log = tempfile::NamedTempFile::new().unwrap();
    // Its outputs are files, as under the agent.
    let output = || tempfile::tempfile().unwrap();
    let status = Command::new("strace")
        .args(["-f", "-y", "-s", "5000", "-o"])
        .arg(log.path())
        .args(words)
        .current_dir(directory.path())
        .env_remove("LD_LIBRARY_PATH")
        .stdin(Stdio::null())
        .stdout(output())
        .stderr(output())
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(code), "{words:?}");
    let text = std::fs::read_to_string(log.path()).unwrap();
    let mut paths = Paths::new();
    for line in text.lines() {
        if let Some((syscall, errno, path)) = failed_path(line, directory.path()) {
            *paths.entry((syscall, errno, path)).or_default() += 1;
        }
    }
    (strace_counts(log.path()), paths)
}

/// `PID openat(AT_FDCWD</tmp>, "x", O_RDONLY) = -1 ENOENT (…)`.
fn failed_path(line: &str, cwd: &Path) -> Option<(String, String, String)> {
    let (call, result) = line.rsplit_once(" = -1 ")?;
    let (name, rest) = call.split_once(' ')?.1.trim_start().split_once('(')?;
    let (_, at) = PATH_CALLS.iter().find(|(known, _)| *known == name)?;
    let (place, rest) = if *at {
        let (directory, rest) = rest.split_once(", ")?;
        let (_, directory) = directory.split_once('<')?;
        (directory.strip_suffix('>')?.to_owned(), rest)
    } else {
        (cwd.to_str()?.to_owned(), rest)
    };
    let path = rest.strip_prefix('"')?.split('"').next()?;
    let whole = match path {
        "" => return None,
        path if path.starts_with('/') => path.to_owned(),
        path => format!("{place}/{path}"),
    };
    let errno = result.split(' ').next()?.to_owned();
    Some((name.to_owned(), errno, beside(&whole, cwd)))
}

fn agent_paths(report: &Report, cwd: &Path) -> Paths {
    let mut paths = Paths::new();
    for row in &report.errors {
        if PATH_CALLS.iter().any(|(name, _)| *name == row.syscall) {
            for arg in row.args.iter().filter(|arg| arg.value.starts_with('/')) {
                let key = (
                    row.syscall.clone(),
                    row.errno.clone(),
                    beside(&arg.value, cwd),
                );
                *paths.entry(key).or_default() += arg.count;
            }
        }
    }
    paths
}

/// The path with `.` for the directory.
fn beside(path: &str, cwd: &Path) -> String {
    path.replacen(cwd.to_str().unwrap(), ".", 1)
}

#[test]
fn the_hook_is_a_perf_event_where_the_kernel_preempts_the_other() {
    let _alone = alone();
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let major: u32 = release.split('.').next().unwrap().parse().unwrap();
    let target = Target::run(Command::new(program("sys_flood")).args(["100", "1000000000"]));
    let running = Agent::syscalls()
        .args(["--pid", &target.pid().to_string(), "--format", "json"])
        .args(["--interval", "100ms", "--duration", "60s"])
        .start();
    assert!(eventually(patience(20.0), || running
        .stdout()
        .contains('\n')));
    let links = std::fs::read_dir(format!("/proc/{}/fd", running.pid())).unwrap();
    let events = links
        .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
        .filter(|link| link.to_str() == Some("anon_inode:[perf_event]"))
        .count();
    assert_eq!(events, usize::from(major >= 7));
}

#[test]
fn restarts_reconcile_with_the_errors_of_strace_c() {
    let _alone = alone();
    if host_only("strace is not in the virtual machine") {
        return;
    }
    for name in ["sys_restart", "sys_mix"] {
        let report = run(name, &[LIFE, "5"], &[]);
        let mut ours = BTreeMap::new();
        let mut restarts = 0;
        // strace -c leaves out the numbers that no system call has.
        let named = |name: &str| !name.starts_with("syscall_");
        for row in report.errors.iter().filter(|row| named(&row.syscall)) {
            *ours.entry(row.syscall.clone()).or_default() += row.count;
            restarts += if row.restarted { row.count } else { 0 };
        }
        assert_eq!(restarts, if name == "sys_restart" { 20 } else { 0 });
        assert_eq!(ours, strace_summary(name), "{name}");
    }
}

/// `% time  seconds  usecs/call  calls  [errors]  syscall`.
fn strace_summary(name: &str) -> BTreeMap<String, u64> {
    let log = tempfile::NamedTempFile::new().unwrap();
    let status = Command::new("strace")
        .args(["-f", "-c", "-o"])
        .arg(log.path())
        .arg(program(name))
        .args([LIFE, "5"])
        .env_remove("LD_LIBRARY_PATH")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    let text = std::fs::read_to_string(log.path()).unwrap();
    let mut errors = BTreeMap::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        if let [_, _, _, _, count, name] = fields[..]
            && let Ok(count) = count.parse::<u64>()
            && name != "total"
        {
            errors.insert(name.to_owned(), count);
        }
    }
    errors
}
