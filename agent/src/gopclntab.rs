//! The layout of `.gopclntab`, Go's table of functions, which every Go program carries: it is
//! what the runtime unwinds and names with, so that stripping leaves it.
//!
//! Source: Go's `runtime/symtab.go`, `runtime/runtime2.go` and `debug/gosym/pclntab.go`, versions
//! 1.16 to 1.24.

use crate::elf::{self, Headers, ReadAt, Section, word, xword};

/// Names of the section: of a fixed program and of a position-independent one.
const SECTIONS: [&str; 2] = [".gopclntab", ".data.rel.ro.gopclntab"];
/// Largest section of data that is searched, in bytes.
const MAX_DATA: u64 = 48 << 20;
/// Bytes of the longest header.
const HEADER: u64 = 72;

/// Versions that differ in layout, named after the first one of Go that has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    Go116,
    Go118,
    Go120,
}

/// Where the fields of a function's record (`_func`) lie, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Function {
    /// Offset of the name.
    pub(crate) name: usize,
    /// Offset of the stack depths; those of the files, those of the lines, the number of further
    /// tables and the index of the compilation unit follow.
    pub(crate) pcsp: usize,
    /// Flags of one byte; after a byte of padding follows the number of data pointers, and after
    /// that the offsets of the further tables.
    pub(crate) flag: usize,
}

/// Where a table lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Location {
    /// In the file.
    pub(crate) offset: u64,
    /// In bytes; the table may end earlier.
    pub(crate) size: u64,
    /// In memory: ELF virtual address.
    pub(crate) vaddr: u64,
}

/// The parts of a table. Each is an offset from the table's start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) version: Version,
    pub(crate) function: Function,
    /// The virtual address that entries of the function table count from.
    pub(crate) text: u64,
    /// Functions, as the header says.
    pub(crate) functions: u64,
    /// Names of functions.
    pub(crate) names: u64,
    /// Names of files per compilation unit: offsets in `files`, 4 bytes each.
    pub(crate) units: u64,
    /// Names of files.
    pub(crate) files: u64,
    /// Values per pc: see [`Steps`].
    pub(crate) pctab: u64,
    /// The function table, sorted: pairs of an entry and of the offset of a record from here.
    pub(crate) functab: u64,
}

impl Header {
    /// Reads the header of the table at a location; `None` if it is none or of an unknown version.
    pub(crate) fn read<F: ReadAt + ?Sized>(
        file: &F,
        headers: &Headers,
        location: Location,
    ) -> Option<Self> {
        let length = location.size.min(HEADER);
        let bytes = elf::read_range(file, location.offset, length, ".gopclntab").ok()?;
        let version = match word(&bytes, 0) {
            0xffff_fffa => Version::Go116,
            0xffff_fff0 => Version::Go118,
            0xffff_fff1 => Version::Go120,
            _ => return None,
        };
        // Instructions of one byte, pointers of eight.
        if bytes.get(6..8)? != [1, 8] {
            return None;
        }
        let (offsets, name, pcsp, flag) = match version {
            Version::Go116 => (24, 8, 20, 41),
            Version::Go118 => (32, 4, 16, 37),
            Version::Go120 => (32, 4, 16, 41),
        };
        let text = match version {
            Version::Go116 => 0,
            _ => pointer(file, headers, location.vaddr.checked_add(24)?)?,
        };
        let part = |i: usize| xword(&bytes, offsets + 8 * i);
        Some(Self {
            version,
            function: Function { name, pcsp, flag },
            text,
            functions: xword(&bytes, 8),
            names: part(0),
            units: part(1),
            files: part(2),
            pctab: part(3),
            functab: part(4),
        })
    }

    /// Bytes of a field of the function table.
    pub(crate) fn field(&self) -> usize {
        match self.version {
            Version::Go116 => 8,
            _ => 4,
        }
    }
}

/// Finds the table of a Go program.
pub(crate) fn locate<F: ReadAt + ?Sized>(file: &F, headers: &Headers) -> Option<Location> {
    if let Some(section) = SECTIONS.iter().find_map(|name| headers.section(name)) {
        return Some(Location {
            offset: section.offset,
            size: section.size,
            vaddr: section.vaddr,
        });
    }
    // The system linker puts that of a position-independent program among other constants.
    headers.section(".go.buildinfo")?;
    let section = headers.section(".data.rel.ro")?;
    let bytes = data(file, section)?;
    const BEHIND_VERSION: [u8; 7] = [0xff, 0xff, 0xff, 0, 0, 1, 8];
    let at = 8 * bytes
        .chunks_exact(8)
        .position(|start| start.ends_with(&BEHIND_VERSION))? as u64;
    Some(Location {
        offset: section.offset.checked_add(at)?,
        size: section.size.checked_sub(at)?,
        vaddr: section.vaddr.checked_add(at)?,
    })
}

/// The pointer at a virtual address; one that the file leaves to the dynamic loader is what that
/// would store (`R_X86_64_RELATIVE`).
pub(crate) fn pointer<F: ReadAt + ?Sized>(
    file: &F,
    headers: &Headers,
    address: u64,
) -> Option<u64> {
    let bytes = headers.read_vaddr(file, address, 8).ok()?;
    match xword(&bytes, 0) {
        0 => relocations(file, headers)
            .and_then(|bytes| relative(&bytes).find(|&(place, _)| place == address))
            .map(|(_, value)| value),
        value => Some(value),
    }
}

/// The bytes of `.rela.dyn`.
pub(crate) fn relocations<F: ReadAt + ?Sized>(file: &F, headers: &Headers) -> Option<Vec<u8>> {
    data(file, headers.section(".rela.dyn")?)
}

/// The bytes of a section of data.
pub(crate) fn data<F: ReadAt + ?Sized>(file: &F, section: &Section) -> Option<Vec<u8>> {
    if section.size > MAX_DATA {
        return None;
    }
    elf::read_range(file, section.offset, section.size, "data").ok()
}

/// The places and values of the relative relocations in `.rela.dyn`.
pub(crate) fn relative(relocations: &[u8]) -> impl Iterator<Item = (u64, u64)> {
    const RELATIVE: u64 = 8;
    relocations
        .chunks_exact(24)
        .filter(|rela| xword(rela, 8) == RELATIVE)
        .map(|rela| (xword(rela, 0), xword(rela, 16)))
}

/// The values of one table per pc, each with the bytes of code that it holds for, from the
/// function's start on.
pub(crate) struct Steps<'a> {
    bytes: &'a [u8],
    value: Option<i64>,
}

impl<'a> Steps<'a> {
    /// For the table that starts with these bytes.
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, value: None }
    }
}

impl Iterator for Steps<'_> {
    type Item = (i64, u64);

    fn next(&mut self) -> Option<(i64, u64)> {
        let change = varint(&mut self.bytes)?;
        let length = varint(&mut self.bytes)?;
        if change == 0 && self.value.is_some() {
            return None;
        }
        let change = (change >> 1) as i64 ^ -((change & 1) as i64);
        let value = self.value.unwrap_or(-1).wrapping_add(change);
        self.value = Some(value);
        Some((value, length))
    }
}

/// An unsigned LEB128 number of at most 32 bits.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..35).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}
