//! The model of a profile: interned names and frames, stacks with their counts, the losses and
//! the facts of the run. No I/O; every output is made from this alone.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use agent_ebpf::End;

use crate::guard;
use serde::{Deserialize, Serialize};

/// Name and version of the schema of a profile as JSON. A field may be added within a version; a
/// change of meaning or a removal takes a new one.
pub const SCHEMA: &str = "agent.profile/1";

/// Index into [`Profile::frames`].
pub type FrameId = u32;
/// Index into [`Profile::stacks`].
pub type StackId = u32;

/// [`Frame::module`] of code that a JIT compiler made and listed in its perf map.
pub const JIT_MODULE: &str = "[jit]";

/// Where a frame's code lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Space {
    /// The program and its libraries.
    User,
    /// The kernel and its modules.
    Kernel,
}

/// One function of one stack, named as well as could be.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Frame {
    /// User or kernel code.
    pub space: Space,
    /// File name of the module (`libc.so.6`, `[vdso]`, `[kernel]`), if the address lies in one.
    pub module: Option<String>,
    /// Demangled name of the function; `None` where there is none (see [`Frame::unnamed`]).
    pub function: Option<String>,
    /// Source file, where there is debug information.
    pub file: Option<String>,
    /// Line in it, from 1.
    pub line: Option<u32>,
    /// Whether the compiler inlined this function into the next frame towards the root.
    pub inlined: bool,
    /// ELF virtual address within the module, or the raw address where there is no module.
    pub address: u64,
    /// Where the function starts, as [`Frame::address`] counts: for physical functions of modules
    /// that have no name but unwind information.
    pub function_start: Option<u64>,
    /// Why there is no name.
    pub unnamed: Option<Unnamed>,
}

impl Frame {
    /// A frame of which the place is known and nothing else.
    pub fn at(space: Space, module: Option<String>, address: u64) -> Self {
        Self {
            space,
            module,
            function: None,
            file: None,
            line: None,
            inlined: false,
            address,
            function_start: None,
            unnamed: None,
        }
    }
}

/// Why a frame has no function name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unnamed {
    /// The address lies in no file: JIT code without a perf map, or no mapping.
    NoModule,
    /// The module's file could not be opened or is no longer the one mapped.
    FileUnavailable,
    /// The file is not an ELF file that can be read.
    Malformed,
    /// The file has no symbol table and no debug information.
    NoSymbols,
    /// Its symbol table has nothing at this address.
    NotCovered,
    /// The kernel hides its symbol addresses (`kernel.kptr_restrict`).
    KernelHidden,
    /// Its file asks for more time or memory than naming may take, or the user gave up.
    GaveUp,
    /// The process that read its file died of it, or gave an answer that makes no sense.
    ParserDied,
}

/// One distinct call path of one thread's name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stack {
    /// The process.
    pub pid: u32,
    /// Thread id.
    pub tid: u32,
    /// The process's name when the sample was taken.
    pub comm: String,
    /// The thread's name.
    pub thread: String,
    /// Frames, root first: user frames, then the kernel's. Inlined functions are frames.
    pub frames: Vec<FrameId>,
    /// Why the user part ended.
    #[serde(serialize_with = "end_name", deserialize_with = "end_of_name")]
    pub end: End,
    /// Samples. Where the guard slowed the clock, one counts for the ticks of [`Facts::frequency`]
    /// that it stands for.
    pub count: u64,
}

fn end_name<S: serde::Serializer>(end: &End, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(end.name())
}

fn end_of_name<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<End, D::Error> {
    let name = Cow::<str>::deserialize(deserializer)?;
    let found = End::ALL.iter().find(|end| end.name() == name);
    let unknown = || serde::de::Error::custom(format_args!("`{name}` is no end of a stack"));
    found.copied().ok_or_else(unknown)
}

/// What became of every tick of the sampling clock.
///
/// `ticks = idle + other + emitted + Σ lost`, and `emitted = Σ stacks.count`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accounting {
    /// Times the sampling program ran, on all CPUs.
    pub ticks: u64,
    /// The CPU was idle.
    pub idle: u64,
    /// Another process was running.
    pub other: u64,
    /// Samples of the target.
    pub emitted: u64,
    /// Samples lost, by cause.
    pub lost: BTreeMap<Cow<'static, str>, u64>,
    /// Ticks that frequency × time × CPUs would give.
    pub expected_ticks: u64,
    /// Times the kernel skipped the program because it would have nested (`recursion_misses`).
    pub recursion_misses: u64,
    /// Frames followed by the frame pointer for want of a row.
    pub frame_pointer_frames: u64,
    /// Other things worth counting that are no lost samples (tables not built, mappings dropped…), by cause.
    pub notes: BTreeMap<String, u64>,
}

impl Accounting {
    /// Samples lost for whatever cause.
    pub fn lost_total(&self) -> u64 {
        self.lost.values().sum()
    }

    /// Whether the sum holds to the tick.
    pub fn balances(&self) -> bool {
        self.ticks == self.idle + self.other + self.emitted + self.lost_total()
    }
}

