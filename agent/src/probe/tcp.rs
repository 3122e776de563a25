//! TCP connections: which hooks this kernel has, and what its records say.

use std::fs::File;
use std::io::{self, Read};

use agent_ebpf::connection::{Connection, Report};
use agent_ebpf::exchange::Batch;
use agent_ebpf::record;
use aya::Btf;
use aya::maps::{HashMap as BpfMap, MapData};
use aya::programs::{FEntry, FExit, Iter, ProgramError, RawTracePoint};

use crate::hazards;
use crate::probe::syscalls;
use crate::session::target::Targets;
use crate::session::{Attached, Error, Needs, attach_raw_tracepoint, program_mut, take};
use crate::tcp::{Connections, Owner};

/// Globals of the kernel programs, the fields whose offsets they hold, and what is added.
const OFFSETS: &[(&str, &str, u32)] = &[
    ("SKC_FAMILY", "sock_common.skc_family", 0),
    ("SKC_STATE", "sock_common.skc_state", 0),
    ("SKC_NUM", "sock_common.skc_num", 0),
    ("SKC_DPORT", "sock_common.skc_dport", 0),
    ("SKC_DADDR", "sock_common.skc_daddr", 0),
    ("SKC_RCV_SADDR", "sock_common.skc_rcv_saddr", 0),
    ("SKC_V6_DADDR", "sock_common.skc_v6_daddr", 0),
    ("SKC_V6_RCV_SADDR", "sock_common.skc_v6_rcv_saddr", 0),
    ("SKC_NET", "sock_common.skc_net", 0),
    ("SK_PROTOCOL", "sock.sk_protocol", 0),
    ("SK_ERR", "sock.sk_err", 0),
    ("INET_SPORT", "inet_sock.inet_sport", 0),
    ("TP_BYTES_SENT", "tcp_sock.bytes_sent", 0),
    ("TP_BYTES_RETRANS", "tcp_sock.bytes_retrans", 0),
    ("TP_BYTES_ACKED", "tcp_sock.bytes_acked", 0),
    ("TP_BYTES_RECEIVED", "tcp_sock.bytes_received", 0),
    ("TP_SND_NXT", "tcp_sock.snd_nxt", 0),
    ("TP_SND_UNA", "tcp_sock.snd_una", 0),
    ("TP_RCV_NXT", "tcp_sock.rcv_nxt", 0),
    ("TP_WRITE_SEQ", "tcp_sock.write_seq", 0),
    ("TP_SRTT", "tcp_sock.srtt_us", 0),
    ("TP_MDEV", "tcp_sock.mdev_us", 0),
    // struct minmax (linux/win_minmax.h): the first sample's value follows its time.
    ("TP_MIN_RTT", "tcp_sock.rtt_min", 4),
    ("TP_TOTAL_RETRANS", "tcp_sock.total_retrans", 0),
    ("SKB_LEN", "sk_buff.len", 0),
    ("SKB_DATA", "sk_buff.data", 0),
    ("FILE_PRIVATE_DATA", "file.private_data", 0),
    ("SOCKET_FILE", "socket.file", 0),
    ("SOCKET_SK", "socket.sk", 0),
];

/// The maps that only this probe uses, for commands that do without it.
pub const MAPS: &[&str] = &["CONNECTIONS", "LISTENERS", "REPORT"];
/// At 200,000 requests a second it holds a second and a half.
const RING_BYTES: u32 = 1 << 22;

/// What the session must provide.
pub fn needs() -> Needs {
    Needs {
        stacks: false,
        unused_maps: vec![&["SCRATCH", "SEEN"], syscalls::MAPS],
        ring_bytes: RING_BYTES,
        offsets: OFFSETS,
        ..Needs::default()
    }
}

/// Fields that the preflight has to look up.
pub fn fields() -> Vec<&'static str> {
    OFFSETS.iter().map(|&(_, field, _)| field).collect()
}

/// A way to see something happen.
#[derive(Clone, Copy, Debug)]
enum Hook {
    Tracepoint,
    Entry,
    Exit,
}

