//! What the parser gives up before it reads a first byte: its user, its capabilities, all system
//! calls but the few that it needs, and more memory than it needs.

use std::io;

use seccompiler::{
    SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use crate::process::privilege::{self, Caps};

/// Descriptors of the [helper process](crate::process::helper::Helper): the socket, the life line,
/// nowhere.
const LAST_OWN: libc::c_int = 2;
/// Most descriptors: its own, the file it reads, and what belongs to it.
const MAX_FILES: u64 = 16;
/// `nobody`, which owns nothing.
const NOBODY: u32 = 65534;

/// Gives up what can be given up; memory is limited to `address_space` bytes. What could not be done
/// is told in words.
pub(super) fn enter(address_space: u64) -> Vec<String> {
    let mut lacks = Vec::new();
    let mut note = |what: &str, done: io::Result<()>| {
        if let Err(error) = done {
            lacks.push(format!("{what}: {error}"));
        }
    };
    ignore_signals();
    note("inherited descriptors stay open", close_others());
    note("its memory and files are not limited", limit(address_space));
    // A change of the user takes away what it takes to do this.
    privilege::limit_bounding_set(Caps::default());
    // Without the capabilities for it the user stays: it is not root then, or one without power.
    become_nobody();
    note("it keeps privileges", privilege::drop_to(&[]));
    note(
        "it can be traced by others",
        prctl(libc::PR_SET_DUMPABLE, 0),
    );
    // Changes of the user undo both, so they come last.
    note("it may outlive the agent", end_with_agent());
    note("its system calls are not restricted", restrict_calls());
    lacks
}

fn prctl(option: libc::c_int, value: libc::c_ulong) -> io::Result<()> {
    let zero: libc::c_ulong = 0;
    // SAFETY: the options used take integers only.
    done(unsafe { libc::prctl(option, value, zero, zero, zero) })
}

fn done(result: libc::c_int) -> io::Result<()> {
    match result {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The agent decides when its parser ends: what ends the agent, or asks it to come to an end, is
/// often sent to all of its service's processes.
fn ignore_signals() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT] {
        // SAFETY: no handler is installed.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        // SAFETY: no handler is installed: what Rust's would say nobody could read.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

fn close_others() -> io::Result<()> {
    let (first, flags) = (LAST_OWN as libc::c_uint + 1, 0);
    // SAFETY: nothing in this process uses another descriptor than its own three.
    done(unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, flags) } as i32)
}

fn limit(address_space: u64) -> io::Result<()> {
    for (resource, most) in [
        (libc::RLIMIT_AS, address_space),
        (libc::RLIMIT_CORE, 0),
        (libc::RLIMIT_FSIZE, 0),
        (libc::RLIMIT_NOFILE, MAX_FILES),
        (libc::RLIMIT_NPROC, 0),
    ] {
        let limit = libc::rlimit {
            rlim_cur: most,
            rlim_max: most,
        };
        // SAFETY: the call reads the structure only.
        done(unsafe { libc::setrlimit(resource, &raw const limit) })?;
    }
    Ok(())
}

fn become_nobody() {
    // SAFETY: the calls take integers, and a list without elements.
    unsafe {
        libc::setgroups(0, std::ptr::null());
        libc::setresgid(NOBODY, NOBODY, NOBODY);
        libc::setresuid(NOBODY, NOBODY, NOBODY);
    }
}

/// The kernel kills this process when the agent's thread that started it ends, or lets go of the
/// life line. The second works also where the agent may not signal another user's processes.
fn end_with_agent() -> io::Result<()> {
    prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong)?;
    let life_line = libc::STDOUT_FILENO;
    // SAFETY: these calls take integers only.
    unsafe {
        done(libc::fcntl(life_line, libc::F_SETOWN, libc::getpid()))?;
        done(libc::fcntl(life_line, F_SETSIG, libc::SIGKILL))?;
        done(libc::fcntl(life_line, libc::F_SETFL, libc::O_ASYNC))?;
    }
    let mut poll = libc::pollfd {
        fd: life_line,
        events: 0,
        revents: 0,
    };
    // SAFETY: one valid pollfd, no waiting.
    if unsafe { libc::poll(&raw mut poll, 1, 0) } == 1 {
        // It was let go of before.
        std::process::exit(0);
    }
    Ok(())
}

/// `F_SETSIG` (asm-generic/fcntl.h).
const F_SETSIG: libc::c_int = 10;

/// System calls that are allowed whatever their arguments.
const CALLS: [libc::c_long; 17] = [
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_pread64,
    libc::SYS_fstat,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_clock_gettime,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_getrandom,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

fn restrict_calls() -> io::Result<()> {
    let rules = rules().map_err(io::Error::other)?;
    let architecture = std::env::consts::ARCH
        .try_into()
        .map_err(io::Error::other)?;
    let filter = SeccompFilter::new(
        rules.into_iter().collect(),
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        architecture,
    );
    let program: seccompiler::BpfProgram = filter
        .and_then(TryInto::try_into)
        .map_err(io::Error::other)?;
    seccompiler::apply_filter(&program).map_err(io::Error::other)
}

type Rules = Vec<(i64, Vec<SeccompRule>)>;

fn rules() -> Result<Rules, seccompiler::BackendError> {
    let condition = |argument, operator, value| {
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
    };
    let has_not =
        |argument, bit: libc::c_int| condition(argument, SeccompCmpOp::MaskedEq(bit as u64), 0);
    let mut rules: Rules = CALLS.map(|call| (call, Vec::new())).into();
    // Memory without a file, and none to be executed.
    let anonymous = condition(
        3,
        SeccompCmpOp::MaskedEq(libc::MAP_ANONYMOUS as u64),
        libc::MAP_ANONYMOUS as u64,
    )?;
    rules.push((
        libc::SYS_mmap,
        vec![SeccompRule::new(vec![
            has_not(2, libc::PROT_EXEC)?,
            anonymous,
        ])?],
    ));
    rules.push((
        libc::SYS_mprotect,
        vec![SeccompRule::new(vec![has_not(2, libc::PROT_EXEC)?])?],
    ));
    // What the standard library asks before it closes a descriptor, in a build with assertions.
    let ask = condition(1, SeccompCmpOp::Eq, libc::F_GETFD as u64)?;
    rules.push((libc::SYS_fcntl, vec![SeccompRule::new(vec![ask])?]));
    // Its own three stay open: what ends it with the agent is one of them.
    let handed_over = condition(0, SeccompCmpOp::Gt, LAST_OWN as u64)?;
    rules.push((libc::SYS_close, vec![SeccompRule::new(vec![handed_over])?]));
    Ok(rules)
}

#[cfg(test)]
mod tests;
