//! Processes with a chosen id: one takes the id of another at once.

use std::io;

/// A copy of this process that runs one function; killed and reaped if it is dropped.
pub(crate) struct Chosen {
    pid: i32,
}

impl Chosen {
    /// Makes one with this id, which must be free (`set_tid` of clone3(2), Linux 5.5); it is named
    /// `name`, ended by a zero, and ends when `body` returns. `body` may only make system calls: of
    /// the threads of this process the copy has one.
    pub(crate) fn start(pid: u32, name: &[u8], body: impl FnOnce()) -> io::Result<Chosen> {
        let pid = pid as i32;
        // SAFETY: all-zero is a valid value of this structure of integers.
        let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
        arguments.exit_signal = libc::SIGCHLD as u64;
        arguments.set_tid = (&raw const pid) as u64;
        arguments.set_tid_size = 1;
        // SAFETY: without flags it is a fork; the structure and what it points to live until then.
        let made = unsafe {
            libc::syscall(
                libc::SYS_clone3,
                &raw const arguments,
                size_of::<libc::clone_args>(),
            )
        };
        if made < 0 {
            return Err(io::Error::last_os_error());
        }
        if made == 0 {
            // SAFETY: plain system calls; the strings are ended by zeros.
            unsafe {
                let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
                libc::dup2(null, libc::STDOUT_FILENO);
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                libc::prctl(libc::PR_SET_NAME, name.as_ptr());
            }
            body();
            // SAFETY: ends the copy without running what belongs to the original.
            unsafe { libc::_exit(0) }
        }
        Ok(Chosen { pid })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid as u32
    }

    /// Waits for its end.
    pub(crate) fn wait(mut self) {
        self.reap();
    }

    fn reap(&mut self) {
        // SAFETY: our own child, which is reaped once.
        unsafe { libc::waitpid(self.pid, std::ptr::null_mut(), 0) };
        self.pid = 0;
    }
}

impl Drop for Chosen {
    fn drop(&mut self) {
        if self.pid != 0 {
            // SAFETY: kill has no memory effects; the child is not reaped yet.
            unsafe { libc::kill(self.pid, libc::SIGKILL) };
            self.reap();
        }
    }
}

/// Whether processes with a chosen id can be made; says so if not.
pub(crate) fn can_choose() -> bool {
    let made = free_ids(1)
        .pop()
        .map(|pid| Chosen::start(pid, b"try\0", || {}));
    let can = matches!(made, Some(Ok(_)));
    if !can {
        println!("ids of processes cannot be chosen here");
    }
    can
}

/// Ids that no process has, from the upper end, to which the kernel comes last.
pub(crate) fn free_ids(count: usize) -> Vec<u32> {
    let limit = std::fs::read_to_string("/proc/sys/kernel/pid_max").unwrap();
    let limit: u32 = limit.trim().parse().unwrap();
    let free = |pid: &u32| !std::path::Path::new(&format!("/proc/{pid}")).exists();
    (1..limit)
        .rev()
        .skip(100)
        .filter(free)
        .take(count)
        .collect()
}

/// Waits for any signal, again and again.
pub(crate) fn sleep_on() {
    loop {
        // SAFETY: a system call without arguments.
        unsafe { libc::pause() };
    }
}

/// CPU time of this thread, in nanoseconds.
pub(crate) fn cpu_ns() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the structure is ours.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Sleeps, by one system call.
pub(crate) fn nap(ms: i64) {
    let time = libc::timespec {
        tv_sec: 0,
        tv_nsec: ms * 1_000_000,
    };
    // SAFETY: the structure is ours; the rest is not asked for.
    unsafe { libc::nanosleep(&raw const time, std::ptr::null_mut()) };
}

/// Numbers that look random, the same for the same seed (SplitMix64; Steele, Lea, Flood 2014).
pub(crate) struct Random(u64);

impl Random {
    /// From `AGENT_SEED`, or a fixed seed; says which.
    pub(crate) fn new() -> Random {
        let seed = std::env::var("AGENT_SEED").ok();
        let seed = seed.map_or(0x5eed, |seed| seed.parse().unwrap());
        println!("AGENT_SEED={seed}");
        Random(seed)
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % limit
    }
}
