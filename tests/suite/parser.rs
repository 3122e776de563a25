//! The child processes that read the target's files: what they may do, and what their end costs.

use std::fs::{read_dir, read_link, read_to_string};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::{
    Agent, ENOUGH, FREQUENCY, LIFE, Running, Target, agent_binary, alone, eventually, host_only,
    patience, program,
};

/// `nobody`.
const NOBODY: &str = "65534";

/// The value of a field of `/proc/PID/status`.
fn field(pid: u32, name: &str) -> Option<String> {
    let status = read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// The living parsers of an agent.
fn parsers_of(agent: u32) -> Vec<u32> {
    let entries = read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_one = |pid: &u32| {
        field(*pid, "PPid").is_some_and(|parent| parent == agent.to_string())
            && field(*pid, "Name").is_some_and(|name| name == "agent-parser")
            && is_alive(*pid)
    };
    pids.filter(is_one).collect()
}

fn is_alive(pid: u32) -> bool {
    field(pid, "State").is_some_and(|state| !state.starts_with('Z'))
}

fn signal(pid: u32, number: i32) {
    // SAFETY: kill has no memory effects.
    unsafe { libc::kill(pid as i32, number) };
}

/// The parsers of an agent that has begun, confined and idle.
fn idle_parsers(agent: &Running) -> Vec<u32> {
    let mut found = Vec::new();
    let confined = |pid: &u32| field(*pid, "Seccomp").is_some_and(|mode| mode == "2");
    let begun = eventually(patience(20.0), || {
        let before = std::mem::replace(&mut found, parsers_of(agent.pid()));
        std::thread::sleep(patience(0.2));
        found.len() == 2 && found == before && found.iter().all(confined)
    });
    assert!(begun, "no two confined parsers: {found:?}");
    found
}

/// A target whose program is another from when it is told on: a shell that waits for its input.
struct Shell {
    target: Target,
    input: OwnedFd,
}

impl Shell {
    fn that_becomes(name: &str) -> Shell {
        let (theirs, input) = std::io::pipe().unwrap();
        let mut command = Command::new("sh");
        let script = format!("read go; exec {} {LIFE}", program(name).display());
        command.args(["-c", &script]);
        let target = Target::run_with_input(&mut command, Stdio::from(theirs));
        let input = OwnedFd::from(input);
        Shell { target, input }
    }

    /// Tells it to go on, and waits until its program is the other.
    fn go(&self) {
        // SAFETY: the buffer is as long as said.
        let written = unsafe { libc::write(self.input.as_raw_fd(), c"\n".as_ptr().cast(), 1) };
        assert_eq!(written, 1);
        self.target.await_word("ready");
    }
}

#[test]
fn parsers_may_do_nothing_and_hold_nothing() {
    let _alone = alone();
    let target = Target::spawn("threads", &[]);
    let running = Agent::timed(target.pid(), patience(3.0).as_secs_f64()).start();
    for pid in idle_parsers(&running) {
        let is = |name: &str, value: &str| {
            let found = field(pid, name);
            assert_eq!(found.as_deref(), Some(value), "{name} of {pid}");
        };
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            is(set, "0000000000000000");
        }
        is("NoNewPrivs", "1");
        let limits = read_to_string(format!("/proc/{pid}/limits")).unwrap();
        for (limit, most) in [
            ("Max core file size", 0),
            ("Max file size", 0),
            ("Max processes", 0),
            ("Max open files", 16),
            ("Max address space", 56 << 20),
        ] {
            let line = limits.lines().find(|line| line.starts_with(limit)).unwrap();
            let mut values = line[26..].split_whitespace();
            let soft: u64 = values.next().unwrap().parse().unwrap();
            assert!(
                soft <= most && values.next() == Some(&soft.to_string()),
                "{line}"
            );
        }
        let mut open: Vec<PathBuf> = read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .map(|entry| read_link(entry.unwrap().path()).unwrap())
            .collect();
        open.sort();
        let kinds: Vec<&str> = open
            .iter()
            .map(|path| path.to_str().unwrap().split(':').next().unwrap())
            .collect();
        assert_eq!(kinds, ["/dev/null", "pipe", "socket"]);
        // What a service manager sends to all processes of a service.
        signal(pid, libc::SIGTERM);
        signal(pid, libc::SIGINT);
    }
    let profile = running.wait().profile();
    profile.assert_complete(ENOUGH);
    let warned = profile
        .accounting
        .notes
        .keys()
        .any(|note| note.contains("parse"));
    assert!(!warned, "{}", profile.explain());
}

