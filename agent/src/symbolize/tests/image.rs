//! ELF images made byte by byte.

use object::elf::{SHN_XINDEX, SHT_PROGBITS, SHT_STRTAB};

/// Bytes of a file header, and of a section header.
const HEADER: usize = 64;

/// A section to be written.
pub(in crate::symbolize) struct Part<'p> {
    pub(in crate::symbolize) name: &'p str,
    pub(in crate::symbolize) kind: u32,
    pub(in crate::symbolize) flags: u64,
    pub(in crate::symbolize) bytes: Vec<u8>,
    pub(in crate::symbolize) link: u32,
}

impl<'p> Part<'p> {
    pub(in crate::symbolize) fn new(name: &'p str, bytes: Vec<u8>) -> Self {
        Part {
            name,
            kind: SHT_PROGBITS,
            flags: 0,
            bytes,
            link: 0,
        }
    }
}

/// The header of a section.
pub(in crate::symbolize) fn section_header(
    name: u32,
    kind: u32,
    flags: u64,
    offset: u64,
    size: u64,
    link: u32,
) -> Vec<u8> {
    let mut header = Vec::new();
    header.extend(name.to_le_bytes());
    header.extend(kind.to_le_bytes());
    header.extend(flags.to_le_bytes());
    header.extend(0_u64.to_le_bytes());
    header.extend(offset.to_le_bytes());
    header.extend(size.to_le_bytes());
    header.extend(link.to_le_bytes());
    header.resize(HEADER, 0);
    header
}

/// The header of an x86-64 file whose `count` section headers start at `offset`; `names` is the
/// index of the table of their names.
pub(in crate::symbolize) fn file_header(offset: u64, count: u16, names: u16) -> Vec<u8> {
    assert!(names < SHN_XINDEX);
    let mut header = b"\x7fELF\x02\x01\x01".to_vec();
    header.resize(16, 0);
    header.extend([3, 0, 62, 0, 1, 0, 0, 0]);
    header.resize(40, 0);
    header.extend(offset.to_le_bytes());
    header.resize(52, 0);
    header.extend([64, 0, 56, 0, 0, 0, 64, 0]);
    header.extend(count.to_le_bytes());
    header.extend(names.to_le_bytes());
    header
}

/// A file with these sections, whose indices start at 1.
pub(in crate::symbolize) fn image(parts: &[Part<'_>]) -> Vec<u8> {
    let count = parts.len() + 2;
    let mut headers = vec![0; HEADER];
    let mut contents = Vec::new();
    let mut names = vec![0];
    let start = HEADER * (count + 1);
    for part in parts {
        headers.extend(section_header(
            names.len() as u32,
            part.kind,
            part.flags,
            (start + contents.len()) as u64,
            part.bytes.len() as u64,
            part.link,
        ));
        names.extend(part.name.bytes().chain([0]));
        contents.extend(&part.bytes);
    }
    let at = (start + contents.len()) as u64;
    headers.extend(section_header(0, SHT_STRTAB, 0, at, names.len() as u64, 0));
    let header = file_header(HEADER as u64, count as u16, count as u16 - 1);
    [header, headers, contents, names].concat()
}
