//! The parts of an ELF file that naming needs: sections, notes, the link to separate debug
//! information. 64-bit little-endian files only, which is what x86-64 and arm64 run.

use std::fs::File;

use object::elf;
use object::{LittleEndian as LE, pod};

use super::source::Source;

/// More sections than any real program has.
const MAX_SECTIONS: u64 = 1 << 16;
/// Largest table of section names that is read, in bytes.
const MAX_NAMES: u64 = 4 << 20;
/// Longest name of a section, in bytes; the rest is cut.
const MAX_NAME: usize = 64;
/// Largest note section that is read, in bytes.
const MAX_NOTE: u64 = 64 << 10;
/// Longest build id, in bytes: those of all tools have 8 to 32.
const MAX_BUILD_ID: usize = 64;
/// Most note sections or segments that are read.
const MAX_NOTES: usize = 64;
/// `GNU\0`: owner of the build-id note.
const GNU: &[u8] = b"GNU\0";

/// A section's header.
#[derive(Clone, Debug)]
pub(super) struct Section {
    pub(super) name: String,
    /// `SHT_…`.
    pub(super) kind: u32,
    /// `SHF_…`.
    pub(super) flags: u64,
    /// ELF virtual address.
    pub(super) address: u64,
    /// File offset.
    pub(super) offset: u64,
    /// Bytes, in memory and (unless `SHT_NOBITS`) in the file.
    pub(super) size: u64,
    pub(super) link: u32,
    pub(super) entry_size: u64,
}

impl Section {
    /// Whether the virtual address lies in this section of the running program.
    pub(super) fn covers(&self, address: u64) -> bool {
        self.flags & u64::from(elf::SHF_ALLOC) != 0
            && address.wrapping_sub(self.address) < self.size
    }

    pub(super) fn is_code(&self) -> bool {
        self.flags & u64::from(elf::SHF_EXECINSTR) != 0
    }

    pub(super) fn is_compressed(&self) -> bool {
        self.flags & u64::from(elf::SHF_COMPRESSED) != 0
    }
}

/// An ELF file whose section headers have been read.
pub(super) struct Elf<'a> {
    pub(super) source: Source<'a>,
    pub(super) machine: u16,
    pub(super) sections: Vec<Section>,
}

impl<'a> Elf<'a> {
    /// Reads the headers; `None` if this is no ELF file of the supported class, or a broken one.
    pub(super) fn parse(source: Source<'a>) -> Option<Self> {
        let header = read_header(&source)?;
        let mut elf = Elf {
            machine: header.e_machine.get(LE),
            source,
            sections: Vec::new(),
        };
        elf.sections = elf.read_sections(&header)?;
        Some(elf)
    }

    fn read_sections(&self, header: &elf::FileHeader64<LE>) -> Option<Vec<Section>> {
        let start = header.e_shoff.get(LE);
        if start == 0 {
            return Some(Vec::new());
        }
        let entry = size_of::<elf::SectionHeader64<LE>>() as u64;
        if u64::from(header.e_shentsize.get(LE)) != entry {
            return None;
        }
        // With 0xff00 sections or more, the first header holds the true numbers (gABI, e_shnum).
        let first = self.source.read(start, entry, entry)?;
        let (first, _) = pod::from_bytes::<elf::SectionHeader64<LE>>(&first).ok()?;
        let count = match header.e_shnum.get(LE) {
            0 => first.sh_size.get(LE),
            count => u64::from(count),
        };
        let names = match header.e_shstrndx.get(LE) {
            elf::SHN_XINDEX => first.sh_link.get(LE),
            index => u32::from(index),
        };
        if count > MAX_SECTIONS {
            return None;
        }
        let bytes = self
            .source
            .read(start, count * entry, MAX_SECTIONS * entry)?;
        let (headers, _) =
            pod::slice_from_bytes::<elf::SectionHeader64<LE>>(&bytes, usize::try_from(count).ok()?)
                .ok()?;
        let names = headers
            .get(names as usize)
            .and_then(|names| {
                self.source
                    .read(names.sh_offset.get(LE), names.sh_size.get(LE), MAX_NAMES)
            })
            .unwrap_or_default();
        Some(
            headers
                .iter()
                .map(|header| section(header, &names))
                .collect(),
        )
    }

    /// The first section of this name that has contents in the file.
    pub(super) fn section(&self, name: &str) -> Option<&Section> {
        self.sections
            .iter()
            .find(|section| section.name == name && self.has_contents(section))
    }

    /// The first section of this type (`SHT_…`) that has contents in the file.
    pub(super) fn section_of_kind(&self, kind: u32) -> Option<&Section> {
        self.sections
            .iter()
            .find(|section| section.kind == kind && self.has_contents(section))
    }

    fn has_contents(&self, section: &Section) -> bool {
        let end = section.offset.checked_add(section.size);
        section.kind != elf::SHT_NOBITS
            && section.size != 0
            && end.is_some_and(|end| end <= self.source.len())
    }

    /// The contents of a section; `None` if it is not there or larger than `cap` bytes.
    pub(super) fn contents(&self, name: &str, cap: u64) -> Option<Vec<u8>> {
        let section = self.section(name)?;
        self.source.read(section.offset, section.size, cap)
    }