#[test]
fn parsers_that_begin_with_the_run_are_nobody() {
    let _alone = alone();
    // All its files are the system's: the first parsers are the last.
    let target = Target::run_unready(Command::new("sleep").arg(LIFE));
    let running = Agent::timed(target.pid(), patience(2.0).as_secs_f64()).start();
    let nobody = |pid: u32, ids: &str| field(pid, ids) == Some([NOBODY; 4].join("\t"));
    let is_nobody = |pid: &u32| {
        let groups = field(*pid, "Groups").is_some_and(|groups| groups.is_empty());
        groups && nobody(*pid, "Uid") && nobody(*pid, "Gid")
    };
    assert!(idle_parsers(&running).iter().any(is_nobody));
}

#[test]
fn the_death_of_idle_parsers_costs_nothing() {
    let _alone = alone();
    let shell = Shell::that_becomes("threads");
    let running = Agent::timed(shell.target.pid(), patience(3.0).as_secs_f64()).start();
    for pid in idle_parsers(&running) {
        signal(pid, libc::SIGKILL);
        assert!(eventually(patience(5.0), || !is_alive(pid)));
    }
    shell.go();
    let profile = running.wait().profile();
    profile.assert_complete(ENOUGH);
    profile.assert_names(&["thread_work"]);
}

#[test]
fn a_parser_that_dies_at_work_costs_the_names_of_its_file_and_says_so() {
    if host_only("an emulated run is longer than the time that a parser has") {
        return;
    }
    let _alone = alone();
    let shell = Shell::that_becomes("threads");
    let running = Agent::timed(shell.target.pid(), patience(3.0).as_secs_f64()).start();
    let parsers = idle_parsers(&running);
    parsers.iter().for_each(|&pid| signal(pid, libc::SIGSTOP));
    shell.go();
    std::thread::sleep(patience(1.0));
    parsers.iter().for_each(|&pid| signal(pid, libc::SIGKILL));
    let finished = running.wait();
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    let profile = finished.profile();
    assert!(profile.samples() > 0);
    let note = "modules without an unwind table: the parser died of signal 9";
    assert!(
        profile.accounting.notes.contains_key(note),
        "{}",
        profile.explain()
    );
    let unnamed = |reason: &str| {
        let of_it = |module: &Option<String>| module.as_deref() == Some("threads");
        let mut frames = profile.frames.iter();
        frames.any(|frame| of_it(&frame.module) && frame.unnamed.as_deref() == Some(reason))
    };
    assert!(unnamed("parser_died"), "{}", profile.explain());
    assert!(
        finished.stderr().contains("parser died"),
        "{}",
        finished.stderr()
    );
}

#[test]
fn a_parser_that_hangs_does_not_hold_the_profile_up() {
    if host_only("an emulated run is longer than the time that a parser has") {
        return;
    }
    let _alone = alone();
    let shell = Shell::that_becomes("threads");
    let seconds = patience(2.0);
    let running = Agent::timed(shell.target.pid(), seconds.as_secs_f64()).start();
    let parsers = idle_parsers(&running);
    parsers.iter().for_each(|&pid| signal(pid, libc::SIGSTOP));
    shell.go();
    let finished = running.wait();
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    assert!(
        finished.took < seconds + patience(8.0),
        "{:?}",
        finished.took
    );
    let profile = finished.profile();
    let note = "modules without an unwind table: not built by the end of the run";
    assert!(
        profile.accounting.notes.contains_key(note),
        "{}",
        profile.explain()
    );
    let nameless = |frame: &crate::harness::Frame| frame.unnamed.as_deref() == Some("gave_up");
    assert!(profile.frames.iter().any(nameless), "{}", profile.explain());
    assert!(eventually(patience(5.0), || !parsers
        .iter()
        .any(|&pid| is_alive(pid))));
}

#[test]
fn parsers_do_not_outlive_an_agent_that_is_killed() {
    let _alone = alone();
    let target = Target::spawn("idle", &[]);
    let running = Agent::timed(target.pid(), 60.0).start();
    let parsers = idle_parsers(&running);
    // One that is stopped hears of nothing.
    signal(parsers[0], libc::SIGSTOP);
    running.signal(libc::SIGKILL);
    let all_gone = || !parsers.iter().any(|&pid| is_alive(pid));
    assert!(eventually(patience(5.0), all_gone), "{parsers:?}");
}

