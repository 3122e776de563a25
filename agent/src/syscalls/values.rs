//! Names of the arguments that are operations, flags or numbers (the man pages' constants, Linux 6.18).

/// What an argument's value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A signal.
    Signal,
    /// A process or thread id; negative: a process group.
    Pid,
    /// The operation of `futex`.
    Futex,
    /// The request of `ioctl`.
    Ioctl,
    /// The command of `fcntl`.
    Fcntl,
    /// The operation of `flock`.
    Flock,
    /// The operation of `epoll_ctl`.
    EpollCtl,
    /// The resource of a limit.
    Limit,
    /// A socket's family.
    Family,
    /// A socket's type.
    SocketType,
    /// `PROT_…` bits.
    Protection,
    /// `MSG_…` bits; only one of them matters and none is shown.
    MessageFlags,
    /// A signed number.
    Number,
    /// Bits.
    Hex,
}

impl Kind {
    /// The value for people; `None` where it is not shown.
    pub fn show(self, value: u64) -> Option<String> {
        let number = value as i32;
        let named = |names: &[(i32, &str)]| {
            let name = names.iter().find(|(known, _)| *known == number);
            name.map_or_else(|| number.to_string(), |(_, name)| (*name).to_owned())
        };
        Some(match self {
            Kind::Signal => signal(number),
            Kind::Pid => format!("pid {number}"),
            Kind::Futex => futex(number),
            Kind::Ioctl => {
                let name = IOCTLS.iter().find(|(known, _)| *known == value as u32);
                name.map_or_else(
                    || format!("{:#x}", value as u32),
                    |(_, name)| (*name).to_owned(),
                )
            }
            Kind::Fcntl => named(FCNTLS),
            Kind::Flock => flock(number),
            Kind::EpollCtl => named(&[
                (1, "EPOLL_CTL_ADD"),
                (2, "EPOLL_CTL_DEL"),
                (3, "EPOLL_CTL_MOD"),
            ]),
            Kind::Limit => named(LIMITS),
            Kind::Family => named(FAMILIES),
            Kind::SocketType => {
                let base = Kind::base_type(number & 0xf);
                if number & 0o4000 != 0 {
                    format!("{base}|SOCK_NONBLOCK")
                } else {
                    base
                }
            }
            Kind::Protection => protection(number),
            Kind::MessageFlags => return None,
            Kind::Number => number.to_string(),
            Kind::Hex => format!("{value:#x}"),
        })
    }

    fn base_type(number: i32) -> String {
        let names = [
            "SOCK_STREAM",
            "SOCK_DGRAM",
            "SOCK_RAW",
            "SOCK_RDM",
            "SOCK_SEQPACKET",
        ];
        let index = usize::try_from(number - 1).unwrap_or(usize::MAX);
        names
            .get(index)
            .map_or_else(|| number.to_string(), |name| (*name).to_owned())
    }
}

/// `SIGTERM`, `SIGRT_3` for the fourth real-time signal of the kernel, or the number (signal(7)).
fn signal(number: i32) -> String {
    const NAMES: [&str; 32] = [
        "0",
        "SIGHUP",
        "SIGINT",
        "SIGQUIT",
        "SIGILL",
        "SIGTRAP",
        "SIGABRT",
        "SIGBUS",
        "SIGFPE",
        "SIGKILL",
        "SIGUSR1",
        "SIGSEGV",
        "SIGUSR2",
        "SIGPIPE",
        "SIGALRM",
        "SIGTERM",
        "SIGSTKFLT",
        "SIGCHLD",
        "SIGCONT",
        "SIGSTOP",
        "SIGTSTP",
        "SIGTTIN",
        "SIGTTOU",
        "SIGURG",
        "SIGXCPU",
        "SIGXFSZ",
        "SIGVTALRM",
        "SIGPROF",
        "SIGWINCH",
        "SIGIO",
        "SIGPWR",
        "SIGSYS",
    ];
    match usize::try_from(number)
        .ok()
        .and_then(|index| NAMES.get(index))
    {
        Some(name) => (*name).to_owned(),
        None if (32..=64).contains(&number) => format!("SIGRT_{}", number - 32),
        None => number.to_string(),
    }
}

