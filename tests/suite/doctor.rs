//! `agent doctor`: each thing that can be in the way is put there, and must be named with what helps.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::bad_input::public_agent;
use crate::harness::confine::{BPF, PERFMON, SYS_PTRACE, SYSLOG, Sysctl};
use crate::harness::{
    Agent, LIFE, Target, agent_binary, alone, copy_executable, eventually, host_only, patience,
    program,
};

const WORKS: i32 = 0;
const BLOCKED: i32 = 1;
const DEGRADED: i32 = 3;

/// A copy of the agent that everyone may run, in a directory that goes with it.
struct Public(TempDir);

impl Public {
    fn new() -> Public {
        let directory = TempDir::new().unwrap();
        public_agent(&directory);
        Public(directory)
    }

    /// `agent NAME`.
    fn agent(&self, name: &str) -> Agent {
        Agent::subcommand(name, &[], &self.0.path().join("agent"))
    }

    /// `agent doctor --format json`.
    fn doctor(&self) -> Agent {
        self.agent("doctor").args(["--format", "json"])
    }
}

/// What it found.
struct Found {
    code: i32,
    report: Value,
}

fn examine(agent: Agent) -> Found {
    let finished = agent.run();
    let text = finished.stdout();
    let report = serde_json::from_str(&text)
        .unwrap_or_else(|error| panic!("{error}: {text}\n{}", finished.stderr()));
    Found {
        code: finished.code().unwrap(),
        report,
    }
}

/// A probe's state, the names of its problems, and their reasons and fixes.
fn told(found: &Value) -> (&str, Vec<&str>, String) {
    let problems = found["problems"].as_array().unwrap();
    let names = problems.iter().filter_map(|one| one["check"].as_str());
    let texts = problems.iter().map(|one| format!("{one}\n")).collect();
    (found["state"].as_str().unwrap(), names.collect(), texts)
}

impl Found {
    fn probe(&self, name: &str) -> (&str, Vec<&str>, String) {
        let probes = self.report["probes"].as_array().unwrap();
        let found = probes.iter().find(|found| found["probe"] == name);
        told(found.unwrap_or_else(|| panic!("no {name}: {}", self.report)))
    }

    /// Asserts that nothing that loads programs works, for this reason, and that a fix is told.
    fn assert_all_blocked(&self, check: &str, words: &[&str]) {
        assert_eq!(self.code, BLOCKED, "{}", self.report);
        for name in ["profile", "tcp", "syscalls", "syscalls_latency", "record"] {
            let (state, names, texts) = self.probe(name);
            assert_eq!(state, "blocked", "{name}: {}", self.report);
            assert!(names.contains(&check), "{name}: {texts}");
            for word in words {
                assert!(texts.contains(word), "no {word:?}: {texts}");
            }
            assert!(!texts.contains("\"fix\":null"), "{texts}");
        }
    }
}

/// Every command refuses with this reason, and never with the kernel's bare answer.
fn assert_commands_refuse(confined: impl Fn(&str) -> Agent, words: &[&str]) {
    // Another test sets a limit of the whole machine, which is looked at first.
    let _alone = alone();
    let target = Target::spawn("idle", &[]);
    let pid = target.pid().to_string();
    for name in ["profile", "tcp", "syscalls", "record", "serve"] {
        let finished = confined(name).args(["--pid", &pid]).run();
        assert_eq!(finished.code(), Some(1), "{name}: {}", finished.stderr());
        let said = finished.stderr();
        for word in words {
            assert!(said.contains(word), "{name}: no {word:?} in: {said}");
        }
        assert!(finished.files().is_empty(), "{:?}", finished.files());
    }
}

