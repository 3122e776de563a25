//! Every map and every global that userspace sets, once.

use agent_ebpf::connection::{Connection, MAX_CONNECTIONS, MAX_LISTENERS, Report};
use agent_ebpf::failure::{self, Argument, CallRecord, Loss, Part, Row};
use agent_ebpf::unwind::{Block, Mapping, Registers, register};
use agent_ebpf::{
    Counter, DEFERRED_STACK_BYTES, DeferredRecord, MAX_SEEN_STACKS, MAX_TABLES, MAX_TARGETS,
    RING_BYTES, StackRecord, Target, slot,
};
use aya_ebpf::btf_maps::{
    Array, ArrayOfMaps, HashMap, LruHashMap, PerCpuArray, PerCpuHashMap, RingBuf,
};
use aya_ebpf::macros::btf_map;

/// `BPF_F_INNER_MAP`: an inner array may have another length than the model (linux/bpf.h, 5.10).
const INNER_MAP: usize = 1 << 12;

/// Processes in scope, by thread-group id.
#[btf_map]
pub static TARGETS: HashMap<u32, Target, { MAX_TARGETS as usize }> = HashMap::new();

/// Unwind tables of modules and mapping tables of processes, by slot.
#[btf_map]
pub static TABLES: ArrayOfMaps<Array<Block, 1, INNER_MAP>, { MAX_TABLES as usize }> =
    ArrayOfMaps::new();

/// Records for userspace.
#[btf_map]
pub static EVENTS: RingBuf<u64, { RING_BYTES as usize }> = RingBuf::new();

/// Hashes of the stacks that userspace has already received, each with a hash of whose it was the
/// last time.
#[btf_map]
pub static SEEN: LruHashMap<u64, u64, { MAX_SEEN_STACKS as usize }> = LruHashMap::new();

/// One `u64` for each [`Counter`].
#[btf_map]
pub static COUNTERS: PerCpuArray<[u64; Counter::ALL.len()], 1> = PerCpuArray::new();

/// Working memory of a stack walk, for each CPU and kind of probe.
#[btf_map]
pub static SCRATCH: PerCpuArray<Scratch, { slot::COUNT as usize }> = PerCpuArray::new();

/// A deferred sample in the making, for each CPU and kind of probe.
#[btf_map]
pub static DEFERRED: PerCpuArray<Deferred, { slot::COUNT as usize }> = PerCpuArray::new();

/// Wanted processes, by the id that the agent's PID namespace shows; `iter_task` fills in the
/// thread-group id of the initial namespace.
#[btf_map]
pub static WANTED: HashMap<u32, u32, { MAX_TARGETS as usize }> = HashMap::new();

/// TCP connections of the targets, by the address of the kernel's socket.
#[btf_map]
pub static CONNECTIONS: HashMap<u64, Connection, { MAX_CONNECTIONS as usize }> = HashMap::new();

/// Who listens, by `sock::listener_key`.
#[btf_map]
pub static LISTENERS: HashMap<u64, u32, { MAX_LISTENERS as usize }> = HashMap::new();

/// A connection of which nothing is known yet: all zero.
#[btf_map]
pub static BLANK: Array<Connection, 1> = Array::new();

/// Where the iterator writes a connection's report together.
#[btf_map]
pub static REPORT: PerCpuArray<Report, 1> = PerCpuArray::new();
/// Failing calls by [`failure::row`].
#[btf_map]
pub static ROWS: PerCpuHashMap<u64, Row, { failure::MAX_ROWS as usize }> = PerCpuHashMap::new();

/// Failing calls by row and argument.
#[btf_map]
pub static ARGUMENTS: HashMap<u64, Argument, { failure::MAX_ARGUMENTS as usize }> = HashMap::new();

/// Failing calls by row and stack.
#[btf_map]
pub static STACK_COUNTS: HashMap<Part, u64, { failure::MAX_STACKS as usize }> = HashMap::new();

