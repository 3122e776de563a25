//! Waits until one of several descriptors becomes readable.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::Error;

/// Descriptors that wake the run: one epoll instance for them all.
pub(super) struct Watch {
    epoll: AsyncFd<OwnedFd>,
}

impl Watch {
    pub(super) fn new() -> Result<Self, Error> {
        let failed = |source| Error::Io {
            what: "cannot make an epoll instance",
            source,
        };
        // SAFETY: takes a flag, returns a new descriptor.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(failed(io::Error::last_os_error()));
        }
        // SAFETY: the kernel has just given this descriptor to us alone.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: the descriptor belongs to the `AsyncFd` from now on and stays open with it.
        let epoll = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
        Ok(Self {
            epoll: epoll.map_err(|error| failed(error.into()))?,
        })
    }

    /// Edge-triggered: what is not taken in now is taken in at the next tick.
    pub(super) fn add(&self, fd: RawFd) -> Result<(), Error> {
        let mut event = libc::epoll_event {
            events: (libc::EPOLLIN | libc::EPOLLET) as u32,
            u64: 0,
        };
        // SAFETY: both descriptors are open, the event is initialised.
        let done = unsafe {
            libc::epoll_ctl(
                self.epoll.as_raw_fd(),
                libc::EPOLL_CTL_ADD,
                fd,
                &raw mut event,
            )
        };
        if done < 0 {
            let source = io::Error::last_os_error();
            return Err(Error::Io {
                what: "cannot watch a descriptor",
                source,
            });
        }
        Ok(())
    }

    /// Returns once one of them has news.
    pub(super) async fn ready(&self) {
        if let Ok(mut guard) = self.epoll.readable().await {
            let mut events = [libc::epoll_event { events: 0, u64: 0 }; 16];
            // SAFETY: the array is as long as said; no waiting.
            while unsafe { libc::epoll_wait(self.epoll.as_raw_fd(), events.as_mut_ptr(), 16, 0) }
                > 0
            {}
            guard.clear_ready();
        }
    }
}
