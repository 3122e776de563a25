//! TCP connections: their life, their owners and the turns of their requests.
//!
//! Owners are learnt only where the process itself runs (sending, reading, connecting, closing);
//! what comes in softirq looks the socket up. Sending, reading and arrival are hooked inside the
//! socket's lock, so that the state of a connection needs none of its own.

use agent_ebpf::connection::{Connection, Report, flag, role, what};
use agent_ebpf::exchange::Batch;
use agent_ebpf::{Counter, Timed, record};
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::{
    bpf_ktime_get_ns, bpf_ringbuf_reserve, bpf_ringbuf_submit, bpf_seq_write,
};
use aya_ebpf::macros::{fentry, fexit, raw_tracepoint};
use aya_ebpf::programs::{FEntryContext, FExitContext, RawTracePointContext};

use crate::maps::{BLANK, CONNECTIONS, EVENTS, LISTENERS, REPORT, config};
use crate::sock::{self, read, state};
use crate::{count, emit, measure, process};

const BPF_ANY: u64 = 0;
const BPF_NOEXIST: u64 = 1;

#[inline(always)]
fn now() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_ktime_get_ns() }
}

#[inline(always)]
fn current() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}

/// Whether the current process is a target.
#[inline(always)]
fn in_scope(tgid: u32) -> bool {
    process::target(tgid).is_some()
}

#[inline(always)]
fn find(sock: u64) -> Option<&'static mut Connection> {
    // SAFETY: the kernel frees no element while a program runs; see above for the locking.
    CONNECTIONS
        .get_ptr_mut(sock)
        .map(|connection| unsafe { &mut *connection })
}

// Sending.

/// `tcp_sendmsg_locked(sk, …)`, a tracepoint since 6.16: a send begins, or goes on.
#[raw_tracepoint(tracepoint = "tcp_sendmsg_locked")]
pub fn tcp_send(ctx: RawTracePointContext) -> i32 {
    on_send(ctx.arg(0));
    0
}

/// `tcp_sendmsg_locked(sk, msg, size)`.
#[fentry(function = "tcp_sendmsg_locked")]
pub fn tcp_send_entry(ctx: FEntryContext) -> i32 {
    on_send(ctx.arg(0));
    0
}

/// `do_tcp_sendpages(sk, page, offset, size, flags)`: sendfile before 6.5. The compiler puts what calls
/// it, `tcp_sendpage_locked`, into its own caller, where no hook sees it.
#[fentry(function = "do_tcp_sendpages")]
pub fn tcp_sendpage_entry(ctx: FEntryContext) -> i32 {
    on_send(ctx.arg(0));
    0
}

/// The return of `tcp_sendmsg_locked(sk, msg, size)`.
#[fexit(function = "tcp_sendmsg_locked")]
pub fn tcp_send_exit(ctx: FExitContext) -> i32 {
    if ctx.arg::<u64>(3) as i32 > 0 {
        on_sent(ctx.arg(0));
    }
    0
}

/// The return of `do_tcp_sendpages(sk, page, offset, size, flags)`.
#[fexit(function = "do_tcp_sendpages")]
pub fn tcp_sendpage_exit(ctx: FExitContext) -> i32 {
    if ctx.arg::<u64>(5) as i32 > 0 {
        on_sent(ctx.arg(0));
    }
    0
}

#[inline(always)]
fn on_send(sock: u64) {
    let begun = measure::begin();
    if let Some(connection) = used_by_current(sock) {
        let client = connection.role == role::CLIENT;
        connection
            .exchange
            .on_send(client, now(), &mut connection.batch, flush);
        measure::end(begun, Timed::TCP);
    }
}

#[inline(always)]
fn on_sent(sock: u64) {
    let begun = measure::begin();
    if let Some(connection) = find(sock) {
        connection.exchange.on_sent(now(), &mut connection.batch);
        measure::end(begun, Timed::TCP);
    }
}

// Arrival.

/// `sk_data_ready(sk)`, since 6.3: payload can be read.
#[raw_tracepoint(tracepoint = "sk_data_ready")]
pub fn tcp_arrival(ctx: RawTracePointContext) -> i32 {
    let begun = measure::begin();
    if let Some(connection) = find(ctx.arg(0)) {
        connection.exchange.on_arrival(now);
        measure::end(begun, Timed::TCP);
    }
    0
}