#[test]
fn what_works_is_said_to_work() {
    let _alone = alone();
    let target = Target::spawn("split", &[]);
    let agent = Agent::subcommand("doctor", &[], &agent_binary());
    let pid = target.pid().to_string();
    let found = examine(agent.args(["--format", "json", "--pid", &pid]));
    assert!([WORKS, DEGRADED].contains(&found.code), "{}", found.report);
    assert_eq!(found.report["schema"], "agent.doctor/1");
    for probe in ["profile", "kernel_names", "syscalls", "syscalls_latency"] {
        assert_eq!(found.probe(probe).0, "works", "{}", found.report);
    }
    for probe in ["tcp", "record"] {
        assert_ne!(found.probe(probe).0, "blocked", "{}", found.report);
    }
    assert_eq!(told(&found.report["target"]).0, "works");
    let only = Agent::subcommand("doctor", &[], &agent_binary());
    let finished = only.args(["profile", "--pid", &pid]).run();
    assert_eq!(finished.code(), Some(WORKS), "{}", finished.stdout());
    let said = finished.stdout();
    assert!(
        said.contains("✓ profile") && said.contains("✓ split"),
        "{said}"
    );
    assert!(!said.contains('\x1b') && !said.contains("tcp"), "{said}");
    assert!(finished.files().is_empty(), "{:?}", finished.files());
}

#[test]
fn missing_capabilities() {
    let public = Public::new();
    let found = examine(public.doctor().by_user(&[]));
    found.assert_all_blocked("capability", &["CAP_BPF, CAP_PERFMON", "sudo"]);
    for (held, missing) in [(BPF, "CAP_PERFMON"), (PERFMON, "CAP_BPF")] {
        let found = examine(public.doctor().by_user(&[held]));
        found.assert_all_blocked("capability", &[missing]);
        assert_commands_refuse(
            |name| public.agent(name).by_user(&[held]),
            &[missing, "sudo"],
        );
    }
}

#[test]
fn capabilities_of_a_user_namespace() {
    let public = Public::new();
    let found = examine(public.doctor().in_user_namespace());
    found.assert_all_blocked("user_namespace", &["--userns=host"]);
}

#[test]
fn a_filter_forbids_calls() {
    let public = Public::new();
    let refuse = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    for (number, name) in [
        (libc::SYS_bpf, "bpf"),
        (libc::SYS_perf_event_open, "perf_event_open"),
        (libc::SYS_pidfd_open, "pidfd_open"),
    ] {
        for answer in [refuse, libc::SECCOMP_RET_KILL_PROCESS] {
            let found = examine(public.doctor().refusing(number, answer, None));
            found.assert_all_blocked("seccomp", &[name, "seccomp=unconfined"]);
        }
    }
    assert_commands_refuse(
        |name| public.agent(name).refusing(libc::SYS_bpf, refuse, None),
        &["seccomp", "bpf"],
    );
}

/// Debian's kernels refuse perf events at levels above 2; others do not know them.
#[test]
fn perf_event_paranoid() {
    let _alone = alone();
    let _level = Sysctl::set("perf_event_paranoid", "4");
    let public = Public::new();
    // What such a kernel answers where the agent opens one (PERF_FLAG_FD_CLOEXEC is 8).
    let answer = libc::SECCOMP_RET_ERRNO | libc::EACCES as u32;
    let call = libc::SYS_perf_event_open;
    let confined = |name: &str| {
        let agent = public.agent(name).refusing(call, answer, Some(8));
        agent.by_user(&[BPF, PERFMON, SYS_PTRACE])
    };
    let found = examine(confined("doctor").args(["--format", "json", "profile"]));
    assert_eq!(found.code, BLOCKED, "{}", found.report);
    let (_, names, texts) = found.probe("profile");
    assert_eq!(names, ["perf_event_paranoid"], "{texts}");
    assert!(texts.contains("sysctl kernel.perf_event_paranoid=2"));
    let target = Target::spawn("split", &[]);
    let pid = target.pid().to_string();
    let finished = confined("profile").args(["--pid", &pid]).run();
    let fix = "fix: sudo sysctl kernel.perf_event_paranoid=2";
    finished.assert_refused(BLOCKED, &["perf event", "permission denied", fix]);
}

