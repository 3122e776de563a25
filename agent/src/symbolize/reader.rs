//! A section of debug information as gimli reads it: pages come from the file when they are
//! first used, so that finding a few functions in gigabytes of DWARF reads only their units.

use std::borrow::Cow;
use std::cell::{Cell, OnceCell};
use std::fmt;

use gimli::{Error, LittleEndian, Reader, ReaderOffsetId, Result};
use object::elf;
use object::{LittleEndian as LE, pod};

use super::clock::Clock;
use super::decompress::{self, Failure, MEMORY, Method, Packed, Unpacked};
use super::elf::{Elf, Section};
use super::source::Source;

/// Bytes read at a time. Small, since finding a unit needs only its first bytes.
const PAGE: usize = 4096;
/// Pages that are listed together.
const GROUP: usize = 512;
/// Largest section that is read, in bytes: bounds the table of its groups of pages.
const MAX_SECTION: u64 = 8 << 30;
/// Bytes of an unpacked section between two looks at the clock.
const WINDOW: usize = 64 << 10;

/// The contents of a section, compressed or not. What is read of it takes from [`MEMORY`], and
/// nothing more is read once the time is up: every loop over it ends.
pub(super) struct Contents<'a> {
    source: &'a Source<'a>,
    offset: u64,
    length: usize,
    data: Data,
    clock: &'a Clock,
    /// Bytes taken from [`MEMORY`] for pages.
    held: Cell<u64>,
    /// Whether a page was not read for want of memory.
    refused: Cell<bool>,
}

type Group = Box<[OnceCell<Box<[u8]>>]>;

enum Data {
    Pages(Box<[OnceCell<Group>]>),
    Packed {
        method: Method,
        size: u64,
        unpacked: OnceCell<std::result::Result<Unpacked, Failure>>,
    },
}

impl<'a> Contents<'a> {
    /// The section of this name (`.debug_info`), also in its old compressed form
    /// (`.zdebug_info`); empty if there is none.
    pub(super) fn of(elf: &'a Elf<'a>, name: &str, clock: &'a Clock) -> Self {
        let found = match elf.section(name) {
            Some(section) if section.is_compressed() => packed(elf, section),
            Some(section) => plain(section),
            None => elf
                .section(&name.replacen(".debug", ".zdebug", 1))
                .and_then(|section| old_packed(elf, section)),
        };
        let (offset, length, data) = found.unwrap_or((0, 0, Data::Pages(Box::default())));
        Contents {
            source: &elf.source,
            offset,
            length,
            data,
            clock,
            held: Cell::new(0),
            refused: Cell::new(false),
        }
    }

    /// Whether the section is compressed.
    pub(super) fn is_packed(&self) -> bool {
        matches!(self.data, Data::Packed { .. })
    }

    /// A reader of the whole section.
    pub(super) fn reader(&'a self) -> Pages<'a> {
        Pages {
            contents: self,
            start: 0,
            end: self.length,
            window: &[],
        }
    }

    /// Bytes from `start` to the end of what is at hand there; empty at the end of the section.
    fn window(&self, start: usize) -> Result<&[u8]> {
        if start >= self.length {
            return Ok(&[]);
        }
        match &self.data {
            Data::Pages(pages) => {
                let number = start / PAGE;
                let group = pages.get(number / GROUP).ok_or(Error::Io)?;
                let group = group.get_or_init(|| vec![OnceCell::new(); GROUP].into());
                let page = group.get(number % GROUP).ok_or(Error::Io)?;
                let bytes = match page.get() {
                    Some(bytes) => bytes,
                    None => {
                        let bytes = self.read_page(number).ok_or(Error::Io)?;
                        page.get_or_init(|| bytes)
                    }
                };
                bytes.get(start % PAGE..).ok_or(Error::Io)
            }
            Data::Packed {
                method,
                size,
                unpacked,
            } => {
                let bytes = unpacked.get_or_init(|| {
                    let packed = Packed::new(self.source, self.offset, *size);
                    decompress::section(*method, packed, self.length as u64, &MEMORY, self.clock)
                });
                match bytes {
                    Ok(bytes) if !self.clock.is_over() => {
                        let end = start.saturating_add(WINDOW).min(bytes.len());
                        bytes.get(start..end).ok_or(Error::Io)
                    }
                    _ => Err(Error::Io),
                }
            }
        }
    }

    /// Whether it was not unpacked, or not read to its end, because it asks for too much.
    pub(super) fn was_refused(&self) -> bool {
        match &self.data {
            Data::Pages(_) => self.refused.get(),
            Data::Packed { unpacked, .. } => {
                matches!(unpacked.get(), Some(Err(Failure::TooMuch)))
            }
        }
    }

    fn read_page(&self, page: usize) -> Option<Box<[u8]>> {
        let start = page.checked_mul(PAGE)?;
        let length = PAGE.min(self.length.checked_sub(start)?) as u64;
        let offset = self.offset.checked_add(start as u64)?;
        if self.clock.is_over() {
            return None;
        }
        if !MEMORY.take(length) {
            self.refused.set(true);
            return None;
        }
        self.held.set(self.held.get() + length);
        Some(self.source.read(offset, length, length)?.into_boxed_slice())
    }
}

impl Drop for Contents<'_> {
    fn drop(&mut self) {
        MEMORY.give_back(self.held.get());
    }
}