#[test]
fn the_end_of_a_run_survives_parsers_that_keep_dying() {
    let _alone = alone();
    let target = Target::spawn("threads", &[]);
    let seconds = patience(1.0);
    let running = Agent::timed(target.pid(), seconds.as_secs_f64()).start();
    let agent = running.pid();
    let until = Instant::now() + seconds + patience(4.0);
    let killer = std::thread::spawn(move || {
        while Instant::now() < until && is_alive(agent) {
            parsers_of(agent)
                .into_iter()
                .for_each(|pid| signal(pid, libc::SIGKILL));
            std::thread::sleep(Duration::from_millis(2));
        }
    });
    let finished = running.wait();
    killer.join().unwrap();
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    let profile = finished.profile();
    assert!(profile.samples() > 0, "{}", profile.explain());
    let accounted =
        |frame: &crate::harness::Frame| frame.function.is_some() || frame.unnamed.is_some();
    assert!(
        profile.frames.iter().all(accounted),
        "{}",
        profile.explain()
    );
}

#[test]
fn an_agent_that_is_not_root_has_parsers_without_privileges_too() {
    if host_only("setpriv") {
        return;
    }
    let _alone = alone();
    let target = Target::spawn("threads", &[]);
    let capabilities = "+bpf,+perfmon,+sys_ptrace,+dac_read_search,+dac_override";
    let inheritable = format!("--inh-caps={capabilities}");
    let ambient = format!("--ambient-caps={capabilities}");
    let wrapper = [
        "setpriv",
        "--reuid=12345",
        "--regid=12345",
        "--clear-groups",
        &inheritable,
        &ambient,
    ];
    let running = Agent::under(&wrapper, &agent_binary())
        .args([
            "--pid",
            &target.pid().to_string(),
            "--duration",
            "3s",
            "-o",
            "profile.json",
        ])
        .args(["--frequency", &FREQUENCY.to_string()])
        .start();
    for pid in idle_parsers(&running) {
        assert_eq!(field(pid, "CapEff").as_deref(), Some("0000000000000000"));
        assert_eq!(field(pid, "NoNewPrivs").as_deref(), Some("1"));
        assert_eq!(field(pid, "Uid"), Some(["12345"; 4].join("\t")));
    }
    let finished = running.wait();
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    finished.profile().assert_complete(ENOUGH);
}

/// Runs a program with a system call that fails with EPERM, as in a container that forbids it: its
/// number is the first argument (x86-64).
const FORBIDDING: &str = r#"
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
rules = [(0x20, 0, 0, 0), (0x15, 0, 1, int(sys.argv[1])), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7fff0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(rules), ctypes.addressof(code)))
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program, 0, 0) == 0
os.execvp(sys.argv[2], sys.argv[2:])
"#;

/// A run in which a system call is forbidden, with what it warned of.
fn run_without(call: libc::c_long) -> String {
    let target = Target::spawn("threads", &[]);
    let call = call.to_string();
    let wrapper = ["python3", "-c", FORBIDDING, &call];
    let pid = target.pid().to_string();
    let finished = Agent::under(&wrapper, &agent_binary())
        .args(["--pid", &pid, "--duration", "3s", "-o", "profile.json"])
        .args(["--frequency", &FREQUENCY.to_string()])
        .run();
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    let profile = finished.profile();
    profile.assert_complete(ENOUGH);
    profile.assert_names(&["thread_work"]);
    let notes = profile.accounting.notes.into_keys();
    notes.collect::<Vec<_>>().join("\n") + &finished.stderr()
}

#[test]
fn what_the_parser_lacks_is_said() {
    if host_only("python3") {
        return;
    }
    let _alone = alone();
    let said = run_without(libc::SYS_seccomp);
    let warning = "not fully confined: its system calls are not restricted";
    assert_eq!(said.matches(warning).count(), 3, "{said}");
    assert!(said.contains(&format!("agent: warning: the parser of files is {warning}")));
}

#[test]
fn where_no_parser_can_be_had_files_are_parsed_with_a_warning() {
    if host_only("python3") {
        return;
    }
    let _alone = alone();
    let said = run_without(libc::SYS_pipe2);
    assert!(
        said.contains("agent: warning: files are parsed in the agent itself"),
        "{said}"
    );
}
