//! The container that a process runs in: by the path of its control group, and by what the
//! container's runtime has written down, where the agent can read it.

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::regular::{self, Last};
use super::{Root, own, proc_path};
use crate::profile::Container;

/// Most bytes of a runtime's description.
const MAX_CONFIG: u64 = 4 << 20;
/// Most characters of a host name (RFC 1123, 2.1).
const MAX_HOSTNAME: usize = 253;
/// The environment variable that names the agent's own pod: set by the manifests in `deploy/`.
const POD_NAME: &str = "AGENT_POD_NAME";
/// Inode of the initial UTS namespace (`PROC_UTS_INIT_INO`, linux/proc_ns.h, 6.18).
const INITIAL_UTS: u64 = 0xEFFF_FFFE;

/// Where a process runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Its container; `None` outside of every one that is known.
    pub container: Option<Container>,
    /// Its control group as the agent sees it: relative to the agent's own, where that is in a control
    /// group namespace. `None` for the root.
    pub cgroup: Option<String>,
}

impl Place {
    /// That of a process.
    pub fn of(process: &super::Process) -> Self {
        let groups = process.path("cgroup").and_then(fs::read_to_string);
        let Ok(groups) = groups else {
            return Self::default();
        };
        let mut container = parse(&groups);
        if let Some(container) = &mut container {
            for path in descriptions(&container.id) {
                if let Some(config) = read(&path) {
                    describe(container, &config);
                }
            }
            name(container, process);
        }
        Self {
            container,
            cgroup: innermost(&groups),
        }
    }
}

/// Takes the pod's name from the agent's own environment, where both are in one pod (they share its
/// UTS namespace), and the host name.
fn name(container: &mut Container, process: &super::Process) {
    let uts = |path: PathBuf| fs::metadata(path).map(|meta| meta.ino()).ok();
    let theirs = process.path("ns/uts").ok().and_then(uts);
    let ours = uts(proc_path(std::process::id(), "ns/uts"));
    let shared = theirs.is_some_and(|inode| inode != INITIAL_UTS) && theirs == ours;
    if shared && container.pod_name.is_none() {
        container.pod_name = std::env::var(POD_NAME)
            .ok()
            .filter(|name| is_host_name(name));
    }
    container.hostname = match shared {
        true => Some(own::host_name()).filter(|name| is_host_name(name)),
        false => host_name_in(process.root()),
    };
}

/// What a runtime has written into the container's `/etc/hostname`.
fn host_name_in(root: &Root) -> Option<String> {
    // Without it the agent's own files would be read.
    root.dir.as_ref()?;
    let small = |meta: &fs::Metadata| meta.len() <= MAX_HOSTNAME as u64 + 1;
    let file = root
        .open(Path::new("/etc/hostname"), Last::NoLink, small)
        .ok()?;
    let mut text = String::new();
    file.take(MAX_HOSTNAME as u64 + 1)
        .read_to_string(&mut text)
        .ok()?;
    Some(text.trim_end().to_owned()).filter(|name| is_host_name(name))
}

fn is_host_name(text: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-.".contains(&byte);
    (1..=MAX_HOSTNAME).contains(&text.len()) && text.bytes().all(known)
}

/// The longest path in `/proc/PID/cgroup`: of several hierarchies, some leave a process at their root.
fn innermost(groups: &str) -> Option<String> {
    let paths = paths(groups).filter(|path| *path != "/");
    paths.max_by_key(|path| path.len()).map(str::to_owned)
}

/// The paths in `/proc/PID/cgroup` (cgroups(7)), a line for each hierarchy.
fn paths(groups: &str) -> impl Iterator<Item = &str> {
    groups.lines().filter_map(|line| line.splitn(3, ':').nth(2))
}

/// The containers that `/proc/PID/cgroup` names, outermost first, each with the path of its own
/// control group.
pub(super) fn ids(groups: &str) -> Vec<(&str, &str)> {
    let mut found = Vec::new();
    for path in paths(groups) {
        let mut end = 0;
        for part in path.split_inclusive('/') {
            end += part.len();
            let part = part.trim_end_matches('/');
            let known = |id: &str| found.iter().any(|(other, _)| *other == id);
            if let Some(id) = id_in(part).filter(|id| !known(id)) {
                found.push((id, path.get(..end).unwrap_or(path).trim_end_matches('/')));
            }
        }
    }
    found
}