/// `tcp_probe(sk, skb)`: any segment of an established connection, before it is looked at.
#[raw_tracepoint(tracepoint = "tcp_probe")]
pub fn tcp_segment(ctx: RawTracePointContext) -> i32 {
    let begun = measure::begin();
    let Some(connection) = find(ctx.arg(0)) else {
        return 0;
    };
    if connection.exchange.arrived != 0 {
        measure::end(begun, Timed::TCP);
        return 0;
    }
    let skb: u64 = ctx.arg(1);
    let length: u32 = read(skb, config::skb_len());
    let header: u64 = read(skb, config::skb_data());
    // RFC 9293, 3.1: the sequence number at byte 4; the data offset, in words, in the upper half of
    // byte 12.
    let offset = (read::<u8>(header, 12) >> 4) as u32 * 4;
    let end = u32::from_be(read(header, 4)).wrapping_add(length.wrapping_sub(offset));
    let expected: u32 = read(ctx.arg(0), config::tp_rcv_nxt());
    // What was received before comes again where the sender thought it lost.
    if length > offset && end.wrapping_sub(expected) as i32 > 0 {
        connection.exchange.on_arrival(now);
    }
    measure::end(begun, Timed::TCP);
    0
}

// Reading.

/// `tcp_rcv_space_adjust(sk)`: the process has taken bytes out of a TCP socket, by whatever call.
#[raw_tracepoint(tracepoint = "tcp_rcv_space_adjust")]
pub fn tcp_read(ctx: RawTracePointContext) -> i32 {
    let begun = measure::begin();
    let sock: u64 = ctx.arg(0);
    let Some(connection) = used_by_current(sock) else {
        return 0;
    };
    let exchange = &mut connection.exchange;
    if exchange.arrived == 0 && exchange.last_send == 0 && connection.established != 0 {
        // It came with the handshake, where `tcp_probe` does not see it.
        exchange.arrived = now();
    }
    exchange.on_read(
        connection.role == role::CLIENT,
        now,
        &mut connection.batch,
        flush,
    );
    measure::end(begun, Timed::TCP);
    0
}

/// The connection, where the current process is sending or reading: learns its owner.
#[inline(always)]
fn used_by_current(sock: u64) -> Option<&'static mut Connection> {
    let tgid = current();
    let connection = match find(sock) {
        Some(connection) => connection,
        None if in_scope(tgid) && adopt(sock, tgid) => find(sock)?,
        None => return None,
    };
    if connection.role == role::UNKNOWN {
        connection.role = sock::role_of(sock);
    }
    if connection.tgid != tgid && !claim(sock, connection, tgid) {
        return None;
    }
    Some(connection)
}

/// A socket that changes hands. One of another process that only shares a listening port with a
/// target is dropped.
#[inline(always)]
fn claim(sock: u64, connection: &mut Connection, tgid: u32) -> bool {
    let ours = in_scope(tgid);
    if connection.tgid == 0 && !ours {
        let _ = CONNECTIONS.remove(sock);
        return false;
    }
    if connection.tgid != 0 {
        connection.flags |= flag::SHARED;
    }
    if ours {
        connection.tgid = tgid;
    }
    true
}

/// Follows a connection whose beginning was not seen.
#[inline(never)]
fn adopt(sock: u64, tgid: u32) -> bool {
    let state = sock::tcp_state(sock);
    if state == state::LISTEN || state == state::CLOSE || !sock::is_tcp(sock) {
        return false;
    }
    let Some(connection) = create(sock, BPF_NOEXIST) else {
        return false;
    };
    connection.tgid = tgid;
    connection.flags = flag::PRE_EXISTING;
    connection.state = state;
    connection.role = sock::role_of(sock);
    sock::addresses(sock, connection);
    true
}

/// Follows a connection that begins now. Where there is no room it is counted: once, for it does
/// not begin again.
#[inline(always)]
fn begin(sock: u64) -> Option<&'static mut Connection> {
    let connection = create(sock, BPF_ANY);
    if connection.is_none() {
        count(Counter::LostConnection, 1);
    }
    connection
}

#[inline(always)]
fn create(sock: u64, flags: u64) -> Option<&'static mut Connection> {
    CONNECTIONS.insert(sock, BLANK.get(0)?, flags).ok()?;
    let connection = find(sock)?;
    connection.batch.kind = record::TCP_REQUESTS;
    connection.batch.sock = sock;
    connection.batch.born = now();
    Some(connection)
}

/// Sends finished requests to userspace.
#[inline(always)]
fn flush(batch: &Batch) -> bool {
    // SAFETY: a part of a map's value, whole and initialised.
    let sent = unsafe { emit::output(batch, size_of::<Batch>() as u64, emit::Wake::WhenFull) };
    if !sent {
        count(Counter::LostRequest, 1);
    }
    sent
}

