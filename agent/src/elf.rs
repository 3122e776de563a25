//! The few parts of an ELF file that unwinding needs: program headers, section headers, and the
//! bytes that they point at. Every size and offset in the file is distrusted.
//!
//! Source of the layouts: the System V gABI, chapters 4 and 5; only ELF64, little endian, x86-64.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

/// Longest range of a file that is read at once, in bytes: the function tables of the largest Go
/// programs take some 80 MB.
const MAX_READ: u64 = 96 << 20;
/// Longest table of the names of sections, in bytes.
const MAX_NAMES: u64 = 4 << 20;
/// Most section headers looked at.
const MAX_SECTIONS: u64 = 1 << 16;
/// Most program headers: the kernel runs no program with more than 64 KiB of them (fs/binfmt_elf.c).
pub(crate) const MAX_SEGMENTS: u16 = 1170;
/// Size of a page of the mappings of x86-64.
const PAGE: u64 = 4096;

/// Why an ELF file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be read.
    #[error("cannot read the file")]
    Io(#[from] std::io::Error),
    /// Not ELF64 little endian.
    #[error("not a 64-bit little-endian ELF file")]
    NotElf64,
    /// Another machine than x86-64.
    #[error("ELF machine {0} is not x86-64")]
    Machine(u16),
    /// A header points outside the file.
    #[error("the ELF file's {0} lies outside the file")]
    OutOfBounds(&'static str),
    /// A part is larger than any honest one.
    #[error("the ELF file's {what} takes {bytes} bytes, and no more than {most} are read")]
    TooLong {
        /// The part.
        what: &'static str,
        /// What it takes.
        bytes: u64,
        /// What is read.
        most: u64,
    },
}

/// Something that bytes can be read from at an offset: an open file or an image in memory.
pub trait ReadAt {
    /// Fills `buffer` from `offset`; an error if the source ends before.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()>;
    /// The source's size in bytes.
    fn size(&self) -> std::io::Result<u64>;
}

impl ReadAt for File {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        FileExt::read_exact_at(self, buffer, offset)
    }

    fn size(&self) -> std::io::Result<u64> {
        regular_length(self)
    }
}

