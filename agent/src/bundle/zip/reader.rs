//! Reads archives. What is read may come from anybody: every offset is checked, what inflates is
//! bounded, and a name that two entries share is refused.

use std::collections::BTreeMap;
use std::io::Read;

use flate2::Crc;
use flate2::read::DeflateDecoder;

use super::{
    CENTRAL, CENTRAL_BYTES, DEFLATED, END, END_BYTES, Error, LOCAL, LOCAL_BYTES, MAX_ENTRIES,
    MAX_ENTRY, STORED,
};

/// The end record is followed by a comment of this length at most.
const MAX_COMMENT: usize = u16::MAX as usize;
/// Flag: encrypted.
const ENCRYPTED: u16 = 1;

/// An archive in memory.
#[derive(Debug)]
pub struct Archive<'a> {
    bytes: &'a [u8],
    entries: BTreeMap<String, Entry>,
    left: u64,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    flags: u16,
    method: u16,
    crc: u32,
    packed: usize,
    size: u64,
    offset: usize,
}

impl<'a> Archive<'a> {
    /// Reads the directory. The entries read later may inflate to `most` bytes together.
    ///
    /// # Errors
    /// No zip file, a damaged one, or one that cannot be trusted; see [`Error`].
    pub fn open(bytes: &'a [u8], most: u64) -> Result<Self, Error> {
        let end = end_record(bytes)?;
        let damaged = Error::Damaged("its end record is incomplete");
        let fields = || {
            let (disk, first) = (u16_at(bytes, end + 4)?, u16_at(bytes, end + 6)?);
            let (here, all) = (u16_at(bytes, end + 8)?, u16_at(bytes, end + 10)?);
            let (size, offset) = (u32_at(bytes, end + 12)?, u32_at(bytes, end + 16)?);
            Some((disk | first, here, all, size, offset))
        };
        let (disks, here, all, size, offset) = fields().ok_or(damaged)?;
        if all == u16::MAX || offset == u32::MAX {
            return Err(Error::Unsupported("Zip64"));
        }
        if disks != 0 || here != all {
            return Err(Error::Unsupported("several parts"));
        }
        let all = usize::from(all);
        if all > MAX_ENTRIES {
            return Err(Error::TooMany(all));
        }
        let outside = Error::Damaged("its directory lies outside of it");
        let start = offset as usize;
        let directory = start
            .checked_add(size as usize)
            .filter(|&stop| stop <= end)
            .and_then(|stop| bytes.get(start..stop))
            .ok_or(outside)?;
        Ok(Self {
            bytes,
            entries: entries(directory, all)?,
            left: most,
        })
    }

    /// The names of all entries, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The contents of an entry.
    ///
    /// # Errors
    /// There is none, it is damaged, or it inflates to more than may be.
    pub fn read(&mut self, name: &'static str) -> Result<Vec<u8>, Error> {
        let entry = *self.entries.get(name).ok_or(Error::NoEntry(name))?;
        if entry.flags & ENCRYPTED != 0 {
            return Err(Error::Unsupported("encryption"));
        }
        let packed = self.packed(&entry)?;
        let limit = self.left.min(MAX_ENTRY);
        let bomb = Error::Bomb {
            name,
            packed: packed.len(),
            limit: limit >> 20,
        };
        if entry.size > limit {
            return Err(bomb);
        }
        let mut contents = Vec::new();
        // One byte more than it says: then it is not what was packed.
        let read = match entry.method {
            STORED => packed.take(entry.size + 1).read_to_end(&mut contents),
            DEFLATED => DeflateDecoder::new(packed)
                .take(entry.size + 1)
                .read_to_end(&mut contents),
            _ => return Err(Error::Unsupported("another compression than deflate")),
        };
        let mut crc = Crc::new();
        crc.update(&contents);
        if read.is_err() || contents.len() as u64 != entry.size || crc.sum() != entry.crc {
            return Err(Error::Contents(name));
        }
        self.left -= entry.size;
        Ok(contents)
    }

    /// An entry's bytes in the archive, behind its own header.
    fn packed(&self, entry: &Entry) -> Result<&'a [u8], Error> {
        let bytes = self.bytes;
        let find = || {
            let at = entry.offset;
            (u32_at(bytes, at)? == LOCAL).then_some(())?;
            let name = usize::from(u16_at(bytes, at.checked_add(26)?)?);
            let extra = usize::from(u16_at(bytes, at.checked_add(28)?)?);
            let start = at.checked_add(LOCAL_BYTES + name + extra)?;
            bytes.get(start..start.checked_add(entry.packed)?)
        };
        find().ok_or(Error::Damaged("an entry lies outside of it"))
    }
}

/// Where the end record is: the last one whose comment reaches to the end.
fn end_record(bytes: &[u8]) -> Result<usize, Error> {
    let last = bytes.len().checked_sub(END_BYTES).ok_or(Error::NotZip)?;
    let found = (last.saturating_sub(MAX_COMMENT)..=last).rev().find(|&at| {
        let comment = u16_at(bytes, at + 20).map(usize::from);
        u32_at(bytes, at) == Some(END) && comment == Some(last - at)
    });
    found.ok_or(match u32_at(bytes, 0) {
        Some(LOCAL) => Error::Damaged("its directory is missing"),
        _ => Error::NotZip,
    })
}

/// Reads `all` headers, which must be the whole directory.
fn entries(directory: &[u8], all: usize) -> Result<BTreeMap<String, Entry>, Error> {
    let mut entries = BTreeMap::new();
    let mut rest = directory;
    for _ in 0..all {
        let (name, entry, after) =
            header(rest).ok_or(Error::Damaged("its directory is incomplete"))?;
        let name = String::from_utf8_lossy(name).into_owned();
        if leads_out(&name) {
            return Err(Error::Path(name));
        }
        if entries.contains_key(&name) {
            return Err(Error::Duplicate(name));
        }
        entries.insert(name, entry);
        rest = after;
    }
    match rest {
        [] => Ok(entries),
        _ => Err(Error::Damaged("its directory has more than it says")),
    }
}

/// One header of the directory: the name, the entry, and what follows.
fn header(bytes: &[u8]) -> Option<(&[u8], Entry, &[u8])> {
    (u32_at(bytes, 0)? == CENTRAL).then_some(())?;
    let length = |at| Some(usize::from(u16_at(bytes, at)?));
    let (name, extra, comment) = (length(28)?, length(30)?, length(32)?);
    let entry = Entry {
        flags: u16_at(bytes, 8)?,
        method: u16_at(bytes, 10)?,
        crc: u32_at(bytes, 16)?,
        packed: u32_at(bytes, 20)? as usize,
        size: u64::from(u32_at(bytes, 24)?),
        offset: u32_at(bytes, 42)? as usize,
    };
    let name_end = CENTRAL_BYTES + name;
    Some((
        bytes.get(CENTRAL_BYTES..name_end)?,
        entry,
        bytes.get(name_end + extra + comment..)?,
    ))
}

/// Whether a file of this name would be unpacked elsewhere than in the directory asked for.
fn leads_out(name: &str) -> bool {
    let drive = name.as_bytes().get(1) == Some(&b':');
    name.starts_with(['/', '\\'])
        || drive
        || name.contains('\0')
        || name.split(['/', '\\']).any(|part| part == "..")
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|&word| u16::from_le_bytes(word))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|&word| u32::from_le_bytes(word))
}