/// Programs that see the same thing, the preferred one first: what it is, the program, its hook.
type Candidates = &'static [(&'static str, &'static str, Hook)];

const SEND: Candidates = &[
    ("tcp_send", "tcp_sendmsg_locked", Hook::Tracepoint),
    ("tcp_send_entry", "tcp_sendmsg_locked", Hook::Entry),
];
/// The tracepoint comes again and again while a send goes on; the function's entry does not.
const SENT: Candidates = &[("tcp_send_exit", "tcp_sendmsg_locked", Hook::Exit)];
const ARRIVAL: Candidates = &[
    ("tcp_arrival", "sk_data_ready", Hook::Tracepoint),
    ("tcp_segment", "tcp_probe", Hook::Tracepoint),
];
/// Sendfile goes its own way before 6.5; later kernels lack the function.
const SENDPAGE: [Candidates; 2] = [
    &[("tcp_sendpage_entry", "do_tcp_sendpages", Hook::Entry)],
    &[("tcp_sendpage_exit", "do_tcp_sendpages", Hook::Exit)],
];
/// The verifier tells by the number of arguments (6.10 has fewer).
const ACCEPT: Candidates = &[
    ("tcp_accept_4", "inet_csk_accept", Hook::Exit),
    ("tcp_accept_2", "inet_csk_accept", Hook::Exit),
];
/// There on every kernel.
const ALWAYS: [(&str, &str); 5] = [
    ("tcp_read", "tcp_rcv_space_adjust"),
    ("tcp_set_state", "inet_sock_set_state"),
    ("tcp_destroy", "tcp_destroy_sock"),
    ("tcp_reset_sent", "tcp_send_reset"),
    ("tcp_reset_received", "tcp_receive_reset"),
];
const ITERATOR: &str = "iter_tcp";

/// The probe, attached.
pub struct Probe {
    connections: BpfMap<MapData, u64, Value>,
    /// The hooks taken, for people.
    pub hooks: Vec<String>,
    /// What this kernel does not let be seen.
    pub missing: Vec<&'static str>,
}

/// Attaches to the first of each kind of hook that the kernel accepts.
///
/// # Errors
/// When it accepts none of a kind that cannot be done without.
pub fn attach(session: &mut Attached) -> Result<Probe, Error> {
    let refused = |source| Error::Program {
        program: ITERATOR,
        source: Box::new(source),
    };
    let btf = Btf::from_sys_fs().map_err(|error| refused(error.into()))?;
    let mut hooks = Vec::new();
    for (program, hook) in ALWAYS {
        attach_raw_tracepoint(session.ebpf(), program, hook)?;
    }
    let send = first(session, &btf, SEND)?;
    if !send.starts_with("tracepoint") {
        hooks.push(first(session, &btf, SENT)?);
    }
    hooks.push(send);
    hooks.push(first(session, &btf, ARRIVAL)?);
    if session.kernel().has(&hazards::SENDPAGE) {
        for candidates in SENDPAGE {
            hooks.extend(first(session, &btf, candidates).ok());
        }
    }
    let mut missing = Vec::new();
    match first(session, &btf, ACCEPT) {
        Ok(hook) => hooks.push(hook),
        Err(_) => {
            missing.push("the wait in the accept queue (fentry programs are not allowed here)")
        }
    }
    let iterator: &mut Iter = program_mut(session.ebpf(), ITERATOR)?;
    iterator.load("task_file", &btf).map_err(refused)?;
    let connections = take(session.ebpf(), "CONNECTIONS")?;
    Ok(Probe {
        connections,
        hooks,
        missing,
    })
}

