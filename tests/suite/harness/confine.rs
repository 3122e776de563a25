//! Takes something away from an agent before it starts: capabilities, system calls, files. Done with
//! system calls between fork and exec, since virtual machines lack the programs that do it.

use std::ffi::CString;
use std::io;
use std::os::unix::process::CommandExt;

use super::Agent;

/// Numbers of linux/capability.h.
pub(crate) const CHECKPOINT_RESTORE: u32 = 40;
pub(crate) const BPF: u32 = 39;
pub(crate) const PERFMON: u32 = 38;
pub(crate) const SYSLOG: u32 = 34;
pub(crate) const SYS_PTRACE: u32 = 19;
pub(crate) const DAC_READ_SEARCH: u32 = 2;

/// Another user than the targets', without a name.
pub(crate) const USER: u32 = 65534;

/// 0, or the error.
fn done(result: libc::c_long) -> io::Result<()> {
    match result {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

impl Agent {
    /// Runs `action` in the new process before it becomes the agent.
    ///
    /// # Safety
    /// Only async-signal-safe calls.
    unsafe fn before_exec(
        mut self,
        action: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
    ) -> Agent {
        // SAFETY: the caller's promise.
        unsafe { self.command().pre_exec(action) };
        self
    }

    /// Runs it as [`USER`] with these capabilities only, as ambient ones.
    pub(crate) fn by_user(self, capabilities: &[u32]) -> Agent {
        let owner = Some(USER);
        std::os::unix::fs::chown(self.directory(), owner, owner).unwrap();
        let capabilities = capabilities.to_vec();
        let set = capabilities.iter().fold(0u64, |set, cap| set | 1 << cap);
        let action = move || {
            let (low, high) = (set as u32, (set >> 32) as u32);
            let mut header = [0x2008_0522_u32, 0];
            let mut data = [low, low, low, high, high, high];
            // SAFETY: numbers, and structures as capset(2) has them.
            unsafe {
                done(libc::prctl(libc::PR_SET_KEEPCAPS, 1).into())?;
                done(libc::syscall(libc::SYS_setgroups, 0, 0))?;
                done(libc::syscall(libc::SYS_setresgid, USER, USER, USER))?;
                done(libc::syscall(libc::SYS_setresuid, USER, USER, USER))?;
                let (header, data) = (header.as_mut_ptr(), data.as_mut_ptr());
                done(libc::syscall(libc::SYS_capset, header, data))?;
                for &cap in &capabilities {
                    let raise = libc::PR_CAP_AMBIENT_RAISE;
                    done(libc::prctl(libc::PR_CAP_AMBIENT, raise, cap, 0, 0).into())?;
                }
            }
            Ok(())
        };
        // SAFETY: system calls only.
        unsafe { self.before_exec(action) }
    }

    /// A filter answers this system call; with `flags` only where its fifth argument is this.
    pub(crate) fn refusing(self, call: libc::c_long, answer: u32, flags: Option<u32>) -> Agent {
        let code = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
        let (load, equal, back) = (0x20, 0x15, 0x06);
        // struct seccomp_data: the number, then the arguments from byte 16 on.
        let mut filter = vec![code(load, 0, 0, 0)];
        match flags {
            None => filter.push(code(equal, 0, 1, call as u32)),
            Some(flags) => filter.extend([
                code(equal, 0, 3, call as u32),
                code(load, 0, 0, 16 + 4 * 8),
                code(equal, 0, 1, flags),
            ]),
        }
        filter.push(code(back, 0, 0, answer));
        filter.push(code(back, 0, 0, libc::SECCOMP_RET_ALLOW));
        let action = move || {
            let program = libc::sock_fprog {
                len: filter.len() as u16,
                filter: filter.as_ptr().cast_mut(),
            };
            let mode = libc::SECCOMP_MODE_FILTER;
            // SAFETY: the program lives in the closure.
            done(unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program) }.into())
        };
        // SAFETY: system calls only.
        unsafe { self.before_exec(action) }
    }

    /// It sees an empty directory here, with one file if it has a text.
    pub(crate) fn hiding(self, directory: &str, file: Option<(&str, &str)>) -> Agent {
        let path = CString::new(directory).unwrap();
        let file = file.map(|(name, text)| {
            let path = CString::new(format!("{directory}/{name}")).unwrap();
            (path, text.to_owned())
        });
        let action = move || {
            private_mounts()?;
            mount(c"tmpfs", &path, c"")?;
            let Some((path, text)) = &file else {
                return Ok(());
            };
            // SAFETY: the path ends in zero, the text is as long as said.
            unsafe {
                let fd = libc::open(path.as_ptr(), libc::O_CREAT | libc::O_WRONLY, 0o644);
                done(fd.into())?;
                done(libc::write(fd, text.as_ptr().cast(), text.len()) as libc::c_long)?;
                done(libc::close(fd).into())
            }
        };
        // SAFETY: system calls only.
        unsafe { self.before_exec(action) }
    }

    /// It sees only its own processes in `/proc`.
    pub(crate) fn hidepid(self) -> Agent {
        let action = || {
            private_mounts()?;
            mount(c"proc", c"/proc", c"hidepid=2")
        };
        // SAFETY: system calls only.
        unsafe { self.before_exec(action) }
    }

    /// It runs in a user namespace of its own, with all capabilities there.
    pub(crate) fn in_user_namespace(self) -> Agent {
        // SAFETY: takes a number.
        let action = || done(unsafe { libc::unshare(libc::CLONE_NEWUSER) }.into());
        // SAFETY: system calls only.
        unsafe { self.before_exec(action) }
    }

    /// The kernel tells it a version of 2.6 (`UNAME26`, linux/personality.h).
    pub(crate) fn on_an_old_kernel(self) -> Agent {
        // SAFETY: takes a number.
        let action = || done(unsafe { libc::personality(0x0002_0000) }.into());
        // SAFETY: system calls only.
        unsafe { self.before_exec(action) }
    }

    /// It may lock 64 KiB of memory.
    pub(crate) fn with_little_locked_memory(self) -> Agent {
        let action = || {
            let limit = libc::rlimit {
                rlim_cur: 64 << 10,
                rlim_max: 64 << 10,
            };
            // SAFETY: the structure is read only.
            done(unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) }.into())
        };
        // SAFETY: system calls only.
        unsafe { self.before_exec(action) }
    }
}

fn private_mounts() -> io::Result<()> {
    let flags = libc::MS_REC | libc::MS_PRIVATE;
    let none = std::ptr::null();
    // SAFETY: numbers, and strings that end in zero.
    unsafe {
        done(libc::unshare(libc::CLONE_NEWNS).into())?;
        done(libc::mount(none, c"/".as_ptr(), none, flags, none.cast()).into())
    }
}

fn mount(kind: &std::ffi::CStr, at: &std::ffi::CStr, options: &std::ffi::CStr) -> io::Result<()> {
    let (kind, at, options) = (kind.as_ptr(), at.as_ptr(), options.as_ptr());
    // SAFETY: strings that end in zero.
    done(unsafe { libc::mount(kind, at, kind, 0, options.cast()) }.into())
}

/// A value of `/proc/sys/kernel`, put back when this goes. Only in a test that is alone.
pub(crate) struct Sysctl {
    path: String,
    before: String,
}

impl Sysctl {
    pub(crate) fn set(name: &str, value: &str) -> Sysctl {
        let path = format!("/proc/sys/kernel/{name}");
        let before = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, value).unwrap();
        Sysctl { path, before }
    }
}

impl Drop for Sysctl {
    fn drop(&mut self) {
        let _ = std::fs::write(&self.path, &self.before);
    }
}
