//! Perf events that run a program, held by their own descriptors: what is changed later asks for no
//! privilege any more.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use perf_event_open_sys::bindings::{PERF_FLAG_FD_CLOEXEC, perf_event_attr};
use perf_event_open_sys::ioctls;

/// How often an event overflows, and its program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sampling {
    /// Each so many counts.
    Period(u64),
    /// So many times a second.
    Frequency(u64),
}

impl Sampling {
    const fn number(self) -> u64 {
        match self {
            Sampling::Period(number) | Sampling::Frequency(number) => number,
        }
    }
}

/// An event of one CPU and of all its processes. It ends with this.
#[derive(Debug)]
pub struct Event(OwnedFd);

impl Event {
    /// Opens it, stopped. `kind` and `config` are those of perf_event_open(2).
    ///
    /// # Errors
    /// When the kernel has no such event, or refuses.
    pub fn open(kind: u32, config: u64, sampling: Sampling, cpu: u32) -> io::Result<Self> {
        let mut attr = perf_event_attr {
            type_: kind,
            size: size_of::<perf_event_attr>() as u32,
            config,
            ..perf_event_attr::default()
        };
        attr.__bindgen_anon_1.sample_period = sampling.number();
        attr.set_freq(u64::from(matches!(sampling, Sampling::Frequency(_))));
        attr.set_disabled(1);
        let flags = u64::from(PERF_FLAG_FD_CLOEXEC);
        // SAFETY: the attribute is a whole, initialised structure.
        let fd = unsafe {
            perf_event_open_sys::perf_event_open(&raw mut attr, -1, cpu as i32, -1, flags)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: fresh from the kernel, nobody else has it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Has a loaded program run whenever it overflows.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn run(&self, program: &impl AsRawFd) -> io::Result<()> {
        // SAFETY: an ioctl on our own perf event, with a descriptor that is open.
        done(unsafe { ioctls::SET_BPF(self.0.as_raw_fd(), program.as_raw_fd() as u32) })
    }

    /// Starts it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn start(&self) -> io::Result<()> {
        // SAFETY: an ioctl on our own perf event; the argument is a flag.
        done(unsafe { ioctls::ENABLE(self.0.as_raw_fd(), 0) })
    }

    /// Stops it: its program does not run when this has returned.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn stop(&self) -> io::Result<()> {
        // SAFETY: an ioctl on our own perf event; the argument is a flag.
        done(unsafe { ioctls::DISABLE(self.0.as_raw_fd(), 0) })
    }

    /// Changes how often it overflows, by what it was opened with: a period or a frequency.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn change(&self, sampling: Sampling) -> io::Result<()> {
        let number = sampling.number();
        let at = &raw const number;
        // SAFETY: an ioctl on our own perf event, which reads the number.
        done(unsafe { ioctls::PERIOD(self.0.as_raw_fd(), at as u64) })
    }
}

fn done(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
