//! Failing system calls: the hook at their exit, and the kernel's counts of them.

mod arguments;
mod snapshot;

use std::collections::HashMap;
use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Instant;

use agent_ebpf::failure::{Loss, MAX_NUMBERS, shape};
use agent_ebpf::{End, record};
use aya::Ebpf;
use aya::maps::{Array, HashMap as BpfMap, MapData, PerCpuArray, PerCpuHashMap};
use aya::programs::TracePoint;

use super::cpu::RawStack;
use super::tcp;
use crate::hazards;
use crate::preflight::{self, Kernel};
use crate::process;
use crate::profile::TargetFacts;
use crate::session::target::{Targets, Tracked};
use crate::session::tracepoint::Tracepoint;
use crate::session::{Attached, Error, Needs, attach_raw_tracepoint, program_mut, take};
use crate::syscalls::table::{self, Spec};
use arguments::{Allowance, Known};
use snapshot::Missing;

/// The programs of this probe.
const PROGRAMS: [&str; 3] = ["syscall_exit", "syscall_exit_event", "syscall_enter"];

/// What is to be counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Count failures by their user stack too.
    pub stacks: bool,
    /// Time the calls, and count the ones that succeed.
    pub latency: bool,
    /// Numbers of the system calls that are wanted; empty for all.
    pub syscalls: Vec<u32>,
    /// Errors that are wanted; empty for all.
    pub errnos: Vec<u16>,
    /// Arguments that each row of a report has at most.
    pub arguments: usize,
}

/// Fields of kernel structures that the programs need, for [`Kernel::probe_with`].
pub const FIELDS: &[&str] = &[
    "task_struct.thread_info",
    "thread_info.status",
    "task_struct.files",
    "task_struct.fs",
    "fs_struct.pwd",
    "fs_struct.root",
    "path.dentry",
    "path.mnt",
    "dentry.d_parent",
    "dentry.d_name",
    "qstr.name",
    "dentry.d_hash",
    "hlist_bl_node.pprev",
    "vfsmount.mnt_root",
    "mount.mnt",
    "mount.mnt_parent",
    "mount.mnt_mountpoint",
    "file.f_path",
    "files_struct.fdt",
    "fdtable.max_fds",
    "fdtable.fd",
    "file.f_inode",
    "file.f_flags",
    "inode.i_ino",
    "inode.i_mode",
    "file.private_data",
    "socket.sk",
    "sock_common.skc_family",
    "sock_common.skc_dport",
    "sock_common.skc_daddr",
    "sock_common.skc_rcv_saddr",
    "sock_common.skc_v6_daddr",
    "sock_common.skc_v6_rcv_saddr",
    "inet_sock.inet_sport",
];

/// The maps that only this probe uses, for commands that do without it.
pub const MAPS: &[&str] = &["ROWS", "ARGUMENTS", "STACK_COUNTS", "BUCKETS", "STARTS"];

/// Thousands of arguments may be new at once; stacks of code not known yet come with their memory.
const RING_BYTES: u32 = 4 << 20;