/// The length of a regular file, in bytes.
///
/// By a system call that takes nothing but the descriptor: those that can take a path are forbidden
/// where files of strangers are parsed.
///
/// # Errors
/// When it is no regular file.
pub(crate) fn regular_length(file: &File) -> std::io::Result<u64> {
    // SAFETY: all-zero is a valid value of this plain structure.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open, the structure is ours and the one that the kernel fills in.
    let done = unsafe { libc::syscall(libc::SYS_fstat, file.as_raw_fd(), &raw mut stat) };
    match done {
        0 if stat.st_mode & libc::S_IFMT == libc::S_IFREG => Ok(stat.st_size as u64),
        0 => Err(std::io::ErrorKind::InvalidInput.into()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

impl ReadAt for [u8] {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        let source = usize::try_from(offset)
            .ok()
            .and_then(|start| self.get(start..start.checked_add(buffer.len())?))
            .ok_or(std::io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(source);
        Ok(())
    }

    fn size(&self) -> std::io::Result<u64> {
        Ok(self.len() as u64)
    }
}

/// A `PT_LOAD` program header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Virtual address of its first byte.
    pub vaddr: u64,
    /// Offset of its first byte in the file.
    pub offset: u64,
    /// Bytes in the file.
    pub filesz: u64,
    /// Bytes in memory.
    pub memsz: u64,
    /// Whether it is mapped executable.
    pub exec: bool,
}

impl Segment {
    /// The file offset of a virtual address that lies in the segment's bytes in the file, and how
    /// many of them follow from there.
    fn file_range(&self, vaddr: u64) -> Option<(u64, u64)> {
        let inside = vaddr.checked_sub(self.vaddr)?;
        let rest = self.filesz.checked_sub(inside).filter(|&rest| rest > 0)?;
        Some((self.offset.checked_add(inside)?, rest))
    }
}

/// A section header with its name resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// Its name in `.shstrtab`.
    pub name: String,
    /// Virtual address of its first byte; 0 when it is not loaded.
    pub vaddr: u64,
    /// Offset of its first byte in the file.
    pub offset: u64,
    /// Its size in bytes.
    pub size: u64,
    /// Whether its bytes are in the file (not `SHT_NOBITS`).
    pub in_file: bool,
    /// Index of the section it refers to.
    pub link: u32,
}

/// The headers of an ELF file.
#[derive(Clone, Debug, Default)]
pub struct Headers {
    /// Where execution starts; 0 for none.
    pub entry: u64,
    /// Whether it is a position-dependent program (`ET_EXEC`).
    pub fixed: bool,
    /// The `PT_LOAD` segments, in the file's order.
    pub segments: Vec<Segment>,
    /// Virtual address of `.eh_frame_hdr` (`PT_GNU_EH_FRAME`).
    pub eh_frame_hdr: Option<u64>,
    /// Sections; empty when stripped of their headers or when these are malformed.
    pub sections: Vec<Section>,
}

impl Headers {
    /// Reads the headers of an ELF file.
    ///
    /// # Errors
    /// When the file is not ELF64 of x86-64 or its program headers lie outside it. Malformed
    /// section headers are no error: a loader does not look at them either.
    pub fn read<F: ReadAt + ?Sized>(file: &F) -> Result<Self, Error> {
        let header = read_range(file, 0, 64, "header")?;
        if !header.starts_with(b"\x7fELF\x02\x01") {
            return Err(Error::NotElf64);
        }
        match half(&header, 18) {
            62 => {}
            other => return Err(Error::Machine(other)),
        }
        let mut headers = Self {
            entry: xword(&header, 24),
            fixed: half(&header, 16) == 2,
            ..Self::default()
        };
        let (offset, entry_size, count) =
            (xword(&header, 32), half(&header, 54), half(&header, 56));
        if entry_size == 56 {
            let size = u64::from(count.min(MAX_SEGMENTS)) * 56;
            let bytes = read_range(file, offset, size, "program header table")?;
            headers.program_headers(&bytes);
        }
        headers.sections = sections(file, &header).unwrap_or_default();
        Ok(headers)
    }

    fn program_headers(&mut self, bytes: &[u8]) {
        const PT_LOAD: u32 = 1;
        const PT_GNU_EH_FRAME: u32 = 0x6474_e550;
        for entry in bytes.chunks_exact(56) {
            match word(entry, 0) {
                PT_LOAD => self.segments.push(Segment {
                    vaddr: xword(entry, 16),
                    offset: xword(entry, 8),
                    filesz: xword(entry, 32),
                    memsz: xword(entry, 40),
                    exec: word(entry, 4) & 1 != 0,
                }),
                PT_GNU_EH_FRAME => self.eh_frame_hdr = Some(xword(entry, 16)),
                _ => {}
            }
        }
    }

    /// The section with this name whose bytes are in the file.
    pub fn section(&self, name: &str) -> Option<&Section> {
        self.sections
            .iter()
            .find(|section| section.name == name && section.in_file)
    }

    /// Reads `len` bytes at a virtual address, fewer where its segment's bytes in the file end.
    ///
    /// # Errors
    /// When the address lies in no segment's bytes or these lie outside the file.
    pub fn read_vaddr<F: ReadAt + ?Sized>(
        &self,
        file: &F,
        vaddr: u64,
        len: u64,
    ) -> Result<Vec<u8>, Error> {
        let (offset, rest) = self
            .segments
            .iter()
            .find_map(|segment| segment.file_range(vaddr))
            .ok_or(Error::OutOfBounds("address"))?;
        read_range(file, offset, rest.min(len), "segment")
    }
}

/// The `PT_LOAD` segments of an ELF file.
///
/// # Errors
/// As for [`Headers::read`].
pub fn segments<F: ReadAt + ?Sized>(file: &F) -> Result<Vec<Segment>, Error> {
    Ok(Headers::read(file)?.segments)
}

/// The load bias (runtime address minus virtual address) of an executable mapping that starts at
/// the runtime address `start` and shows the file from `offset` on, both multiples of the page size.
///
/// Neighbouring segments can share a page of the file, which is then mapped twice: a segment
/// that begins in the mapping's first page is preferred to one that only reaches into it, and an
/// executable one to one that is not.
pub fn bias(start: u64, offset: u64, segments: &[Segment]) -> Option<u64> {
    let covers = |segment: &&Segment| {
        let first = segment.offset & !(PAGE - 1);
        let end = segment.offset.saturating_add(segment.filesz);
        segment.filesz > 0 && first <= offset && offset < end
    };
    let segment = segments
        .iter()
        .filter(covers)
        .max_by_key(|segment| (segment.exec, segment.offset & !(PAGE - 1) == offset))?;
    let vaddr = segment
        .vaddr
        .wrapping_add(offset)
        .wrapping_sub(segment.offset);
    Some(start.wrapping_sub(vaddr))
}

/// Reads `len` bytes of the file at `offset`; `what` names them in the error.
///
/// # Errors
/// When they do not lie in the file, or are more than 96 MiB.
pub fn read_range<F: ReadAt + ?Sized>(
    file: &F,
    offset: u64,
    len: u64,
    what: &'static str,
) -> Result<Vec<u8>, Error> {
    read_at_most(file, offset, len, MAX_READ, what)
}

/// Like [`read_range`]; an error also when they are more than `most`.
///
/// # Errors
/// As for [`read_range`], and [`Error::TooLong`].
pub fn read_at_most<F: ReadAt + ?Sized>(
    file: &F,
    offset: u64,
    len: u64,
    most: u64,
    what: &'static str,
) -> Result<Vec<u8>, Error> {
    let end = offset.checked_add(len);
    if end.is_none_or(|end| file.size().is_ok_and(|size| end > size)) {
        return Err(Error::OutOfBounds(what));
    }
    if len > most {
        return Err(Error::TooLong {
            what,
            bytes: len,
            most,
        });
    }
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

fn sections<F: ReadAt + ?Sized>(file: &F, header: &[u8]) -> Option<Vec<Section>> {
    const SHN_XINDEX: u16 = 0xffff;
    const SHT_NOBITS: u32 = 8;
    let offset = xword(header, 40);
    if offset == 0 || half(header, 58) != 64 {
        return None;
    }
    // Counts that do not fit in the header are in the first section header.
    let first = read_range(file, offset, 64, "section header").ok()?;
    let count = match half(header, 60) {
        0 => xword(&first, 32),
        count => u64::from(count),
    };
    let names = match half(header, 62) {
        SHN_XINDEX => word(&first, 40),
        index => u32::from(index),
    };
    let table = read_range(
        file,
        offset,
        count.min(MAX_SECTIONS) * 64,
        "section header table",
    )
    .ok()?;
    let names = table.chunks_exact(64).nth(names as usize)?;
    // A longer table is read up to here: names beyond are none.
    let size = xword(names, 32).min(MAX_NAMES);
    let names = read_range(file, xword(names, 24), size, "section name table").ok()?;
    let section = |entry: &[u8]| Section {
        name: string(&names, word(entry, 0) as usize),
        vaddr: xword(entry, 16),
        offset: xword(entry, 24),
        size: xword(entry, 32),
        in_file: word(entry, 4) != SHT_NOBITS,
        link: word(entry, 40),
    };
    Some(table.chunks_exact(64).map(section).collect())
}

/// The NUL-terminated string at an offset, at most 256 bytes of it; empty if there is none.
fn string(bytes: &[u8], offset: usize) -> String {
    let rest = bytes.get(offset..).unwrap_or_default();
    let end = rest
        .iter()
        .take(256)
        .position(|&byte| byte == 0)
        .unwrap_or(0);
    String::from_utf8_lossy(rest.get(..end).unwrap_or_default()).into_owned()
}

/// The little-endian `u16` at an offset, 0 where the bytes end before.
pub(crate) fn half(bytes: &[u8], at: usize) -> u16 {
    array(bytes, at).map_or(0, u16::from_le_bytes)
}

/// The little-endian `u32` at an offset, 0 where the bytes end before.
pub(crate) fn word(bytes: &[u8], at: usize) -> u32 {
    array(bytes, at).map_or(0, u32::from_le_bytes)
}

/// The little-endian `u64` at an offset, 0 where the bytes end before.
pub(crate) fn xword(bytes: &[u8], at: usize) -> u64 {
    array(bytes, at).map_or(0, u64::from_le_bytes)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed test may panic")]
mod tests {
    use super::*;

    #[test]
    fn no_more_segments_are_read_than_the_kernel_loads() {
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(18, 0);
        file.extend(62_u16.to_le_bytes());
        file.resize(32, 0);
        file.extend(64_u64.to_le_bytes());
        file.resize(54, 0);
        file.extend([56, 0, 0xff, 0xff]);
        file.resize(64, 0);
        let mut load = vec![1, 0, 0, 0, 5, 0, 0, 0];
        load.resize(56, 0);
        file.extend(load.repeat(0xffff));
        let headers = Headers::read(file.as_slice()).unwrap();
        assert_eq!(headers.segments.len(), 1170);
    }
}
