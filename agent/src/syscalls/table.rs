//! Which argument of each system call tells its failures apart (syscalls(2), x86-64).

use agent_ebpf::failure::shape::{ADDRESS, DIRECTORY, DIRECTORY2, FD, PATH, PATH2, VALUES};

use super::name;
use super::values::Kind;

/// What is kept of one system call's arguments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spec {
    /// See [`agent_ebpf::failure::shape`].
    pub shape: u32,
    /// What the values are: for each argument that is kept as a value, in the order of arguments.
    pub values: &'static [(u32, Kind)],
    /// The first path is no path but a text.
    pub text: bool,
}

const NONE: Spec = Spec {
    shape: 0,
    values: &[],
    text: false,
};

const fn at(place: u32, index: u32) -> u32 {
    (index + 1) << place
}

const fn path(index: u32) -> Spec {
    Spec {
        shape: at(PATH, index),
        ..NONE
    }
}

const fn path_at(directory: u32) -> Spec {
    Spec {
        shape: at(DIRECTORY, directory) | at(PATH, directory + 1),
        ..NONE
    }
}

const fn paths(first: u32, second: u32) -> Spec {
    Spec {
        shape: at(PATH, first) | at(PATH2, second),
        ..NONE
    }
}

const fn paths_at(first: u32, second: u32) -> Spec {
    let directories = at(DIRECTORY, first) | at(DIRECTORY2, second);
    Spec {
        shape: directories | at(PATH, first + 1) | at(PATH2, second + 1),
        ..NONE
    }
}

const fn fd(index: u32) -> Spec {
    Spec {
        shape: at(FD, index),
        ..NONE
    }
}

impl Spec {
    const fn with(self, values: &'static [(u32, Kind)]) -> Self {
        let mut shape = self.shape;
        let mut i = 0;
        while i < values.len() {
            shape |= 1 << (VALUES + values[i].0);
            i += 1;
        }
        Self {
            shape,
            values,
            ..self
        }
    }

    const fn address(self, index: u32) -> Self {
        Self {
            shape: self.shape | at(ADDRESS, index),
            ..self
        }
    }

    const fn text(self) -> Self {
        Self { text: true, ..self }
    }
}

/// The specification of a system call; the empty one where nothing is kept.
pub fn of(name: &str) -> Spec {
    TABLE
        .iter()
        .find(|(names, _)| names.contains(&name))
        .map_or(NONE, |(_, spec)| *spec)
}

/// As [`of`], by the number.
pub fn of_number(number: u32) -> Spec {
    of(&name::of_syscall(number))
}

/// The specifications of all numbers below `end`.
pub fn all(end: u32) -> Vec<Spec> {
    (0..end).map(of_number).collect()
}

