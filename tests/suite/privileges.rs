//! What each command needs of the kernel's privileges and no more, and what it gives up when it has
//! attached. docs/privileges.md has the table.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::process::Command;

use tempfile::TempDir;

use crate::bad_input::public_agent;
use crate::harness::confine::{
    BPF, CHECKPOINT_RESTORE, DAC_READ_SEARCH, PERFMON, SYS_PTRACE, SYSLOG,
};
use crate::harness::{
    Agent, LIFE, Running, Target, agent_binary, alone, copy_executable, eventually, host_only,
    patience, program,
};

/// The owner of the targets.
const OWNER: u32 = 1000;
const KILL: u32 = 5;
const SYS_NICE: u32 = 23;
const SETPCAP: u32 = 8;

fn public() -> (TempDir, std::path::PathBuf) {
    let directory = TempDir::new().unwrap();
    let agent = public_agent(&directory);
    (directory, agent)
}

/// A target that belongs to another user than the agent.
fn target_of(owner: u32, directory: &TempDir) -> Target {
    let copy = directory.path().join("split");
    if !copy.exists() {
        copy_executable(&program("split"), &copy);
        std::fs::set_permissions(&copy, PermissionsExt::from_mode(0o755)).unwrap();
    }
    Target::run(Command::new(&copy).arg(LIFE).uid(owner).gid(owner))
}

/// Samples enough, also on a busy machine.
const FAST: &[&str] = &["--frequency", "499"];

/// The arguments that make a short run of each command.
const RUNS: [(&str, &[u32], &[&str]); 4] = [
    (
        "profile",
        &[BPF, PERFMON, SYS_PTRACE],
        &["-o", "profile.json"],
    ),
    ("tcp", &[BPF, PERFMON], &["-o", "tcp.json"]),
    ("syscalls", &[BPF, PERFMON], &["-o", "syscalls.json"]),
    (
        "record",
        &[BPF, PERFMON, SYS_PTRACE],
        &["-o", "incident.zip"],
    ),
];

#[test]
fn each_command_works_with_what_the_table_says() {
    let _alone = alone();
    let (directory, binary) = public();
    for owner in [OWNER, 0] {
        let target = target_of(owner, &directory);
        for (name, capabilities, output) in RUNS {
            let agent = Agent::subcommand(name, &[], &binary).by_user(capabilities);
            let finished = agent
                .args(["--pid", &target.pid().to_string(), "--duration", "2s"])
                .args(output)
                .args(if name == "profile" { FAST } else { &[] })
                .run();
            let code = finished.code().unwrap();
            // Nothing seen: a connection, a failing call, on a busy machine the target at work.
            assert!(
                [0, 3].contains(&code),
                "{name}, of {owner}: {}",
                finished.stderr()
            );
            let file = std::fs::metadata(finished.path(output[1])).unwrap();
            assert!(file.len() > 0);
            if name == "profile" {
                let profile = finished.profile();
                profile.assert_complete(3);
                profile.assert_names(&["main"]);
            }
        }
    }
}

#[test]
fn the_page_is_served_with_what_the_table_says() {
    let _alone = alone();
    let (directory, binary) = public();
    let target = target_of(OWNER, &directory);
    let agent = Agent::subcommand("serve", &[], &binary).by_user(&[BPF, PERFMON, SYS_PTRACE]);
    let pid = target.pid().to_string();
    let running = agent
        .args(["--pid", &pid, "--listen", "127.0.0.1:0"])
        .start();
    assert!(eventually(patience(30.0), || running
        .stdout()
        .contains("http://")));
    assert_given_up(&running, &[BPF, PERFMON, SYS_PTRACE]);
    running.signal(libc::SIGINT);
    let finished = running.wait();
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
}

/// Without one of them the command names it.
#[test]
fn each_capability_of_the_table_is_missed_by_name() {
    let _alone = alone();
    let (directory, binary) = public();
    let target = target_of(OWNER, &directory);
    let pid = target.pid().to_string();
    for (name, capabilities, _) in RUNS {
        for (missing, shown) in [(BPF, "CAP_BPF"), (PERFMON, "CAP_PERFMON")] {
            let mut held = capabilities.to_vec();
            held.retain(|&cap| cap != missing);
            let agent = Agent::subcommand(name, &[], &binary).by_user(&held);
            agent
                .args(["--pid", &pid])
                .run()
                .assert_refused(1, &[shown, "sudo"]);
        }
    }
    // From 6.14 on CAP_PERFMON lets mappings be read, but not files of another root directory.
    let agent = Agent::subcommand("profile", &[], &binary).by_user(&[BPF, PERFMON]);
    let short = ["--pid", &pid, "--duration", "500ms", "-o", "profile.json"];
    let finished = agent.args(short).run();
    if ![Some(0), Some(3)].contains(&finished.code()) {
        finished.assert_refused(1, &["CAP_SYS_PTRACE", "sudo"]);
    }
    let agent = Agent::subcommand("doctor", &[], &binary).by_user(&[BPF, PERFMON]);
    let finished = agent.args(["profile", "kernel-names", "--pid", &pid]).run();
    let said = finished.stdout();
    assert_ne!(finished.code(), Some(0), "{said}");
    assert!(said.contains("CAP_SYS_PTRACE"), "{said}");
    assert!(
        said.contains("CAP_SYSLOG") || said.contains("✓ kernel names"),
        "{said}"
    );
}

