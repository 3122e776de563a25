//! Why a run could not begin or go on, and what the kernel was asked for.

use std::io;

use aya::programs::ProgramError;

use super::{sideband, target};
use crate::preflight::refusal::{Operation, Refusal};

/// Why a run could not begin or go on. The chain of sources holds what the kernel answered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something that this kernel or these privileges do not allow.
    #[error(transparent)]
    Preflight(#[from] crate::preflight::Error),
    /// The bytecode could not be loaded.
    #[error("the kernel refused agent's BPF maps or types")]
    Load(#[source] Box<aya::EbpfError>),
    /// A program was refused.
    #[error("cannot load the BPF program {program}")]
    Program {
        /// Its name.
        program: &'static str,
        /// What the kernel answered, with the verifier's log.
        source: Box<aya::programs::ProgramError>,
    },
    /// A program could not be attached.
    #[error("cannot attach the BPF program {program} to {hook}")]
    Attach {
        /// Its name.
        program: &'static str,
        /// The hook.
        hook: String,
        /// What the kernel answered.
        source: Box<aya::programs::ProgramError>,
    },
    /// The sampling clock could not be started.
    #[error("cannot start the sampling clock: perf event {clock} on CPU {cpu}")]
    Clock {
        /// As `perf list` calls it.
        clock: &'static str,
        /// The CPU.
        cpu: u32,
        /// What the kernel answered.
        source: io::Error,
    },
    /// A map is missing or of another type: the bytecode does not fit this program.
    #[error("the embedded bytecode does not fit this program: map {0}")]
    Map(&'static str),
    /// A program is missing: the bytecode does not fit this program.
    #[error("the embedded bytecode does not fit this program: program {0}")]
    Missing(&'static str),
    /// A process could not be taken into scope.
    #[error(transparent)]
    Target(#[from] target::Error),
    /// It is in a PID namespace that the agent's does not contain.
    #[error("process {0} could not be found by the kernel's task iterator")]
    NoTgid(u32),
    /// The kernel does not tell what processes map.
    #[error("cannot open the perf side band")]
    Sideband(#[from] sideband::Error),
    /// An operating system call failed.
    #[error("{what}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

impl Error {
    /// What the kernel was asked for and answered, where it was the kernel that said no.
    pub fn refusal(&self) -> Option<Refusal> {
        let operation = match self {
            Error::Load(_) | Error::Target(target::Error::Tables(_)) => Operation::Map,
            Error::Program { .. } => Operation::Program,
            Error::Attach { source, .. } => match &**source {
                ProgramError::SyscallError(error) if error.call == "perf_event_open" => {
                    Operation::PerfEvent
                }
                _ => Operation::Attach,
            },
            Error::Sideband(error) => return error.refusal(),
            Error::Clock { .. } => Operation::PerfEvent,
            Error::Io { .. } => Operation::Other,
            _ => return None,
        };
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            if let Some(errno) = error.downcast_ref().and_then(io::Error::raw_os_error) {
                return Some(Refusal { operation, errno });
            }
            source = error.source();
        }
        None
    }
}
