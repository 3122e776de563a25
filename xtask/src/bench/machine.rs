//! The machine: what it is, a directory to write in, and switches of its kernel.

use crate::command::output;
use anyhow::{Context, Result};
use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const BPF_STATS: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// A directory that goes when the guard does.
pub(crate) struct Scratch {
    path: PathBuf,
    next: Cell<u32>,
}

impl Scratch {
    /// Makes one.
    ///
    /// # Errors
    /// It cannot be made.
    pub(crate) fn new() -> Result<Self> {
        let path = scratch_directory();
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self {
            path,
            next: Cell::new(0),
        })
    }

    /// The directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A name that no other file in it has.
    pub(crate) fn file(&self, extension: &str) -> PathBuf {
        self.next.set(self.next.get() + 1);
        self.path.join(format!("{}.{extension}", self.next.get()))
    }
}

/// Where the files of this run go.
pub(crate) fn scratch_directory() -> PathBuf {
    std::env::temp_dir().join(format!("agent-bench-{}", std::process::id()))
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Switches the kernel's run time statistics of BPF programs on, until dropped.
pub(crate) struct BpfStats(String);

impl BpfStats {
    /// Switches them on.
    ///
    /// # Errors
    /// The kernel does not let us.
    pub(crate) fn on() -> Result<Self> {
        let before = fs::read_to_string(BPF_STATS)?;
        fs::write(BPF_STATS, "1").context("cannot switch kernel.bpf_stats_enabled on")?;
        Ok(Self(before))
    }
}

impl Drop for BpfStats {
    fn drop(&mut self) {
        let _ = fs::write(BPF_STATS, self.0.trim());
    }
}

/// `BPF_PROG_TYPE_PERF_EVENT` (linux/bpf.h).
const PERF_EVENT: &str = "prog_type:\t7";

/// Run time in nanoseconds and runs of the perf_event programs that a process holds open
/// (`bpf_prog_show_fdinfo`, kernel/bpf/syscall.c). The time of a tail-called program is its caller's.
pub(crate) fn bpf_runs(pid: u32) -> (u64, u64) {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fdinfo")) else {
        return (0, 0);
    };
    let mut runs: Vec<(u64, u64, u64)> = entries
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path()).ok())
        .filter(|text| text.lines().any(|line| line == PERF_EVENT))
        .filter_map(|text| {
            let field = |name: &str| -> Option<u64> {
                let line = text.lines().find(|line| line.starts_with(name))?;
                line.split_whitespace().nth(1)?.parse().ok()
            };
            Some((
                field("prog_id:")?,
                field("run_time_ns:")?,
                field("run_cnt:")?,
            ))
        })
        .collect();
    runs.sort_unstable();
    runs.dedup_by_key(|run| run.0);
    let sum = |of: fn(&(u64, u64, u64)) -> u64| runs.iter().map(of).sum();
    (sum(|run| run.1), sum(|run| run.2))
}

/// CPUs that are online.
pub(crate) fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The machine in one line: processor, CPUs, memory, kernel.
pub(crate) fn describe() -> String {
    let field = |file: &str, name: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(':')).map_or_else(
            || "unknown".to_owned(),
            |(_, value)| value.trim().to_owned(),
        )
    };
    let kernel = output(Command::new("uname").arg("-srm")).unwrap_or_default();
    let virtual_machine = field("/proc/cpuinfo", "flags").contains("hypervisor");
    let memory = field("/proc/meminfo", "MemTotal");
    let gigabytes = memory
        .split_whitespace()
        .next()
        .and_then(|kilobytes| kilobytes.parse::<f64>().ok())
        .map_or(memory.clone(), |kilobytes| {
            format!("{:.1} GB", kilobytes / 1e6)
        });
    format!(
        "{}, {} CPUs{}, {gigabytes} of memory, {}",
        field("/proc/cpuinfo", "model name"),
        cpus(),
        if virtual_machine {
            " (a virtual machine)"
        } else {
            ""
        },
        kernel.trim()
    )
}

/// Day, revision and load of a measurement.
pub(crate) fn occasion() -> String {
    let day = output(Command::new("date").args(["-u", "+%F %H:%M UTC"])).unwrap_or_default();
    let mut git = Command::new("git");
    git.current_dir(crate::command::root());
    let revision =
        output(git.args(["describe", "--always", "--dirty", "--abbrev=9"])).unwrap_or_default();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    format!(
        "{}, revision {}, load average before it {}",
        day.trim(),
        revision.trim(),
        load.split_whitespace().next().unwrap_or("unknown")
    )
}