/// Two files that only their owner may read: one in a directory of his, one that is deleted.
#[test]
fn the_optional_capabilities_open_files() {
    if host_only("the programs of the virtual machine are linked statically") {
        return;
    }
    let _alone = alone();
    let (directory, binary) = public();
    let copy = directory.path().join("split");
    copy_executable(&program("split"), &copy);
    let libm = std::fs::read_dir("/lib/x86_64-linux-gnu").unwrap();
    let libm = libm.map(|entry| entry.unwrap().path());
    let libm = libm
        .into_iter()
        .find(|path| path.ends_with("libm.so.6"))
        .unwrap();
    let doctor = |target: &Target, capabilities: &[u32]| {
        let agent = Agent::subcommand("doctor", &[], &binary).by_user(capabilities);
        let pid = target.pid().to_string();
        agent.args(["profile", "--pid", &pid]).run().stdout()
    };
    let with_library = |library: &std::path::Path| {
        let mut command = Command::new(&copy);
        command.arg(LIFE).env("LD_PRELOAD", library);
        Target::run(command.uid(OWNER).gid(OWNER))
    };
    let private = TempDir::new().unwrap();
    let library = private.path().join("private.so");
    std::fs::copy(&libm, &library).unwrap();
    chown(private.path(), Some(OWNER), Some(OWNER)).unwrap();
    std::fs::set_permissions(private.path(), PermissionsExt::from_mode(0o700)).unwrap();
    let target = with_library(&library);
    let held = [BPF, PERFMON, SYS_PTRACE];
    let said = doctor(&target, &held);
    assert!(
        said.contains("`private.so`") && said.contains("CAP_DAC_READ_SEARCH"),
        "{said}"
    );
    let said = doctor(&target, &[BPF, PERFMON, SYS_PTRACE, DAC_READ_SEARCH]);
    assert!(said.contains("✓ split"), "{said}");
    std::fs::remove_file(&library).unwrap();
    let said = doctor(&target, &[BPF, PERFMON, SYS_PTRACE, DAC_READ_SEARCH]);
    assert!(said.contains("CAP_CHECKPOINT_RESTORE would help"), "{said}");
    let all = [
        BPF,
        PERFMON,
        SYS_PTRACE,
        DAC_READ_SEARCH,
        CHECKPOINT_RESTORE,
    ];
    let said = doctor(&target, &all);
    assert!(said.contains("✓ split"), "{said}");
}

/// A field of a `status` file of proc(5).
fn field(status: &str, name: &str) -> String {
    let line = status.lines().find(|line| line.starts_with(name));
    let line = line.unwrap_or_else(|| panic!("no {name} in {status}"));
    line.split_whitespace().nth(1).unwrap().to_owned()
}

/// Asserts that every thread of the agent has given up everything but what is kept of `held`.
fn assert_given_up(agent: &Running, held: &[u32]) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut kept = vec![BPF, SYS_PTRACE, DAC_READ_SEARCH, CHECKPOINT_RESTORE, KILL];
    if release.starts_with('7') {
        kept.push(SYS_NICE);
    }
    kept.retain(|cap| held.contains(cap));
    let allowed = kept.iter().fold(0u64, |set, cap| set | 1 << cap);
    let threads = || {
        let entries = std::fs::read_dir(format!("/proc/{}/task", agent.pid())).unwrap();
        let status =
            |entry: std::fs::DirEntry| std::fs::read_to_string(entry.path().join("status"));
        let threads = entries.flatten().map(status);
        threads.flatten().collect::<Vec<String>>()
    };
    let sets = |status: &String| -> BTreeMap<&str, u64> {
        ["CapEff:", "CapPrm:", "CapInh:", "CapAmb:"]
            .map(|name| (name, u64::from_str_radix(&field(status, name), 16).unwrap()))
            .into()
    };
    let is_done = |status: &String| {
        let sets = sets(status);
        let within = sets.values().all(|set| set & !allowed == 0);
        within
            && sets["CapInh:"] == 0
            && sets["CapAmb:"] == 0
            && field(status, "NoNewPrivs:") == "1"
    };
    let done = || {
        let threads = threads();
        !threads.is_empty() && threads.iter().all(is_done)
    };
    assert!(eventually(patience(20.0), done), "{:?}", threads());
    if held.contains(&SETPCAP) {
        for status in threads() {
            let bounding = u64::from_str_radix(&field(&status, "CapBnd:"), 16).unwrap();
            assert_eq!(bounding & !allowed, 0, "{status}");
        }
    }
}