/// Offset, length and data of a section.
type Found = Option<(u64, usize, Data)>;

fn plain(section: &Section) -> Found {
    if section.size > MAX_SECTION {
        return None;
    }
    let length = usize::try_from(section.size).ok()?;
    let groups = length.div_ceil(PAGE * GROUP);
    let groups = std::iter::repeat_with(OnceCell::new).take(groups);
    Some((section.offset, length, Data::Pages(groups.collect())))
}

fn packed(elf: &Elf<'_>, section: &Section) -> Found {
    let header = size_of::<elf::CompressionHeader64<LE>>() as u64;
    let bytes = elf.source.read(section.offset, header, header)?;
    let (fields, _) = pod::from_bytes::<elf::CompressionHeader64<LE>>(&bytes).ok()?;
    let method = match fields.ch_type.get(LE) {
        elf::ELFCOMPRESS_ZLIB => Method::Zlib,
        elf::ELFCOMPRESS_ZSTD => Method::Zstd,
        _ => return None,
    };
    unpacking(section, header, method, fields.ch_size.get(LE))
}

/// The form before `SHF_COMPRESSED`: `ZLIB`, the size as eight bytes big-endian, the stream.
fn old_packed(elf: &Elf<'_>, section: &Section) -> Found {
    let bytes = elf.source.read(section.offset, 12, 12)?;
    let size = bytes.strip_prefix(b"ZLIB")?.try_into().ok()?;
    unpacking(section, 12, Method::Zlib, u64::from_be_bytes(size))
}

fn unpacking(section: &Section, header: u64, method: Method, length: u64) -> Found {
    let size = section.size.checked_sub(header)?;
    let refused = !decompress::is_plausible(size, length);
    let length = if refused { 0 } else { length };
    let unpacked = OnceCell::new();
    if refused {
        let _ = unpacked.set(Err(Failure::TooMuch));
    }
    let data = Data::Packed {
        method,
        size,
        unpacked,
    };
    let offset = section.offset.checked_add(header)?;
    Some((offset, usize::try_from(length).ok()?, data))
}

/// A range of a section, read from its start.
#[derive(Clone, Copy)]
pub(super) struct Pages<'a> {
    contents: &'a Contents<'a>,
    start: usize,
    end: usize,
    /// The bytes at `start` that are at hand, not beyond `end`.
    window: &'a [u8],
}

impl fmt::Debug for Pages<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start, self.end)
    }
}

impl<'a> Pages<'a> {
    /// The rest as text, at most `cap` bytes of it.
    pub(super) fn text(mut self, cap: usize) -> Result<String> {
        self.truncate(self.len().min(cap))?;
        Ok(self.to_string_lossy()?.into_owned())
    }

    fn refill(&mut self) -> Result<()> {
        if self.window.is_empty() {
            let window = self.contents.window(self.start)?;
            let left = self.end.saturating_sub(self.start);
            self.window = window.get(..left).unwrap_or(window);
        }
        Ok(())
    }

    fn end_of_input<T>(&self) -> Result<T> {
        Err(Error::UnexpectedEof(self.offset_id()))
    }

