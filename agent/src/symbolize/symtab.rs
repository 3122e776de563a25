//! Names from ELF symbol tables: one pass over the entries that keeps the best match of each
//! address, so that a table of a million symbols costs neither memory nor demangling.

use object::elf;
use object::{LittleEndian as LE, pod};

use super::clock::Clock;
use super::demangle::MAX_NAME;
use super::elf::{Elf, Section};

/// Entries read at a time.
const BATCH: u64 = 4096;
/// Bytes of an entry.
const ENTRY: u64 = size_of::<elf::Sym64<LE>>() as u64;
/// Aliases of one function that are compared by name.
const MAX_ALIASES: usize = 16;
/// Entries of a table that are read: several times those of the largest programs.
const MAX_SYMBOLS: u64 = 1 << 26;
/// Matches after which a table is taken for a hostile one (every symbol covering every address).
const MAX_MATCHES: u64 = 1 << 26;

/// The names of the addresses (ELF virtual addresses, ascending) in the tables of `elf`: its
/// `.symtab`, or its `.dynsym` if it has none. `None` per address that no function covers.
/// The result is `None` if there is no table.
pub(super) fn names(
    elf: &Elf<'_>,
    addresses: &[u64],
    clock: &Clock,
) -> Option<Vec<Option<String>>> {
    let table = elf
        .section_of_kind(elf::SHT_SYMTAB)
        .or_else(|| elf.section_of_kind(elf::SHT_DYNSYM))?;
    let strings = elf.sections.get(table.link as usize)?;
    let mut search = Search {
        addresses,
        covering: vec![Match::default(); addresses.len()],
        preceding: vec![Match::default(); addresses.len()],
        matches: 0,
    };
    for_each_symbol(elf, table, clock, |symbol| search.add(elf, symbol));
    Some(search.finish(elf, strings, clock))
}

/// Whether the file has a symbol table of its own, stripped ones aside.
pub(super) fn has_symtab(elf: &Elf<'_>) -> bool {
    elf.section_of_kind(elf::SHT_SYMTAB).is_some()
}

/// The name at this offset of a string table; cut if it is very long.
pub(super) fn string(elf: &Elf<'_>, strings: &Section, offset: u32) -> Option<String> {
    let left = strings.size.checked_sub(u64::from(offset))?;
    let start = strings.offset.checked_add(u64::from(offset))?;
    // Most names are short: a second read for the rest is rare.
    for length in [256, 2 * MAX_NAME as u64 + 1] {
        let bytes = elf.source.read_up_to(start, left.min(length))?;
        let end = bytes.iter().position(|&byte| byte == 0);
        if end.is_some() || length > 256 {
            let name = bytes.get(..end.unwrap_or(bytes.len()))?;
            let name = String::from_utf8_lossy(name).into_owned();
            return (!name.is_empty()).then_some(name);
        }
    }
    None
}

/// The entry of this index.
pub(super) fn symbol(elf: &Elf<'_>, table: &Section, index: u64) -> Option<elf::Sym64<LE>> {
    let offset = index.checked_mul(ENTRY)?;
    if offset.checked_add(ENTRY)? > table.size {
        return None;
    }
    let bytes = elf
        .source
        .read(table.offset.checked_add(offset)?, ENTRY, ENTRY)?;
    Some(*pod::from_bytes::<elf::Sym64<LE>>(&bytes).ok()?.0)
}

/// Calls `visit` for each entry until it answers false, time is up or the table ends.
fn for_each_symbol(
    elf: &Elf<'_>,
    table: &Section,
    clock: &Clock,
    mut visit: impl FnMut(&elf::Sym64<LE>) -> bool,
) {
    let mut left = (table.size / ENTRY).min(MAX_SYMBOLS);
    let mut offset = table.offset;
    while left > 0 && !clock.is_over() {
        let count = left.min(BATCH);
        let Some(bytes) = elf.source.read(offset, count * ENTRY, BATCH * ENTRY) else {
            return;
        };
        let Ok((symbols, _)) = pod::slice_from_bytes::<elf::Sym64<LE>>(&bytes, count as usize)
        else {
            return;
        };
        if !symbols.iter().all(&mut visit) {
            return;
        }
        left -= count;
        offset += count * ENTRY;
    }
}

