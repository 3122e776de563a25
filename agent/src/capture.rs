//! One capture: what `profile`, `tcp` and `syscalls` saw of the same processes at the same time.
//! A model without I/O, and how it is read back from what was written.

pub mod profile;
pub mod redact;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use crate::profile::Container;
use crate::profile::{Cost, Profile};
use crate::{guard, syscalls, tcp};

/// Name and version of the schema of [`Meta`]. A field may be added within a version; a change of
/// meaning or a removal takes a new one.
pub const SCHEMA: &str = "agent.capture/1";

/// Time of which a rate is in any case, in seconds.
const SHORTEST: f64 = 1e-3;

/// What all probes saw. Every figure of elapsed time counts from the same moment.
#[derive(Clone, Debug, Default)]
pub struct Capture {
    /// The circumstances.
    pub meta: Meta,
    /// Sampled stacks.
    pub profile: Profile,
    /// Connections: a document for each interval, then the one of the whole run.
    pub connections: Vec<tcp::view::Document>,
    /// Failing system calls: a report for each interval, then the one of the whole run. Their
    /// counts are since the start, their rates of the interval.
    pub syscalls: Vec<syscalls::Report>,
}

impl Capture {
    /// The connections of the whole run.
    pub fn all_connections(&self) -> Option<&tcp::view::Document> {
        self.connections.iter().rfind(|document| document.last)
    }

    /// The failing calls of the whole run.
    pub fn all_syscalls(&self) -> Option<&syscalls::Report> {
        self.syscalls.iter().rfind(|report| report.last)
    }

    /// Time in seconds, never 0, in which the rows of [`Capture::all_connections`] were counted: that
    /// until the hooks were detached; of a run without an end, that of its window.
    pub fn connection_seconds(&self) -> f64 {
        let document = self.all_connections();
        self.counted(document.map(|document| (document.span_s, document.elapsed_s)))
    }

    /// Time in seconds, never 0, in which the failures of [`Capture::all_syscalls`] were counted.
    pub fn syscall_seconds(&self) -> f64 {
        let report = self.all_syscalls();
        self.counted(report.map(|report| (report.span_s, report.elapsed_s)))
    }

    /// A window that was written without its span is about as long as it was asked for.
    fn counted(&self, times: Option<(Option<f64>, f64)>) -> f64 {
        let run = self.meta.duration_seconds;
        let (span, elapsed) = times.unwrap_or((None, run));
        span.unwrap_or(elapsed.min(run)).max(SHORTEST)
    }

    /// Time in seconds, never 0, that the clock ran within the run or its window.
    pub fn sampled_seconds(&self) -> f64 {
        let sampled = self.profile.facts.duration_seconds;
        sampled.min(self.meta.duration_seconds).max(SHORTEST)
    }

    /// Time in seconds, never 0, since the start: longer than the window of a run without an end.
    pub fn seconds_since_start(&self) -> f64 {
        let document = self.all_connections().map(|document| document.elapsed_s);
        let report = self.all_syscalls().map(|report| report.elapsed_s);
        let elapsed = document.into_iter().chain(report).fold(SHORTEST, f64::max);
        elapsed.max(self.meta.duration_seconds)
    }

    /// CPU time in seconds that a sample stands for: the clock's period; of a clock that counts
    /// cycles, the kernel's own account of the CPU time divided by the samples, of which there are
    /// none of the time after the clock. `None` where nothing tells it.
    pub fn seconds_per_sample(&self) -> Option<f64> {
        let facts = &self.profile.facts;
        let samples = self.profile.samples();
        if !facts.by_cycles() {
            return facts.samples_per_cpu_second().map(|hz| 1.0 / hz as f64);
        }
        let part = self.sampled_seconds() / self.meta.duration_seconds.max(SHORTEST);
        let used = self.meta.cpu.used_seconds? * part;
        (samples > 0).then(|| used / samples as f64)
    }

    /// Whether any probe saw anything.
    pub fn has_anything(&self) -> bool {
        let connections = self
            .all_connections()
            .is_some_and(|document| document.sums.connections > 0 || document.sums.failed > 0);
        let failures = self
            .all_syscalls()
            .is_some_and(|report| !report.errors.is_empty());
        connections || failures || self.profile.samples() > 0
    }

    /// The connections of each interval, in the order of time.
    pub fn connection_intervals(&self) -> impl Iterator<Item = &tcp::view::Document> {
        self.connections.iter().filter(|document| !document.last)
    }

    /// The failing calls until the end of each interval, in the order of time.
    pub fn syscall_intervals(&self) -> impl Iterator<Item = &syscalls::Report> {
        self.syscalls.iter().filter(|report| !report.last)
    }
}

/// The circumstances of a capture: `meta.json`. What could not be found out is `None`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    /// [`SCHEMA`].
    pub schema: String,
    /// Version of the agent.
    pub agent_version: String,
    /// The agent's command line, secrets redacted.
    pub command_line: Vec<String>,
    /// The machine's name, as the agent sees it.
    pub host: String,
    /// `uname -srm`.
    pub kernel: String,
    /// Start of the run, seconds since the epoch.
    pub started: u64,
    /// The same for people: RFC 3339, in UTC.
    pub started_at: String,
    /// Length of the run, in seconds.
    pub duration_seconds: f64,
    /// Why it ended: `duration`, `interrupted`, `target_exited`, `overhead`.
    pub ended: String,
    /// What the overhead guard saw and did; `None` without a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard: Option<guard::Report>,
    /// The first process in scope.
    pub target: Target,
    /// Build ids of the files that the profile's frames lie in, in hexadecimal, by their names;
    /// those that have one.
    pub modules: BTreeMap<String, String>,
    /// The target's use of the CPUs.
    pub cpu: Cpu,
    /// The hooks that the connections were seen by.
    pub hooks: Vec<String>,
    /// What this kernel does not let be seen.
    pub not_seen: Vec<String>,
    /// What the agent itself took.
    pub cost: Cost,
    /// What was lost, by probe (`profile`, `tcp`, `syscalls`) and cause; all causes.
    pub losses: BTreeMap<String, BTreeMap<String, u64>>,
}

/// The process that the capture was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Its id.
    pub pid: u32,
    /// Its name.
    pub comm: String,
    /// Its program's path, as the process sees it.
    pub exe: Option<String>,
    /// Its command line, secrets redacted.
    pub command_line: Option<Vec<String>>,
    /// Processes that were in scope.
    pub processes: usize,
    /// The container that it runs in; `None` for none that is known.
    pub container: Option<Container>,
    /// Its control group, as the agent sees it; `None` for the root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
}

/// The target's use of the CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cpu {
    /// CPUs of the machine.
    pub cpus: u32,
    /// CPU time of all processes in scope during the run, in seconds; as `utime` and `stime` of
    /// `/proc/PID/stat` have it, to a hundredth. Of a process that ended within the run, what the last
    /// look at it found.
    pub used_seconds: Option<f64>,
    /// Time that their threads were runnable and waited for a CPU, in seconds
    /// (`/proc/PID/task/TID/schedstat`). Threads that ended within the run are not in it.
    pub waited_seconds: Option<f64>,
}