/// Failing calls by row and [`failure::bucket`] of time.
#[btf_map]
pub static BUCKETS: HashMap<Part, u64, { failure::MAX_BUCKETS as usize }> = HashMap::new();

/// When each thread's call began; 0 between calls. A thread that is killed leaves its entry, so
/// the oldest make room.
#[btf_map]
pub static STARTS: LruHashMap<u32, u64, { failure::MAX_CALLS as usize }> = LruHashMap::new();

/// Calls of each system call, failing or not; only while calls are timed.
#[btf_map]
pub static CALLS: PerCpuArray<u64, { failure::MAX_NUMBERS as usize }> = PerCpuArray::new();

/// The [`failure::shape`] of each system call.
#[btf_map]
pub static SHAPES: Array<u32, { failure::MAX_NUMBERS as usize }> = Array::new();

/// 1 for each errno that is wanted, where not all are.
#[btf_map]
pub static WANTED_ERRNOS: Array<u32, { failure::MAX_ERRNOS as usize }> = Array::new();

/// One `u64` for each [`Loss`].
#[btf_map]
pub static SYSCALL_COUNTERS: PerCpuArray<[u64; Loss::ALL.len()], 1> = PerCpuArray::new();

/// Working memory for the arguments of a failing call.
#[btf_map]
pub static CALL: PerCpuArray<CallScratch, 1> = PerCpuArray::new();

/// Longest name of a component with its final zero (`NAME_MAX`, linux/limits.h).
pub const NAME_BYTES: usize = 256;

/// A walk from a file to the root directory.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Walk {
    /// `struct dentry` of the component.
    pub dentry: u64,
    /// The mount it is on: `struct vfsmount`.
    pub mount: u64,
    /// The process's root directory.
    pub root_dentry: u64,
    /// The mount of that.
    pub root_mount: u64,
}

/// See [`CALL`].
#[repr(C)]
pub struct CallScratch {
    /// The registers at the exit of the call.
    pub regs: aya_ebpf::bindings::pt_regs,
    /// Where the walk along the components of a path is.
    pub walk: Walk,
    /// Bytes of the text so far.
    pub at: u64,
    /// All zero: counts of a row that begins.
    pub blank: Row,
    /// The record, contiguous with its text.
    pub record: CallRecord,
    /// The text, and room for what a mask lets the verifier think of.
    pub text: [u8; 4 * failure::PATH_BYTES + NAME_BYTES],
}

/// Places for frames: kernel and user frames together, a power of two for the mask.
pub const FRAMES: usize = 2048;

/// See [`DEFERRED`].
#[repr(C)]
pub struct Deferred {
    /// The record.
    pub record: DeferredRecord,
    /// The bytes that follow it.
    pub stack: [u8; DEFERRED_STACK_BYTES],
}

/// See [`SCRATCH`].
#[repr(C)]
pub struct Scratch {
    /// Registers of the current frame.
    pub regs: Registers,
    /// The processor's general registers, valid while `leaf` is set.
    pub general: [u64; register::COUNT],
    /// The mapping that the last frame was found in.
    pub mapping: Mapping,
    /// Slot of the process's mapping table.
    pub table: u32,
    /// Whether the registers are the processor's own.
    pub leaf: u32,
    /// Frames written: kernel's and user's.
    pub frames_len: u32,
    /// User frames written.
    pub depth: u32,
    /// Frames followed by the frame pointer.
    pub fallbacks: u32,
    /// Not zero while a walk uses this memory.
    pub busy: u32,
    /// The user registers that the kernel saved, for a task that was in the kernel.
    pub saved: aya_ebpf::bindings::pt_regs,
    /// Running hash of the frames.
    pub hash: u64,
    /// The record, contiguous with its frames.
    pub record: StackRecord,
    /// The frames.
    pub frames: [u64; FRAMES],
}

