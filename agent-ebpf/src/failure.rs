//! What both sides know of failing system calls.
//!
//! Everything is counted in the kernel. A count belongs to a [`row`], a (system call, errno) pair;
//! below it, to one argument (by a hash of it) and to one stack (by its hash). The text of an
//! argument crosses once, as a [`CallRecord`].

/// (System call, errno) pairs.
pub const MAX_ROWS: u32 = 2048;
/// Distinct arguments of all rows together.
pub const MAX_ARGUMENTS: u32 = 32768;
/// Distinct (row, stack) pairs.
pub const MAX_STACKS: u32 = 16384;
/// Distinct (row, bucket of time) pairs.
pub const MAX_BUCKETS: u32 = 32768;
/// Threads whose call is being timed at once.
pub const MAX_CALLS: u32 = 16384;
/// System calls with a [`shape`]: those with a lower number.
pub const MAX_NUMBERS: u32 = 512;
/// Errors that can be asked for: those with a lower number (`ERESTART_RESTARTBLOCK` is 516).
pub const MAX_ERRNOS: u32 = 1024;
/// Longest path with its final zero (`PATH_MAX`, linux/limits.h).
pub const PATH_BYTES: usize = 4096;
/// Components of a place that are kept.
pub const PLACE_COMPONENTS: u32 = 48;
/// Bytes of all texts of a record.
pub const TEXT_BYTES: usize = 3 * PATH_BYTES;
/// Bytes of a socket address that are kept (`struct sockaddr_storage`, linux/socket.h).
pub const ADDRESS_BYTES: usize = 128;

/// A (system call, errno) pair: the number in bits 16 to 47, the errno below.
pub mod row {
    /// Packs the two.
    #[inline(always)]
    pub const fn pack(number: u32, errno: u16) -> u64 {
        (number as u64) << 16 | errno as u64
    }

    /// The system call's number.
    #[inline(always)]
    pub const fn number(row: u64) -> u32 {
        (row >> 16) as u32
    }

    /// The errno, positive.
    #[inline(always)]
    pub const fn errno(row: u64) -> u16 {
        row as u16
    }
}

/// Which of a system call's six arguments is what. A place is the argument's index plus one, 0
/// for none, in three bits each; 0 altogether: no argument is kept.
pub mod shape {
    /// Path.
    pub const PATH: u32 = 0;
    /// Descriptor of the directory that the path is relative to; without one, the working directory.
    pub const DIRECTORY: u32 = 3;
    /// Second path.
    pub const PATH2: u32 = 6;
    /// Its directory.
    pub const DIRECTORY2: u32 = 9;
    /// Descriptor.
    pub const FD: u32 = 12;
    /// Socket address; its length is the next argument.
    pub const ADDRESS: u32 = 15;
    /// First of six bits: this argument itself tells calls apart (a signal, an operation).
    pub const VALUES: u32 = 18;
    /// Flag: failures of this system call are not wanted.
    pub const SKIP: u32 = 1 << 31;

    /// The index of the argument at a place of the shape, if it has one.
    #[inline(always)]
    pub const fn index(shape: u32, place: u32) -> Option<u32> {
        match shape >> place & 7 {
            0 => None,
            index => Some(index - 1),
        }
    }
}

/// Value of the `ROWS` map, for each CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// Failures.
    pub count: u64,
    /// Time of the first, in nanoseconds of the monotonic clock.
    pub first_ns: u64,
    /// Time of the last.
    pub last_ns: u64,
    /// Of the failures, those whose argument found no place in `ARGUMENTS`.
    pub other_arguments: u64,
    /// Of the failures, those whose stack found no place in `STACK_COUNTS`.
    pub other_stacks: u64,
    /// Failures that were timed.
    pub timed: u64,
    /// The longest of these, in nanoseconds.
    pub max_ns: u64,
}
const _: () = assert!(size_of::<Row>() == 56);

/// Value of the `ARGUMENTS` map; the key is a hash of row and argument.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Argument {
    /// Failures.
    pub count: u64,
    /// The [`row`].
    pub row: u64,
    /// 1 once the [`CallRecord`] is in the ring buffer.
    pub sent: u64,
}
const _: () = assert!(size_of::<Argument>() == 24);