/// Without the bits `FUTEX_PRIVATE_FLAG` and `FUTEX_CLOCK_REALTIME` (linux/futex.h).
fn futex(operation: i32) -> String {
    const NAMES: [&str; 14] = [
        "FUTEX_WAIT",
        "FUTEX_WAKE",
        "FUTEX_FD",
        "FUTEX_REQUEUE",
        "FUTEX_CMP_REQUEUE",
        "FUTEX_WAKE_OP",
        "FUTEX_LOCK_PI",
        "FUTEX_UNLOCK_PI",
        "FUTEX_TRYLOCK_PI",
        "FUTEX_WAIT_BITSET",
        "FUTEX_WAKE_BITSET",
        "FUTEX_WAIT_REQUEUE_PI",
        "FUTEX_CMP_REQUEUE_PI",
        "FUTEX_LOCK_PI2",
    ];
    let command = operation & 0x7f;
    match usize::try_from(command)
        .ok()
        .and_then(|index| NAMES.get(index))
    {
        Some(name) => (*name).to_owned(),
        None => command.to_string(),
    }
}

fn flock(operation: i32) -> String {
    let base = match operation & !4 {
        1 => "LOCK_SH",
        2 => "LOCK_EX",
        8 => "LOCK_UN",
        _ => return operation.to_string(),
    };
    if operation & 4 != 0 {
        format!("{base}|LOCK_NB")
    } else {
        base.to_owned()
    }
}

fn protection(bits: i32) -> String {
    let names = [(1, "PROT_READ"), (2, "PROT_WRITE"), (4, "PROT_EXEC")];
    let set: Vec<&str> = names
        .iter()
        .filter(|(bit, _)| bits & bit != 0)
        .map(|(_, name)| *name)
        .collect();
    if set.is_empty() {
        "PROT_NONE".to_owned()
    } else {
        set.join("|")
    }
}

/// asm-generic/ioctls.h, linux/sockios.h, linux/fs.h.
const IOCTLS: &[(u32, &str)] = &[
    (0x5401, "TCGETS"),
    (0x5402, "TCSETS"),
    (0x5403, "TCSETSW"),
    (0x5404, "TCSETSF"),
    (0x540b, "TCFLSH"),
    (0x540e, "TIOCSCTTY"),
    (0x540f, "TIOCGPGRP"),
    (0x5410, "TIOCSPGRP"),
    (0x5413, "TIOCGWINSZ"),
    (0x5414, "TIOCSWINSZ"),
    (0x541b, "FIONREAD"),
    (0x5421, "FIONBIO"),
    (0x5422, "TIOCNOTTY"),
    (0x5429, "TIOCGSID"),
    (0x5450, "FIONCLEX"),
    (0x5451, "FIOCLEX"),
    (0x802c_542a, "TCGETS2"),
    (0x8004_5430, "TIOCGPTN"),
    (0x8905, "SIOCATMARK"),
    (0x8912, "SIOCGIFCONF"),
    (0x8913, "SIOCGIFFLAGS"),
    (0x8914, "SIOCSIFFLAGS"),
    (0x8915, "SIOCGIFADDR"),
    (0x8921, "SIOCGIFMTU"),
    (0x8927, "SIOCGIFHWADDR"),
    (0x8933, "SIOCGIFINDEX"),
    (0x8946, "SIOCETHTOOL"),
    (0x4004_9409, "FICLONE"),
    (0x4020_940d, "FICLONERANGE"),
    (0x8008_6601, "FS_IOC_GETFLAGS"),
    (0x4008_6602, "FS_IOC_SETFLAGS"),
    (0xc020_660b, "FS_IOC_FIEMAP"),
    (0x8008_1272, "BLKGETSIZE64"),
    (0x1268, "BLKSSZGET"),
];

