//! The binary interface between the kernel programs and userspace.
//!
//! Everything here is `repr(C)`, made of integers only and of a size asserted at
//! compile time: the same source is compiled for the kernel and for the host, and
//! the bytes of these types cross between them in maps and in the ring buffer.
//!
//! [`unwind`] is the one piece of logic on both sides: the step that turns the
//! registers of one frame into those of its caller.

#![cfg_attr(target_arch = "bpf", no_std, feature(asm_experimental_arch))]

pub mod connection;
pub mod exchange;
pub mod unwind;

/// Frames a stack is followed for before it is cut with [`End::DepthLimit`].
pub const MAX_USER_FRAMES: usize = 1024;
/// Kernel frames kept of one sample (the kernel's own `perf_event_max_stack` default).
pub const MAX_KERNEL_FRAMES: usize = 127;
/// Processes that may be in scope at once.
pub const MAX_TARGETS: u32 = 4096;
/// Slots for unwind tables and process mapping tables together.
///
/// A slot is given out once in a run and never reused, so that a [`frame`] names one
/// module for good. Slot 0 stays empty: it means "no table".
pub const MAX_TABLES: u32 = 16384;
/// Distinct stacks remembered by the kernel as already sent.
pub const MAX_SEEN_STACKS: u32 = 16384;
/// Bytes of the ring buffer; a power of two and a multiple of the page size.
pub const RING_BYTES: u32 = 1 << 20;

/// One user frame: the module's table slot in the upper 16 bits, the address in the
/// lower 48.
///
/// The address is an ELF virtual address of the module (`pc - load bias`). For callers it
/// is the return address minus one, so that it lies inside the call instruction. With
/// module 0 the address is the raw one of the process (JIT code, no mapping).
pub mod frame {
    /// Bits of the address.
    pub const ADDRESS_BITS: u32 = 48;

    /// Packs a module's slot and an address.
    #[inline(always)]
    pub const fn pack(module: u16, address: u64) -> u64 {
        (module as u64) << ADDRESS_BITS | (address & ((1 << ADDRESS_BITS) - 1))
    }

    /// The slot of the module, 0 for none.
    #[inline(always)]
    pub const fn module(frame: u64) -> u16 {
        (frame >> ADDRESS_BITS) as u16
    }

    /// The address within the module.
    #[inline(always)]
    pub const fn address(frame: u64) -> u64 {
        frame & ((1 << ADDRESS_BITS) - 1)
    }
}

