//! The life of the processes in scope: fork, exec, exit; and the PID namespaces.

use agent_ebpf::{
    Counter, ProcessRecord, Start, TARGET_BEFORE_EXEC, TARGET_FOLLOW_CHILDREN, Target, record,
};
use aya_ebpf::helpers::generated::{bpf_get_current_task, bpf_ktime_get_ns};
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_probe_read_kernel};
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;

use crate::maps::{TARGETS, WANTED, config};
use crate::{count, emit};

const BPF_EXIST: u64 = 2;

/// What is known of the current process, if it is in scope.
#[inline(always)]
pub fn target(tgid: u32) -> Option<Target> {
    // SAFETY: the helper has no preconditions.
    target_of(unsafe { bpf_get_current_task() }, tgid)
}

/// What is known of the process of a task, if it is in scope: an entry may be of a former process
/// of the same id.
#[inline(always)]
pub fn target_of(task: u64, tgid: u32) -> Option<Target> {
    // SAFETY: the value is copied at once; an update replaces it whole.
    let target = unsafe { TARGETS.get(tgid) }.copied()?;
    if target
        .start
        .is(start_of(read_u64(task, config::task_leader())))
    {
        return Some(target);
    }
    count(Counter::IdReused, 1);
    None
}

/// When a process began, from its leading thread. A thread that executes a program takes the leader's
/// place and its start (`de_thread`, fs/exec.c).
#[inline(always)]
fn start_of(leader: u64) -> u64 {
    read_u64(leader, config::task_start())
}

/// `sched_process_fork(parent, child)`: a child of a followed process is in scope at once, with
/// the mapping table of its parent, whose address space it copied.
#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub fn process_fork(ctx: RawTracePointContext) -> i32 {
    let parent = (bpf_get_current_pid_tgid() >> 32) as u32;
    let Some(target) = target(parent) else {
        return 0;
    };
    if target.flags & TARGET_FOLLOW_CHILDREN == 0 {
        return 0;
    }
    let child: u64 = ctx.arg::<u64>(1);
    let tgid = read_u32(child, config::task_tgid());
    if tgid == parent || tgid == 0 {
        return 0;
    }
    let start = start_of(child);
    let target = Target {
        start: Start::exactly(start),
        ..target
    };
    if TARGETS.insert(tgid, target, 0).is_err() {
        count(Counter::LostChild, 1);
        return 0;
    }
    send(record::FORK, tgid, start, parent, visible(child));
    0
}

/// `sched_process_exec(task, old_pid, bprm)`: the mapping table belongs to the old program.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn process_exec(ctx: RawTracePointContext) -> i32 {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let Some(target) = target(tgid) else {
        return 0;
    };
    let started = Target {
        table: 0,
        flags: target.flags & !TARGET_BEFORE_EXEC,
        ..target
    };
    let _ = TARGETS.insert(tgid, started, BPF_EXIST);
    let task = ctx.arg::<u64>(0);
    let leader = read_u64(task, config::task_leader());
    send(record::EXEC, tgid, start_of(leader), 0, visible(task));
    0
}

/// `sched_process_exit(task)`: a thread ends. After the last one the id can be another's before
/// `sched_process_free`, which waits for an RCU grace period.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn process_exit(ctx: RawTracePointContext) -> i32 {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    if target(tgid).is_none() {
        return 0;
    }
    let task = ctx.arg::<u64>(0);
    let signal = read_u64(task, config::task_signal());
    if read_u32(signal, config::signal_live()) != 0 {
        return 0;
    }
    let leader = read_u64(task, config::task_leader());
    send(record::EXIT, tgid, start_of(leader), 0, 0);
    0
}

/// `sched_process_free(task)`: when the leader's task is freed the whole process is gone, and its
/// id may soon be somebody else's.
#[raw_tracepoint(tracepoint = "sched_process_free")]
pub fn process_free(ctx: RawTracePointContext) -> i32 {
    let task: u64 = ctx.arg::<u64>(0);
    let pid = read_u32(task, config::task_pid());
    if read_u32(task, config::task_tgid()) != pid {
        return 0;
    }
    let start = start_of(task);
    // SAFETY: the value is copied at once; an update replaces it whole.
    match unsafe { TARGETS.get(pid) }.copied() {
        // A process in scope that has the id since stays.
        Some(target) if target.start.is(start) => {}
        _ => return 0,
    }
    let _ = TARGETS.remove(pid);
    send(record::GONE, pid, start, 0, 0);
    0
}