/// The best symbol so far for one address. Of two, the one that starts later is better, then the
/// one of the higher class.
#[derive(Clone, Default)]
struct Match {
    start: u64,
    class: u8,
    /// Whether the symbol states no size.
    unsized_: bool,
    /// Offsets of the names of all equally good symbols.
    names: Vec<u32>,
}

impl Match {
    fn offer(&mut self, symbol: &Function) {
        if !self.names.is_empty() {
            match (symbol.start, symbol.class).cmp(&(self.start, self.class)) {
                std::cmp::Ordering::Less => return,
                std::cmp::Ordering::Equal => {
                    if self.names.len() < MAX_ALIASES {
                        self.names.push(symbol.name);
                    }
                    return;
                }
                std::cmp::Ordering::Greater => {}
            }
        }
        self.start = symbol.start;
        self.class = symbol.class;
        self.unsized_ = symbol.size == 0;
        self.names.clear();
        self.names.push(symbol.name);
    }
}

struct Function {
    start: u64,
    size: u64,
    class: u8,
    name: u32,
}

/// The symbol if it can name code, classed: functions before untyped labels, exported names
/// before local ones.
fn function(elf: &Elf<'_>, symbol: &elf::Sym64<LE>) -> Option<Function> {
    let section = symbol.st_shndx.get(LE);
    let name = symbol.st_name.get(LE);
    if section == elf::SHN_UNDEF || section == elf::SHN_ABS || name == 0 {
        return None;
    }
    let in_code = || {
        elf.sections
            .get(usize::from(section))
            .is_some_and(Section::is_code)
    };
    let typed = match symbol.st_type() {
        elf::STT_FUNC | elf::STT_GNU_IFUNC => 2,
        elf::STT_NOTYPE if in_code() => 0,
        _ => return None,
    };
    Some(Function {
        start: symbol.st_value.get(LE),
        size: symbol.st_size.get(LE),
        class: typed + u8::from(symbol.st_bind() != elf::STB_LOCAL),
        name,
    })
}

struct Search<'a> {
    addresses: &'a [u64],
    /// Per address, the best symbol whose range holds it.
    covering: Vec<Match>,
    /// Per address, the best symbol that starts after the previous address and not after it.
    preceding: Vec<Match>,
    matches: u64,
}

impl Search<'_> {
    /// Takes a symbol into account; false when there have been too many matches.
    fn add(&mut self, elf: &Elf<'_>, symbol: &elf::Sym64<LE>) -> bool {
        let Some(symbol) = function(elf, symbol) else {
            return true;
        };
        let first = self
            .addresses
            .partition_point(|&address| address < symbol.start);
        if let Some(preceding) = self.preceding.get_mut(first) {
            preceding.offer(&symbol);
        }
        let addresses = self.addresses.iter().zip(&mut self.covering);
        for (address, covering) in addresses.skip(first) {
            if address - symbol.start >= symbol.size {
                break;
            }
            covering.offer(&symbol);
            self.matches += 1;
        }
        self.matches < MAX_MATCHES
    }

    fn finish(self, elf: &Elf<'_>, strings: &Section, clock: &Clock) -> Vec<Option<String>> {
        let mut last = Match::default();
        let mut names = Vec::with_capacity(self.addresses.len());
        let matches = self.covering.into_iter().zip(self.preceding);
        for (&address, (covering, preceding)) in self.addresses.iter().zip(matches) {
            if !preceding.names.is_empty() {
                last = preceding;
            }
            names.push(if clock.is_over() {
                None
            } else if !covering.names.is_empty() {
                best_alias(elf, strings, &covering.names)
            } else if last.unsized_ && same_code(elf, last.start, address) {
                best_alias(elf, strings, &last.names)
            } else {
                None
            });
        }
        names
    }
}

/// Whether both addresses lie in one section of code: a label without a size names what follows
/// it up to the next symbol, but not beyond its section.
fn same_code(elf: &Elf<'_>, label: u64, address: u64) -> bool {
    elf.sections
        .iter()
        .any(|section| section.is_code() && section.covers(label) && section.covers(address))
}

/// Of several names of one function, the public one: fewest leading underscores, then the
/// shortest, then the first by the alphabet.
fn best_alias(elf: &Elf<'_>, strings: &Section, names: &[u32]) -> Option<String> {
    let names = names.iter().filter_map(|&name| string(elf, strings, name));
    names.min_by_key(|name| {
        let underscores = name.bytes().take_while(|&byte| byte == b'_').count();
        (underscores, name.len(), name.clone())
    })
}