/// Declares a `u32`-valued set of names whose numbers cross the interface.
macro_rules! numbers {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum $name { $($(#[$vdoc])* $variant),* }

        impl $name {
            /// Every value, in the order of its number.
            pub const ALL: &'static [$name] = &[$($name::$variant),*];

            /// The value with this number, if there is one.
            pub fn from_number(number: u32) -> Option<Self> {
                Self::ALL.get(number as usize).copied()
            }

            /// A short stable name for people and for machine-readable output.
            pub const fn name(self) -> &'static str {
                match self { $($name::$variant => $text),* }
            }
        }
    };
}

pub mod failure;

numbers! {
    /// Why a user stack ended where it did.
    End {
        /// The rule of the frame leaves the return address undefined: `_start`, a thread's start.
        Root = "root",
        /// Code without unwind rows whose frame pointer is zero: the end mark of the psABI
        /// (AMD64 ABI 3.4.1), as left by Go and by C libraries without unwind tables.
        RootFramePointer = "root_frame_pointer",
        /// The pc lies in no executable mapping known for the process.
        NoMapping = "no_mapping",
        /// No row for the pc, and its frame pointer does not lead on.
        NoRow = "no_row",
        /// A word of the stack could not be read.
        ReadFault = "read_fault",
        /// The frame's CFA does not lie above the one before it.
        ImplausibleCfa = "implausible_cfa",
        /// More than [`MAX_USER_FRAMES`] frames.
        DepthLimit = "depth_limit",
        /// The rule is one that the table cannot express.
        UnsupportedRule = "unsupported_rule",
        /// The module's table was not ready yet.
        TablePending = "table_pending",
        /// The sample has no user registers (a kernel thread).
        NoUserRegisters = "no_user_registers",
        /// The thread has given its memory back, in the kernel's `do_exit` or `execve`: there is
        /// no user stack any more.
        Exiting = "exiting",
    }
}

impl End {
    /// Whether the stack was followed to a proven root, or there was none to follow.
    pub const fn is_complete(self) -> bool {
        matches!(self, End::Root | End::RootFramePointer | End::Exiting)
    }
}

numbers! {
    /// What became of each sampling tick and of each stack; indices of the `COUNTERS` map.
    ///
    /// `Ticks = Idle + Other + Emitted + (the losses)`, exactly.
    Counter {
        /// Times the sampling program ran.
        Ticks = "ticks",
        /// The CPU was idle.
        Idle = "idle",
        /// A process that is not in scope was running.
        Other = "other",
        /// A sample reached the ring buffer.
        Emitted = "emitted",
        /// Loss: the ring buffer was full.
        LostRingFull = "ring_full",
        /// Loss: the per-CPU scratch was in use by an interrupted run of the same program.
        LostScratchBusy = "scratch_busy",
        /// Frames without a row that were followed by the frame pointer.
        FramePointerFallback = "frame_pointer_fallback",
        /// Full stacks sent (the other samples sent only a hash).
        StacksSent = "stacks_sent",
        /// Samples whose stack userspace finishes, sent whole.
        Deferred = "deferred",
        /// Nanoseconds spent on samples of the target.
        Nanoseconds = "nanoseconds",
        /// A child could not be followed: the targets map was full.
        LostChild = "children_not_followed",
        /// A process record (fork, exec, exit) did not fit in the ring buffer.
        LostProcessRecord = "process_records_lost",
        /// A connection could not be followed: the map was full.
        LostConnection = "connections_not_followed",
        /// A request's times did not fit in the ring buffer (the request itself is counted).
        LostRequest = "request_times_lost",
        /// The last record of a connection did not fit in the ring buffer.
        LostConnectionRecord = "connection_records_lost",
        /// What another process did under the id of a target that had ended; it is left out.
        IdReused = "events_of_others_with_the_id_of_an_ended_target",
    }
}

/// Which kind of probe uses a scratch slot: a timer tick may interrupt a tracepoint
/// program in the middle of its unwinding on the same CPU.
pub mod slot {
    /// CPU sampling.
    pub const CPU: u32 = 0;
    /// Failing system calls.
    pub const SYSCALLS: u32 = 1;
    /// How many slots there are.
    pub const COUNT: u32 = 2;
}

/// Flag of [`Target::flags`]: processes that this one forks are in scope too.
pub const TARGET_FOLLOW_CHILDREN: u32 = 1;
/// Flag of [`Target::flags`]: it has not executed its program yet, and is not sampled before.
pub const TARGET_BEFORE_EXEC: u32 = 2;

/// When a process began, as exactly as is known: which of those that have the same id one after the
/// other it is. `/proc` gives hundredths of a second (proc(5) `stat`), the kernel nanoseconds.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Start {
    /// Nanoseconds of the boot clock (`task_struct.start_boottime`, kernel 5.5).
    pub at: u64,
    /// It began within so many nanoseconds from there on; 0 is never.
    pub span: u64,
}

impl Start {
    /// Known from the kernel itself.
    pub const fn exactly(at: u64) -> Self {
        Self { at, span: 1 }
    }

    /// Whether a process that began at this nanosecond can be the one.
    #[inline(always)]
    pub const fn is(&self, at: u64) -> bool {
        at.wrapping_sub(self.at) < self.span
    }
}

/// Value of the `TARGETS` map; the key is the thread-group id in the initial PID namespace. The entry
/// outlives its process for a moment, in which the id can already be another's: only what began when
/// `start` says is the target.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// Slot of the process's mapping table, 0 while it has none.
    pub table: u32,
    /// `TARGET_…` flags.
    pub flags: u32,
    /// When the process began.
    pub start: Start,
}
const _: () = assert!(size_of::<Target>() == 24);

impl Target {
    /// The same bytes as plain words, as userspace writes them.
    pub const fn words(self) -> [u64; 3] {
        let first = self.table as u64 | (self.flags as u64) << 32;
        [first, self.start.at, self.start.span]
    }

    /// What userspace reads.
    pub const fn from_words([first, at, span]: [u64; 3]) -> Self {
        Self {
            table: first as u32,
            flags: (first >> 32) as u32,
            start: Start { at, span },
        }
    }
}