fn first(session: &mut Attached, btf: &Btf, candidates: Candidates) -> Result<String, Error> {
    let mut refusal = Error::Missing("tcp");
    for &(program, hook, kind) in candidates {
        let done = match kind {
            Hook::Tracepoint => attach_raw_tracepoint(session.ebpf(), program, hook),
            Hook::Entry => attach_entry(session, btf, program, hook),
            Hook::Exit => attach_exit(session, btf, program, hook),
        };
        let kind = match kind {
            Hook::Tracepoint => "tracepoint",
            Hook::Entry => "fentry",
            Hook::Exit => "fexit",
        };
        match done {
            Ok(()) => return Ok(format!("{kind} {hook}")),
            Err(error) => refusal = error,
        }
    }
    Err(refusal)
}

fn failed(program: &'static str, hook: &str, loaded: bool) -> impl Fn(ProgramError) -> Error {
    let hook = format!("the function {hook}");
    move |source| {
        let source = Box::new(source);
        if loaded {
            Error::Attach {
                program,
                hook: hook.clone(),
                source,
            }
        } else {
            Error::Program { program, source }
        }
    }
}

fn attach_entry(
    session: &mut Attached,
    btf: &Btf,
    program: &'static str,
    hook: &str,
) -> Result<(), Error> {
    let entry: &mut FEntry = program_mut(session.ebpf(), program)?;
    entry
        .load(hook, btf)
        .map_err(failed(program, hook, false))?;
    entry
        .attach()
        .map(drop)
        .map_err(failed(program, hook, true))
}

fn attach_exit(
    session: &mut Attached,
    btf: &Btf,
    program: &'static str,
    hook: &str,
) -> Result<(), Error> {
    let exit: &mut FExit = program_mut(session.ebpf(), program)?;
    exit.load(hook, btf).map_err(failed(program, hook, false))?;
    exit.attach().map(drop).map_err(failed(program, hook, true))
}

/// Takes the hooks away: no event comes after it. The iterator can still be read.
///
/// # Errors
/// When the bytecode does not hold a program.
pub fn detach(session: &mut Attached) -> Result<(), Error> {
    let tracepoints = ALWAYS.iter().map(|&(program, _)| program);
    let others = [SEND, SENT, ARRIVAL, SENDPAGE[0], SENDPAGE[1], ACCEPT]
        .into_iter()
        .flatten();
    for (program, kind) in tracepoints
        .map(|program| (program, Hook::Tracepoint))
        .chain(others.map(|&(program, _, kind)| (program, kind)))
    {
        // Unloading drops the links; one that was not loaded has none.
        let _ = match kind {
            Hook::Tracepoint => program_mut::<RawTracePoint>(session.ebpf(), program)?.unload(),
            Hook::Entry => program_mut::<FEntry>(session.ebpf(), program)?.unload(),
            Hook::Exit => program_mut::<FExit>(session.ebpf(), program)?.unload(),
        };
    }
    Ok(())
}

/// Times the kernel skipped one of the programs, which it forgets once they are detached.
pub fn skipped(session: &Attached) -> u64 {
    let others = [SEND, SENT, ARRIVAL, SENDPAGE[0], SENDPAGE[1], ACCEPT];
    let others = others.into_iter().flatten().map(|&(program, ..)| program);
    let always = ALWAYS.iter().map(|&(program, _)| program);
    session.recursion_misses(always.chain(others).chain([ITERATOR]))
}

