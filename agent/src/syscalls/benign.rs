//! Failures that are part of a program's normal work, each with the reason.
//!
//! A rule names what the program asked and why "no" is an ordinary answer. What could be a fault
//! is not benign: a rule that is in doubt does not hold.

/// What is known of one failure's argument.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts<'a> {
    /// The path, absolute where that is known; empty where there is none.
    pub path: &'a str,
    /// The six arguments.
    pub values: [u64; 6],
    /// Whether the file behind the descriptor has `O_NONBLOCK`.
    pub nonblocking: bool,
    /// Whether the path's file name is that of a library that is mapped or installed elsewhere.
    pub found: bool,
}

/// `MSG_DONTWAIT` (linux/socket.h).
const MSG_DONTWAIT: u64 = 0x40;
/// `ioctl` requests that only a terminal answers (asm-generic/ioctls.h): `TCGETS`, `TIOCGPGRP`,
/// `TIOCGWINSZ`, `TCGETS2`.
const TERMINAL_REQUESTS: [u64; 4] = [0x5401, 0x540f, 0x5413, 0x802c_542a];

/// Why this failure is to be expected; `None` where it is not.
pub fn reason(syscall: &str, errno: &str, facts: &Facts<'_>) -> Option<&'static str> {
    if syscall == "rt_sigreturn" {
        return Some(
            "no failure: the end of a signal handler puts the interrupted call's result back",
        );
    }
    match errno {
        "EINTR" => Some("a signal interrupted the call"),
        "ERESTARTSYS" | "ERESTARTNOINTR" | "ERESTARTNOHAND" | "ERESTART_RESTARTBLOCK" => {
            Some("a signal interrupted the call; the kernel restarts it or answers EINTR")
        }
        "EAGAIN" => again(syscall, facts),
        "EINPROGRESS" | "EALREADY" if syscall == "connect" && facts.nonblocking => {
            Some("a non-blocking connect goes on in the background")
        }
        "ETIMEDOUT"
            if matches!(
                syscall,
                "futex" | "futex_wait" | "futex_waitv" | "mq_timedreceive"
            ) =>
        {
            Some("the wait's own time limit was reached")
        }
        "ECHILD" if matches!(syscall, "wait4" | "waitid") => Some("no child was left to wait for"),
        "ENOTTY"
            if syscall == "ioctl"
                && TERMINAL_REQUESTS.contains(&(facts.values[1] & 0xffff_ffff)) =>
        {
            Some("asks whether the file is a terminal")
        }
        "ESPIPE" if syscall == "lseek" => Some("asks whether the file can be positioned"),
        "EINVAL" if matches!(syscall, "readlink" | "readlinkat") => {
            Some("asks whether the path is a symbolic link")
        }
        "ENODATA" | "EOPNOTSUPP" if syscall.contains("getxattr") => {
            Some("asks whether there is such an attribute")
        }
        "ENOENT" => search(syscall, facts),
        _ => None,
    }
}

fn again(syscall: &str, facts: &Facts<'_>) -> Option<&'static str> {
    let message_flags = match syscall {
        "sendto" | "recvfrom" | "sendmmsg" | "recvmmsg" => facts.values[3],
        "sendmsg" | "recvmsg" => facts.values[2],
        _ => 0,
    };
    match syscall {
        "futex" => Some("the futex had changed before the wait began"),
        "rt_sigtimedwait" => Some("no signal came within the wait's own time limit"),
        // A lock that somebody else holds, a limit on memory or processes.
        "fcntl" | "flock" | "mmap" | "mlock" | "fork" | "clone" | "clone3" => None,
        _ if message_flags & MSG_DONTWAIT != 0 => {
            Some("asked not to wait (MSG_DONTWAIT) and nothing was ready")
        }
        _ if facts.nonblocking => Some("the descriptor is non-blocking and nothing was ready"),
        _ => None,
    }
}

/// `ENOENT` of programs that try one place after the other.
fn search(syscall: &str, facts: &Facts<'_>) -> Option<&'static str> {
    let path = facts.path;
    let name = path.rsplit('/').next().unwrap_or_default();
    let probes = [
        "open",
        "openat",
        "stat",
        "lstat",
        "newfstatat",
        "statx",
        "access",
        "faccessat",
        "faccessat2",
        "readlink",
        "readlinkat",
        "connect",
    ];
    if path.is_empty() || !probes.contains(&syscall) {
        return None;
    }
    let loaders = matches!(
        path,
        "/etc/ld.so.preload" | "/etc/ld.so.nohwcap" | "/etc/ld.so.cache"
    );
    let variants = path.contains("/glibc-hwcaps") || path.contains("/lib/x86_64-linux-gnu/tls");
    if loaders || variants {
        return Some("the dynamic loader looks for an optional file");
    }
    if path.ends_with("/nscd/socket") {
        return Some("no name service cache runs");
    }
    if facts.found && (name.contains(".so.") || name.ends_with(".so")) {
        return Some("the dynamic loader's search path: found in another directory");
    }
    if path.contains("/LC_MESSAGES/")
        || path.starts_with("/usr/lib/locale/")
        || path.starts_with("/usr/share/locale/")
    {
        return Some("the C library looks for translations");
    }
    interpreter(path, name)
}

fn interpreter(path: &str, name: &str) -> Option<&'static str> {
    let ends = |ends: &[&str]| ends.iter().any(|end| path.ends_with(end));
    let inside = |parts: &[&str]| parts.iter().any(|part| path.contains(part));
    let python = inside(&[
        "/site-packages/",
        "/dist-packages/",
        "/lib/python",
        "/__pycache__/",
    ]) || ends(&[
        ".pyc",
        ".abi3.so",
        "__init__.py",
        "pyvenv.cfg",
        "._pth",
        "pybuilddir.txt",
        "/Modules/Setup.local",
    ]) || name.contains(".cpython-");
    let node = inside(&["/node_modules"]) || name == "package.json" || name.ends_with(".node");
    let others = inside(&["/perl5/", "/perl/", "/ruby/", "/lua/"])
        && ends(&[".pm", ".pmc", ".pl", ".rb", ".so", ".lua"]);
    (python || node || others).then_some("an interpreter's search path")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(path: &str) -> Facts<'_> {
        Facts {
            path,
            ..Facts::default()
        }
    }

    #[test]
    fn again_needs_a_reason() {
        let blocking = Facts::default();
        let nonblocking = Facts {
            nonblocking: true,
            ..blocking
        };
        assert!(reason("read", "EAGAIN", &blocking).is_none());
        assert!(reason("read", "EAGAIN", &nonblocking).is_some());
        assert!(reason("fcntl", "EAGAIN", &nonblocking).is_none());
        let asked = Facts {
            values: [3, 0, 0, MSG_DONTWAIT, 0, 0],
            ..blocking
        };
        assert!(reason("recvfrom", "EAGAIN", &asked).is_some());
        assert!(reason("recvmsg", "EAGAIN", &asked).is_none());
        assert!(reason("connect", "EINPROGRESS", &nonblocking).is_some());
        assert!(reason("connect", "EINPROGRESS", &blocking).is_none());
    }

    #[test]
    fn a_missing_library_is_benign_only_if_it_was_found_elsewhere() {
        let missing = path("/opt/app/lib/libz.so.1");
        assert!(reason("openat", "ENOENT", &missing).is_none());
        assert!(
            reason(
                "openat",
                "ENOENT",
                &Facts {
                    found: true,
                    ..missing
                }
            )
            .is_some()
        );
        assert!(
            reason(
                "unlink",
                "ENOENT",
                &Facts {
                    found: true,
                    ..missing
                }
            )
            .is_none()
        );
        assert!(reason("access", "ENOENT", &path("/etc/ld.so.preload")).is_some());
        assert!(reason("access", "EACCES", &path("/etc/ld.so.preload")).is_none());
    }

    #[test]
    fn interpreters_search_and_configurations_do_not() {
        for searched in [
            "/usr/lib/python3.11/yaml.py",
            "/srv/app/x.cpython-311-x86_64-linux-gnu.so",
            "/srv/app/node_modules/express",
            "/usr/share/perl5/Foo/Bar.pmc",
        ] {
            assert!(
                reason("newfstatat", "ENOENT", &path(searched)).is_some(),
                "{searched}"
            );
        }
        for needed in [
            "/srv/app/config.yaml",
            "/etc/app/key.pem",
            "/srv/app/plugin.so",
            "/var/run/db.sock",
        ] {
            assert!(
                reason("openat", "ENOENT", &path(needed)).is_none(),
                "{needed}"
            );
        }
    }

    #[test]
    fn questions_are_no_failures() {
        let terminal = Facts {
            values: [1, 0x5401, 0, 0, 0, 0],
            ..Facts::default()
        };
        assert!(reason("ioctl", "ENOTTY", &terminal).is_some());
        assert!(reason("ioctl", "ENOTTY", &Facts::default()).is_none());
        assert!(reason("lseek", "ESPIPE", &Facts::default()).is_some());
        assert!(reason("lseek", "EINVAL", &Facts::default()).is_none());
        assert!(reason("openat", "EACCES", &path("/x")).is_none());
    }
}