/// Kinds of ring buffer records: the first `u32` of each.
pub mod record {
    /// [`crate::StackRecord`] followed by its frames.
    pub const STACK: u32 = 1;
    /// [`crate::SampleRecord`].
    pub const SAMPLE: u32 = 2;
    /// [`crate::ProcessRecord`]: a process in scope forked another, now in scope too.
    pub const FORK: u32 = 3;
    /// [`crate::ProcessRecord`]: a process in scope replaced its program.
    pub const EXEC: u32 = 4;
    /// [`crate::ProcessRecord`]: the last thread of a process in scope ends. What its id does from
    /// now on in user space is another's.
    pub const EXIT: u32 = 5;
    /// [`crate::ProcessRecord`]: a process in scope is gone; no sample of it comes any more.
    pub const GONE: u32 = 12;
    /// [`crate::connection::Report`].
    pub const TCP: u32 = 6;
    /// [`crate::DeferredRecord`] followed by the bytes of the stack.
    pub const DEFERRED: u32 = 8;
    /// [`crate::failure::CallRecord`]: an argument of a failing system call, for the first time.
    pub const SYSCALL: u32 = 7;
    /// [`crate::exchange::Batch`].
    pub const TCP_REQUESTS: u32 = 10;
    /// [`crate::StackRecord`] followed by its frames: the stack of a failing system call.
    pub const SYSCALL_STACK: u32 = 9;
    /// [`crate::RepeatRecord`].
    pub const REPEAT: u32 = 11;
}

/// A sample in all like the last of this thread with this stack.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RepeatRecord {
    /// [`record::REPEAT`].
    pub kind: u32,
    /// As [`SampleRecord::tid`], not 0.
    pub tid: u32,
    /// As [`SampleRecord::stack`].
    pub stack: u64,
}
const _: () = assert!(size_of::<RepeatRecord>() == 16);

/// A sample whose stack was sent before.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampleRecord {
    /// [`record::SAMPLE`].
    pub kind: u32,
    /// Thread-group id in the initial PID namespace.
    pub tgid: u32,
    /// Thread id as the agent's PID namespace shows it; 0 where it does not.
    pub tid: u32,
    /// The kind that a deferred sample has once it is finished: [`record::SYSCALL_STACK`], or 0.
    pub finished: u32,
    /// Hash of the stack.
    pub stack: u64,
    /// The thread's name at the tick, ended by a zero (`TASK_COMM_LEN`, linux/sched.h).
    pub thread: [u8; 16],
}
const _: () = assert!(size_of::<SampleRecord>() == 40);

/// A sample with its stack: `kernel_frames` kernel addresses, leaf first, then
/// `user_frames` packed [`frame`]s, leaf first.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackRecord {
    /// What a [`SampleRecord`] says, with [`record::STACK`] as its kind.
    pub sample: SampleRecord,
    /// Why the user stack ended: an [`End`].
    pub end: u32,
    /// Kernel frames that follow.
    pub kernel_frames: u16,
    /// User frames that follow.
    pub user_frames: u16,
}
const _: () = assert!(size_of::<StackRecord>() == 48);

/// Most frames that a [`DeferredRecord`] can hold.
pub const DEFERRED_FRAMES: usize = 230;
/// Most bytes of stack that follow a [`DeferredRecord`].
pub const DEFERRED_STACK_BYTES: usize = 16384;
/// Deferred samples that each CPU may send at once.
pub const DEFERRED_BUDGET: u64 = 2048;
/// One more each 2^23 nanoseconds of the run: some 119 a second.
pub const DEFERRED_REFILL: u32 = 23;

/// A sample whose walk came to code that the kernel programs do not know yet: userspace, which
/// will know it in a moment, finishes the walk on a copy of the stack.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeferredRecord {
    /// What there is, with [`record::DEFERRED`] as its kind. The last user frame is the one that
    /// the walk stopped at.
    pub stack: StackRecord,
    /// The registers of that frame.
    pub regs: unwind::Registers,
    /// Not zero if they are the processor's own; 1 if the general registers are, too.
    pub leaf: u32,
    /// Bytes of the stack that follow, from `regs.sp` on.
    pub stack_bytes: u32,
    /// The processor's general registers, in the order of their DWARF numbers.
    pub general: [u64; unwind::register::COUNT],
    /// The frames: kernel, then user, leaf first.
    pub frames: [u64; DEFERRED_FRAMES],
}
const _: () = assert!(size_of::<DeferredRecord>() == 2048);

/// The life of a process in scope.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessRecord {
    /// One of [`record::FORK`], [`record::EXEC`], [`record::EXIT`], [`record::GONE`].
    pub kind: u32,
    /// Thread-group id in the initial PID namespace.
    pub tgid: u32,
    /// The parent's thread-group id (fork only).
    pub parent: u32,
    /// The thread-group id as the agent's own PID namespace shows it; 0 if it does not.
    pub visible: u32,
    /// When, in nanoseconds of the monotonic clock.
    pub time: u64,
    /// When the process began ([`Start::at`]).
    pub start: u64,
}
const _: () = assert!(size_of::<ProcessRecord>() == 32);
