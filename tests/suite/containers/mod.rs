//! The agent and its targets in containers: beside each other as with `kubectl debug --target`, and
//! a whole container from the host.

mod runtime;
mod whole;

use std::io::Write;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::harness::{Profile, alone, host_only};
use runtime::{Container, Debugger, POD, Shared, deployed, profile, said, yaml};

const NO_CRUN: &str = "the machines have no crun";

/// The last JSON document on standard output.
fn document(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().last().unwrap_or_default();
    serde_json::from_str(line)
        .unwrap_or_else(|error| panic!("{error}: {line:.300}\n{}", said(output)))
}

/// The first process has its own number, its name and its container, and the pod's name.
fn assert_contained(target: &Value, container: &Container) {
    assert_eq!(target["pid"], 1, "{target}");
    assert_eq!(target["comm"], "contained", "{target}");
    assert_eq!(target["container"]["id"], container.id.as_str(), "{target}");
    assert_eq!(target["container"]["pod_name"], POD, "{target}");
    let cgroup = target["cgroup"].as_str().unwrap();
    assert!(
        cgroup.ends_with(&format!("/crun-{}", container.id)),
        "{cgroup}"
    );
}

#[test]
fn a_profile_of_the_container_beside() {
    if host_only(NO_CRUN) {
        return;
    }
    let _alone = alone();
    let container = Container::start();
    let arguments = [
        "profile", "--pid", "1", "-d", "2s", "-F", "199", "-o", "-", "--format", "json",
    ];
    let output = Debugger::beside(&container, Shared::Pod).run_well(&arguments);
    let profile: Profile = serde_json::from_slice(&output.stdout).unwrap();
    profile.assert_complete(50);
    profile.assert_names(&["settle", "main"]);
    assert!(
        profile.stacks.iter().all(|stack| stack.pid == 1),
        "a PID of the host's"
    );
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_contained(&value["facts"]["targets"][0], &container);
    // Its file was found below its root directory: there is no such file in the agent's container.
    assert_eq!(value["facts"]["targets"][0]["exe"], "/contained");
    let module = &value["modules"][0];
    assert_eq!(module["path"], "/contained", "{module}");
    assert!(module["build_id"].is_string(), "{module}");
    let place = format!("in pod {POD} (container {})", &container.id[..12]);
    assert!(said(&output).contains(&place), "{}", said(&output));
}

#[test]
fn connections_of_a_container_in_its_own_network() {
    if host_only(NO_CRUN) {
        return;
    }
    let _alone = alone();
    let container = Container::start();
    // Neither the network of the target nor the host's.
    for shared in [Shared::Pids, Shared::Pod] {
        let arguments = ["tcp", "--pid", "1", "-d", "2s", "--format", "json"];
        let output = Debugger::beside(&container, shared).run_well(&arguments);
        let document = document(&output);
        let rows = document["connections"].as_array().unwrap();
        let client = rows.iter().find(|row| row["role"] == "client").unwrap();
        assert_eq!(client["pid"], 1);
        assert!(client["requests"].as_u64().unwrap() > 10, "{client}");
        assert!(
            client["remote"].as_str().unwrap().starts_with("127.0.0.1:"),
            "{client}"
        );
        if shared == Shared::Pod {
            assert_contained(&document["target"], &container);
        }
    }
}

#[test]
fn failing_calls_of_the_container_beside() {
    if host_only(NO_CRUN) {
        return;
    }
    let _alone = alone();
    let container = Container::start();
    let arguments = ["syscalls", "--pid", "1", "-d", "2s", "--format", "json"];
    let output = Debugger::beside(&container, Shared::Pod).run_well(&arguments);
    let document = document(&output);
    let errors = document["errors"].as_array().unwrap();
    let openat = errors
        .iter()
        .find(|row| row["syscall"] == "openat")
        .unwrap();
    assert_eq!(openat["errno"], "ENOENT");
    assert_eq!(openat["args"][0]["value"], "/etc/shop.yaml", "{openat}");
    assert_contained(&document["target"], &container);
}