#[test]
fn what_is_not_needed_any_more_is_given_up() {
    let _alone = alone();
    let (directory, binary) = public();
    let target = target_of(OWNER, &directory);
    let pid = target.pid().to_string();
    let root: Vec<u32> = (0..64).collect();
    let user = [
        BPF,
        PERFMON,
        SYS_PTRACE,
        DAC_READ_SEARCH,
        SYSLOG,
        CHECKPOINT_RESTORE,
    ];
    for (name, _, output) in RUNS {
        for held in [&root[..], &user] {
            let agent = Agent::subcommand(name, &[], &binary);
            let agent = if held.len() == root.len() {
                agent
            } else {
                agent.by_user(held)
            };
            let arguments = ["--pid", &pid, "--duration", "60s", "--verbose"];
            let running = agent.args(arguments).args(output).start();
            running.await_said("privileges kept:");
            assert_given_up(&running, held);
            running.signal(libc::SIGINT);
            let finished = running.wait();
            assert!(
                [0, 3].contains(&finished.code().unwrap()),
                "{}",
                finished.stderr()
            );
            assert!(
                !finished.stderr().contains("warning"),
                "{}",
                finished.stderr()
            );
        }
    }
}

/// Kernel functions keep their names: the symbols were opened before the capability was given up.
#[test]
fn kernel_functions_have_names_after_the_drop() {
    let _alone = alone();
    let target = Target::spawn("geteuid", &[]);
    let pid = target.pid().to_string();
    let agent = Agent::profile().args(["--pid", &pid, "--duration", "2s", "-o", "profile.json"]);
    let profile = agent.run_to_profile();
    let kernel = |frame: &&crate::harness::Frame| frame.module.as_deref() == Some("[kernel]");
    let named = profile.frames.iter().filter(kernel);
    assert!(named.clone().count() > 0, "{}", profile.explain());
    assert!(
        named.clone().any(|frame| frame.unnamed.is_none()),
        "{}",
        profile.explain()
    );
}

/// The program that `--` starts has the privileges that the user has.
#[test]
fn the_command_keeps_its_privileges() {
    let _alone = alone();
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    for name in ["profile", "tcp", "syscalls", "record"] {
        let agent = Agent::subcommand(name, &[], &agent_binary());
        let agent = match name {
            "profile" => agent.args(["-o", "profile.json"]),
            "record" => agent.args(["-o", "incident.zip"]),
            _ => agent.args(["-o", "out.json"]),
        };
        let finished = agent.args(["--", "cat", "/proc/self/status"]).run();
        assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
        let status = finished.stdout();
        for name in ["CapEff:", "CapPrm:", "CapBnd:", "NoNewPrivs:", "Seccomp:"] {
            assert_eq!(field(&status, name), field(&own, name), "{name}");
        }
    }
}

/// Root through sudo, in a directory that is the caller's.
#[test]
fn under_sudo_the_callers_directory_can_be_written() {
    let _alone = alone();
    let target = Target::spawn("split", &[]);
    for directory_of in [OWNER, 0] {
        write_under_sudo(&target, directory_of);
    }
}

fn write_under_sudo(target: &Target, directory_of: u32) {
    let home = TempDir::new().unwrap();
    chown(home.path(), Some(directory_of), Some(directory_of)).unwrap();
    std::fs::set_permissions(home.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let file = home.path().join("profile.json");
    let owner = OWNER.to_string();
    let agent = Agent::profile()
        .env("SUDO_UID", &owner)
        .env("SUDO_GID", &owner);
    let pid = target.pid().to_string();
    let finished = agent
        .args(["--pid", &pid, "--duration", "500ms", "-o"])
        .args([&file])
        .run();
    assert!(
        [Some(0), Some(3)].contains(&finished.code()),
        "{}",
        finished.stderr()
    );
    let meta = std::fs::metadata(&file).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (OWNER, OWNER));
}

/// Capabilities of the file instead of a privileged caller: such a process may not be looked into,
/// not even by itself where only the owner of its files may.
#[test]
fn capabilities_of_the_file() {
    if host_only("the machine's file system has no attributes") {
        return;
    }
    let _alone = alone();
    let (directory, binary) = public();
    let target = target_of(OWNER, &directory);
    let set: u64 = [BPF, PERFMON, SYS_PTRACE]
        .iter()
        .fold(0, |set, cap| set | 1 << cap);
    // struct vfs_cap_data (linux/capability.h), revision 2, effective.
    let words = [0x0200_0001, set as u32, 0, (set >> 32) as u32, 0];
    let value: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let path = std::ffi::CString::new(binary.as_os_str().as_encoded_bytes()).unwrap();
    let name = c"security.capability".as_ptr();
    // SAFETY: strings that end in zero, and a value as long as said.
    let failed =
        unsafe { libc::setxattr(path.as_ptr(), name, value.as_ptr().cast(), value.len(), 0) };
    assert_eq!(failed, 0, "{}", std::io::Error::last_os_error());
    let agent = Agent::under(&[], &binary).without_privilege();
    let arguments = ["--duration", "2s", "-o", "profile.json"];
    let finished = agent
        .args(["--pid", &target.pid().to_string()])
        .args(arguments)
        .args(FAST)
        .run();
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    let profile = finished.profile();
    profile.assert_complete(3);
    profile.assert_names(&["main"]);
}
