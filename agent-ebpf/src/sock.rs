//! Reads the kernel's sockets: every offset comes from the kernel's own BTF (`maps::config`).

use agent_ebpf::connection::{Connection, Ends, Metrics, Report, role, what};
use agent_ebpf::record;
use aya_ebpf::helpers::bpf_probe_read_kernel;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;

use crate::maps::config;

/// TCP states (net/tcp_states.h).
pub mod state {
    pub const ESTABLISHED: u32 = 1;
    pub const SYN_SENT: u32 = 2;
    pub const SYN_RECV: u32 = 3;
    pub const FIN_WAIT1: u32 = 4;
    pub const FIN_WAIT2: u32 = 5;
    pub const CLOSE: u32 = 7;
    pub const CLOSE_WAIT: u32 = 8;
    pub const LAST_ACK: u32 = 9;
    pub const LISTEN: u32 = 10;
    pub const CLOSING: u32 = 11;
}

const IPPROTO_TCP: u16 = 6;
const AF_INET6: u16 = 10;
const AF_INET: u16 = 2;
const EADDRNOTAVAIL: u32 = 99;

/// The value at `offset` of a kernel structure; zero where it cannot be read.
#[inline(always)]
pub fn read<T: Copy + Default>(base: u64, offset: u32) -> T {
    // SAFETY: the helper checks the address; callers read integers only.
    unsafe { bpf_probe_read_kernel((base + offset as u64) as *const T) }.unwrap_or_default()
}

/// Whether it is a TCP socket over IPv4 or IPv6.
#[inline(always)]
pub fn is_tcp(sock: u64) -> bool {
    let family: u16 = read(sock, config::skc_family());
    (family == AF_INET || family == AF_INET6)
        && read::<u16>(sock, config::sk_protocol()) == IPPROTO_TCP
}

/// Its TCP state.
#[inline(always)]
pub fn tcp_state(sock: u64) -> u32 {
    read::<u8>(sock, config::skc_state()) as u32
}

/// What a listening socket and those that it accepts have in common: network namespace and port.
#[inline(always)]
pub fn listener_key(sock: u64) -> u64 {
    let namespace: u64 = read(sock, config::skc_net());
    namespace << 16 | read::<u16>(sock, config::skc_num()) as u64
}

/// Puts down who talks to whom.
#[inline(always)]
pub fn addresses(sock: u64, connection: &mut Connection) {
    let ends = ends(sock);
    connection.family = ends.family;
    connection.ports = ends.ports;
    connection.local = ends.local;
    connection.remote = ends.remote;
}

/// Who talks to whom.
#[inline(always)]
pub fn ends(sock: u64) -> Ends {
    let family: u16 = read(sock, config::skc_family());
    let mut ends = Ends {
        family: family as u32,
        ..Ends::default()
    };
    if family != AF_INET && family != AF_INET6 {
        return ends;
    }
    // The port of `skc_num` goes when the socket closes.
    let local = u16::from_be(read(sock, config::inet_sport()));
    let remote = u16::from_be(read(sock, config::skc_dport()));
    ends.ports = (local as u32) << 16 | remote as u32;
    if family == AF_INET6 {
        ends.local[0] = read(sock, config::skc_v6_rcv_saddr());
        ends.local[1] = read(sock, config::skc_v6_rcv_saddr() + 8);
        ends.remote[0] = read(sock, config::skc_v6_daddr());
        ends.remote[1] = read(sock, config::skc_v6_daddr() + 8);
    } else {
        ends.local[0] = read::<u32>(sock, config::skc_rcv_saddr()) as u64;
        ends.remote[0] = read::<u32>(sock, config::skc_daddr()) as u64;
    }
    ends
}

/// Who opened the connection, from the kernel's own counters.
///
/// A client's SYN takes a sequence number and, once acknowledged, counts as a byte of
/// `bytes_acked` (tcp_snd_una_update, net/ipv4/tcp_input.c); a server's SYN does not, for its socket
/// is made after it. Payload is counted apart in `bytes_sent`, so one sum tells the two.
#[inline(always)]
pub fn role_of(sock: u64) -> u32 {
    let state = tcp_state(sock);
    if state == state::SYN_SENT {
        return role::CLIENT;
    }
    let acked: u64 = read(sock, config::tp_bytes_acked());
    let next: u32 = read(sock, config::tp_snd_nxt());
    let in_flight = next.wrapping_sub(read(sock, config::tp_snd_una()));
    let sent: u64 = read(sock, config::tp_bytes_sent());
    let payload = sent.wrapping_sub(read(sock, config::tp_bytes_retrans()));
    let fin_sent = next == read::<u32>(sock, config::tp_write_seq())
        && (state == state::FIN_WAIT1
            || state == state::FIN_WAIT2
            || state == state::CLOSING
            || state == state::LAST_ACK);
    let control = acked
        .wrapping_add(in_flight as u64)
        .wrapping_sub(payload)
        .wrapping_sub(fin_sent as u64);
    match control {
        0 => role::SERVER,
        1 => role::CLIENT,
        _ => role::UNKNOWN,
    }
}

/// Fills in all that is known of a connection.
///
/// # Safety
/// `report` points to a whole report that may be written.
#[inline(always)]
pub unsafe fn fill(report: *mut Report, what: u32, sock: u64, connection: &Connection) {
    let mut error: u32 = read(sock, config::sk_err());
    if what == what::FAILED && error == 0 && read::<u16>(sock, config::inet_sport()) == 0 {
        // It never got a local port.
        error = EADDRNOTAVAIL;
    }
    // SAFETY: what the caller promises.
    unsafe {
        (*report).kind = record::TCP;
        (*report).what = what;
        (*report).sock = sock;
        (*report).time = bpf_ktime_get_ns();
        (*report).holder = connection.tgid;
        (*report).reserved = 0;
        (*report).metrics = Metrics {
            bytes_sent: read(sock, config::tp_bytes_sent()),
            bytes_retrans: read(sock, config::tp_bytes_retrans()),
            bytes_received: read(sock, config::tp_bytes_received()),
            srtt: read(sock, config::tp_srtt()),
            mdev: read(sock, config::tp_mdev()),
            min_rtt: read(sock, config::tp_min_rtt()),
            retransmits: read(sock, config::tp_total_retrans()),
            error,
            reserved: 0,
        };
        let start = connection.batch.start();
        (*report).connection = *connection;
        let after = core::ptr::read_volatile(&raw const connection.batch.written)
            .wrapping_sub(core::ptr::read_volatile(&raw const connection.batch.pending) as u64);
        (*report).connection.torn = (after != start) as u32;
    }
}
