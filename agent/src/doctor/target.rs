//! Whether a process can be looked into.

use crate::preflight::checks::{Effect, Probe, Problem};
use crate::preflight::facts::Facts;
use crate::preflight::privileges;
use crate::process::privilege::Cap;
use crate::process::{Error, Process};

use super::{State, TargetFinding};

/// Probes that do not follow 32-bit programs.
const ONLY_64_BIT: [Probe; 3] = [Probe::Syscalls, Probe::SyscallsLatency, Probe::Record];
/// Probes that read what the process maps.
const STACKS: [Probe; 2] = [Probe::Profile, Probe::Record];

/// Looks into the process as the probes would.
pub fn examine(pid: u32, probes: &[Probe], facts: &Facts) -> TargetFinding {
    let process = match Process::open(pid) {
        Ok(process) => process,
        Err(error) => return unreachable(pid, &error, facts),
    };
    let comm = process.stat().ok().map(|stat| stat.comm);
    let mut problems = Vec::new();
    let mut detail = "its life can be followed".to_owned();
    if probes.iter().any(|probe| STACKS.contains(probe)) {
        match process.maps() {
            Ok(maps) => detail = files(&process, &maps.maps, facts, &mut problems),
            Err(error) => problems.push(refused(&error, facts)),
        }
    }
    if !process.root().is_held() {
        problems.push(foreign_root(facts));
    }
    if process.is_32_bit() {
        problems.extend(narrow(pid, probes));
    }
    TargetFinding {
        pid,
        comm,
        uid: Some(process.uid()),
        state: State::of(&problems),
        detail,
        problems,
    }
}

fn unreachable(pid: u32, error: &Error, facts: &Facts) -> TargetFinding {
    let (check, fix) = match error {
        Error::NotFound(_) if facts.pid_namespace => (
            "pid_namespace",
            Some(
                "the agent is in a PID namespace of its own: use the id that `ps` shows here, or start it in \
                 the target's namespace (docker run --pid=container:NAME, kubectl debug --target)"
                    .to_owned(),
            ),
        ),
        Error::NotFound(_) => ("target", Some("ps -e".to_owned())),
        Error::Hidden(_) => ("hidepid", Some(format!("sudo {}", facts.command))),
        Error::Thread { pid, .. } => ("target", Some(format!("agent doctor --pid {pid}"))),
        Error::Zombie { parent, .. } => ("target", Some(format!("agent doctor --pid {parent}"))),
        Error::KernelThread { .. } => ("target", Some("perf top".to_owned())),
        Error::Permission { .. } | Error::Read { .. } => ("target", None),
    };
    TargetFinding {
        pid,
        comm: None,
        uid: None,
        state: State::Blocked,
        detail: String::new(),
        problems: vec![Problem {
            check,
            effect: Effect::Blocks,
            reason: error.to_string(),
            fix,
        }],
    }
}

/// Its mappings cannot be read.
fn refused(error: &Error, facts: &Facts) -> Problem {
    let lacks = !facts.capabilities.allows(Cap::SysPtrace);
    let fix = lacks.then(|| privileges::how_to_get(&[Cap::SysPtrace], facts));
    Problem {
        check: if lacks { "capability" } else { "target" },
        effect: Effect::Blocks,
        reason: error.to_string(),
        fix,
    }
}

/// What another user's process has is looked for in the agent's own root directory.
fn foreign_root(facts: &Facts) -> Problem {
    let lacks = !facts.capabilities.allows(Cap::SysPtrace);
    let why = if lacks {
        "CAP_SYS_PTRACE is missing"
    } else {
        "a user namespace or a security module forbids it"
    };
    Problem {
        check: if lacks { "capability" } else { "target" },
        effect: Effect::Degrades,
        reason: format!(
            "its root directory cannot be opened ({why}): files of a container are not found, and              its program and descriptors have no names"
        ),
        fix: lacks.then(|| privileges::how_to_get(&[Cap::SysPtrace], facts)),
    }
}

/// Whether what it maps can be opened.
fn files(
    process: &Process,
    maps: &[crate::process::Map],
    facts: &Facts,
    problems: &mut Vec<Problem>,
) -> String {
    let mut mapped: Vec<_> = maps.iter().filter(|map| map.file.inode != 0).collect();
    mapped.sort_by_key(|map| (map.file.major, map.file.minor, map.file.inode));
    mapped.dedup_by_key(|map| map.file);
    let opened = |map: &&&crate::process::Map| {
        let root = process.root();
        root.open_mapped(process.entry(), map).is_none()
    };
    let closed: Vec<String> = mapped.iter().filter(opened).map(|map| map.name()).collect();
    if let Some(first) = closed.first() {
        let mut missing = vec![Cap::DacReadSearch, Cap::CheckpointRestore];
        missing.retain(|&cap| !facts.capabilities.allows(cap));
        let names: Vec<String> = missing.iter().map(Cap::to_string).collect();
        let why = match missing.is_empty() {
            true => String::new(),
            false => format!("; {} would help", names.join(" or ")),
        };
        problems.push(Problem {
            check: "files",
            effect: Effect::Degrades,
            reason: format!(
                "{} of {} mapped files cannot be opened, `{first}` first: their functions have no \
                 names, and their frames are followed by the frame pointer{why}",
                closed.len(),
                mapped.len()
            ),
            fix: (!missing.is_empty()).then(|| privileges::how_to_get(&missing, facts)),
        });
    }
    format!("{} mapped files can be read", mapped.len() - closed.len())
}

/// A 32-bit program, where a probe does not follow it.
fn narrow(pid: u32, probes: &[Probe]) -> Option<Problem> {
    let refusing = |probe: &Probe| ONLY_64_BIT.contains(probe);
    let effect = if probes.iter().all(refusing) {
        Effect::Blocks
    } else {
        Effect::Degrades
    };
    probes.iter().any(refusing).then(|| Problem {
        check: "32_bit",
        effect,
        reason: "it is a 32-bit program: its system calls have other numbers and arguments, and \
                 `agent syscalls`, `record` and `serve` do not follow it"
            .to_owned(),
        fix: Some(format!("strace -f -p {pid}")),
    })
}