// Life.

/// `inet_sock_set_state(sk, oldstate, newstate)`.
#[raw_tracepoint(tracepoint = "inet_sock_set_state")]
pub fn tcp_set_state(ctx: RawTracePointContext) -> i32 {
    let begun = measure::begin();
    let sock: u64 = ctx.arg(0);
    let (old, new) = (ctx.arg::<u64>(1) as u32, ctx.arg::<u64>(2) as u32);
    match new {
        state::SYN_SENT => on_connect(sock),
        state::LISTEN => on_listen(sock),
        state::CLOSE if old == state::LISTEN => {
            let _ = LISTENERS.remove(sock::listener_key(sock));
        }
        state::ESTABLISHED if old == state::SYN_RECV => on_incoming(sock),
        _ => on_change(sock, old, new),
    }
    if find(sock).is_some() {
        measure::end(begun, Timed::TCP);
    }
    0
}

/// The process calls connect.
#[inline(always)]
fn on_connect(sock: u64) {
    let tgid = current();
    if !in_scope(tgid) || !sock::is_tcp(sock) {
        return;
    }
    let Some(connection) = begin(sock) else {
        return;
    };
    connection.tgid = tgid;
    connection.role = role::CLIENT;
    connection.state = state::SYN_SENT;
    sock::addresses(sock, connection);
}

/// The process calls listen.
#[inline(always)]
fn on_listen(sock: u64) {
    let tgid = current();
    if in_scope(tgid) && sock::is_tcp(sock) {
        let _ = LISTENERS.insert(sock::listener_key(sock), tgid, BPF_ANY);
    }
}

/// A handshake with a listening socket is done, in softirq: whose it will be shows later.
#[inline(always)]
fn on_incoming(sock: u64) {
    // SAFETY: the value is copied at once.
    let Some(listener) = (unsafe { LISTENERS.get(sock::listener_key(sock)) }).copied() else {
        return;
    };
    if !sock::is_tcp(sock) {
        return;
    }
    let Some(connection) = begin(sock) else {
        return;
    };
    connection.listener = listener;
    connection.role = role::SERVER;
    connection.state = state::ESTABLISHED;
    connection.established = connection.batch.born;
    sock::addresses(sock, connection);
}

#[inline(always)]
fn on_change(sock: u64, old: u32, new: u32) {
    let Some(connection) = find(sock) else { return };
    connection.state = new;
    if connection.role == role::UNKNOWN && (old == state::ESTABLISHED || old == state::CLOSE_WAIT) {
        // The last chance: the counters agree now, for the socket is locked and no FIN was sent.
        connection.role = sock::role_of(sock);
    }
    if old == state::SYN_SENT && new == state::ESTABLISHED {
        connection.established = now();
        if connection.flags & flag::PRE_EXISTING == 0 {
            connection.connect = connection.established - connection.batch.born;
        }
        sock::addresses(sock, connection);
    } else if old == state::SYN_SENT && new == state::CLOSE {
        report(sock, connection, what::FAILED);
        let _ = CONNECTIONS.remove(sock);
    } else if connection.tgid == 0
        && (old == state::ESTABLISHED && new == state::FIN_WAIT1
            || old == state::CLOSE_WAIT && new == state::LAST_ACK)
    {
        // Only the process itself closes in this order.
        claim(sock, connection, current());
    }
}

/// `tcp_destroy_sock(sk)`: the kernel gives the socket up.
#[raw_tracepoint(tracepoint = "tcp_destroy_sock")]
pub fn tcp_destroy(ctx: RawTracePointContext) -> i32 {
    let begun = measure::begin();
    let sock: u64 = ctx.arg(0);
    let Some(connection) = find(sock) else {
        return 0;
    };
    if connection.tgid == 0 {
        connection.tgid = connection.listener;
    }
    report(sock, connection, what::CLOSED);
    let _ = CONNECTIONS.remove(sock);
    measure::end(begun, Timed::TCP);
    0
}

/// `tcp_send_reset(sk, skb, reason)`; `sk` may be null.
#[raw_tracepoint(tracepoint = "tcp_send_reset")]
pub fn tcp_reset_sent(ctx: RawTracePointContext) -> i32 {
    if let Some(connection) = find(ctx.arg(0)) {
        connection.resets_sent += 1;
    }
    0
}

/// `tcp_receive_reset(sk)`.
#[raw_tracepoint(tracepoint = "tcp_receive_reset")]
pub fn tcp_reset_received(ctx: RawTracePointContext) -> i32 {
    if let Some(connection) = find(ctx.arg(0)) {
        connection.resets_received += 1;
    }
    0
}

