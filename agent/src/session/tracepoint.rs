//! The perf event of a tracepoint, without a mounted tracefs: its id is read from a mount of our own
//! that no process sees (`fsopen(2)`, `fsmount(2)`, Linux 5.2).

use std::ffi::{CStr, c_long};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use perf_event_open_sys::bindings::PERF_TYPE_TRACEPOINT;

use super::event::{Event, Sampling};

/// linux/mount.h.
const FSOPEN_CLOEXEC: u32 = 1;
const FSCONFIG_CMD_CREATE: u32 = 6;
const FSMOUNT_CLOEXEC: u32 = 1;

/// A program runs at a tracepoint, on all CPUs, until this is dropped.
#[derive(Debug)]
pub struct Tracepoint {
    _event: Event,
}

impl Tracepoint {
    /// Runs a loaded program of type `BPF_PROG_TYPE_TRACEPOINT` at a tracepoint from now on.
    /// `event`: its directory below `events` with `/id`; `cpu`: any that is online.
    ///
    /// # Errors
    /// When the kernel has no tracefs or no such tracepoint, or refuses.
    pub fn attach(event: &CStr, program: &impl AsRawFd, cpu: u32) -> io::Result<Self> {
        let event = Event::open(PERF_TYPE_TRACEPOINT, id(event)?, Sampling::Period(1), cpu)?;
        event.run(program)?;
        event.start()?;
        Ok(Self { _event: event })
    }
}

/// The number that perf knows a tracepoint by.
fn id(event: &CStr) -> io::Result<u64> {
    let none = std::ptr::null::<u8>();
    // SAFETY: the arguments are as fsopen(2) asks for, the name ends in a zero.
    let context =
        owned(unsafe { libc::syscall(libc::SYS_fsopen, c"tracefs".as_ptr(), FSOPEN_CLOEXEC) })?;
    let context = context.as_raw_fd();
    // SAFETY: fsconfig(2): this command takes no key and no value.
    if unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context,
            FSCONFIG_CMD_CREATE,
            none,
            none,
            0,
        )
    } < 0
    {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: fsmount(2) takes numbers only.
    let mount = owned(unsafe { libc::syscall(libc::SYS_fsmount, context, FSMOUNT_CLOEXEC, 0) })?;
    // SAFETY: the path ends in a zero.
    let file = unsafe {
        libc::openat(
            mount.as_raw_fd(),
            event.as_ptr(),
            libc::O_RDONLY | libc::O_CLOEXEC,
        )
    };
    let mut text = String::new();
    File::from(owned(file.into())?).read_to_string(&mut text)?;
    text.trim()
        .parse()
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
}

/// A descriptor that the kernel has just given us, or the error.
fn owned(fd: c_long) -> io::Result<OwnedFd> {
    match i32::try_from(fd) {
        // SAFETY: fresh from the kernel, nobody else has it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;

    #[test]
    fn a_tracepoint_is_found_without_a_mount() {
        let Ok(found) = id(c"events/raw_syscalls/sys_exit/id") else {
            // Only with the right to mount.
            return;
        };
        assert!(found > 0);
        assert!(id(c"events/raw_syscalls/nothing/id").is_err());
        assert!(
            !std::fs::read_to_string("/proc/self/mounts")
                .unwrap()
                .contains("tracefs")
        );
    }
}