#[test]
fn the_kernels_symbols_are_hidden() {
    let _alone = alone();
    let names = |agent: Agent| {
        let found = examine(agent.args(["kernel-names"]));
        let (state, _, texts) = found.probe("kernel_names");
        (found.code, state.to_owned(), texts)
    };
    let public = Public::new();
    let user = || public.doctor().by_user(&[BPF, PERFMON]);
    {
        let _restrict = Sysctl::set("kptr_restrict", "2");
        let (code, state, texts) = names(public.doctor());
        assert_eq!((code, &*state), (DEGRADED, "degraded"), "{texts}");
        assert!(texts.contains("sysctl kernel.kptr_restrict=1"), "{texts}");
    }
    let _restrict = Sysctl::set("kptr_restrict", "0");
    {
        let _level = Sysctl::set("perf_event_paranoid", "1");
        assert_eq!(names(user()).1, "works");
    }
    let _level = Sysctl::set("perf_event_paranoid", "2");
    let (code, state, texts) = names(user());
    assert_eq!((code, &*state), (DEGRADED, "degraded"), "{texts}");
    assert!(texts.contains("CAP_SYSLOG") && texts.contains("perf_event_paranoid is 2"));
    assert_eq!(
        names(public.doctor().by_user(&[BPF, PERFMON, SYSLOG])).1,
        "works"
    );
}

#[test]
fn few_samples_are_allowed() {
    let _alone = alone();
    let _rate = Sysctl::set("perf_event_max_sample_rate", "50");
    let agent = Agent::subcommand("doctor", &[], &agent_binary());
    let found = examine(agent.args(["--format", "json", "profile"]));
    assert_eq!(found.code, DEGRADED, "{}", found.report);
    let (_, names, texts) = found.probe("profile");
    assert_eq!(names, ["perf_event_max_sample_rate"]);
    assert!(texts.contains("--frequency 50"), "{texts}");
}

#[test]
fn no_btf() {
    let public = Public::new();
    let found = examine(public.doctor().hiding("/sys/kernel/btf", None));
    found.assert_all_blocked("btf", &["CONFIG_DEBUG_INFO_BTF"]);
    assert_commands_refuse(
        |name| public.agent(name).hiding("/sys/kernel/btf", None),
        &["BTF", "CONFIG_DEBUG_INFO_BTF"],
    );
}

#[test]
fn an_old_kernel() {
    let public = Public::new();
    let found = examine(public.doctor().on_an_old_kernel());
    found.assert_all_blocked("kernel_version", &["2.6.", "5.10"]);
    assert_commands_refuse(
        |name| public.agent(name).on_an_old_kernel(),
        &["too old", "5.10"],
    );
}

#[test]
fn a_kernel_locked_down() {
    if !std::path::Path::new("/sys/kernel/security").exists() {
        println!("this kernel has no securityfs to stand in for");
        return;
    }
    let public = Public::new();
    let locked = |name: &str, text: &'static str| {
        public
            .agent(name)
            .hiding("/sys/kernel/security", Some(("lockdown", text)))
    };
    let json = ["--format", "json"];
    let text = "none integrity [confidentiality]\n";
    let found = examine(locked("doctor", text).args(json));
    found.assert_all_blocked("lockdown", &["lockdown=integrity"]);
    assert_commands_refuse(|name| locked(name, text), &["locked down"]);
    let found = examine(locked("doctor", "none [integrity] confidentiality\n").args(json));
    assert_ne!(found.probe("profile").0, "blocked", "{}", found.report);
}