impl Options {
    /// What the programs are told before they are loaded.
    ///
    /// # Errors
    /// When the kernel lacks a field that they need.
    pub fn globals(&self, kernel: &Kernel) -> Result<Vec<(&'static str, u32)>, preflight::Error> {
        let of = |field| kernel.offset(field);
        let others = if self.syscalls.is_empty() {
            0
        } else {
            shape::SKIP
        };
        Ok(vec![
            ("SYSCALL_STACKS", u32::from(self.stacks)),
            ("SYSCALL_TIMES", u32::from(self.latency)),
            ("SYSCALL_ERRNOS", u32::from(!self.errnos.is_empty())),
            ("SYSCALL_OTHERS", others),
            (
                "TASK_STATUS",
                of("task_struct.thread_info")? + of("thread_info.status")?,
            ),
            ("TASK_FILES", of("task_struct.files")?),
            ("TASK_FS", of("task_struct.fs")?),
            ("FS_PWD", of("fs_struct.pwd")?),
            ("FS_ROOT", of("fs_struct.root")?),
            ("PATH_MNT", of("path.mnt")?),
            ("PATH_DENTRY", of("path.dentry")?),
            ("DENTRY_PARENT", of("dentry.d_parent")?),
            ("DENTRY_NAME", of("dentry.d_name")? + of("qstr.name")?),
            (
                "DENTRY_HASH",
                of("dentry.d_hash")? + of("hlist_bl_node.pprev")?,
            ),
            ("MNT_ROOT", of("vfsmount.mnt_root")?),
            ("MOUNT_MNT", of("mount.mnt")?),
            ("MOUNT_PARENT", of("mount.mnt_parent")?),
            ("MOUNT_POINT", of("mount.mnt_mountpoint")?),
            ("FILE_PATH", of("file.f_path")?),
            ("FILES_FDT", of("files_struct.fdt")?),
            ("FDT_MAX", of("fdtable.max_fds")?),
            ("FDT_FD", of("fdtable.fd")?),
            ("FILE_INODE", of("file.f_inode")?),
            ("FILE_FLAGS", of("file.f_flags")?),
            ("INODE_NUMBER", of("inode.i_ino")?),
            ("INODE_MODE", of("inode.i_mode")?),
            ("FILE_PRIVATE_DATA", of("file.private_data")?),
            ("SOCKET_SK", of("socket.sk")?),
            ("SKC_FAMILY", of("sock_common.skc_family")?),
            ("SKC_DPORT", of("sock_common.skc_dport")?),
            ("SKC_DADDR", of("sock_common.skc_daddr")?),
            ("SKC_RCV_SADDR", of("sock_common.skc_rcv_saddr")?),
            ("SKC_V6_DADDR", of("sock_common.skc_v6_daddr")?),
            ("SKC_V6_RCV_SADDR", of("sock_common.skc_v6_rcv_saddr")?),
            ("INET_SPORT", of("inet_sock.inet_sport")?),
        ])
    }

    /// What the session must provide.
    ///
    /// # Errors
    /// When the kernel lacks a field that the programs need.
    pub fn needs(&self, kernel: &Kernel) -> Result<Needs, preflight::Error> {
        Ok(Needs {
            stacks: self.stacks,
            ring_bytes: RING_BYTES,
            globals: self.globals(kernel)?,
            unused_maps: vec![self.unused_maps(), tcp::MAPS],
            ..Needs::default()
        })
    }

    /// Maps that the run does without.
    pub fn unused_maps(&self) -> &'static [&'static str] {
        match (self.stacks, self.latency) {
            (true, true) => &[],
            (true, false) => &["BUCKETS", "STARTS"],
            (false, true) => &["STACK_COUNTS"],
            (false, false) => &["STACK_COUNTS", "BUCKETS", "STARTS"],
        }
    }

    /// The shape of each number: nothing is kept of system calls that are not wanted.
    fn shapes(&self, specs: &[Spec]) -> Vec<u32> {
        let wanted =
            |number: usize| self.syscalls.is_empty() || self.syscalls.contains(&(number as u32));
        specs
            .iter()
            .enumerate()
            .map(|(number, spec)| {
                if wanted(number) {
                    spec.shape
                } else {
                    shape::SKIP
                }
            })
            .collect()
    }
}

/// The counts in the kernel, and the texts that belong to them.
pub struct Failures {
    specs: Vec<Spec>,
    known: HashMap<u64, Known>,
    stacks: HashMap<u64, (usize, RawStack)>,
    allowance: Allowance,
    missing_texts: Missing,
    missing_stacks: Missing,
    /// Records of the ring buffer that could not be read.
    pub undecoded: u64,
    skipped: u64,
    event: Option<Tracepoint>,
    counted: HashMap<u64, u64>,
    counted_at: f64,
    started_ns: u64,
    ended_ns: Option<u64>,
    latency: bool,
    shown_arguments: usize,
    rows: PerCpuHashMap<MapData, u64, [u64; 7]>,
    arguments: BpfMap<MapData, u64, [u64; 3]>,
    stack_counts: BpfMap<MapData, [u64; 2], u64>,
    buckets: BpfMap<MapData, [u64; 2], u64>,
    calls: PerCpuArray<MapData, u64>,
    losses: PerCpuArray<MapData, [u64; Loss::ALL.len()]>,
}