    /// The build id (`NT_GNU_BUILD_ID`).
    pub(super) fn build_id(&self) -> Option<Vec<u8>> {
        let notes = self
            .sections
            .iter()
            .filter(|section| section.kind == elf::SHT_NOTE && self.has_contents(section))
            .take(MAX_NOTES);
        notes
            .filter_map(|section| self.source.read(section.offset, section.size, MAX_NOTE))
            .find_map(|notes| build_id_in(&notes))
    }

    /// File name and CRC-32 of the separate debug file (`.gnu_debuglink`).
    pub(super) fn debug_link(&self) -> Option<(String, u32)> {
        let bytes = self.contents(".gnu_debuglink", 4096)?;
        let end = bytes.iter().position(|&byte| byte == 0)?;
        let name = String::from_utf8(bytes.get(..end)?.to_vec()).ok()?;
        // The name is followed by zeros up to a multiple of four, then the sum.
        let sum = (end + 4) & !3;
        let sum = bytes.get(sum..sum + 4)?.try_into().ok()?;
        Some((name, u32::from_le_bytes(sum)))
    }

    /// Path and build id of the file that holds what `dwz` moved out (`.gnu_debugaltlink`).
    pub(super) fn alternate_link(&self) -> Option<(String, Vec<u8>)> {
        let bytes = self.contents(".gnu_debugaltlink", 8192)?;
        let end = bytes.iter().position(|&byte| byte == 0)?;
        let path = String::from_utf8(bytes.get(..end)?.to_vec()).ok()?;
        Some((path, bytes.get(end + 1..)?.to_vec()))
    }
}

/// The build id of an ELF file: the contents of its `NT_GNU_BUILD_ID` note, usually 20 bytes.
///
/// `None` if the file is no 64-bit little-endian ELF file or carries no such note. A file
/// without section headers is searched through its program headers.
pub fn build_id(file: &File) -> Option<Vec<u8>> {
    let elf = Elf::parse(Source::file(file)?)?;
    elf.build_id().or_else(|| build_id_in_segments(&elf.source))
}

fn build_id_in_segments(source: &Source<'_>) -> Option<Vec<u8>> {
    let header = read_header(source)?;
    let entry = size_of::<elf::ProgramHeader64<LE>>() as u64;
    let count = header.e_phnum.get(LE);
    if u64::from(header.e_phentsize.get(LE)) != entry {
        return None;
    }
    let length = entry * u64::from(count);
    let bytes = source.read(header.e_phoff.get(LE), length, length)?;
    let (headers, _) =
        pod::slice_from_bytes::<elf::ProgramHeader64<LE>>(&bytes, usize::from(count)).ok()?;
    headers
        .iter()
        .filter(|header| header.p_type.get(LE) == elf::PT_NOTE)
        .take(MAX_NOTES)
        .filter_map(|header| {
            source.read(header.p_offset.get(LE), header.p_filesz.get(LE), MAX_NOTE)
        })
        .find_map(|notes| build_id_in(&notes))
}

fn read_header(source: &Source<'_>) -> Option<elf::FileHeader64<LE>> {
    let size = size_of::<elf::FileHeader64<LE>>() as u64;
    let bytes = source.read(0, size, size)?;
    let (header, _) = pod::from_bytes::<elf::FileHeader64<LE>>(&bytes).ok()?;
    let ident = &header.e_ident;
    let supported = ident.magic == elf::ELFMAG
        && ident.class == elf::ELFCLASS64
        && ident.data == elf::ELFDATA2LSB;
    supported.then_some(*header)
}

fn section(header: &elf::SectionHeader64<LE>, names: &[u8]) -> Section {
    let name = names
        .get(header.sh_name.get(LE) as usize..)
        .map(|rest| rest.get(..MAX_NAME).unwrap_or(rest))
        .and_then(|rest| rest.split(|&byte| byte == 0).next())
        .map(|name| String::from_utf8_lossy(name).into_owned());
    Section {
        name: name.unwrap_or_default(),
        kind: header.sh_type.get(LE),
        flags: header.sh_flags.get(LE),
        address: header.sh_addr.get(LE),
        offset: header.sh_offset.get(LE),
        size: header.sh_size.get(LE),
        link: header.sh_link.get(LE),
        entry_size: header.sh_entsize.get(LE),
    }
}

fn build_id_in(mut notes: &[u8]) -> Option<Vec<u8>> {
    loop {
        let (header, rest) = pod::from_bytes::<elf::NoteHeader64<LE>>(notes).ok()?;
        let name_size = header.n_namesz.get(LE) as usize;
        let data_size = header.n_descsz.get(LE) as usize;
        let name = rest.get(..name_size)?;
        let rest = rest.get(name_size.next_multiple_of(4)..)?;
        let data = rest.get(..data_size)?;
        if name == GNU && header.n_type.get(LE) == elf::NT_GNU_BUILD_ID {
            return (data.len() <= MAX_BUILD_ID).then(|| data.to_vec());
        }
        notes = rest.get(data_size.next_multiple_of(4)..)?;
    }
}
