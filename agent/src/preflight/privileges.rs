//! The capabilities that the agent uses, as data: for what, and for how long. docs/privileges.md
//! has the same as a table.

use super::checks::Probe;
use super::facts::Facts;
use crate::process::privilege::Cap;

/// From this version on bpf(2) asks for no capability where a map is used that is open already.
const FREE_MAPS: (u32, u32) = (5, 19);
/// From this version on the exit of system calls is counted by a perf event (see `probe::syscalls`).
const EVENTS: (u32, u32) = (7, 0);

/// Without these nothing starts.
const ALWAYS: [Cap; 2] = [Cap::Bpf, Cap::Perfmon];

/// The capabilities that are needed and not there. To look into a process that the kernel does not
/// let the agent look into takes one more.
pub(super) fn missing(facts: &Facts) -> Vec<Cap> {
    let other = facts.unreadable_pid.map(|_| Cap::SysPtrace);
    let needed = ALWAYS.into_iter().chain(other);
    needed
        .filter(|&cap| !facts.capabilities.allows(cap))
        .collect()
}

/// How to get these, in one line: root has them, but for what its container lacks.
pub fn how_to_get(missing: &[Cap], facts: &Facts) -> String {
    if facts.uid == 0 {
        format!("start the container with {}", container_options(missing))
    } else {
        format!("sudo {}", facts.command)
    }
}

/// The same as options of docker and podman.
pub fn container_options(missing: &[Cap]) -> String {
    let add = missing
        .iter()
        .map(|cap| format!("--cap-add {}", cap.short()));
    add.collect::<Vec<_>>().join(" ")
}

/// What a run is about, as far as its privileges go.
#[derive(Clone, Debug)]
pub struct Run {
    /// What is attached.
    pub probe: Probe,
    /// Whether stacks are taken: unwind tables are made for what is mapped during the run.
    pub stacks: bool,
    /// Whether it started a program, which it has to end.
    pub command: bool,
    /// The kernel's version.
    pub version: (u32, u32),
    /// What writing the outputs takes.
    pub writing: Vec<Cap>,
}

impl Run {
    /// What is needed while the probes are attached, where it is held.
    pub fn during(&self) -> Vec<Cap> {
        let mut kept = self.after();
        // New processes, and what they map.
        kept.push(Cap::SysPtrace);
        if self.stacks {
            // Tables are maps of their own.
            kept.extend([Cap::Bpf, Cap::CheckpointRestore]);
        }
        if self.probe != Probe::Tcp {
            kept.push(Cap::DacReadSearch);
        }
        if !matches!(self.probe, Probe::Tcp | Probe::Profile) && self.version >= EVENTS {
            kept.push(Cap::SysNice);
        }
        if self.command {
            kept.push(Cap::Kill);
        }
        kept
    }

    /// What is needed when they are detached: for names and outputs.
    pub fn after(&self) -> Vec<Cap> {
        let mut kept = self.writing.clone();
        if self.stacks {
            kept.push(Cap::DacReadSearch);
        }
        if self.version < FREE_MAPS {
            // The counters are read last.
            kept.push(Cap::Bpf);
        }
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(probe: Probe, stacks: bool, version: (u32, u32)) -> Run {
        Run {
            probe,
            stacks,
            command: false,
            version,
            writing: Vec::new(),
        }
    }

    #[test]
    fn little_is_kept() {
        let tcp = run(Probe::Tcp, false, (6, 1));
        assert_eq!(tcp.during(), [Cap::SysPtrace]);
        assert_eq!(tcp.after(), []);
        let old = run(Probe::Tcp, false, (5, 10));
        assert_eq!(old.during(), [Cap::Bpf, Cap::SysPtrace]);
        assert_eq!(old.after(), [Cap::Bpf]);
        let profile = run(Probe::Profile, true, (6, 1));
        assert!(profile.during().contains(&Cap::Bpf));
        assert!(!profile.during().contains(&Cap::Perfmon));
        assert_eq!(profile.after(), [Cap::DacReadSearch]);
        let writing = vec![Cap::Chown];
        let sudo = Run {
            command: true,
            writing,
            ..run(Probe::Syscalls, false, (7, 0))
        };
        assert_eq!(sudo.after(), [Cap::Chown]);
        assert!(sudo.during().contains(&Cap::Kill) && sudo.during().contains(&Cap::SysNice));
    }
}