/// Counts failing system calls from now on.
///
/// # Errors
/// When the kernel refuses a program.
pub fn attach(session: &mut Attached, options: &Options) -> Result<Failures, Error> {
    let specs = table::all(MAX_NUMBERS);
    let preemptible = session.kernel().has(&hazards::PREEMPTED_TRACEPOINTS);
    let cpu = session.kernel().cpus.first().copied().unwrap_or(0);
    let ebpf = session.ebpf();
    let mut shapes: Array<MapData, u32> = take(ebpf, "SHAPES")?;
    for (number, shape) in options.shapes(&specs).into_iter().enumerate() {
        shapes
            .set(number as u32, shape, 0)
            .map_err(|_| Error::Map("SHAPES"))?;
    }
    let mut errnos: Array<MapData, u32> = take(ebpf, "WANTED_ERRNOS")?;
    for &errno in &options.errnos {
        errnos
            .set(u32::from(errno), 1, 0)
            .map_err(|_| Error::Map("WANTED_ERRNOS"))?;
    }
    let mut failures = Failures {
        specs,
        known: HashMap::new(),
        stacks: HashMap::new(),
        allowance: Allowance::new(Instant::now()),
        missing_texts: Missing::default(),
        missing_stacks: Missing::default(),
        undecoded: 0,
        skipped: 0,
        event: None,
        counted: HashMap::new(),
        counted_at: 0.0,
        started_ns: process::monotonic_ns(),
        ended_ns: None,
        latency: options.latency,
        shown_arguments: options.arguments,
        rows: take(ebpf, "ROWS")?,
        arguments: take(ebpf, "ARGUMENTS")?,
        stack_counts: take(ebpf, "STACK_COUNTS")?,
        buckets: take(ebpf, "BUCKETS")?,
        calls: take(ebpf, "CALLS")?,
        losses: take(ebpf, "SYSCALL_COUNTERS")?,
    };
    if options.latency {
        attach_raw_tracepoint(ebpf, "syscall_enter", "sys_enter")?;
    }
    failures.event = attach_exit(ebpf, preemptible.then_some(cpu))?;
    Ok(failures)
}

/// The perf event of the tracepoint `sys_exit`.
const EXIT_EVENT: &CStr = c"events/raw_syscalls/sys_exit/id";

/// Attaches the hook at the exit of calls: to the perf event, opened on this CPU, or where there is
/// none to the raw tracepoint.
fn attach_exit(ebpf: &mut Ebpf, cpu: Option<u32>) -> Result<Option<Tracepoint>, Error> {
    if let Some(cpu) = cpu {
        let name = "syscall_exit_event";
        let program: &mut TracePoint = program_mut(ebpf, name)?;
        program.load().map_err(|source| Error::Program {
            program: name,
            source: Box::new(source),
        })?;
        if let Ok(fd) = program.fd()
            && let Ok(event) = Tracepoint::attach(EXIT_EVENT, &fd.as_fd().as_raw_fd(), cpu)
        {
            return Ok(Some(event));
        }
        // Without the right to mount (CAP_SYS_ADMIN): what the kernel skips is counted.
        let _ = program.unload();
    }
    attach_raw_tracepoint(ebpf, "syscall_exit", "sys_exit")?;
    Ok(None)
}

