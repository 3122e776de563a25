//! ELF files made byte by byte, true or not, around a page of code that works.
//!
//! Source of the layouts: the System V gABI, chapters 4 and 5.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use crate::harness::{LIFE, Target, program};

/// Where the code is, in the file and as a virtual address.
pub(super) const CODE: u64 = 0x1000;
/// Bytes of the function there.
pub(super) const CODE_SIZE: u64 = 32;
/// Name of the file that the target runs in.
const CARRIED: &str = "carried";

/// Fields of the file header.
pub(super) const E_TYPE: u64 = 0x10;
pub(super) const E_MACHINE: u64 = 0x12;
pub(super) const E_PHOFF: u64 = 0x20;
pub(super) const E_SHOFF: u64 = 0x28;
pub(super) const E_PHNUM: u64 = 0x38;
pub(super) const E_SHNUM: u64 = 0x3c;
pub(super) const E_SHSTRNDX: u64 = 0x3e;

pub(super) const SHT_PROGBITS: u32 = 1;
pub(super) const SHT_SYMTAB: u32 = 2;
pub(super) const SHT_STRTAB: u32 = 3;
pub(super) const SHT_NOTE: u32 = 7;
pub(super) const SHF_COMPRESSED: u64 = 0x800;
const SHF_ALLOC_EXEC: u64 = 6;

/// push %rbp; mov %rsp,%rbp; mov %rsi,%rcx; 1: imul $0x11,%rdi,%rdi; dec %rcx; jnz 1b;
/// mov %rdi,%rax; pop %rbp; ret
const WORK: [u8; 21] = [
    0x55, 0x48, 0x89, 0xe5, 0x48, 0x89, 0xf1, 0x48, 0x6b, 0xff, 0x11, 0x48, 0xff, 0xc9, 0x75, 0xf7,
    0x48, 0x89, 0xf8, 0x5d, 0xc3,
];

/// What a section holds.
pub(super) enum Bytes {
    These(Vec<u8>),
    /// So many zeros, which take no room on the disk.
    Hole(u64),
}

/// A section.
pub(super) struct Part {
    pub(super) name: String,
    pub(super) kind: u32,
    pub(super) flags: u64,
    pub(super) address: u64,
    pub(super) link: u32,
    pub(super) bytes: Bytes,
    /// What the header says instead of the truth.
    pub(super) offset: Option<u64>,
    pub(super) size: Option<u64>,
}

impl Part {
    pub(super) fn new(name: &str, bytes: impl Into<Vec<u8>>) -> Part {
        Part {
            name: name.to_owned(),
            kind: SHT_PROGBITS,
            flags: 0,
            address: 0,
            link: 0,
            bytes: Bytes::These(bytes.into()),
            offset: None,
            size: None,
        }
    }

    pub(super) fn hole(name: &str, size: u64) -> Part {
        Part {
            bytes: Bytes::Hole(size),
            ..Part::new(name, [])
        }
    }

    pub(super) fn kind(mut self, kind: u32) -> Part {
        self.kind = kind;
        self
    }

    pub(super) fn flags(mut self, flags: u64) -> Part {
        self.flags = flags;
        self
    }

    pub(super) fn at(mut self, address: u64) -> Part {
        self.address = address;
        self
    }

    pub(super) fn link(mut self, link: u32) -> Part {
        self.link = link;
        self
    }

    /// The header says that the section lies there.
    pub(super) fn claims(mut self, offset: Option<u64>, size: u64) -> Part {
        (self.offset, self.size) = (offset, Some(size));
        self
    }
}

/// A program header.
pub(super) struct Segment {
    pub(super) kind: u32,
    pub(super) flags: u32,
    pub(super) offset: u64,
    pub(super) address: u64,
    pub(super) file_size: u64,
    pub(super) memory_size: u64,
}

impl Segment {
    /// Executable, with the same address as offset.
    pub(super) fn code(offset: u64, size: u64) -> Segment {
        Segment {
            kind: 1,
            flags: 5,
            offset,
            address: offset,
            file_size: size,
            memory_size: size,
        }
    }
}

/// A file in the making.
pub(super) struct Image {
    segments: Vec<Segment>,
    parts: Vec<Part>,
    patches: Vec<(u64, Vec<u8>)>,
    length: u64,
}

impl Image {
    /// One segment with the code, no section but `.text`.
    pub(super) fn new() -> Image {
        let text = Part::new(".text", [])
            .flags(SHF_ALLOC_EXEC)
            .at(CODE)
            .claims(Some(CODE), 0x1000);
        Image {
            segments: vec![Segment::code(CODE, 0x1000)],
            parts: vec![text],
            patches: Vec::new(),
            length: 0,
        }
    }

    /// One with a symbol for the code.
    pub(super) fn named(name: &[u8]) -> Image {
        Image::new().symbols(symbol(1).to_vec(), &[b"\0", name, b"\0"].concat())
    }

    /// Adds a symbol table and its names.
    pub(super) fn symbols(self, symbols: Vec<u8>, names: &[u8]) -> Image {
        let link = self.parts.len() as u32 + 2;
        self.part(Part::new(".symtab", symbols).kind(SHT_SYMTAB).link(link))
            .part(Part::new(".strtab", names).kind(SHT_STRTAB))
    }

