//! Captures read back, of this agent or of another tool: bundles, pprof profiles, folded stacks.
//!
//! The content tells the format, not the name. Sizes are bounded, and nothing that a file holds can make the agent
//! panic, recurse, or take more memory than a small multiple of the file's unpacked size.

mod bundle;
mod folded;
mod pprof;

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use crate::diff::Side;
use crate::output::escape;

/// Largest file, packed or unpacked, in bytes.
const MAX_BYTES: u64 = 256 << 20;

/// Why a capture could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the capture `{path}`: {reason}")]
pub struct Error {
    path: String,
    reason: Reason,
}

/// What is wrong with it.
#[derive(Debug, thiserror::Error)]
enum Reason {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it is no regular file")]
    NotRegular,
    #[error("it has more than {} MiB, packed or unpacked", MAX_BYTES >> 20)]
    TooLarge,
    #[error("it is truncated or damaged: {0}")]
    Gzip(io::Error),
    #[error("it is empty")]
    Empty,
    #[error(
        "it is none of the formats that can be compared: a bundle (.zip), a pprof profile (.pb.gz), folded stacks (.folded)"
    )]
    Unknown,
    #[error(transparent)]
    Bundle(#[from] bundle::Reason),
    #[error(transparent)]
    Pprof(#[from] pprof::Reason),
    #[error(transparent)]
    Folded(#[from] folded::Reason),
}

/// Reads a capture.
///
/// # Errors
/// It cannot be read, is too large, is of no known format or is damaged; the text names the file and
/// what is wrong with it.
pub fn read(path: &Path) -> Result<Side, Error> {
    let label = escape::plain(&path.to_string_lossy()).into_owned();
    let parsed = bytes_of(path).and_then(|bytes| parse(&bytes, &label));
    parsed.map_err(|reason| Error {
        path: label,
        reason,
    })
}

fn bytes_of(path: &Path) -> Result<Vec<u8>, Reason> {
    // Of a pipe or a device, opening could wait for ever.
    if !std::fs::metadata(path)?.is_file() {
        return Err(Reason::NotRegular);
    }
    bounded(File::open(path)?, Reason::Io)
}

/// All that the reader gives, if that is not too much.
fn bounded(reader: impl Read, failed: impl Fn(io::Error) -> Reason) -> Result<Vec<u8>, Reason> {
    let mut bytes = Vec::new();
    let read = reader.take(MAX_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(failed)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Reason::TooLarge);
    }
    Ok(bytes)
}

/// Reads a capture from its bytes.
#[cfg(any(test, fuzzing))]
pub(crate) fn read_bytes(bytes: &[u8]) -> Result<Side, String> {
    parse(bytes, "capture").map_err(|reason| reason.to_string())
}

fn parse(bytes: &[u8], label: &str) -> Result<Side, Reason> {
    if bytes.starts_with(b"PK") {
        return Ok(bundle::parse(bytes, label)?);
    }
    let unpacked;
    let bytes = match bytes.starts_with(&[0x1f, 0x8b]) {
        true => {
            unpacked = bounded(flate2::read::MultiGzDecoder::new(bytes), Reason::Gzip)?;
            &unpacked
        }
        false => bytes,
    };
    if bytes.is_empty() {
        return Err(Reason::Empty);
    }
    // Every pprof profile has control characters, as its field numbers; no text has.
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(|c| c.is_control() && !c.is_whitespace()) => {
            Ok(folded::parse(text, label)?)
        }
        _ => match pprof::parse(bytes, label) {
            Err(pprof::Reason::Malformed(_)) if bytes.first() != Some(&0x0a) => {
                Err(Reason::Unknown)
            }
            parsed => Ok(parsed?),
        },
    }
}

/// The name of a process without a number at its end, so that the workers of before and after are the same.
fn process_name(name: &str) -> &str {
    match name.rsplit_once('-') {
        Some((head, digits))
            if !head.is_empty()
                && !digits.is_empty()
                && digits.bytes().all(|byte| byte.is_ascii_digit()) =>
        {
            head
        }
        _ => name,
    }
}

#[cfg(test)]
mod tests;