/// The bundle on standard output: there is nothing that the agent could write to.
#[test]
fn a_record_of_the_container_beside() {
    if host_only(NO_CRUN) {
        return;
    }
    let _alone = alone();
    let container = Container::start();
    let arguments = ["record", "--pid", "1", "-d", "2s", "-F", "199", "-o", "-"];
    let output = Debugger::beside(&container, Shared::Pod).run_well(&arguments);
    let bundle = tempfile::NamedTempFile::with_suffix(".zip").unwrap();
    bundle.as_file().write_all(&output.stdout).unwrap();
    let entry = |name: &str| {
        let unzip = Command::new("unzip")
            .arg("-p")
            .arg(bundle.path())
            .arg(name)
            .output()
            .unwrap();
        assert!(unzip.status.success(), "{name}: {unzip:?}");
        String::from_utf8(unzip.stdout).unwrap()
    };
    let meta: Value = serde_json::from_str(&entry("meta.json")).unwrap();
    assert_contained(&meta["target"], &container);
    assert_eq!(meta["target"]["container"]["hostname"], POD);
    let profile: Profile = serde_json::from_str(&entry("profile.json")).unwrap();
    profile.assert_names(&["settle"]);
    assert!(entry("connections.json").contains("127.0.0.1:"));
    assert!(entry("syscalls.json").contains("/etc/shop.yaml"));
    let report = Command::new(crate::harness::agent_binary())
        .args(["report", "-o", "-", "--format", "md"])
        .arg(bundle.path())
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    let report = String::from_utf8_lossy(&report.stdout).into_owned();
    for known in [container.id.as_str(), POD] {
        assert!(report.contains(known), "no {known} in {report:.2000}");
    }
}

#[test]
fn who_cannot_see_is_told_what_helps() {
    if host_only(NO_CRUN) {
        return;
    }
    let container = Container::start();
    let refused = |debugger: Debugger, pid: &str, words: &[&str]| {
        let output = debugger.run(&["profile", "--pid", pid, "-d", "1s", "-o", "/tmp/x.json"]);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        for word in words {
            assert!(said.contains(word), "no {word:?} in {said}");
        }
    };
    let stranger = Debugger::beside(&container, Shared::Nothing);
    let hints = ["no process 7", "--target=CONTAINER", "--pid=container:NAME"];
    refused(stranger, "7", &hints);
    // Without the fourth, DAC_READ_SEARCH, it depends on the files' permissions.
    for name in ["BPF", "PERFMON", "SYS_PTRACE"] {
        let capability = format!("CAP_{name}");
        let debugger = Debugger::beside(&container, Shared::Pod).without(&capability);
        refused(debugger, "1", &[&capability, &format!("--cap-add {name}")]);
    }
}

/// Kubernetes' own programs are not needed to see that these files have the form they must have.
#[test]
fn the_manifests_ask_for_what_the_agent_needs_and_no_more() {
    if host_only("the machines have no manifests") {
        return;
    }
    let profile = profile();
    // What `kubectl debug --custom` refuses to change.
    for name in ["name", "image", "command", "lifecycle", "volumeDevices"] {
        assert!(profile.get(name).is_none(), "{name}");
    }
    let context = &profile["securityContext"];
    assert!(context.get("privileged").is_none());
    let documents = yaml(&deployed("daemonset.yaml"));
    let find = |kind: &str| {
        documents
            .iter()
            .find(|document| document["kind"] == kind)
            .unwrap()
    };
    let pod = &find("DaemonSet")["spec"]["template"]["spec"];
    assert_eq!(pod["hostPID"], true);
    assert!(pod.get("hostNetwork").is_none());
    // Nothing of the node but who is in which control group, and that only to read.
    let paths = pod["volumes"].as_array().unwrap().iter();
    let paths: Vec<&Value> = paths
        .filter_map(|volume| volume["hostPath"].get("path"))
        .collect();
    assert_eq!(paths, ["/sys/fs/cgroup"]);
    let agent = &pod["containers"][0];
    assert_eq!(agent["volumeMounts"][0]["name"], "cgroups");
    assert_eq!(agent["volumeMounts"][0]["readOnly"], true);
    assert_eq!(
        agent["securityContext"]["capabilities"],
        context["capabilities"]
    );
    assert_eq!(agent["securityContext"]["readOnlyRootFilesystem"], true);
    assert!(agent["securityContext"].get("privileged").is_none());
    for limit in ["cpu", "memory"] {
        assert!(agent["resources"]["limits"][limit].is_string(), "{limit}");
    }
    let labels = &find("DaemonSet")["spec"]["template"]["metadata"]["labels"];
    assert_eq!(
        &find("DaemonSet")["spec"]["selector"]["matchLabels"],
        labels
    );
}