    pub(super) fn part(mut self, part: Part) -> Image {
        self.parts.push(part);
        self
    }

    pub(super) fn segment(mut self, segment: Segment) -> Image {
        self.segments.push(segment);
        self
    }

    /// Writes over what is in the file at the end.
    pub(super) fn patch(mut self, offset: u64, bytes: &[u8]) -> Image {
        self.patches.push((offset, bytes.to_vec()));
        self
    }

    /// The file is at least so long.
    pub(super) fn length(mut self, length: u64) -> Image {
        self.length = length;
        self
    }

    /// Writes the file.
    pub(super) fn write(&self, path: &Path) {
        let file = File::create(path).unwrap();
        let mut headers = vec![0; 64];
        let mut names = vec![0];
        let segments: Vec<u8> = self.segments.iter().flat_map(program_header).collect();
        file.write_all_at(&WORK, CODE).unwrap();
        assert!(64 + segments.len() as u64 <= CODE);
        file.write_all_at(&segments, 64).unwrap();
        let mut end: u64 = 0x2000;
        for part in &self.parts {
            let size = match &part.bytes {
                Bytes::These(bytes) => {
                    file.write_all_at(bytes, end).unwrap();
                    bytes.len() as u64
                }
                Bytes::Hole(size) => *size,
            };
            let (offset, size_said) = (part.offset.unwrap_or(end), part.size.unwrap_or(size));
            headers.extend(section_header(names.len() as u32, part, offset, size_said));
            names.extend(part.name.bytes().chain([0]));
            end = (end + size).next_multiple_of(16);
        }
        let table = Part::new(".shstrtab", []).kind(SHT_STRTAB);
        let at = names.len() as u32;
        names.extend(b".shstrtab\0");
        headers.extend(section_header(at, &table, end, names.len() as u64));
        file.write_all_at(&names, end).unwrap();
        let shoff = (end + names.len() as u64).next_multiple_of(16);
        file.write_all_at(&headers, shoff).unwrap();
        let count = (headers.len() / 64) as u16;
        file.write_all_at(&file_header(shoff, self.segments.len() as u16, count), 0)
            .unwrap();
        for (offset, bytes) in &self.patches {
            file.write_all_at(bytes, *offset).unwrap();
        }
        let length = file.metadata().unwrap().len();
        file.set_len(length.max(self.length)).unwrap();
    }

    /// A process that is at work in the file.
    pub(super) fn carried(&self, directory: &Path) -> Target {
        let path = directory.join(CARRIED);
        self.write(&path);
        carried(&path)
    }
}

/// A process that is at work in a file's code.
pub(super) fn carried(path: &Path) -> Target {
    Target::run(Command::new(program("carrier")).arg(LIFE).arg(path))
}

/// A global function at the code, whose name is at `name`.
pub(super) fn symbol(name: u32) -> [u8; 24] {
    function(name, CODE, CODE_SIZE)
}

/// A global function.
pub(super) fn function(name: u32, address: u64, size: u64) -> [u8; 24] {
    let mut symbol = [0; 24];
    symbol[..4].copy_from_slice(&name.to_le_bytes());
    symbol[4..8].copy_from_slice(&[0x12, 0, 1, 0]);
    symbol[8..16].copy_from_slice(&address.to_le_bytes());
    symbol[16..].copy_from_slice(&size.to_le_bytes());
    symbol
}

/// A note (gABI, 5.2).
pub(super) fn note(name: &[u8], kind: u32, bytes: &[u8]) -> Vec<u8> {
    let mut note = Vec::new();
    note.extend((name.len() as u32).to_le_bytes());
    note.extend((bytes.len() as u32).to_le_bytes());
    note.extend(kind.to_le_bytes());
    for field in [name, bytes] {
        note.extend(field);
        note.resize(note.len().next_multiple_of(4), 0);
    }
    note
}

fn file_header(sections: u64, segments: u16, count: u16) -> Vec<u8> {
    let mut header = b"\x7fELF\x02\x01\x01".to_vec();
    header.resize(16, 0);
    header.extend([3, 0, 62, 0, 1, 0, 0, 0]);
    header.extend(0_u64.to_le_bytes());
    header.extend(64_u64.to_le_bytes());
    header.extend(sections.to_le_bytes());
    header.extend([0, 0, 0, 0, 64, 0, 56, 0]);
    header.extend(segments.to_le_bytes());
    header.extend([64, 0]);
    header.extend(count.to_le_bytes());
    header.extend((count - 1).to_le_bytes());
    header
}

fn program_header(segment: &Segment) -> Vec<u8> {
    let mut header = Vec::new();
    header.extend(segment.kind.to_le_bytes());
    header.extend(segment.flags.to_le_bytes());
    for field in [segment.offset, segment.address, segment.address] {
        header.extend(field.to_le_bytes());
    }
    for field in [segment.file_size, segment.memory_size, 0x1000] {
        header.extend(field.to_le_bytes());
    }
    header
}

fn section_header(name: u32, part: &Part, offset: u64, size: u64) -> Vec<u8> {
    let mut header = Vec::new();
    header.extend(name.to_le_bytes());
    header.extend(part.kind.to_le_bytes());
    for field in [part.flags, part.address, offset, size] {
        header.extend(field.to_le_bytes());
    }
    header.extend(part.link.to_le_bytes());
    header.resize(64, 0);
    header
}