impl Probe {
    /// Looks at every connection that the targets hold, the ones from before the attach too.
    ///
    /// # Errors
    /// When the kernel's iterator cannot be run.
    pub fn look(&self, session: &mut Attached, connections: &mut Connections) -> Result<(), Error> {
        connections.begin_look();
        let mut file = open_iterator(session)?;
        let mut buffer = vec![0; size_of::<Report>() * 64];
        let mut filled = 0;
        loop {
            let room = buffer.get_mut(filled..).unwrap_or_default();
            match file.read(room) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
                    ) =>
                {
                    continue;
                }
                Err(source) => {
                    return Err(Error::Io {
                        what: "cannot read the socket iterator",
                        source,
                    });
                }
            }
            let whole = filled - filled % size_of::<Report>();
            for bytes in buffer
                .get(..whole)
                .unwrap_or_default()
                .chunks(size_of::<Report>())
            {
                take_in(bytes, session.targets(), connections);
            }
            buffer.copy_within(whole..filled, 0);
            filled -= whole;
        }
        self.look_for_orphans(connections);
        Ok(())
    }

    /// Connections that their process has closed but the kernel still keeps.
    fn look_for_orphans(&self, connections: &mut Connections) {
        for sock in connections.missed() {
            if let Ok(Value(connection)) = self.connections.get(&sock, 0) {
                connections.refresh(sock, &connection, || None);
            }
        }
    }

    /// As [`Probe::look`], and connections too that no look has ever found: opened and closed
    /// since the last one, but still kept by the kernel. To be called after [`detach`].
    ///
    /// # Errors
    /// As [`Probe::look`].
    pub fn last_look(
        &self,
        session: &mut Attached,
        connections: &mut Connections,
    ) -> Result<(), Error> {
        self.look(session, connections)?;
        let targets = session.targets();
        for (sock, Value(connection)) in self.connections.iter().flatten() {
            connections.refresh(sock, &connection, || owner(connection.tgid, targets));
        }
        Ok(())
    }
}

fn open_iterator(session: &mut Attached) -> Result<File, Error> {
    let refused = |source| Error::Attach {
        program: ITERATOR,
        hook: "the iterator task_file".to_owned(),
        source: Box::new(source),
    };
    let iterator: &mut Iter = program_mut(session.ebpf(), ITERATOR)?;
    let link = iterator
        .attach()
        .and_then(|link| iterator.take_link(link))
        .map_err(refused)?;
    link.into_file().map_err(|error| Error::Io {
        what: "cannot open the socket iterator",
        source: io::Error::other(error),
    })
}

/// Takes in one record, of the ring buffer or of the iterator.
pub fn take_in(bytes: &[u8], targets: &Targets, connections: &mut Connections) {
    take_of(bytes, |tgid| owner(tgid, targets), connections);
}

/// As [`take_in`]; `owner` finds a process by its thread-group id.
pub(crate) fn take_of(
    bytes: &[u8],
    owner: impl Fn(u32) -> Option<Owner>,
    connections: &mut Connections,
) {
    match bytes.first_chunk().map(|&kind| u32::from_ne_bytes(kind)) {
        Some(record::TCP_REQUESTS) => match plain::<Batch>(bytes) {
            Some(batch) => connections.requests(&batch),
            None => connections.undecoded += 1,
        },
        Some(record::TCP) => match plain::<Report>(bytes) {
            Some(report) => {
                let tgid = if report.holder == 0 {
                    report.connection.tgid
                } else {
                    report.holder
                };
                if let Some(owner) = owner(tgid) {
                    connections.report(&report, owner);
                }
            }
            None => connections.undecoded += 1,
        },
        _ => connections.undecoded += 1,
    }
}

/// The process, also one that has ended since.
fn owner(tgid: u32, targets: &Targets) -> Option<Owner> {
    let living = targets
        .find(tgid)
        .and_then(|index| targets.list().get(index));
    let tracked = living.or_else(|| {
        targets
            .list()
            .iter()
            .rev()
            .find(|tracked| tracked.tgid == tgid)
    })?;
    Some(Owner {
        pid: tracked.pid,
        comm: tracked.comm.clone(),
    })
}

/// Types of the ABI whose every bit pattern is a value.
///
/// # Safety
/// Integers only, without padding.
unsafe trait Plain: Copy {}

// SAFETY: integers only; the sizes asserted beside it leave no room for padding.
unsafe impl Plain for Report {}
// SAFETY: as above.
unsafe impl Plain for Batch {}

/// The value that the bytes are, if they are as long.
fn plain<T: Plain>(bytes: &[u8]) -> Option<T> {
    // SAFETY: as long as the type, whose every bit pattern is a value; it need not be aligned.
    (bytes.len() == size_of::<T>()).then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// A value of the `CONNECTIONS` map.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Value(Connection);

// SAFETY: integers only, without padding.
unsafe impl aya::Pod for Value {}
