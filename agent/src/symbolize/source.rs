//! Bytes of an ELF image: an open file read with `pread`, or memory.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::decompress::Unpacked;
use crate::elf;

/// An ELF image that is read piece by piece and never mapped, so that a file cut short while it
/// is read is an error and not a signal.
pub(super) enum Source<'a> {
    /// An open file and its length in bytes when it was opened.
    File(&'a File, u64),
    /// A file that this module opened itself.
    Owned(File, u64),
    /// A decompressed image.
    Bytes(Unpacked),
}

impl<'a> Source<'a> {
    /// Reads from a regular file; `None` for anything else.
    pub(super) fn file(file: &'a File) -> Option<Self> {
        Some(Source::File(file, regular_length(file)?))
    }

    /// Like [`Source::file`], keeping the file.
    pub(super) fn owned(file: File) -> Option<Self> {
        let length = regular_length(&file)?;
        Some(Source::Owned(file, length))
    }

    /// Length in bytes.
    pub(super) fn len(&self) -> u64 {
        match self {
            Source::File(_, length) | Source::Owned(_, length) => *length,
            Source::Bytes(bytes) => bytes.len() as u64,
        }
    }

    /// Fills `buffer` from `offset` on; `None` if there are not so many bytes.
    pub(super) fn read_exact(&self, offset: u64, buffer: &mut [u8]) -> Option<()> {
        match self {
            Source::File(file, _) => file.read_exact_at(buffer, offset).ok(),
            Source::Owned(file, _) => file.read_exact_at(buffer, offset).ok(),
            Source::Bytes(bytes) => {
                let start = usize::try_from(offset).ok()?;
                let end = start.checked_add(buffer.len())?;
                buffer.copy_from_slice(bytes.get(start..end)?);
                Some(())
            }
        }
    }

    /// The `length` bytes at `offset`; `None` if they lie outside the image or are more than
    /// `cap`, before anything is allocated.
    pub(super) fn read(&self, offset: u64, length: u64, cap: u64) -> Option<Vec<u8>> {
        if length > cap || offset.checked_add(length)? > self.len() {
            return None;
        }
        let mut bytes = vec![0; usize::try_from(length).ok()?];
        self.read_exact(offset, &mut bytes)?;
        Some(bytes)
    }

    /// At most `length` bytes at `offset`, fewer at the end of the image.
    pub(super) fn read_up_to(&self, offset: u64, length: u64) -> Option<Vec<u8>> {
        let length = length.min(self.len().checked_sub(offset)?);
        self.read(offset, length, length)
    }
}

fn regular_length(file: &File) -> Option<u64> {
    elf::regular_length(file).ok()
}
