//! Writes archives: the same bytes for the same contents and time.

use std::io::{self, Write};

use flate2::write::DeflateEncoder;
use flate2::{Compression, Crc};

use super::{CENTRAL, DEFLATED, END, LOCAL};
use crate::calendar::Utc;

/// Made by version 2.0 on Unix.
const MADE_BY: u16 = (3 << 8) | 20;
/// Version 2.0 can read it.
const NEEDED: u16 = 20;
/// Flag: the names are UTF-8.
const UTF8: u16 = 1 << 11;
/// A regular file that its owner may read and write.
const MODE: u32 = 0o100_600;
/// Extra field with the time in seconds since the epoch (Info-ZIP's `UT`).
const TIMESTAMP: u16 = 0x5455;

/// An archive that is being written.
pub struct Writer<W> {
    out: W,
    at: u64,
    directory: Vec<u8>,
    entries: u16,
    modified: u64,
}

impl<W: Write> Writer<W> {
    /// Begins an archive whose entries all have this time, in seconds since the epoch.
    pub fn new(out: W, modified: u64) -> Self {
        Self {
            out,
            at: 0,
            directory: Vec::new(),
            entries: 0,
            modified,
        }
    }

    /// Adds an entry with these contents.
    ///
    /// # Errors
    /// What the writer reports; more than 4 GiB.
    pub fn add(&mut self, name: &str, contents: &[u8]) -> io::Result<()> {
        let mut deflate = DeflateEncoder::new(Vec::new(), Compression::default());
        deflate.write_all(contents)?;
        let packed = deflate.finish()?;
        let offset = small(self.at)?;
        let common = self.common(name, contents, &packed)?;
        let timestamp = self.timestamp();

        self.put(&LOCAL.to_le_bytes())?;
        for part in [&common, name.as_bytes(), &timestamp, &packed] {
            self.put(part)?;
        }
        let made_by = MADE_BY.to_le_bytes();
        // No comment, the first disk, no internal attributes.
        let none = [0; 6];
        let mode = (MODE << 16).to_le_bytes();
        for part in [
            &CENTRAL.to_le_bytes()[..],
            &made_by,
            &common,
            &none,
            &mode,
            &offset.to_le_bytes(),
            name.as_bytes(),
            &timestamp,
        ] {
            self.directory.extend_from_slice(part);
        }
        self.entries += 1;
        Ok(())
    }

    /// Completes the archive.
    ///
    /// # Errors
    /// What the writer reports.
    pub fn finish(mut self) -> io::Result<W> {
        let (offset, size) = (small(self.at)?, small(self.directory.len() as u64)?);
        let mut end = std::mem::take(&mut self.directory);
        end.extend_from_slice(&END.to_le_bytes());
        end.extend_from_slice(&[0; 4]);
        end.extend_from_slice(&self.entries.to_le_bytes());
        end.extend_from_slice(&self.entries.to_le_bytes());
        end.extend_from_slice(&size.to_le_bytes());
        end.extend_from_slice(&offset.to_le_bytes());
        end.extend_from_slice(&[0; 2]);
        self.put(&end)?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.at += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    /// The fields that both headers of an entry have.
    fn common(&self, name: &str, contents: &[u8], packed: &[u8]) -> io::Result<Vec<u8>> {
        let mut crc = Crc::new();
        crc.update(contents);
        let (time, date) = dos_time(self.modified);
        let mut common = Vec::new();
        for short in [NEEDED, UTF8, DEFLATED, time, date] {
            common.extend_from_slice(&short.to_le_bytes());
        }
        for long in [
            crc.sum(),
            small(packed.len() as u64)?,
            small(contents.len() as u64)?,
        ] {
            common.extend_from_slice(&long.to_le_bytes());
        }
        for short in [name.len() as u16, self.timestamp().len() as u16] {
            common.extend_from_slice(&short.to_le_bytes());
        }
        Ok(common)
    }

    /// The modification time alone, as an extra field.
    fn timestamp(&self) -> [u8; 9] {
        let [tag_low, tag_high] = TIMESTAMP.to_le_bytes();
        let [a, b, c, d] = (self.modified as u32).to_le_bytes();
        [tag_low, tag_high, 5, 0, 1, a, b, c, d]
    }
}

fn small(number: u64) -> io::Result<u32> {
    u32::try_from(number).map_err(|_| io::Error::other("a bundle of more than 4 GiB"))
}

/// Time and date as MS-DOS keeps them: two-second steps, from 1980.
fn dos_time(seconds: u64) -> (u16, u16) {
    let utc = Utc::at(seconds);
    let time = utc.hour << 11 | utc.minute << 5 | (utc.second / 2);
    let date = utc.year.clamp(1980, 2107).saturating_sub(1980) << 9 | utc.month << 5 | utc.day;
    (time as u16, date as u16)
}