/// Reads `/proc/PID/cgroup` (cgroups(7)): the innermost part of a path that names a container by 64
/// hexadecimal digits, as docker, containerd, cri-o and podman do.
fn parse(groups: &str) -> Option<Container> {
    let path = paths(groups).find(|path| path.split('/').any(|part| id_in(part).is_some()))?;
    let parts: Vec<&str> = path.split('/').collect();
    let at = parts.iter().rposition(|part| id_in(part).is_some())?;
    let part = parts.get(at)?;
    let pod_uid = parts.get(..at)?.iter().rev().find_map(|part| pod_in(part));
    let before = parts.get(..at)?.last().copied().unwrap_or_default();
    let runtimes = [
        ("docker", "docker"),
        ("cri-containerd", "containerd"),
        ("nerdctl", "containerd"),
        ("crio", "cri-o"),
        ("libpod", "podman"),
    ];
    let runtime = runtimes
        .iter()
        .find(|(name, _)| part.contains(name) || before == *name)
        .map(|(_, runtime)| (*runtime).to_owned());
    Some(Container {
        id: id_in(part)?.to_owned(),
        runtime,
        pod_uid,
        ..Container::default()
    })
}

/// The 64 hexadecimal digits in a part of a path: `docker-ID.scope`, `cri-containerd:ID`, `ID`.
/// What watches over a container (`crio-conmon-ID`) is not in it.
fn id_in(part: &str) -> Option<&str> {
    let part = part.strip_suffix(".scope").unwrap_or(part);
    let id = part.rsplit(['-', ':']).next()?;
    let hexadecimal = id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    (hexadecimal && !part.contains("conmon")).then_some(id)
}

/// The pod's id in `kubepods-burstable-pod1234_abcd.slice` or `pod1234-abcd`.
fn pod_in(part: &str) -> Option<String> {
    let part = part.strip_suffix(".slice").unwrap_or(part);
    let (_, uid) = part.rsplit_once("pod")?;
    let uid = uid.replace('_', "-");
    let plausible = uid.len() >= 32
        && uid
            .bytes()
            .all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    plausible.then_some(uid)
}

/// Where runtimes describe the container of this id.
fn descriptions(id: &str) -> Vec<PathBuf> {
    let containerd = "/run/containerd/io.containerd.runtime.v2.task";
    vec![
        format!("{containerd}/k8s.io/{id}/config.json").into(),
        format!("{containerd}/default/{id}/config.json").into(),
        format!("/var/lib/docker/containers/{id}/config.v2.json").into(),
        format!("/run/containers/storage/overlay-containers/{id}/userdata/config.json").into(),
        format!("/var/lib/containers/storage/overlay-containers/{id}/userdata/config.json").into(),
    ]
}