/// Key of the `STACK_COUNTS` and `BUCKETS` maps; the value is a count.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The [`row`].
    pub row: u64,
    /// Hash of the stack, or number of the [`bucket`].
    pub part: u64,
}
const _: () = assert!(size_of::<Part>() == 16);

/// Flags of [`CallRecord::flags`].
pub mod call {
    /// The first path or the address could not be read.
    pub const UNREADABLE: u32 = 1;
    /// The second path could not be read.
    pub const UNREADABLE2: u32 = 2;
    /// The first path is relative.
    pub const RELATIVE: u32 = 4;
    /// The second path is relative.
    pub const RELATIVE2: u32 = 8;
    /// The descriptor was open.
    pub const OPEN: u32 = 16;
    /// The first place is longer than is kept: its last components only.
    pub const DEEP: u32 = 32;
    /// The second place is.
    pub const DEEP2: u32 = 64;
    /// The descriptor's file has been deleted.
    pub const DELETED: u32 = 128;
    /// The descriptor is a socket: its place is [`crate::connection::Ends`].
    pub const SOCKET: u32 = 256;
}

/// An argument seen for the first time, followed by four texts: the paths, each with its final
/// zero, or the socket address; then the places of the two. A place is a path in the file systems
/// as the process sees them: the names of its components from the last to the first, each with its
/// final zero.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallRecord {
    /// [`crate::record::SYSCALL`].
    pub kind: u32,
    /// Thread-group id in the initial PID namespace.
    pub tgid: u32,
    /// The [`row`].
    pub row: u64,
    /// Key in the `ARGUMENTS` map.
    pub key: u64,
    /// The system call's arguments.
    pub values: [u64; 6],
    /// Inode number of the file behind the descriptor.
    pub inode: u64,
    /// `O_…` flags of that file.
    pub file_flags: u32,
    /// Its type and permissions (`S_IF…`).
    pub mode: u32,
    /// Its [`shape`].
    pub shape: u32,
    /// [`call`] flags.
    pub flags: u32,
    /// Bytes of the first text.
    pub first: u32,
    /// Bytes of the second text.
    pub second: u32,
    /// Bytes of the place of the first: the directory of a relative path, or the descriptor's file.
    pub third: u32,
    /// Bytes of the place of the second.
    pub fourth: u32,
}
const _: () = assert!(size_of::<CallRecord>() == 112);

/// Log-linear buckets of time: 32 for each power of two, so at most 1.6 % from the middle.
pub mod bucket {
    /// Bits of a value that are kept below its highest.
    const BITS: u32 = 5;

    /// The bucket of a time in nanoseconds.
    #[inline(always)]
    pub const fn of(ns: u64) -> u64 {
        let highest = 63 - (ns | 1).leading_zeros();
        if highest <= BITS {
            return ns;
        }
        let shift = highest - BITS;
        ((shift as u64) << BITS) + (ns >> (shift & 63))
    }

    /// The middle of a bucket, in nanoseconds.
    pub const fn middle(bucket: u64) -> f64 {
        if bucket < 2 << BITS {
            return bucket as f64;
        }
        let shift = (bucket >> BITS) - 1;
        let first = (bucket & ((1 << BITS) - 1)) + (1 << BITS);
        (first as f64 + 0.5) * (1u64 << (shift & 63)) as f64
    }
}

numbers! {
    /// What could not be kept, indices of the `SYSCALL_COUNTERS` map. None of these takes a failure
    /// from its row's count but [`Loss::Rows`].
    Loss {
        /// A failure was not counted: the rows map was full.
        Rows = "rows_full",
        /// An argument was not kept: the arguments map was full.
        Arguments = "arguments_full",
        /// A stack was not kept: the stack counts were full.
        Stacks = "stacks_full",
        /// The working memory was in use.
        Busy = "scratch_busy",
        /// A failure without a time: the call began before the agent did, or the map was full.
        Untimed = "calls_not_timed",
        /// A time was not kept: the buckets map was full.
        Buckets = "latency_buckets_full",
        /// A failing call of 32-bit code, which is not counted in any row.
        Compat = "calls_of_32_bit_code",
    }
}
