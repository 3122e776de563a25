//! Standard output, written to again and again while a run goes on.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use super::destination::OutputError;

/// Standard output until its reader has seen enough or it cannot be written.
#[derive(Debug, Default)]
pub struct Stdout {
    gone: bool,
    error: Option<OutputError>,
}

impl Stdout {
    /// Writes at once; nothing once it has ended.
    pub fn put(&mut self, bytes: &[u8]) {
        self.put_with(|out| out.write_all(bytes));
    }

    /// As [`Stdout::put`], with what `write` writes.
    pub fn put_with(&mut self, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) {
        if self.has_ended() {
            return;
        }
        let mut out = io::BufWriter::new(io::stdout().lock());
        match write(&mut out).and_then(|()| out.flush()) {
            Ok(()) => {}
            // `agent … | head`.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.gone = true,
            Err(error) => self.error = Some(OutputError::Stdout(error)),
        }
    }

    /// Whether nothing can be written any more: the reader is gone, or there was an error.
    pub fn has_ended(&self) -> bool {
        self.gone || self.error.is_some()
    }

    /// What kept it from being written, if anything but the reader's end did.
    ///
    /// # Errors
    /// [`OutputError::Stdout`].
    pub fn finish(self) -> Result<(), OutputError> {
        self.error.map_or(Ok(()), Err)
    }
}

/// Whether the agent was started with standard output.
pub fn is_open() -> bool {
    !CLOSED.load(Ordering::Relaxed)
}

/// Where it was closed, Rust's runtime opens `/dev/null` in its place before `main`: it must be
/// looked at before that.
static CLOSED: AtomicBool = AtomicBool::new(false);

extern "C" fn look() {
    // SAFETY: reads the flags of a descriptor and touches no memory.
    let failed = unsafe { libc::fcntl(libc::STDOUT_FILENO, libc::F_GETFD) } < 0;
    CLOSED.store(failed, Ordering::Relaxed);
}

// SAFETY: the C runtime calls the functions of this section once, before `main`; this one needs
// nothing of Rust's runtime.
#[used]
#[unsafe(link_section = ".init_array")]
static LOOK: extern "C" fn() = look;