const TABLE: &[(&[&str], Spec)] = &[
    (
        &[
            "open",
            "stat",
            "lstat",
            "access",
            "execve",
            "chdir",
            "mkdir",
            "rmdir",
            "creat",
            "unlink",
            "readlink",
            "chmod",
            "chown",
            "lchown",
            "utime",
            "utimes",
            "mknod",
            "uselib",
            "statfs",
            "truncate",
            "chroot",
            "acct",
            "umount2",
            "swapon",
            "swapoff",
            "setxattr",
            "lsetxattr",
            "getxattr",
            "lgetxattr",
            "listxattr",
            "llistxattr",
            "removexattr",
            "lremovexattr",
        ],
        path(0),
    ),
    (&["inotify_add_watch", "quotactl"], path(1)),
    (&["rename", "link", "pivot_root"], paths(0, 1)),
    (&["symlink", "mount"], paths(0, 1).text()),
    (
        &[
            "openat",
            "mkdirat",
            "mknodat",
            "fchownat",
            "futimesat",
            "newfstatat",
            "unlinkat",
            "readlinkat",
            "fchmodat",
            "fchmodat2",
            "faccessat",
            "faccessat2",
            "utimensat",
            "name_to_handle_at",
            "execveat",
            "statx",
            "openat2",
            "open_tree",
            "fspick",
            "mount_setattr",
            "setxattrat",
            "getxattrat",
            "listxattrat",
            "removexattrat",
        ],
        path_at(0),
    ),
    (&["fanotify_mark"], path_at(3)),
    (
        &["renameat", "renameat2", "linkat", "move_mount"],
        paths_at(0, 2),
    ),
    (
        &["symlinkat"],
        Spec {
            shape: at(PATH, 0) | at(DIRECTORY2, 1) | at(PATH2, 2),
            ..NONE
        }
        .text(),
    ),
    (&["mq_open", "mq_unlink", "memfd_create"], path(0).text()),
    (&["connect", "bind"], fd(0).address(1)),
    (
        &["sendto"],
        fd(0).address(4).with(&[(3, Kind::MessageFlags)]),
    ),
    (&["recvfrom"], fd(0).with(&[(3, Kind::MessageFlags)])),
    (
        &["sendmsg", "recvmsg"],
        fd(0).with(&[(2, Kind::MessageFlags)]),
    ),
    (
        &["sendmmsg", "recvmmsg"],
        fd(0).with(&[(3, Kind::MessageFlags)]),
    ),
    (
        &[
            "read",
            "write",
            "close",
            "fstat",
            "lseek",
            "pread64",
            "pwrite64",
            "readv",
            "writev",
            "fsync",
            "fdatasync",
            "ftruncate",
            "getdents",
            "getdents64",
            "fchdir",
            "fchmod",
            "fchown",
            "fstatfs",
            "accept",
            "accept4",
            "listen",
            "shutdown",
            "getsockname",
            "getpeername",
            "epoll_wait",
            "epoll_pwait",
            "epoll_pwait2",
            "readahead",
            "fsetxattr",
            "fgetxattr",
            "flistxattr",
            "fremovexattr",
            "fadvise64",
            "sync_file_range",
            "vmsplice",
            "fallocate",
            "preadv",
            "pwritev",
            "preadv2",
            "pwritev2",
            "syncfs",
            "setns",
            "timerfd_settime",
            "timerfd_gettime",
            "inotify_rm_watch",
            "tee",
            "splice",
            "sendfile",
            "dup",
            "dup2",
            "dup3",
            "finit_module",
            "copy_file_range",
            "pidfd_getfd",
            "io_uring_enter",
            "io_uring_register",
            "cachestat",
            "process_madvise",
        ],
        fd(0),
    ),
    (&["mmap"], fd(4).with(&[(2, Kind::Protection)])),
    (&["flock"], fd(0).with(&[(1, Kind::Flock)])),
    (&["ioctl"], fd(0).with(&[(1, Kind::Ioctl)])),
    (&["fcntl"], fd(0).with(&[(1, Kind::Fcntl)])),
    (
        &["setsockopt", "getsockopt"],
        fd(0).with(&[(1, Kind::Number), (2, Kind::Number)]),
    ),
    (&["epoll_ctl"], fd(2).with(&[(1, Kind::EpollCtl)])),
    (&["pidfd_send_signal"], fd(0).with(&[(1, Kind::Signal)])),
    (
        &["kill", "tkill", "rt_sigqueueinfo"],
        NONE.with(&[(0, Kind::Pid), (1, Kind::Signal)]),
    ),
    (
        &["tgkill", "rt_tgsigqueueinfo"],
        NONE.with(&[(1, Kind::Pid), (2, Kind::Signal)]),
    ),
    (&["futex"], NONE.with(&[(1, Kind::Futex)])),
    (&["rt_sigaction"], NONE.with(&[(0, Kind::Signal)])),
    (
        &[
            "wait4",
            "pidfd_open",
            "getpgid",
            "getsid",
            "sched_getaffinity",
            "sched_setaffinity",
            "sched_setscheduler",
            "sched_getparam",
            "sched_setparam",
            "sched_setattr",
            "setpgid",
        ],
        NONE.with(&[(0, Kind::Pid)]),
    ),
    (&["waitid"], NONE.with(&[(1, Kind::Pid)])),
    (&["ptrace"], NONE.with(&[(0, Kind::Number), (1, Kind::Pid)])),
    (
        &[
            "process_vm_readv",
            "process_vm_writev",
            "kcmp",
            "move_pages",
            "migrate_pages",
        ],
        NONE.with(&[(0, Kind::Pid)]),
    ),
    (
        &["prlimit64"],
        NONE.with(&[(0, Kind::Pid), (1, Kind::Limit)]),
    ),
    (&["setrlimit", "getrlimit"], NONE.with(&[(0, Kind::Limit)])),
    (
        &["socket", "socketpair"],
        NONE.with(&[(0, Kind::Family), (1, Kind::SocketType), (2, Kind::Number)]),
    ),
    (
        &[
            "setuid",
            "setgid",
            "setfsuid",
            "setfsgid",
            "setgroups",
            "personality",
            "bpf",
            "keyctl",
            "iopl",
            "seccomp",
            "prctl",
            "arch_prctl",
            "clock_gettime",
            "clock_settime",
            "timer_create",
            "perf_event_open",
            "io_setup",
            "io_uring_setup",
            "getpriority",
            "reboot",
            "syslog",
        ],
        NONE.with(&[(0, Kind::Number)]),
    ),
    (
        &["setreuid", "setregid", "setresuid", "setresgid"],
        NONE.with(&[(0, Kind::Number), (1, Kind::Number)]),
    ),
    (
        &["setpriority", "ioprio_set", "ioprio_get"],
        NONE.with(&[(0, Kind::Number), (1, Kind::Number)]),
    ),
    (&["clone", "unshare"], NONE.with(&[(0, Kind::Hex)])),
    (&["mprotect"], NONE.with(&[(2, Kind::Protection)])),
    (&["madvise"], NONE.with(&[(2, Kind::Number)])),
    (
        &["brk", "munmap", "mremap", "mlock", "mlock2", "mlockall"],
        NONE.with(&[(1, Kind::Hex)]),
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use agent_ebpf::failure::shape;

    #[test]
    fn every_name_is_a_system_call_and_stands_once() {
        let mut seen = std::collections::HashSet::new();
        for name in TABLE.iter().flat_map(|(names, _)| *names) {
            assert!(name::syscall(name).is_ok(), "{name}");
            assert!(seen.insert(name), "{name} twice");
        }
    }

    #[test]
    fn places_are_found_again() {
        let open = of("openat").shape;
        assert_eq!(shape::index(open, PATH), Some(1));
        assert_eq!(shape::index(open, DIRECTORY), Some(0));
        assert_eq!(shape::index(open, FD), None);
        let rename = of("renameat2").shape;
        assert_eq!(shape::index(rename, PATH2), Some(3));
        assert_eq!(shape::index(rename, DIRECTORY2), Some(2));
        let send = of("sendto").shape;
        assert_eq!(
            (shape::index(send, ADDRESS), shape::index(send, FD)),
            (Some(4), Some(0))
        );
        assert_eq!(send >> VALUES & 0b11_1111, 0b00_1000);
        assert_eq!(of("getpid"), NONE);
    }
}