/// What the agent itself took.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// CPU time of the agent's process and its parsers, in seconds.
    pub cpu_seconds: f64,
    /// Peak resident set of the agent's process, and the sum of its parsers', in bytes; the program itself,
    /// which they share, counts once. What they came to together is at most this.
    pub peak_rss_bytes: u64,
    /// Memory of its BPF maps, in bytes, as the kernel accounts it.
    pub bpf_map_bytes: Option<u64>,
    /// Nanoseconds in the kernel program per sample of the target (needs `kernel.bpf_stats_enabled`
    /// or the permission to switch it on for the run).
    pub bpf_ns_per_sample: Option<f64>,
    /// Bytes that crossed from the kernel per sample.
    pub bytes_per_sample: Option<f64>,
}

/// The circumstances of the run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// Version of the agent.
    pub agent_version: String,
    /// The agent's command line.
    pub command_line: Vec<String>,
    /// `uname -srm`.
    pub kernel: String,
    /// What the clock was: `cycles` or `cpu-clock`.
    pub event: String,
    /// Samples per second and CPU.
    pub frequency: u64,
    /// CPUs sampled.
    pub cpus: u32,
    /// Start of the run, seconds since the epoch.
    pub started: u64,
    /// Milliseconds from the agent's start until the clock ran on every CPU.
    pub start_ms: f64,
    /// Time sampled, in seconds.
    pub duration_seconds: f64,
    /// Processes in scope, each with its name.
    pub targets: Vec<TargetFacts>,
    /// Why the run ended: `duration`, `interrupted`, `target_exited`, `overhead`.
    pub ended: String,
    /// What the overhead guard saw and did; `None` without a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard: Option<guard::Report>,
}

impl Facts {
    /// Whether the clock counted CPU cycles. It then ticks about as often where a CPU is partly idle
    /// as where it is busy, so that a sample stands for no fixed CPU time.
    pub fn by_cycles(&self) -> bool {
        self.event == "cycles"
    }

    /// Samples of a second of CPU time: `None` by cycles, and for events that were all counted.
    pub fn samples_per_cpu_second(&self) -> Option<u64> {
        (self.frequency > 0 && !self.by_cycles()).then_some(self.frequency)
    }

    /// Nanoseconds of CPU time that a sample stands for, where it stands for any.
    pub fn period_ns(&self) -> Option<u64> {
        1_000_000_000_u64.checked_div(self.samples_per_cpu_second()?)
    }
}

/// A process that was in scope.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetFacts {
    /// Its process id.
    pub pid: u32,
    /// Its name.
    pub comm: String,
    /// Its program's path, as the process sees it.
    pub exe: Option<String>,
    /// The container that it runs in; told of the first process only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<Container>,
    /// Its control group, as the agent sees it; told of the first process only, and not for the root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
}

/// A container, as far as its control group tells.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// Its id: 64 hexadecimal digits.
    pub id: String,
    /// Who runs it: `docker`, `containerd`, `cri-o`, `podman`.
    pub runtime: Option<String>,
    /// Its image.
    pub image: Option<String>,
    /// Unique id of its Kubernetes pod.
    pub pod_uid: Option<String>,
    /// Name of its pod.
    pub pod_name: Option<String>,
    /// Its host name: in a pod the pod's name, unless that is told otherwise or shares the node's network.
    /// The container's own processes may have changed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
}

/// A file whose code is in some stack.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleFacts {
    /// Its file name, as [`Frame::module`] says it. Several files may share one.
    pub name: String,
    /// Its path, as the process sees it.
    pub path: String,
    /// Its build id (`NT_GNU_BUILD_ID`) in hexadecimal digits, if it has one and could be read.
    pub build_id: Option<String>,
}

/// A whole profile.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Profile {
    /// The circumstances.
    pub facts: Facts,
    /// The files whose code is in some stack, the kernel aside.
    pub modules: Vec<ModuleFacts>,
    /// Distinct frames.
    pub frames: Vec<Frame>,
    /// Distinct stacks.
    pub stacks: Vec<Stack>,
    /// Where every tick went.
    pub accounting: Accounting,
    /// What it cost.
    pub cost: Cost,
    /// Samples of the target by second since the start of the run. A sample belongs to the second
    /// in which userspace took it in: up to 0.1 s after the tick, later where userspace had to
    /// finish its stack.
    pub timeline: Vec<u64>,
    #[serde(skip)]
    frame_ids: HashMap<Frame, FrameId>,
}

impl Profile {
    /// The number of this frame, which is added if it is new.
    pub fn intern(&mut self, frame: Frame) -> FrameId {
        if let Some(&id) = self.frame_ids.get(&frame) {
            return id;
        }
        let id = self.frames.len() as FrameId;
        self.frames.push(frame.clone());
        self.frame_ids.insert(frame, id);
        id
    }

    /// Samples in all stacks.
    pub fn samples(&self) -> u64 {
        self.stacks.iter().map(|stack| stack.count).sum()
    }

    /// Samples whose stack reaches a proven root.
    pub fn complete_samples(&self) -> u64 {
        self.stacks
            .iter()
            .filter(|stack| stack.end.is_complete())
            .map(|stack| stack.count)
            .sum()
    }
}
