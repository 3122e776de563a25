//! Names of the stubs through which a program calls its libraries (`malloc@plt`). x86-64 only:
//! the stub's jump says which slot of the global offset table it uses, the relocation of that
//! slot says which symbol fills it (System V ABI, AMD64 supplement, 5.2).

use object::elf;
use object::{LittleEndian as LE, pod};

use super::demangle::{demangle, without_version};
use super::elf::{Elf, Section};
use super::symtab;

/// `endbr64`.
const ENDBR: &[u8] = &[0xf3, 0x0f, 0x1e, 0xfa];
/// More relocations than any real program has in one section.
const MAX_RELOCATIONS: u64 = 1 << 20;

/// The demangled name of the stub that covers this ELF virtual address, with `@plt` behind it;
/// `None` if there is none.
pub(super) fn name(elf: &Elf<'_>, address: u64) -> Option<String> {
    let section = elf
        .sections
        .iter()
        .find(|section| section.name.starts_with(".plt") && section.covers(address))?;
    if elf.machine != elf::EM_X86_64 {
        return None;
    }
    let entry = match section.entry_size {
        8 => 8,
        _ => 16,
    };
    let start = (address - section.address) / entry * entry;
    let code = elf
        .source
        .read_up_to(section.offset.checked_add(start)?, entry)?;
    let stub = section.address.checked_add(start)?;
    let (table, relocation) = match target(&code, stub)? {
        Target::Slot(slot) => relocation_of(elf, slot)?,
        Target::Index(index) => relocation_at(elf, index)?,
    };
    let symbols = elf.sections.get(table.link as usize)?;
    let symbol = symtab::symbol(elf, symbols, relocation.r_sym(LE, false).into())?;
    let strings = elf.sections.get(symbols.link as usize)?;
    let name = symtab::string(elf, strings, symbol.st_name.get(LE))?;
    let name = demangle(without_version(&name));
    Some(format!("{name}@plt"))
}

enum Target {
    /// Virtual address of the slot that the stub jumps through.
    Slot(u64),
    /// Index of the relocation that the stub hands to the dynamic linker.
    Index(u32),
}

/// Decodes `[endbr64] [bnd] jmp *slot(%rip)` or `[endbr64] push index`.
fn target(code: &[u8], stub: u64) -> Option<Target> {
    let mut rest = code.strip_prefix(ENDBR).unwrap_or(code);
    rest = rest.strip_prefix(&[0xf2]).unwrap_or(rest);
    let (opcode, operand) = match rest {
        [0xff, 0x25, operand @ ..] => (0xff, operand),
        [0x68, operand @ ..] => (0x68, operand),
        _ => return None,
    };
    let value: [u8; 4] = operand.get(..4)?.try_into().ok()?;
    if opcode == 0x68 {
        return Some(Target::Index(u32::from_le_bytes(value)));
    }
    let end = code.len() - operand.len() + 4;
    let displacement = i64::from(i32::from_le_bytes(value));
    Some(Target::Slot(
        stub.wrapping_add(end as u64)
            .wrapping_add_signed(displacement),
    ))
}

fn relocation_of<'e>(elf: &'e Elf<'_>, slot: u64) -> Option<(&'e Section, elf::Rela64<LE>)> {
    let tables = elf
        .sections
        .iter()
        .filter(|section| matches!(section.name.as_str(), ".rela.plt" | ".rela.dyn"))
        .take(2);
    for table in tables {
        let bytes = read(elf, table)?;
        let count = bytes.len() / size_of::<elf::Rela64<LE>>();
        let (relocations, _) = pod::slice_from_bytes::<elf::Rela64<LE>>(&bytes, count).ok()?;
        let found = relocations
            .iter()
            .find(|relocation| relocation.r_offset.get(LE) == slot);
        if let Some(relocation) = found {
            return Some((table, *relocation));
        }
    }
    None
}

fn relocation_at<'e>(elf: &'e Elf<'_>, index: u32) -> Option<(&'e Section, elf::Rela64<LE>)> {
    let table = elf.section(".rela.plt")?;
    let bytes = read(elf, table)?;
    let count = bytes.len() / size_of::<elf::Rela64<LE>>();
    let (relocations, _) = pod::slice_from_bytes::<elf::Rela64<LE>>(&bytes, count).ok()?;
    Some((table, *relocations.get(index as usize)?))
}

fn read(elf: &Elf<'_>, table: &Section) -> Option<Vec<u8>> {
    let cap = MAX_RELOCATIONS * size_of::<elf::Rela64<LE>>() as u64;
    elf.source.read(table.offset, table.size, cap)
}