    #[cold]
    fn read_across(&mut self, buf: &mut [u8]) -> Result<()> {
        if buf.len() > self.len() {
            return self.end_of_input();
        }
        let mut rest = buf;
        while !rest.is_empty() {
            self.refill()?;
            let count = rest.len().min(self.window.len());
            if count == 0 {
                return self.end_of_input();
            }
            let (now, later) = rest.split_at_mut(count);
            let (bytes, window) = self.window.split_at(count);
            now.copy_from_slice(bytes);
            self.window = window;
            self.start += count;
            rest = later;
        }
        Ok(())
    }
}

impl<'a> Reader for Pages<'a> {
    type Endian = LittleEndian;
    type Offset = usize;

    #[inline]
    fn endian(&self) -> LittleEndian {
        LittleEndian
    }

    #[inline]
    fn len(&self) -> usize {
        self.end - self.start
    }

    fn empty(&mut self) {
        self.end = self.start;
        self.window = &[];
    }

    #[inline]
    fn truncate(&mut self, len: usize) -> Result<()> {
        if len > self.len() {
            return self.end_of_input();
        }
        self.end = self.start + len;
        self.window = self.window.get(..len).unwrap_or(self.window);
        Ok(())
    }

    #[inline]
    fn offset_from(&self, base: &Self) -> usize {
        self.start.wrapping_sub(base.start)
    }

    fn offset_id(&self) -> ReaderOffsetId {
        ReaderOffsetId(self.start as u64)
    }

    fn lookup_offset_id(&self, id: ReaderOffsetId) -> Option<usize> {
        let offset = usize::try_from(id.0).ok()?;
        (self.start..=self.end)
            .contains(&offset)
            .then(|| offset - self.start)
    }

    fn find(&self, byte: u8) -> Result<usize> {
        let mut reader = *self;
        let mut passed = 0;
        loop {
            reader.refill()?;
            if reader.window.is_empty() {
                return self.end_of_input();
            }
            if let Some(found) = reader.window.iter().position(|&other| other == byte) {
                return Ok(passed + found);
            }
            passed += reader.window.len();
            reader.skip(reader.window.len())?;
        }
    }

    #[inline]
    fn skip(&mut self, len: usize) -> Result<()> {
        if len > self.len() {
            return self.end_of_input();
        }
        self.window = self.window.get(len..).unwrap_or(&[]);
        self.start += len;
        Ok(())
    }

    #[inline]
    fn split(&mut self, len: usize) -> Result<Self> {
        let mut head = *self;
        head.truncate(len)?;
        self.skip(len)?;
        Ok(head)
    }

    fn to_slice(&self) -> Result<Cow<'_, [u8]>> {
        let mut reader = *self;
        reader.refill()?;
        if reader.window.len() == self.len() {
            return Ok(Cow::Borrowed(reader.window));
        }
        let mut bytes = vec![0; self.len()];
        reader.read_slice(&mut bytes)?;
        Ok(Cow::Owned(bytes))
    }

    fn to_string(&self) -> Result<Cow<'_, str>> {
        match self.to_slice()? {
            Cow::Borrowed(bytes) => std::str::from_utf8(bytes)
                .map(Cow::Borrowed)
                .map_err(|_| Error::BadUtf8),
            Cow::Owned(bytes) => String::from_utf8(bytes)
                .map(Cow::Owned)
                .map_err(|_| Error::BadUtf8),
        }
    }

    fn to_string_lossy(&self) -> Result<Cow<'_, str>> {
        let bytes = self.to_slice()?;
        Ok(Cow::Owned(String::from_utf8_lossy(&bytes).into_owned()))
    }

    #[inline]
    fn read_slice(&mut self, buf: &mut [u8]) -> Result<()> {
        match self.window.split_at_checked(buf.len()) {
            Some((bytes, window)) => {
                buf.copy_from_slice(bytes);
                self.window = window;
                self.start += bytes.len();
                Ok(())
            }
            None => self.read_across(buf),
        }
    }

    #[inline]
    fn read_u8(&mut self) -> Result<u8> {
        match self.window.split_first() {
            Some((&byte, window)) => {
                self.window = window;
                self.start += 1;
                Ok(byte)
            }
            None => {
                let mut byte = [0];
                self.read_across(&mut byte)?;
                Ok(byte[0])
            }
        }
    }
}