/// Only kernels before 5.11 charge BPF memory to the limit.
#[test]
fn little_locked_memory() {
    let _alone = alone();
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let public = Public::new();
    let agent = public
        .doctor()
        .with_little_locked_memory()
        .by_user(&[BPF, PERFMON, SYS_PTRACE]);
    let found = examine(agent);
    if release.starts_with("5.10.") {
        found.assert_all_blocked("memlock", &["64 KiB", "ulimit -l unlimited"]);
    } else {
        // Something else can be in the way: Debian's level of perf_event_paranoid.
        assert!(
            !found.report.to_string().contains(r#""check":"memlock""#),
            "{}",
            found.report
        );
    }
}

#[test]
fn another_pid_namespace() {
    // As in `assert_commands_refuse`.
    let _alone = alone();
    let outside = Target::spawn("idle", &[]);
    let pid = outside.pid().to_string();
    let own = r#"mount -t proc proc /proc || exit 99; "$0" "$@""#;
    let wrapper = ["unshare", "-m", "-p", "-f", "sh", "-c", own];
    let inside = |name: &str| Agent::subcommand(name, &wrapper, &agent_binary());
    let found = examine(inside("doctor").args(["tcp", "--format", "json", "--pid", &pid]));
    assert_eq!(found.code, BLOCKED, "{}", found.report);
    assert_ne!(found.probe("tcp").0, "blocked", "{}", found.report);
    let (state, names, texts) = told(&found.report["target"]);
    assert_eq!(
        (state, names),
        ("blocked", vec!["pid_namespace"]),
        "{texts}"
    );
    let finished = inside("profile").args(["--pid", &pid]).run();
    finished.assert_refused(BLOCKED, &["there is no process", "PID namespace"]);
    // With the /proc of outside, ids mean one thing there and another to the kernel.
    let wrapper = ["unshare", "-p", "-f", "sh", "-c", r#""$0" "$@""#];
    let foreign = Agent::subcommand("doctor", &wrapper, &agent_binary());
    let found = examine(foreign.args(["--format", "json"]));
    found.assert_all_blocked("proc", &["mount -t proc"]);
}

#[test]
fn a_hidden_process() {
    let public = Public::new();
    let target = Target::spawn("idle", &[]);
    let pid = target.pid().to_string();
    let hidden = |name: &str| public.agent(name).hidepid().by_user(&[BPF, PERFMON]);
    let found = examine(hidden("doctor").args(["tcp", "--format", "json", "--pid", &pid]));
    let (state, names, texts) = told(&found.report["target"]);
    assert_eq!((state, names), ("blocked", vec!["hidepid"]), "{texts}");
    let finished = hidden("tcp").args(["--pid", &pid]).run();
    finished.assert_refused(BLOCKED, &["hidepid", "CAP_SYS_PTRACE"]);
}

#[test]
fn targets_that_cannot_be_watched() {
    let target = |pid: u32| {
        let agent = Agent::subcommand("doctor", &[], &agent_binary());
        let pid = pid.to_string();
        let found = examine(agent.args(["kernel-names", "--format", "json", "--pid", &pid]));
        assert_eq!(found.code, BLOCKED, "{}", found.report);
        found.report["target"]["problems"][0].to_string()
    };
    let mut child = Command::new("true").spawn().unwrap();
    let state = || std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
    assert!(eventually(patience(5.0), || state().contains(") Z ")));
    assert!(target(child.id()).contains("zombie"));
    child.wait().unwrap();
    assert!(target(child.id()).contains("there is no process"));
    assert!(target(2).contains("kernel thread"));
}

#[test]
fn a_32_bit_target() {
    if host_only("sys_compat is not in the virtual machine") {
        return;
    }
    let _alone = alone();
    let target = Target::spawn("sys_compat", &[]);
    let pid = target.pid().to_string();
    let doctor = |probe: &str| {
        let agent = Agent::subcommand("doctor", &[], &agent_binary());
        examine(agent.args([probe, "--format", "json", "--pid", &pid]))
    };
    let found = doctor("syscalls");
    let (state, names, texts) = told(&found.report["target"]);
    assert_eq!((state, names), ("blocked", vec!["32_bit"]), "{texts}");
    assert_eq!(told(&doctor("tcp").report["target"]).0, "works");
}

/// Another user's process, one of whose files only its owner may read.
#[test]
fn files_of_another_user() {
    let _alone = alone();
    let (owner, private) = (1000, TempDir::new().unwrap());
    let copy = private.path().join("split");
    copy_executable(&program("split"), &copy);
    std::os::unix::fs::chown(private.path(), Some(owner), Some(owner)).unwrap();
    std::fs::set_permissions(private.path(), PermissionsExt::from_mode(0o700)).unwrap();
    let target = Target::run(Command::new(&copy).arg(LIFE).uid(owner).gid(owner));
    let public = Public::new();
    let doctor = |capabilities: &[u32]| {
        let agent = public.doctor().by_user(capabilities);
        examine(agent.args(["profile", "--pid", &target.pid().to_string()]))
    };
    let found = doctor(&[BPF, PERFMON]);
    let (state, _, texts) = told(&found.report["target"]);
    assert_ne!(state, "works", "{texts}");
    assert!(texts.contains("CAP_SYS_PTRACE"), "{texts}");
    // The program itself can be had by its link; that takes no other right.
    let found = doctor(&[BPF, PERFMON, SYS_PTRACE]);
    assert_eq!(told(&found.report["target"]).0, "works", "{}", found.report);
}
