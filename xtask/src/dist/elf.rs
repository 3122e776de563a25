//! What an ELF file needs to run, and what it tells.

use anyhow::{Context, Result};
use object::Endianness;
use object::elf::{DT_NEEDED, FileHeader64, PT_INTERP, SHT_SYMTAB};
use object::read::elf::{Dyn, FileHeader, ProgramHeader, SectionHeader};

type Header = FileHeader64<Endianness>;

/// Other files that it needs, for people; none of a static program.
///
/// # Errors
/// It is no 64-bit ELF file.
pub(super) fn needs(bytes: &[u8]) -> Result<Vec<String>> {
    let (header, endian) = header(bytes)?;
    let sections = header.sections(endian, bytes)?;
    let mut needs = Vec::new();
    for segment in header.program_headers(endian, bytes)? {
        if segment.p_type(endian) == PT_INTERP {
            let path = segment.data(endian, bytes).unwrap_or_default();
            let path = String::from_utf8_lossy(path);
            needs.push(format!(
                "it needs the interpreter {}",
                path.trim_end_matches('\0')
            ));
        }
        for entry in segment.dynamic(endian, bytes)?.unwrap_or_default() {
            if entry.d_tag(endian) == u64::from(DT_NEEDED) {
                let strings = sections
                    .symbols(endian, bytes, object::elf::SHT_DYNSYM)?
                    .strings();
                let offset = u32::try_from(entry.d_val(endian)).unwrap_or(u32::MAX);
                let name = strings.get(offset).unwrap_or(b"?");
                needs.push(format!(
                    "it needs the library {}",
                    String::from_utf8_lossy(name)
                ));
            }
        }
    }
    Ok(needs)
}

/// Whether it has a table of symbols.
///
/// # Errors
/// It is no 64-bit ELF file.
pub(super) fn has_symbols(bytes: &[u8]) -> Result<bool> {
    let (header, endian) = header(bytes)?;
    let sections = header.sections(endian, bytes)?;
    let mut kinds = sections.iter().map(|section| section.sh_type(endian));
    Ok(kinds.any(|kind| kind == SHT_SYMTAB))
}

fn header(bytes: &[u8]) -> Result<(&Header, Endianness)> {
    let header = Header::parse(bytes).context("it is no 64-bit ELF file")?;
    Ok((header, header.endian()?))
}
