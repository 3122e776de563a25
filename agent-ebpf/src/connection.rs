//! What the kernel keeps and tells of a TCP connection.

use crate::exchange::{Batch, Exchange};

/// Connections that can be followed at once.
pub const MAX_CONNECTIONS: u32 = 20480;
/// Listening sockets of the targets.
pub const MAX_LISTENERS: u32 = 1024;

/// Values of [`Connection::role`].
pub mod role {
    /// It cannot be told.
    pub const UNKNOWN: u32 = 0;
    /// It connected.
    pub const CLIENT: u32 = 1;
    /// It was accepted.
    pub const SERVER: u32 = 2;
}

/// Bits of [`Connection::flags`].
pub mod flag {
    /// It was there before the probes were.
    pub const PRE_EXISTING: u32 = 1;
    /// More than one process uses it.
    pub const SHARED: u32 = 2;
}

/// The two ends of an internet socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ends {
    /// Address family: `AF_INET`, `AF_INET6` or another, of which nothing else is known.
    pub family: u32,
    /// Local port in the upper 16 bits, remote port in the lower.
    pub ports: u32,
    /// Local address in network order; an IPv4 one in the first four bytes.
    pub local: [u64; 2],
    /// Remote address, as above.
    pub remote: [u64; 2],
}
const _: () = assert!(size_of::<Ends>() == 40);

/// Value of the `CONNECTIONS` map; the key is the address of the kernel's socket.
///
/// Times are nanoseconds of `CLOCK_MONOTONIC`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connection {
    /// Thread-group id of its owner in the initial PID namespace; 0 until it is known.
    pub tgid: u32,
    /// One of [`role`].
    pub role: u32,
    /// The turn under way.
    pub exchange: Exchange,
    /// When it was established; 0 if that was not seen.
    pub established: u64,
    /// Requests that wait to be sent, and how many there were. It knows the socket's address and
    /// when the connection was first seen, which tells two sockets at one address apart.
    pub batch: Batch,
    /// Bits of [`flag`].
    pub flags: u32,
    /// TCP state (`TCP_…`, net/tcp_states.h).
    pub state: u32,
    /// Address family: `AF_INET` or `AF_INET6`.
    pub family: u32,
    /// Local port in the upper 16 bits, remote port in the lower.
    pub ports: u32,
    /// Local address in network order; an IPv4 one in the first four bytes.
    pub local: [u64; 2],
    /// Remote address, as above.
    pub remote: [u64; 2],
    /// SYN to ESTABLISHED in nanoseconds; 0 if it was not seen.
    pub connect: u64,
    /// ESTABLISHED to accept in nanoseconds, plus one; 0 if it was not seen.
    pub accept_wait: u64,
    /// Resets sent.
    pub resets_sent: u32,
    /// Resets received.
    pub resets_received: u32,
    /// Thread-group id of who listened for it; 0 for other connections.
    pub listener: u32,
    /// Not zero in a report: the batch was sent while it was being copied, do not use it.
    pub torn: u32,
    /// Zero. With the 56 bytes that a hash map puts before a value (`struct htab_elem`,
    /// kernel/bpf/hashtab.c) it is seven cache lines: what each request writes is in the second
    /// and third, and looking a socket up reads the first, which then stays shared between CPUs.
    pub reserved: [u64; 2],
}
const _: () = assert!(size_of::<Connection>() == 392);
const _: () = assert!(core::mem::offset_of!(Connection, exchange) == 8);

/// Counters of the kernel's own (`struct tcp_sock`, linux/tcp.h), as read.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    /// Payload bytes sent, retransmissions included.
    pub bytes_sent: u64,
    /// Payload bytes retransmitted.
    pub bytes_retrans: u64,
    /// Payload bytes received.
    pub bytes_received: u64,
    /// Smoothed round trip time in 1/8 µs.
    pub srtt: u32,
    /// Its mean deviation in 1/4 µs.
    pub mdev: u32,
    /// Smallest round trip time in µs; all ones if there is none.
    pub min_rtt: u32,
    /// Segments retransmitted.
    pub retransmits: u32,
    /// The socket's error (errno).
    pub error: u32,
    /// Zero.
    pub reserved: u32,
}
const _: () = assert!(size_of::<Metrics>() == 48);

/// What a [`Report`] is about; values of [`Report::what`].
pub mod what {
    /// The connection lives, and this process holds it.
    pub const LIVES: u32 = 1;
    /// It is gone.
    pub const CLOSED: u32 = 2;
    /// A connect failed; [`super::Metrics::error`] says why.
    pub const FAILED: u32 = 3;
    /// It lives, but there was no room to follow it.
    pub const NO_ROOM: u32 = 4;
}

/// All that is known of a connection: a record of the ring buffer (at its end) and of the
/// iterator (once per interval).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// [`crate::record::TCP`].
    pub kind: u32,
    /// One of [`what`].
    pub what: u32,
    /// Address of the kernel's socket.
    pub sock: u64,
    /// When this was written, in nanoseconds of `CLOCK_MONOTONIC`.
    pub time: u64,
    /// The process that holds it ([`what::LIVES`]).
    pub holder: u32,
    /// Zero.
    pub reserved: u32,
    /// The kernel's counters.
    pub metrics: Metrics,
    /// What the probes know.
    pub connection: Connection,
}
const _: () = assert!(size_of::<Report>() == 472);