#[inline(always)]
fn send(kind: u32, tgid: u32, start: u64, parent: u32, visible: u32) {
    let record = ProcessRecord {
        kind,
        tgid,
        parent,
        visible,
        // SAFETY: the helper has no preconditions.
        time: unsafe { bpf_ktime_get_ns() },
        start,
    };
    // SAFETY: the record is on the stack, whole and initialised.
    if !unsafe {
        emit::output(
            &raw const record,
            size_of::<ProcessRecord>() as u64,
            emit::Wake::Now,
        )
    } {
        count(Counter::LostProcessRecord, 1);
    }
}

/// The 32-bit field at `offset` of a kernel structure; 0 where it cannot be read.
#[inline(always)]
pub fn read_u32(base: u64, offset: u32) -> u32 {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel((base + offset as u64) as *const u32) }.unwrap_or(0)
}

/// The 64-bit field at `offset` of a kernel structure; 0 where it cannot be read.
#[inline(always)]
pub fn read_u64(base: u64, offset: u32) -> u64 {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel((base + offset as u64) as *const u64) }.unwrap_or(0)
}

/// Bytes of `struct upid` (linux/pid.h): the number, padding, the namespace.
const UPID_BYTES: u32 = 16;

/// The thread-group id of `task` as the agent's PID namespace shows it; 0 where it does not.
#[inline(always)]
fn visible(task: u64) -> u32 {
    if config::ns_level() == 0 {
        return read_u32(task, config::task_tgid());
    }
    number(read_u64(
        read_u64(task, config::task_signal()),
        config::signal_tgid(),
    ))
}

/// The current thread's id as the agent's PID namespace shows it; 0 where it does not.
#[inline(always)]
pub fn visible_thread() -> u32 {
    if config::ns_level() == 0 {
        return bpf_get_current_pid_tgid() as u32;
    }
    // SAFETY: the helper has no preconditions.
    let task = unsafe { bpf_get_current_task() };
    number(read_u64(task, config::task_thread_pid()))
}

/// The number of a `struct pid` at the agent's depth.
#[inline(always)]
fn number(pid: u64) -> u32 {
    let level = config::ns_level();
    if pid == 0 || read_u32(pid, config::pid_level()) < level {
        return 0;
    }
    read_u32(pid, config::pid_numbers() + level * UPID_BYTES)
}

/// What an `iter/task` program is called with (`struct bpf_iter__task`, kernel/bpf/task_iter.c).
#[repr(C)]
pub struct TaskIterator {
    meta: u64,
    task: u64,
}

/// Fills in the initial namespace's ids of the [`WANTED`] processes, for an agent that runs in
/// another PID namespace. Its reader is the agent: a task is the agent's sibling or below when
/// the namespace at the agent's level is the agent's own.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub extern "C" fn iter_task(ctx: *const TaskIterator) -> i32 {
    // SAFETY: the kernel calls with such a context.
    let task = unsafe { (*ctx).task };
    if task == 0 {
        return 0;
    }
    let tgid = read_u32(task, config::task_tgid());
    if read_u32(task, config::task_pid()) != tgid {
        return 0;
    }
    // SAFETY: the helper has no preconditions.
    let agent = unsafe { bpf_get_current_task() };
    if namespace(task) != namespace(agent) {
        return 0;
    }
    let id = visible(task);
    // SAFETY: only whether there is a value is looked at.
    if id != 0 && unsafe { WANTED.get(id) }.is_some() {
        let _ = WANTED.insert(id, tgid, 0);
    }
    0
}

/// Address of the PID namespace of `task` at the agent's depth, 0 where it does not go so deep.
#[inline(always)]
fn namespace(task: u64) -> u64 {
    let level = config::ns_level();
    let pid = read_u64(read_u64(task, config::task_signal()), config::signal_tgid());
    if pid == 0 || read_u32(pid, config::pid_level()) < level {
        return 0;
    }
    read_u64(pid, config::pid_numbers() + level * UPID_BYTES + 8)
}
