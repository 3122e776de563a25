//! Each trial runs in a process of its own: this test program again, which enters the sandbox and
//! then does the one thing.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::ffi::OsStr;
use std::hint::black_box;
use std::time::{Duration, Instant};

use super::super::allocator::{self, OUT_OF_MEMORY};
use super::super::channel::{Channel, Lost};
use super::enter;
use crate::process::helper::{Ended, Helper};

/// First word of the command line of a trial.
const TRIAL: &str = "trial";
const MEMORY: u64 = 512 << 20;

/// Starts the test of this name as a trial.
fn start(name: &str) -> Helper {
    let path = format!("parser::sandbox::tests::{name}");
    let words = ["--exact", &path, "--test-threads=1"].map(OsStr::new);
    Helper::run(&std::env::current_exe().unwrap(), TRIAL, &words).unwrap()
}

/// Runs it to its end.
fn trial(name: &str) -> Ended {
    let helper = start(name);
    let patience = Instant::now() + Duration::from_secs(60);
    let silence = Channel::of_agent(helper.socket(), &patience).receive();
    assert_eq!(silence.unwrap_err(), Lost::Closed, "{name}");
    helper.ended()
}

/// In a trial: enters the sandbox, does the work and ends with its exit code. Otherwise nothing.
fn within(work: impl FnOnce() -> i32) {
    if std::env::args().next().as_deref() != Some(TRIAL) {
        return;
    }
    std::panic::set_hook(Box::new(|_| {}));
    let lacks = enter(MEMORY);
    allocator::end_without_memory();
    let code = if lacks.is_empty() { work() } else { 99 };
    // SAFETY: ends the process.
    unsafe { libc::_exit(code) }
}

macro_rules! forbidden {
    ($($name:ident: $call:expr;)*) => {$(
        #[test]
        fn $name() {
            within(|| {
                // SAFETY: the call does not come back; if it does, nothing is done with its result.
                black_box(unsafe { $call });
                0
            });
            assert_eq!(trial(stringify!($name)), Ended::Signal(libc::SIGSYS));
        }
    )*};
}

forbidden! {
    opening_a_file_kills: libc::open(c"/etc/passwd".as_ptr(), libc::O_RDONLY);
    making_a_socket_kills: libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0);
    making_a_process_kills: libc::fork();
    executing_kills: libc::execve(c"/bin/sh".as_ptr(), std::ptr::null(), std::ptr::null());
    signalling_kills: libc::kill(1, 0);
    tracing_kills: libc::ptrace(libc::PTRACE_ATTACH, 1, 0, 0);
    writing_kills: libc::write(2, c"x".as_ptr().cast(), 1);
    memory_to_be_executed_kills: libc::mmap(
        std::ptr::null_mut(), 4096, libc::PROT_READ | libc::PROT_EXEC,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0,
    );
    mapping_a_file_kills: libc::mmap(
        std::ptr::null_mut(), 4096, libc::PROT_READ, libc::MAP_PRIVATE, 0, 0,
    );
    closing_the_life_line_kills: libc::close(1);
    quieting_the_life_line_kills: libc::fcntl(1, libc::F_SETFL, 0);
}

#[test]
fn ordinary_work_is_possible() {
    within(|| {
        let mut map = std::collections::HashMap::new();
        for word in 0..100_000_u64 {
            map.insert(word, vec![word; 8]);
        }
        let large = black_box(vec![1_u8; 64 << 20]);
        let caught = std::panic::catch_unwind(|| {
            let empty: Vec<u8> = black_box(Vec::new());
            empty[black_box(3)]
        });
        let now = Instant::now();
        match map.len() == 100_000 && large.len() == 64 << 20 && caught.is_err() {
            true => i32::from(now.elapsed() > Duration::from_secs(3600)),
            false => 1,
        }
    });
    assert_eq!(trial("ordinary_work_is_possible"), Ended::Code(0));
}

#[test]
fn more_memory_than_allowed_ends_it_with_a_code() {
    within(|| {
        let vast = black_box(vec![1_u8; MEMORY as usize]);
        i32::from(vast[vast.len() / 2])
    });
    let ended = trial("more_memory_than_allowed_ends_it_with_a_code");
    assert_eq!(ended, Ended::Code(OUT_OF_MEMORY));
}

#[test]
fn a_stack_without_end_kills() {
    #[allow(unconditional_recursion, reason = "that is the trial")]
    fn recurse(depth: u64) -> u64 {
        let frame = black_box([depth; 512]);
        recurse(depth.wrapping_add(frame[3])).wrapping_add(frame[0])
    }
    within(|| recurse(1) as i32);
    let ended = trial("a_stack_without_end_kills");
    assert_eq!(ended, Ended::Signal(libc::SIGSEGV));
}

/// Without the right to signal it this is all that ends a process of another user.
#[test]
fn letting_go_of_the_life_line_kills_also_what_is_stopped() {
    within(|| {
        let stdin = std::io::stdin();
        let channel = Channel::of_parser(std::os::fd::AsFd::as_fd(&stdin));
        let _ = channel.send(super::super::wire::Kind::Done, &Default::default(), None);
        i32::from(channel.receive().is_ok())
    });
    let mut helper = start("letting_go_of_the_life_line_kills_also_what_is_stopped");
    let patience = Instant::now() + Duration::from_secs(60);
    let channel = Channel::of_agent(helper.socket(), &patience);
    assert!(channel.receive().is_ok());
    helper.signal(libc::SIGSTOP);
    helper.let_go();
    let channel = Channel::of_agent(helper.socket(), &patience);
    assert_eq!(channel.receive().unwrap_err(), Lost::Closed);
    assert_eq!(helper.ended(), Ended::Signal(libc::SIGKILL));
}