/// asm-generic/fcntl.h, linux/fcntl.h.
const FCNTLS: &[(i32, &str)] = &[
    (0, "F_DUPFD"),
    (1, "F_GETFD"),
    (2, "F_SETFD"),
    (3, "F_GETFL"),
    (4, "F_SETFL"),
    (5, "F_GETLK"),
    (6, "F_SETLK"),
    (7, "F_SETLKW"),
    (8, "F_SETOWN"),
    (9, "F_GETOWN"),
    (10, "F_SETSIG"),
    (11, "F_GETSIG"),
    (15, "F_SETOWN_EX"),
    (16, "F_GETOWN_EX"),
    (36, "F_OFD_GETLK"),
    (37, "F_OFD_SETLK"),
    (38, "F_OFD_SETLKW"),
    (1024, "F_SETLEASE"),
    (1025, "F_GETLEASE"),
    (1026, "F_NOTIFY"),
    (1030, "F_DUPFD_CLOEXEC"),
    (1031, "F_SETPIPE_SZ"),
    (1032, "F_GETPIPE_SZ"),
    (1033, "F_ADD_SEALS"),
    (1034, "F_GET_SEALS"),
];

/// asm-generic/resource.h.
const LIMITS: &[(i32, &str)] = &[
    (0, "RLIMIT_CPU"),
    (1, "RLIMIT_FSIZE"),
    (2, "RLIMIT_DATA"),
    (3, "RLIMIT_STACK"),
    (4, "RLIMIT_CORE"),
    (5, "RLIMIT_RSS"),
    (6, "RLIMIT_NPROC"),
    (7, "RLIMIT_NOFILE"),
    (8, "RLIMIT_MEMLOCK"),
    (9, "RLIMIT_AS"),
    (10, "RLIMIT_LOCKS"),
    (11, "RLIMIT_SIGPENDING"),
    (12, "RLIMIT_MSGQUEUE"),
    (13, "RLIMIT_NICE"),
    (14, "RLIMIT_RTPRIO"),
    (15, "RLIMIT_RTTIME"),
];

/// linux/socket.h.
const FAMILIES: &[(i32, &str)] = &[
    (1, "AF_UNIX"),
    (2, "AF_INET"),
    (10, "AF_INET6"),
    (16, "AF_NETLINK"),
    (17, "AF_PACKET"),
    (38, "AF_ALG"),
    (40, "AF_VSOCK"),
    (44, "AF_XDP"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_their_names() {
        let show = |kind: Kind, value: u64| kind.show(value).unwrap_or_default();
        assert_eq!(show(Kind::Signal, 15), "SIGTERM");
        assert_eq!(show(Kind::Signal, 35), "SIGRT_3");
        assert_eq!(show(Kind::Pid, -7i64 as u64), "pid -7");
        assert_eq!(show(Kind::Futex, 128 | 9 | 256), "FUTEX_WAIT_BITSET");
        assert_eq!(show(Kind::Ioctl, 0x5401), "TCGETS");
        assert_eq!(show(Kind::Ioctl, 0xffff_ffff_dead_beef), "0xdeadbeef");
        assert_eq!(show(Kind::Flock, 6), "LOCK_EX|LOCK_NB");
        assert_eq!(
            show(Kind::SocketType, 1 | 0o4000),
            "SOCK_STREAM|SOCK_NONBLOCK"
        );
        assert_eq!(show(Kind::SocketType, 0), "0");
        assert_eq!(show(Kind::Protection, 3), "PROT_READ|PROT_WRITE");
        assert_eq!(Kind::MessageFlags.show(64), None);
        assert_eq!(libc::FIONREAD, 0x541b);
    }
}