/// What userspace sets before the programs are loaded. The verifier sees constants.
pub mod config {
    macro_rules! globals {
        ($($(#[$doc:meta])* $name:ident, $function:ident: $type:ty;)*) => {$(
            #[unsafe(no_mangle)]
            static $name: $type = 0;
            $(#[$doc])*
            #[inline(always)]
            pub fn $function() -> $type {
                // SAFETY: a static of an integer type; volatile, since the loader changes it.
                unsafe { core::ptr::read_volatile(&raw const $name) }
            }
        )*};
    }

    globals! {
        /// 1 where `bpf_task_pt_regs` and `bpf_get_current_task_btf` exist (5.15).
        HAS_TASK_PT_REGS, has_task_pt_regs: u32;
        /// Bytes from `task_struct.stack` to the saved user registers, for older kernels.
        PT_REGS_OFFSET, pt_regs_offset: u32;
        /// `task_struct.stack`.
        TASK_STACK, task_stack: u32;
        /// `task_struct.mm`.
        TASK_MM, task_mm: u32;
        /// `task_struct.tgid`.
        TASK_TGID, task_tgid: u32;
        /// `task_struct.pid`.
        TASK_PID, task_pid: u32;
        /// `task_struct.group_leader`.
        TASK_LEADER, task_leader: u32;
        /// `task_struct.start_boottime`.
        TASK_START, task_start: u32;
        /// `task_struct.signal`.
        TASK_SIGNAL, task_signal: u32;
        /// `signal_struct.live`.
        SIGNAL_LIVE, signal_live: u32;
        /// `signal_struct.pids[PIDTYPE_TGID]`.
        SIGNAL_TGID, signal_tgid: u32;
        /// `task_struct.thread_pid`.
        TASK_THREAD_PID, task_thread_pid: u32;
        /// `pid.level`.
        PID_LEVEL, pid_level: u32;
        /// `pid.numbers`.
        PID_NUMBERS, pid_numbers: u32;
        /// Depth of the agent's PID namespace; 0 in the initial one.
        NS_LEVEL, ns_level: u32;
        /// `sock_common.skc_family`.
        SKC_FAMILY, skc_family: u32;
        /// `sock_common.skc_state`.
        SKC_STATE, skc_state: u32;
        /// `sock_common.skc_num`.
        SKC_NUM, skc_num: u32;
        /// `sock_common.skc_dport`.
        SKC_DPORT, skc_dport: u32;
        /// `sock_common.skc_daddr`.
        SKC_DADDR, skc_daddr: u32;
        /// `sock_common.skc_rcv_saddr`.
        SKC_RCV_SADDR, skc_rcv_saddr: u32;
        /// `sock_common.skc_v6_daddr`.
        SKC_V6_DADDR, skc_v6_daddr: u32;
        /// `sock_common.skc_v6_rcv_saddr`.
        SKC_V6_RCV_SADDR, skc_v6_rcv_saddr: u32;
        /// `sock_common.skc_net`.
        SKC_NET, skc_net: u32;
        /// `sock.sk_protocol`.
        SK_PROTOCOL, sk_protocol: u32;
        /// `sock.sk_err`.
        SK_ERR, sk_err: u32;
        /// `inet_sock.inet_sport`.
        INET_SPORT, inet_sport: u32;
        /// `tcp_sock.bytes_sent`.
        TP_BYTES_SENT, tp_bytes_sent: u32;
        /// `tcp_sock.bytes_retrans`.
        TP_BYTES_RETRANS, tp_bytes_retrans: u32;
        /// `tcp_sock.bytes_acked`.
        TP_BYTES_ACKED, tp_bytes_acked: u32;
        /// `tcp_sock.bytes_received`.
        TP_BYTES_RECEIVED, tp_bytes_received: u32;
        /// `tcp_sock.snd_nxt`.
        TP_SND_NXT, tp_snd_nxt: u32;
        /// `tcp_sock.snd_una`.
        TP_SND_UNA, tp_snd_una: u32;
        /// `tcp_sock.rcv_nxt`.
        TP_RCV_NXT, tp_rcv_nxt: u32;
        /// `tcp_sock.write_seq`.
        TP_WRITE_SEQ, tp_write_seq: u32;
        /// `tcp_sock.srtt_us`.
        TP_SRTT, tp_srtt: u32;
        /// `tcp_sock.mdev_us`.
        TP_MDEV, tp_mdev: u32;
        /// `tcp_sock.rtt_min.s[0].v`.
        TP_MIN_RTT, tp_min_rtt: u32;
        /// `tcp_sock.total_retrans`.
        TP_TOTAL_RETRANS, tp_total_retrans: u32;
        /// `sk_buff.len`.
        SKB_LEN, skb_len: u32;
        /// `sk_buff.data`.
        SKB_DATA, skb_data: u32;
        /// `file.private_data`.
        FILE_PRIVATE_DATA, file_private_data: u32;
        /// `socket.file`.
        SOCKET_FILE, socket_file: u32;
        /// `socket.sk`.
        SOCKET_SK, socket_sk: u32;
        /// 1 where failing calls are counted with their stacks.
        SYSCALL_STACKS, syscall_stacks: u32;
        /// 1 where calls are timed.
        SYSCALL_TIMES, syscall_times: u32;
        /// 1 where [`super::WANTED_ERRNOS`] says which errors count.
        SYSCALL_ERRNOS, syscall_errnos: u32;
        /// The [`failure::shape`] of system calls that [`super::SHAPES`] has no place for.
        SYSCALL_OTHERS, syscall_others: u32;
        /// `task_struct.thread_info` and `thread_info.status`, together.
        TASK_STATUS, task_status: u32;
        /// `task_struct.files`.
        TASK_FILES, task_files: u32;
        /// `task_struct.fs`.
        TASK_FS, task_fs: u32;
        /// `fs_struct.pwd`.
        FS_PWD, fs_pwd: u32;
        /// `fs_struct.root`.
        FS_ROOT, fs_root: u32;
        /// `path.mnt`.
        PATH_MNT, path_mnt: u32;
        /// `path.dentry`.
        PATH_DENTRY, path_dentry: u32;
        /// `dentry.d_parent`.
        DENTRY_PARENT, dentry_parent: u32;
        /// `dentry.d_name` and `qstr.name`, together.
        DENTRY_NAME, dentry_name: u32;
        /// `dentry.d_hash` and `hlist_bl_node.pprev`, together.
        DENTRY_HASH, dentry_hash: u32;
        /// `vfsmount.mnt_root`.
        MNT_ROOT, mnt_root: u32;
        /// `mount.mnt`.
        MOUNT_MNT, mount_mnt: u32;
        /// `mount.mnt_parent`.
        MOUNT_PARENT, mount_parent: u32;
        /// `mount.mnt_mountpoint`.
        MOUNT_POINT, mount_point: u32;
        /// `file.f_path`.
        FILE_PATH, file_path: u32;
        /// `files_struct.fdt`.
        FILES_FDT, files_fdt: u32;
        /// `fdtable.max_fds`.
        FDT_MAX, fdt_max: u32;
        /// `fdtable.fd`.
        FDT_FD, fdt_fd: u32;
        /// `file.f_inode`.
        FILE_INODE, file_inode: u32;
        /// `file.f_flags`.
        FILE_FLAGS, file_flags: u32;
        /// `inode.i_ino`.
        INODE_NUMBER, inode_number: u32;
        /// `inode.i_mode`.
        INODE_MODE, inode_mode: u32;
        /// Seed of the stack hash.
        HASH_SEED, hash_seed: u64;
        /// When the programs were loaded, in nanoseconds of the monotonic clock.
        LOADED_AT, loaded_at: u64;
    }
}
