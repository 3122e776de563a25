//! What the tests share: where things are, one test at a time, targets and runs of the agent.

mod agent;
mod browser;
pub(crate) mod chosen;
pub(crate) mod confine;
mod profile;
mod target;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub(crate) use agent::{Agent, Finished, Running};
pub(crate) use browser::Browser;
pub(crate) use profile::{Frame, Guard, Profile, Stack};
pub(crate) use target::{Target, copy_executable};

/// Seconds a target is given to live: it outlasts every test, but not a forgotten machine.
pub(crate) const LIFE: &str = "300";
/// Samples that a run must have to say anything about their completeness. Three seconds of one busy
/// thread give 597, less what other programs took of the CPUs.
pub(crate) const ENOUGH: u64 = 50;
/// The frequency at which the completeness of stacks is promised.
pub(crate) const FREQUENCY: u64 = 199;

static ALONE: Mutex<()> = Mutex::new(());

/// Waits until no other test runs. Targets burn CPUs, of which there may be two: a test that
/// looks at shares, rates or times, or at the system's programs, holds this for its whole length.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether this is a virtual machine of the kernel matrix.
pub(crate) fn in_vm() -> bool {
    std::env::var_os("AGENT_KERNEL").is_some()
}

/// Says so and returns true in a virtual machine, where a test that needs the host's programs
/// does nothing else.
pub(crate) fn host_only(reason: &str) -> bool {
    if in_vm() {
        println!("runs on the host only: {reason}");
    }
    in_vm()
}

/// Whether this kernel preempts programs at raw tracepoints and then skips the next run of the same
/// one on that CPU (7.0), which the agent counts.
pub(crate) fn skips_programs() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    release.split('.').next().unwrap().parse::<u32>().unwrap() >= 7
}

/// `seconds` here, ten times as long under emulation.
pub(crate) fn patience(seconds: f64) -> Duration {
    Duration::from_secs_f64(if in_vm() { seconds * 10.0 } else { seconds })
}

/// Polls `done` until it holds; false if it does not within `limit`.
pub(crate) fn eventually(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if done() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn target_directory() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| workspace.join("target"), |dir| workspace.join(dir))
}

/// The agent to test.
pub(crate) fn agent_binary() -> PathBuf {
    if let Some(path) = std::env::var_os("AGENT_BIN") {
        return path.into();
    }
    let target = target_directory();
    ["release/agent", "debug/agent"]
        .iter()
        .map(|name| target.join(name))
        .filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path)))
        .max()
        .map(|(_, path)| path)
        .unwrap_or_else(|| {
            panic!(
                "no agent in {}: build it, or set AGENT_BIN",
                target.display()
            )
        })
}

/// A built target program or a script, as `cargo xtask programs` leaves it.
pub(crate) fn program(name: &str) -> PathBuf {
    let built = std::env::var_os("AGENT_PROGRAMS")
        .map_or_else(|| target_directory().join("programs"), PathBuf::from);
    let path = built.join(name);
    assert!(
        path.exists(),
        "{} is not built: run `cargo xtask programs`",
        path.display()
    );
    path.canonicalize().unwrap()
}

/// The source of a target program: `None` where there are no sources (a virtual machine).
pub(crate) fn source(name: &str) -> Option<String> {
    std::fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("programs")
            .join(name),
    )
    .ok()
}
