//! Ctrl-C, SIGTERM and SIGHUP: the first ends the look and keeps what was seen; a later one ends the
//! search for names, where that goes on, else the agent.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::process::monotonic_ns;
use crate::symbolize;

/// What ends a run. `nohup` and its like let SIGHUP be ignored, which it then stays.
const ENDING: [libc::c_int; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];
/// Nanoseconds in which a second signal is taken for the same wish: timeout(1) signals the agent
/// and then its group, a terminal signals sudo and the agent.
const SAME_WISH: u64 = 500_000_000;

/// The signals that end a run, caught from early on so that what was seen is never lost.
pub struct Signals {
    caught: Vec<Signal>,
}

impl Signals {
    /// Catches them from now on.
    ///
    /// # Errors
    /// What the system says.
    pub fn catch() -> io::Result<Self> {
        let wanted = ENDING.into_iter().filter(|&number| is_wanted(number));
        let caught = wanted.map(|number| signal(SignalKind::from_raw(number)));
        Ok(Self {
            caught: caught.collect::<io::Result<_>>()?,
        })
    }

    /// Until one arrives.
    pub async fn wait(&mut self) {
        std::future::poll_fn(|context| {
            let mut polls = self.caught.iter_mut().map(|one| one.poll_recv(context));
            match polls.any(|poll| poll.is_ready()) {
                true => std::task::Poll::Ready(()),
                false => std::task::Poll::Pending,
            }
        })
        .await;
    }

    /// The look is over: from now on, but for the next half second, a signal ends the search for names
    /// or the agent.
    pub fn release(&mut self) {
        RELEASED.store(monotonic_ns(), Ordering::Relaxed);
        for number in ENDING.into_iter().filter(|&number| is_wanted(number)) {
            // SAFETY: the handler makes async-signal-safe calls only.
            unsafe { libc::signal(number, end as extern "C" fn(libc::c_int) as usize) };
        }
    }
}

/// When the look, or the search for names, was over ([`monotonic_ns`]).
static RELEASED: AtomicU64 = AtomicU64::new(0);

/// Ends the search for names, or does what the signal does by default; nothing if it belongs to the
/// signal before.
extern "C" fn end(number: libc::c_int) {
    let now = monotonic_ns();
    if now.saturating_sub(RELEASED.load(Ordering::Relaxed)) < SAME_WISH {
        return;
    }
    if symbolize::give_up() {
        RELEASED.store(now, Ordering::Relaxed);
        return;
    }
    // SAFETY: both calls are async-signal-safe and touch no memory of ours.
    unsafe {
        libc::signal(number, libc::SIG_DFL);
        libc::raise(number);
    }
}

/// All but an ignored SIGHUP.
fn is_wanted(number: libc::c_int) -> bool {
    // SAFETY: all-zero is a valid value of this plain structure.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: nothing is set; the structure that is filled in is ours.
    unsafe { libc::sigaction(number, std::ptr::null(), &raw mut action) };
    number != libc::SIGHUP || action.sa_sigaction != libc::SIG_IGN
}
