//! Zip archives (PKWARE's APPNOTE.TXT 6.3.10), as much of them as a bundle needs: deflated or
//! stored entries, no encryption, no Zip64.

mod reader;
mod writer;

pub use reader::Archive;
pub use writer::Writer;

use thiserror::Error;

const LOCAL: u32 = 0x0403_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const END: u32 = 0x0605_4b50;
/// Bytes of the records without their variable parts.
const LOCAL_BYTES: usize = 30;
const CENTRAL_BYTES: usize = 46;
const END_BYTES: usize = 22;
/// Compression methods.
const STORED: u16 = 0;
const DEFLATED: u16 = 8;

/// Most entries of an archive that is read.
const MAX_ENTRIES: usize = 1024;
/// Most bytes that one entry inflates to.
pub const MAX_ENTRY: u64 = 256 << 20;

/// Why an archive cannot be read.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Error {
    /// Something else.
    #[error("it is no zip file")]
    NotZip,
    /// It says something that its bytes do not hold.
    #[error("the zip file is damaged or was cut short: {0}")]
    Damaged(&'static str),
    /// A kind of archive that bundles are not.
    #[error("the zip file uses {0}, which a bundle does not; pack its files anew with `zip`")]
    Unsupported(&'static str),
    /// More entries than [`MAX_ENTRIES`].
    #[error("the zip file has {0} entries; a bundle has at most {MAX_ENTRIES}")]
    TooMany(usize),
    /// Two entries of one name.
    #[error("the zip file has two entries `{0}`: it cannot be told which one is meant")]
    Duplicate(String),
    /// A name that leads out of the archive.
    #[error("the zip file has an entry `{0}`, whose name leads out of it; bundles have no such")]
    Path(String),
    /// There is no such entry.
    #[error("the zip file has no entry `{0}`")]
    NoEntry(&'static str),
    /// The bytes are not those that were packed.
    #[error("the entry `{0}` of the zip file is damaged: it does not inflate to what was packed")]
    Contents(&'static str),
    /// A zip bomb.
    #[error(
        "the entry `{name}` of the zip file inflates from {packed} bytes to more than {limit} MiB, \
         which no bundle needs: a zip bomb?"
    )]
    Bomb {
        /// The entry.
        name: &'static str,
        /// Its size in the archive, in bytes.
        packed: usize,
        /// What may be inflated of it, in MiB.
        limit: u64,
    },
}

#[cfg(test)]
mod tests;