/// Stops counting.
///
/// # Errors
/// When the bytecode does not hold the programs.
pub fn detach(session: &mut Attached, failures: &mut Failures) -> Result<(), Error> {
    failures.skipped = session.recursion_misses(PROGRAMS);
    failures.event = None;
    for name in ["syscall_exit", "syscall_enter"] {
        let program: &mut aya::programs::RawTracePoint = program_mut(session.ebpf(), name)?;
        // Unloading drops the link; the entry hook is loaded only where calls are timed.
        let _ = program.unload();
    }
    failures.ended_ns = Some(process::monotonic_ns());
    Ok(())
}

impl Failures {
    /// Times count from this moment on: nanoseconds of `CLOCK_MONOTONIC`.
    pub fn begin_at(&mut self, time: u64) {
        self.started_ns = time;
    }

    /// Takes in one record of the ring buffer: an argument or a stack, each seen for the first time.
    pub fn take(&mut self, bytes: &[u8], targets: &Targets) {
        let taken = match bytes.first_chunk().map(|kind| u32::from_ne_bytes(*kind)) {
            Some(record::SYSCALL) => {
                let process = |tgid| targets.list().get(targets.find(tgid)?)?.process.as_ref();
                arguments::decode(bytes, &self.specs, process, &mut self.allowance).map(
                    |(key, known)| {
                        self.known.insert(key, known);
                    },
                )
            }
            Some(record::SYSCALL_STACK) => decode_stack(bytes, targets).map(|(hash, stack)| {
                self.stacks.insert(hash, stack);
            }),
            _ => None,
        };
        if taken.is_none() {
            self.undecoded += 1;
        }
    }

    /// The stacks received: hash, place of the process among the targets, frames.
    pub fn stacks(&self) -> impl Iterator<Item = (u64, usize, &RawStack)> {
        self.stacks
            .iter()
            .map(|(hash, (process, stack))| (*hash, *process, stack))
    }

    /// The process of a stack that was received, and why the stack ended.
    pub fn stack_end(&self, hash: u64) -> Option<(usize, End)> {
        self.stacks
            .get(&hash)
            .map(|(process, stack)| (*process, stack.end))
    }

    /// Failures by row and hash of their stack.
    pub fn stack_counts(&self) -> Vec<(u64, u64, u64)> {
        self.stack_counts
            .iter()
            .flatten()
            .map(|([row, stack], count)| (row, stack, count))
            .collect()
    }

    /// Whether the hooks were taken away.
    pub fn has_ended(&self) -> bool {
        self.ended_ns.is_some()
    }

    /// Time counted, in seconds.
    pub fn elapsed(&self) -> f64 {
        self.seconds(self.ended_ns.unwrap_or_else(process::monotonic_ns))
    }
}

/// A process in scope, as outputs show it.
pub fn target_facts(tracked: &Tracked) -> TargetFacts {
    TargetFacts {
        pid: tracked.pid,
        comm: tracked.comm.clone(),
        exe: tracked.exe.clone(),
        container: tracked.place.container.clone(),
        cgroup: tracked.place.cgroup.clone(),
    }
}

/// What a record of a failing call says, with no process to ask.
#[cfg(any(test, fuzzing))]
pub(crate) fn described(bytes: &[u8]) -> Option<String> {
    static SPECS: std::sync::OnceLock<Vec<Spec>> = std::sync::OnceLock::new();
    let specs = SPECS.get_or_init(|| table::all(MAX_NUMBERS));
    let mut allowance = Allowance::new(Instant::now());
    arguments::decode(bytes, specs, |_| None, &mut allowance).map(|(_, known)| known.value)
}

/// The hash of a stack, the process it was first seen in, and its frames.
fn decode_stack(bytes: &[u8], targets: &Targets) -> Option<(u64, (usize, RawStack))> {
    let tgid = u32::from_ne_bytes(bytes.get(4..8)?.try_into().ok()?);
    let hash = u64::from_ne_bytes(bytes.get(16..24)?.try_into().ok()?);
    Some((hash, (targets.find(tgid)?, RawStack::decode(bytes)?)))
}
