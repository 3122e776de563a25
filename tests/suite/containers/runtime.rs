//! Containers without a daemon: `crun`, with root directories that hold one program.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{LIFE, Target, agent_binary, copy_executable, eventually, patience, program};

/// The host name of the pod that the containers are of.
pub(super) const POD: &str = "shop-7d4f";
/// The user of the target's processes: the `nonroot` of distroless images.
const NOBODY: u32 = 65532;
/// crun wants a file system of version 2 alone, which this machine may not have: it gets a mount
/// namespace with one. `$0` is where crun keeps its state.
const CLEAN: &str = r#"umount -R /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup &&
    exec crun --root "$0" --cgroup-manager=cgroupfs "$@""#;

/// `crun ARGUMENTS`.
fn crun(state: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("timeout");
    command
        .args([
            "60",
            "unshare",
            "-m",
            "--propagation",
            "private",
            "sh",
            "-c",
            CLEAN,
        ])
        .arg(state)
        .args(arguments);
    command
}

/// An id such as the runtimes give: `start` and further digits, 64 in all.
pub(super) fn id(start: &str) -> String {
    let mut digits = start.to_owned();
    while digits.len() < 64 {
        digits += &format!("{:016x}", rand());
    }
    digits.truncate(64);
    digits
}

fn rand() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish()
}

/// A running container whose first process is `contained`: another user than root, no capability,
/// a root directory that holds one file and cannot be written, and namespaces of its own.
pub(super) struct Container {
    pub(super) id: String,
    bundle: TempDir,
    target: Option<Target>,
    /// Its first process, as the host numbers it.
    pub(super) pid: u32,
}

impl Container {
    pub(super) fn start() -> Container {
        Container::with_id(id(""))
    }

    pub(super) fn with_id(id: String) -> Container {
        let bundle = TempDir::new().unwrap();
        let root = bundle.path().join("rootfs");
        fs::create_dir(&root).unwrap();
        copy_executable(&program("contained"), &root.join("contained"));
        let kinds = ["pid", "mount", "network", "uts", "ipc", "cgroup"];
        let own: Vec<Value> = kinds.iter().map(|kind| json!({ "type": kind })).collect();
        let mut config = config(&id, &["/contained", LIFE], &json!(own), &[]);
        config["hostname"] = json!(POD);
        config["process"]["user"] = json!({ "uid": NOBODY, "gid": NOBODY });
        write(bundle.path(), &config);
        let state = bundle.path().join("state");
        let pid_file = bundle.path().join("pid");
        let mut run = crun(
            &state,
            &[
                "run",
                "--pid-file",
                text(&pid_file),
                "--bundle",
                text(bundle.path()),
                &id,
            ],
        );
        // It is ended by its drop, not by the clock.
        run = without_limit(&run);
        let target = Target::run(&mut run);
        // It is written beside the container's first steps.
        let mut pid = None;
        let known = eventually(patience(20.0), || {
            let text = fs::read_to_string(&pid_file).unwrap_or_default();
            pid = text.trim().parse().ok();
            pid.is_some()
        });
        assert!(known, "no process id in {}", pid_file.display());
        let pid = pid.unwrap_or_default();
        let target = Some(target);
        Container {
            id,
            bundle,
            target,
            pid,
        }
    }

    /// Starts a program in it as `docker exec` does: a child of nobody in there.
    pub(super) fn exec(&self, arguments: &[&str]) -> Target {
        let state = self.bundle.path().join("state");
        let user = NOBODY.to_string();
        let mut words = vec!["exec", "--user", &user, &self.id];
        words.extend_from_slice(arguments);
        Target::run(&mut without_limit(&crun(&state, &words)))
    }

    /// Ends all of it; says whether it has ended.
    pub(super) fn end(&mut self) -> bool {
        let Some(mut target) = self.target.take() else {
            return true;
        };
        // SAFETY: kill has no memory effects; crun, which runs, has not reaped this child of its own.
        unsafe { libc::kill(self.pid as i32, libc::SIGKILL) };
        eventually(Duration::from_secs(10), || !target.is_alive())
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.end();
    }
}

/// What the agent's container shares with the target's.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Shared {
    /// As `kubectl debug --target`: all that a pod's containers share, and the PID namespace.
    Pod,
    /// The PID namespace only.
    Pids,
    /// Nothing.
    Nothing,
    /// Nothing, but it sees the host's processes: `hostPID: true`.
    HostPids,
}

/// The agent in a container of its own: its binary as its root directory, no mount of the host's.
pub(super) struct Debugger {
    bundle: TempDir,
    config: Value,
}

