//! What can go wrong with a target.

use super::super::tables;

/// Why a process could not be taken into scope.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be looked at.
    #[error(transparent)]
    Process(#[from] crate::process::Error),
    /// Its table could not be handed over.
    #[error(transparent)]
    Tables(#[from] tables::Error),
    /// The kernel refused the entry.
    #[error("cannot put process {pid} in scope")]
    Scope {
        /// The process.
        pid: u32,
        /// What the kernel answered.
        source: aya::maps::MapError,
    },
}