/// The return of `inet_csk_accept(sk, flags, err, kern)`, before 6.10.
#[fexit(function = "inet_csk_accept")]
pub fn tcp_accept_4(ctx: FExitContext) -> i32 {
    on_accept(ctx.arg(4));
    0
}

/// The return of `inet_csk_accept(sk, arg)`, since 6.10.
#[fexit(function = "inet_csk_accept")]
pub fn tcp_accept_2(ctx: FExitContext) -> i32 {
    on_accept(ctx.arg(2));
    0
}

#[inline(always)]
fn on_accept(sock: u64) {
    let Some(connection) = find(sock) else { return };
    if connection.tgid == 0 && claim(sock, connection, current()) {
        connection.accept_wait = now().saturating_sub(connection.established) + 1;
    }
}

/// Sends all that is known of a connection through the ring buffer.
#[inline(always)]
fn report(sock: u64, connection: &Connection, what: u32) {
    let ring = (&raw const EVENTS).cast_mut().cast();
    // SAFETY: the size is that of what is written and submitted.
    unsafe {
        let place = bpf_ringbuf_reserve(ring, size_of::<Report>() as u64, 0).cast::<Report>();
        if place.is_null() {
            count(Counter::LostConnectionRecord, 1);
            return;
        }
        sock::fill(place, what, sock, connection);
        bpf_ringbuf_submit(place.cast(), emit::wake_flags());
    }
}

// Once per interval.

/// What an `iter/task_file` program is called with (`struct bpf_iter__task_file`,
/// kernel/bpf/task_iter.c).
#[repr(C)]
pub struct FileIterator {
    meta: *const u64,
    task: u64,
    fd: u64,
    file: u64,
}

/// Every open file of every process: finds the targets' sockets, those that were there before the
/// probes too, and writes a report of each connection to the reader.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
pub extern "C" fn iter_tcp(ctx: *const FileIterator) -> i32 {
    // SAFETY: the kernel calls with such a context; `meta` begins with the file to write to.
    let (task, file, seq) = unsafe { ((*ctx).task, (*ctx).file, *(*ctx).meta) };
    if task == 0 || file == 0 {
        return 0;
    }
    let socket: u64 = read(file, config::file_private_data());
    // Only a socket's file has private data that points back to the file.
    if socket == 0 || read::<u64>(socket, config::socket_file()) != file {
        return 0;
    }
    let sock: u64 = read(socket, config::socket_sk());
    if sock == 0 || !sock::is_tcp(sock) {
        return 0;
    }
    let tgid: u32 = read(task, config::task_tgid());
    let (what, connection) = match held_by(sock, task, tgid) {
        Some(connection) => (what::LIVES, &*connection),
        None if finds_no_room(sock, task, tgid) => match BLANK.get(0) {
            Some(blank) => (what::NO_ROOM, blank),
            None => return 0,
        },
        None => return 0,
    };
    let Some(place) = REPORT.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: a per-CPU value, whole; the iterator is the only one that uses it.
    unsafe {
        sock::fill(place, what, sock, connection);
        (*place).holder = tgid;
        bpf_seq_write(seq as *mut _, place.cast(), size_of::<Report>() as u32);
    }
    0
}

/// Whether it is a connection of a target that should be followed and is not.
#[inline(always)]
fn finds_no_room(sock: u64, task: u64, tgid: u32) -> bool {
    let state = sock::tcp_state(sock);
    process::target_of(task, tgid).is_some()
        && state != state::LISTEN
        && state != state::CLOSE
        && find(sock).is_none()
}

/// The connection behind a socket that this process holds, if the process is a target.
#[inline(always)]
fn held_by(sock: u64, task: u64, tgid: u32) -> Option<&'static mut Connection> {
    if process::target_of(task, tgid).is_none() {
        if let Some(connection) = find(sock)
            && connection.tgid != 0
        {
            connection.flags |= flag::SHARED;
        }
        return None;
    }
    if sock::tcp_state(sock) == state::LISTEN {
        let _ = LISTENERS.insert(sock::listener_key(sock), tgid, BPF_ANY);
        return None;
    }
    let connection = match find(sock) {
        Some(connection) => connection,
        None if adopt(sock, tgid) => find(sock)?,
        None => return None,
    };
    if connection.tgid == 0 {
        connection.tgid = tgid;
    } else if connection.tgid != tgid {
        connection.flags |= flag::SHARED;
    }
    if connection.role == role::UNKNOWN {
        connection.role = sock::role_of(sock);
    }
    Some(connection)
}