impl Debugger {
    /// With the security context of `deploy/kubectl-debug-profile.json`.
    pub(super) fn beside(container: &Container, shared: Shared) -> Debugger {
        let bundle = TempDir::new().unwrap();
        agent_root(&bundle.path().join("rootfs"));
        let join = |kind: &str, file: &str| json!({ "type": kind, "path": format!("/proc/{}/ns/{file}", container.pid) });
        let own = |kind: &str| json!({ "type": kind });
        let mut namespaces = vec![own("mount"), own("cgroup")];
        namespaces.extend(match shared {
            Shared::Pod => vec![
                join("pid", "pid"),
                join("uts", "uts"),
                join("network", "net"),
                join("ipc", "ipc"),
            ],
            Shared::Pids => vec![join("pid", "pid"), own("uts"), own("network"), own("ipc")],
            Shared::HostPids => vec![own("uts"), own("network"), own("ipc")],
            Shared::Nothing => vec![own("pid"), own("uts"), own("network"), own("ipc")],
        });
        let context = &profile()["securityContext"];
        let add = context["capabilities"]["add"].as_array().unwrap();
        let names: Vec<String> = add
            .iter()
            .map(|name| format!("CAP_{}", name.as_str().unwrap()))
            .collect();
        let mut config = config(&id(""), &[], &json!(namespaces), &names);
        assert_eq!(context["capabilities"]["drop"], json!(["ALL"]));
        assert_eq!(context["readOnlyRootFilesystem"], true);
        config["process"]["user"]["uid"] = context["runAsUser"].clone();
        config["process"]["noNewPrivileges"] = json!(context["allowPrivilegeEscalation"] == false);
        config["process"]["env"] = json!(["PATH=/", format!("AGENT_POD_NAME={POD}")]);
        Debugger { bundle, config }
    }

    pub(super) fn without(mut self, capability: &str) -> Debugger {
        for set in ["bounding", "effective", "permitted"] {
            let names = self.config["process"]["capabilities"][set]
                .as_array_mut()
                .unwrap();
            let before = names.len();
            names.retain(|name| name != capability);
            assert_eq!(names.len() + 1, before);
        }
        self
    }

    /// With a directory of the host's, to read only. `/sys/fs/cgroup` is the tree of version 2.
    pub(super) fn mounting(mut self, directory: &str, destination: &str) -> Debugger {
        let mount = json!({
            "destination": destination, "type": "bind", "source": directory, "options": ["bind", "ro"],
        });
        fs::create_dir_all(self.bundle.path().join("rootfs").join(&destination[1..])).unwrap();
        self.config["mounts"].as_array_mut().unwrap().push(mount);
        self
    }

    /// With a seccomp filter that answers EPERM to these system calls.
    pub(super) fn denying(mut self, syscalls: &[&str]) -> Debugger {
        let rule =
            json!({ "names": syscalls, "action": "SCMP_ACT_ERRNO", "errnoRet": libc::EPERM });
        self.config["linux"]["seccomp"] =
            json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule] });
        self
    }

    /// Runs `agent ARGUMENTS` to its end.
    pub(super) fn run(mut self, arguments: &[&str]) -> Output {
        let words: Vec<&str> = ["/agent"].iter().chain(arguments).copied().collect();
        self.config["process"]["args"] = json!(words);
        write(self.bundle.path(), &self.config);
        let state = self.bundle.path().join("state");
        let name = id("");
        crun(
            &state,
            &["run", "--bundle", text(self.bundle.path()), &name],
        )
        .stdin(Stdio::null())
        .output()
        .unwrap()
    }

    /// Runs `agent ARGUMENTS`, which must be a success.
    pub(super) fn run_well(self, arguments: &[&str]) -> Output {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        output
    }
}

/// What it said on standard error.
pub(super) fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A file of `deploy/`.
pub(super) fn deployed(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../deploy")
        .join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The documents of a YAML file, by Python's parser.
pub(super) fn yaml(text: &str) -> Vec<Value> {
    let script =
        "import json, sys, yaml; json.dump(list(yaml.safe_load_all(sys.stdin)), sys.stdout)";
    let mut python = Command::new("python3")
        .args(["-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    python
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success(), "not YAML");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// `deploy/kubectl-debug-profile.json`.
pub(super) fn profile() -> Value {
    serde_json::from_str(&deployed("kubectl-debug-profile.json")).unwrap()
}

/// The description of a container (config.md of the OCI runtime specification).
fn config(id: &str, arguments: &[&str], namespaces: &Value, capabilities: &[String]) -> Value {
    json!({
        "ociVersion": "1.0.0",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": arguments,
            "env": ["PATH=/"],
            "cwd": "/",
            "capabilities": { "bounding": capabilities, "effective": capabilities, "permitted": capabilities },
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": true },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            {
                "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "mode=755", "size=64k"],
            },
            {
                "destination": "/sys", "type": "sysfs", "source": "sysfs",
                "options": ["nosuid", "noexec", "nodev", "ro"],
            },
        ],
        "linux": {
            "namespaces": namespaces,
            "cgroupsPath": format!("/crun-{id}"),
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}

fn write(bundle: &Path, config: &Value) {
    fs::write(bundle.join("config.json"), config.to_string()).unwrap();
}

/// A root directory with the agent and, where it is not static, the libraries that it needs.
fn agent_root(root: &Path) {
    fs::create_dir(root).unwrap();
    let agent = fs::canonicalize(agent_binary()).unwrap();
    place(&agent, &root.join("agent"));
    let listed = Command::new("ldd").arg(&agent).output().unwrap();
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let paths = listed
        .split_whitespace()
        .filter(|word| word.starts_with('/'));
    for path in paths {
        let inside = root.join(path.trim_start_matches('/'));
        fs::create_dir_all(inside.parent().unwrap()).unwrap();
        place(&fs::canonicalize(path).unwrap(), &inside);
    }
}

fn place(from: &Path, to: &PathBuf) {
    if fs::hard_link(from, to).is_err() {
        copy_executable(from, to);
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The command without the time limit before it.
fn without_limit(command: &Command) -> Command {
    let mut words = command.get_args().skip(1);
    let mut unlimited = Command::new(words.next().unwrap());
    unlimited.args(words);
    unlimited
}
