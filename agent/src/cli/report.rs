//! Runs `agent report`: takes the outputs out of a bundle.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use thiserror::Error;

use super::args::Verbosity;
use super::destination::Destination;
use super::report_args::ReportSpec;
use crate::bundle;
use crate::capture::Capture;
use crate::output::escape;

/// Most bytes of a bundle that is read.
const MAX_BUNDLE: u64 = 256 << 20;

/// Why a bundle cannot be used.
#[derive(Debug, Error)]
pub enum BundleError {
    /// The file cannot be read.
    #[error("cannot read `{path}`")]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// It has more than [`MAX_BUNDLE`] bytes.
    #[error("cannot read `{path}`: a bundle has at most {} MiB", MAX_BUNDLE >> 20)]
    TooBig {
        /// The file.
        path: String,
    },
    /// It is none, or a damaged one.
    #[error("cannot use `{path}` as a bundle")]
    Bundle {
        /// The file.
        path: String,
        /// What is wrong with it.
        source: bundle::Error,
    },
}

/// Runs it.
///
/// # Errors
/// The bundle cannot be used, or an output not be written. Outputs are written only when all of
/// them have been made.
pub fn run(spec: ReportSpec, verbosity: Verbosity) -> anyhow::Result<()> {
    let mut outputs = Vec::new();
    for (target, form) in spec.outputs {
        outputs.push((Destination::prepare(target)?, form));
    }
    let capture = read(&spec.bundle)?;
    let mut made = Vec::new();
    for (destination, form) in outputs {
        made.push((destination, form.render(&capture)?));
    }
    for (destination, bytes) in made {
        let path = destination.path().map(|path| path.display().to_string());
        destination.write(&bytes)?;
        if let Some(path) = path.filter(|_| !verbosity.quiet) {
            let _ = writeln!(io::stderr(), "wrote {}", escape::plain(&path));
        }
    }
    Ok(())
}

/// Reads the capture of a bundle.
///
/// # Errors
/// See [`BundleError`].
pub fn read(path: &Path) -> Result<Capture, BundleError> {
    let shown = || escape::plain(&path.to_string_lossy()).into_owned();
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_BUNDLE + 1).read_to_end(&mut bytes));
    read.map_err(|source| BundleError::Read {
        path: shown(),
        source,
    })?;
    if bytes.len() as u64 > MAX_BUNDLE {
        return Err(BundleError::TooBig { path: shown() });
    }
    bundle::read(&bytes).map_err(|source| BundleError::Bundle {
        path: shown(),
        source,
    })
}