fn read(path: &Path) -> Option<Value> {
    let file = regular::open_at(path, |meta| meta.len() <= MAX_CONFIG).ok()?;
    let mut text = Vec::new();
    file.take(MAX_CONFIG).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Takes image and pod from the annotations of an OCI runtime (config.md of its specification) or
/// from docker's own description.
fn describe(container: &mut Container, config: &Value) {
    let annotation = |names: &[&str]| {
        let notes = [config.get("annotations"), config.pointer("/Config/Labels")];
        names.iter().find_map(|name| {
            let note = |notes: &Value| notes.get(name)?.as_str().map(str::to_owned);
            notes.into_iter().flatten().find_map(note)
        })
    };
    let image = annotation(&[
        "io.kubernetes.cri.image-name",
        "io.kubernetes.cri-o.ImageName",
        "io.kubernetes.cri-o.Image",
    ]);
    let docker = config.pointer("/Config/Image").and_then(Value::as_str);
    container.image = image
        .or_else(|| docker.map(str::to_owned))
        .or(container.image.take());
    container.pod_name = annotation(&["io.kubernetes.cri.sandbox-name", "io.kubernetes.pod.name"])
        .or(container.pod_name.take());
    container.pod_uid = annotation(&["io.kubernetes.cri.sandbox-uid", "io.kubernetes.pod.uid"])
        .or(container.pod_uid.take());
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn found(groups: &str) -> (Option<String>, Option<String>) {
        let container = parse(&groups.replace("ID", ID)).unwrap();
        assert_eq!(container.id, ID);
        (container.runtime, container.pod_uid)
    }

    #[test]
    fn every_runtime_is_told() {
        let runtime = |name: &str| Some(name.to_owned());
        let uid = Some("2f4e3a1c-0b1d-4c5e-8f70-1a2b3c4d5e6f".to_owned());
        for (groups, expected) in [
            (
                "0::/system.slice/docker-ID.scope",
                (runtime("docker"), None),
            ),
            ("12:cpu:/docker/ID\n11:x:/", (runtime("docker"), None)),
            (
                "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod2f4e3a1c_0b1d_4c5e_8f70_1a2b3c4d5e6f.slice/cri-containerd-ID.scope",
                (runtime("containerd"), uid.clone()),
            ),
            (
                "0::/kubepods/besteffort/pod2f4e3a1c-0b1d-4c5e-8f70-1a2b3c4d5e6f/ID",
                (None, uid.clone()),
            ),
            ("0::/x.slice/crio-ID.scope", (runtime("cri-o"), None)),
            (
                "0::/user.slice/user-1000.slice/libpod-ID.scope/container",
                (runtime("podman"), None),
            ),
            (
                "0::/x/kubelet:cri-containerd:ID",
                (runtime("containerd"), None),
            ),
        ] {
            assert_eq!(found(groups), expected, "{groups}");
        }
    }

    #[test]
    fn a_container_in_a_container_is_found_with_its_control_group() {
        let (outer, inner) = (ID, ID.replace('0', "f"));
        let groups = format!("3:cpu:/\n0::/docker/{outer}/x/cri-containerd-{inner}.scope/init");
        let outer_path = format!("/docker/{outer}");
        let inner_path = format!("{outer_path}/x/cri-containerd-{inner}.scope");
        assert_eq!(
            ids(&groups),
            [
                (outer, outer_path.as_str()),
                (inner.as_str(), inner_path.as_str())
            ]
        );
        assert_eq!(innermost(&groups), Some(format!("{inner_path}/init")));
        assert_eq!(innermost("3:cpu:/\n0::/"), None);
    }

    #[test]
    fn host_names_are_plain() {
        assert!(is_host_name("shop-7d4f.example"));
        for bad in ["", "a b", "a\nb", "\x1b[31m", "ä", &"a".repeat(254)] {
            assert!(!is_host_name(bad), "{bad:?}");
        }
    }

    #[test]
    fn outside_of_containers_there_is_none() {
        for groups in [
            "0::/",
            "0::/system.slice/ssh.service",
            "0::/../../x",
            "0::/x/crio-conmon-ID.scope",
            "0::/IDID",
            "",
        ] {
            assert_eq!(parse(&groups.replace("ID", ID)), None, "{groups}");
        }
    }

    #[test]
    fn descriptions_name_image_and_pod() {
        let mut container = Container::default();
        let cri = r#"{"annotations":{"io.kubernetes.cri.image-name":"r/app:1","io.kubernetes.cri.sandbox-name":"app-0","io.kubernetes.cri.sandbox-uid":"u"}}"#;
        describe(&mut container, &serde_json::from_str(cri).unwrap());
        assert_eq!(container.image.as_deref(), Some("r/app:1"));
        assert_eq!(container.pod_name.as_deref(), Some("app-0"));
        let mut container = Container::default();
        let docker = r#"{"Config":{"Image":"redis:7","Labels":{"io.kubernetes.pod.name":"p"}}}"#;
        describe(&mut container, &serde_json::from_str(docker).unwrap());
        assert_eq!(container.image.as_deref(), Some("redis:7"));
        assert_eq!(container.pod_name.as_deref(), Some("p"));
        describe(&mut container, &Value::Null);
        assert_eq!(container.image.as_deref(), Some("redis:7"));
    }
}
