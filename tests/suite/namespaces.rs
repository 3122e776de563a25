//! Targets and agents behind namespaces, and without the tracing file systems.

use std::process::Command;

use tempfile::TempDir;

use crate::harness::{Agent, ENOUGH, LIFE, Target, agent_binary, alone, host_only, program};

/// A shell in a new mount namespace that runs `script`; `$0` is `program`, `$1` is `directory`.
fn elsewhere(script: &str, program: &std::path::Path, directory: &TempDir) -> Command {
    let mut command = Command::new("unshare");
    command
        .args(["-m", "sh", "-c", script])
        .arg(program)
        .arg(directory.path());
    command
}

#[test]
fn a_target_in_another_mount_namespace() {
    let _alone = alone();
    let hidden = TempDir::new().unwrap();
    let script =
        format!(r#"mount -t tmpfs none "$1" && cp "$0" "$1/hidden" && exec "$1/hidden" {LIFE}"#);
    let target = Target::run(&mut elsewhere(&script, &program("split"), &hidden));
    assert!(
        !hidden.path().join("hidden").exists(),
        "the mount is not private"
    );
    let profile = Agent::standard(target.pid()).run_to_profile();
    profile.assert_complete(ENOUGH);
    profile.assert_names(&["main", "half", "third", "fifth"]);
}

#[test]
fn a_file_of_the_same_path_here_is_not_taken_for_the_targets() {
    let _alone = alone();
    let hidden = TempDir::new().unwrap();
    let script =
        format!(r#"mount -t tmpfs none "$1" && cp "$0" "$1/program" && exec "$1/program" {LIFE}"#);
    let target = Target::run(&mut elsewhere(&script, &program("split-nopie"), &hidden));
    std::fs::copy(program("deep-static"), hidden.path().join("program")).unwrap();
    let profile = Agent::standard(target.pid()).run_to_profile();
    profile.assert_complete(ENOUGH);
    profile.assert_names(&["half"]);
    assert_eq!(
        profile.total_share("descend_0"),
        0.0,
        "names of another file"
    );
}

#[test]
fn a_target_in_a_chroot() {
    let _alone = alone();
    let root = TempDir::new().unwrap();
    std::fs::copy(program("split-static"), root.path().join("split")).unwrap();
    let target = Target::run(
        Command::new("chroot")
            .arg(root.path())
            .args(["/split", LIFE]),
    );
    let profile = Agent::standard(target.pid()).run_to_profile();
    profile.assert_complete(ENOUGH);
    profile.assert_names(&["main", "half"]);
    let entries = std::fs::read_dir(root.path()).unwrap();
    let names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["split"], "written into the target's file system");
}

/// The agent beside its target in a PID namespace of their own, as in a container: the number
/// that it is given is not the kernel's.
#[test]
fn a_pid_of_another_pid_namespace() {
    let _alone = alone();
    let script = format!(
        r#"mount -t proc proc /proc || exit 99
        {} {LIFE} & target=$!
        sleep 1
        "$0" "$@" --pid $target; code=$?
        kill $target; exit $code"#,
        program("split").display()
    );
    let wrapper = ["unshare", "-m", "-p", "-f", "sh", "-c", &script];
    let duration = [
        "--duration",
        "3s",
        "--frequency",
        "199",
        "-o",
        "profile.json",
    ];
    let profile = Agent::under(&wrapper, &agent_binary())
        .args(duration)
        .run_to_profile();
    profile.assert_complete(ENOUGH);
    profile.assert_names(&["half"]);
    assert!(
        profile.stacks.iter().all(|stack| stack.pid < 100),
        "a PID of the kernel's own namespace"
    );
}

/// `/proc` tells it other start times than the kernel programs see.
#[test]
fn an_agent_in_a_time_namespace() {
    if host_only("busybox's unshare knows no time namespaces") {
        return;
    }
    let _alone = alone();
    let target = Target::spawn("split", &[]);
    let wrapper = ["unshare", "-T", "--boottime", "1000000", "-f"];
    let profile = Agent::under(&wrapper, &agent_binary())
        .args(["--pid", &target.pid().to_string(), "--duration", "2s"])
        .args(["--frequency", "199", "-o", "profile.json"])
        .run_to_profile();
    profile.assert_complete(ENOUGH);
    profile.assert_names(&["half"]);
}

#[test]
fn neither_tracefs_nor_debugfs_is_needed() {
    let _alone = alone();
    let target = Target::spawn("split", &[]);
    let script = r#"for type in tracefs debugfs; do
        while mount=$(grep -m 1 " $type " /proc/self/mounts | cut -d ' ' -f 2) && [ -n "$mount" ]; do umount -l "$mount" || exit 99; done
        done; exec "$0" "$@""#;
    let agent = Agent::under(&["unshare", "-m", "sh", "-c", script], &agent_binary());
    let pid = target.pid().to_string();
    let profile = agent
        .args([
            "--pid",
            &pid,
            "--duration",
            "3s",
            "--frequency",
            "199",
            "-o",
            "profile.json",
        ])
        .run_to_profile();
    profile.assert_complete(ENOUGH);
}
