//! `--container` and `--cgroup`: all processes of a container, looked at from outside of it.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::NO_CRUN;
use super::runtime::{Container, Debugger, Shared, id, said};
use crate::harness::{Agent, Finished, Profile, agent_binary, alone, host_only};

fn agent(subcommand: &str, arguments: &[&str]) -> Agent {
    Agent::subcommand(subcommand, &[], &agent_binary()).args(arguments)
}

fn profile(arguments: &[&str]) -> Agent {
    agent("profile", &["-v", "-F", "199", "-o", "profile.json"]).args(arguments)
}

/// Where the control group of a container is mounted.
fn directory(container: &Container) -> String {
    let name = format!("crun-{}", container.id);
    let mounts = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
    let paths = mounts.iter().map(|mount| format!("{mount}/{name}"));
    paths
        .into_iter()
        .find(|path| Path::new(path).is_dir())
        .unwrap()
}

fn assert_whole(finished: &Finished, container: &Container) -> Profile {
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    let value: Value = serde_json::from_str(&finished.text("profile.json")).unwrap();
    let first = &value["facts"]["targets"][0];
    assert_eq!(first["pid"], container.pid, "{first}");
    assert_eq!(first["container"]["id"], container.id.as_str(), "{first}");
    finished.profile()
}

#[test]
fn who_joins_a_container_is_looked_at_too() {
    if host_only(NO_CRUN) {
        return;
    }
    let _alone = alone();
    let mut container = Container::start();
    let running = profile(&["--container", &container.id[..12], "-d", "1m"]).start();
    running.await_said("sampling by");
    let late = container.exec(&["/contained", "300", "late"]);
    std::thread::sleep(Duration::from_secs(2));
    // With its last process the container ends, and so does the run.
    drop(late);
    assert!(container.end());
    let finished = running.wait();
    assert!(
        finished.took < Duration::from_secs(30),
        "{:?}",
        finished.took
    );
    let profile = assert_whole(&finished, &container);
    assert_eq!(profile.facts.ended, "target_exited");
    assert_eq!(profile.facts.targets.len(), 2, "{}", profile.explain());
    profile.assert_names(&["settle", "late_work"]);
    let mut notes = profile.accounting.notes.iter();
    let joined = notes.find(|(note, _)| note.contains("joined the control group"));
    assert_eq!(
        joined.map(|(_, count)| *count),
        Some(1),
        "{}",
        profile.explain()
    );
}

#[test]
fn a_control_group_is_named_by_its_path_or_its_directory() {
    if host_only(NO_CRUN) {
        return;
    }
    let _alone = alone();
    let container = Container::start();
    let name = format!("/crun-{}", container.id);
    for path in [name, directory(&container)] {
        let finished = profile(&["--cgroup", &path, "-d", "1s"]).run();
        assert_whole(&finished, &container).assert_names(&["settle"]);
    }
}

#[test]
fn every_probe_looks_at_a_whole_container() {
    if host_only(NO_CRUN) {
        return;
    }
    let _alone = alone();
    let container = Container::start();
    // As Kubernetes shows it.
    let named = format!("containerd://{}", container.id);
    let last = |subcommand: &str| {
        let arguments = ["--container", &named, "-d", "2s", "--format", "json"];
        let finished = agent(subcommand, &arguments).run();
        assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
        let document: Value =
            serde_json::from_str(finished.stdout().lines().last().unwrap()).unwrap();
        assert_eq!(document["target"]["container"]["id"], container.id.as_str());
        document
    };
    assert!(last("tcp")["sums"]["requests"].as_u64().unwrap() > 10);
    assert!(
        last("syscalls")["errors"]
            .to_string()
            .contains("/etc/shop.yaml")
    );
    let finished = agent(
        "record",
        &["--container", &named, "-d", "1s", "-o", "incident.zip"],
    )
    .run();
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    assert!(
        finished
            .stderr()
            .contains(&format!("container {}", &container.id[..12]))
    );
}

/// As on a node: the host's processes, but none of its files; its control groups only for `--cgroup`.
#[test]
fn a_container_is_looked_at_from_one_that_sees_the_hosts_processes() {
    if host_only(NO_CRUN) {
        return;
    }
    let _alone = alone();
    let container = Container::start();
    let debugger = || Debugger::beside(&container, Shared::HostPids);
    let name = format!("/crun-{}", container.id);
    for (debugger, whom) in [
        (debugger(), ["--container", &container.id]),
        (
            debugger().mounting("/sys/fs/cgroup", "/host/cgroup"),
            ["--cgroup", &name],
        ),
    ] {
        let how = ["profile", "-d", "1s", "-o", "-", "--format", "json"];
        let output = debugger.run_well(&[&how[..], &whom].concat());
        let profile: Profile = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(
            profile.facts.targets[0].pid,
            container.pid,
            "{}",
            said(&output)
        );
        profile.assert_names(&["settle"]);
    }
}

#[test]
fn a_container_that_is_not_told_from_others_is_refused() {
    if host_only(NO_CRUN) {
        return;
    }
    let start = &id("")[..14];
    let first = Container::with_id(id(&format!("{start}a")));
    let second = Container::with_id(id(&format!("{start}b")));
    let refused = |arguments: &[&str], code: i32, words: &[&str]| {
        agent("profile", arguments)
            .run()
            .assert_refused(code, words);
    };
    refused(
        &["--container", start],
        1,
        &["ambiguous", &first.id[..16], &second.id[..16]],
    );
    let other = id("");
    refused(
        &["--container", &other],
        1,
        &["no container", &other, "there are", &first.id[..12]],
    );
    refused(
        &["--container", "shop"],
        2,
        &["--container shop", "docker inspect"],
    );
    refused(
        &["--container", &first.id, "--pid", "1"],
        2,
        &["exclude each other"],
    );
    refused(
        &["--cgroup", "/no/such"],
        1,
        &["/no/such is no control group"],
    );
    refused(&["--cgroup", "/tmp"], 1, &["/tmp is no control group"]);
    // A group that is empty as long as this test looks at it.
    let parent = directory(&first);
    let empty = Path::new(&parent).join("empty");
    std::fs::create_dir(&empty).unwrap();
    refused(
        &["--cgroup", empty.to_str().unwrap()],
        1,
        &["has no process to look at"],
    );
    std::fs::remove_dir(&empty).unwrap();
    let debugger = Debugger::beside(&first, Shared::Pod);
    let output = debugger.run(&["profile", "--container", &second.id, "-d", "1s"]);
    let hints = said(&output);
    assert!(
        hints.contains("no container") && hints.contains("hostPID: true"),
        "{hints}"
    );
}
