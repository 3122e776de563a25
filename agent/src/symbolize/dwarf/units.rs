//! Which units describe an address.

use std::cell::{OnceCell, RefCell};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use gimli::{
    Abbreviations, AttributeValue, DebugAbbrev, DebugAbbrevOffset, DebugAddrBase, DebugInfoOffset,
    DebugLineOffset, DebugRngListsBase, Error, RangeListsOffset, Reader, Result, Section as _,
    UnitHeader,
};

use super::super::clock::Clock;
use super::super::reader::Pages;
use super::{Dwarf, Unit};

/// More units than any real program has.
const MAX_UNITS: usize = 1 << 18;
/// Largest table of abbreviations, in bytes: it takes some thirty times that in memory.
const MAX_ABBREVIATIONS: usize = 1 << 20;
/// Largest header of a line program, in bytes, which holds the names of its files: one that is
/// all empty names takes 140 times that in memory.
const MAX_LINE_HEADER: u64 = 256 << 10;
/// Most ranges of one unit or function.
pub(super) const MAX_RANGES: usize = 1 << 16;

/// The units of a file, by their headers.
pub(super) struct Units<'d, 'a> {
    dwarf: &'d Dwarf<'a>,
    clock: &'d Clock,
    /// All of them, in the order of their offsets; read when one must be searched for.
    headers: OnceCell<Vec<UnitHeader<Pages<'a>>>>,
    /// The last table used: files rewritten by `dwz` share one among all their units.
    abbreviations: RefCell<Option<(DebugAbbrevOffset, Arc<Abbreviations>)>>,
}

/// A unit that says it covers some of the addresses.
pub(super) struct Covering {
    /// Where it starts.
    pub(super) offset: DebugInfoOffset,
    /// Its length in bytes.
    pub(super) length: usize,
    /// The indices of the addresses, ascending.
    pub(super) covered: Vec<usize>,
}

impl<'d, 'a> Units<'d, 'a> {
    pub(super) fn new(dwarf: &'d Dwarf<'a>, clock: &'d Clock) -> Self {
        Units {
            dwarf,
            clock,
            headers: OnceCell::new(),
            abbreviations: RefCell::new(None),
        }
    }

    /// The headers, as far as they are in order.
    fn headers(&self) -> &[UnitHeader<Pages<'a>>] {
        self.headers.get_or_init(|| {
            let mut headers = Vec::new();
            let mut units = self.dwarf.units();
            while let Ok(Some(header)) = units.next() {
                headers.push(header);
                if headers.len() == MAX_UNITS {
                    self.clock.cut();
                    break;
                }
                if self.clock.step() {
                    break;
                }
            }
            headers
        })
    }

    /// The units that say they cover some of the ascending addresses: those that
    /// `.debug_aranges` lists, then, if that leaves addresses over, those that it does not list.
    pub(super) fn covering(&self, addresses: &[u64]) -> Vec<Covering> {
        let (listed, covering) = self.listed(addresses);
        let mut open = vec![true; addresses.len()];
        let mut units = Vec::new();
        for (offset, covered) in covering {
            for &index in &covered {
                open[index] = false;
            }
            units.extend(self.entry(DebugInfoOffset(offset), covered));
        }
        if !open.contains(&true) {
            return units;
        }
        for header in self.headers() {
            let Some(offset) = header.offset().as_debug_info_offset() else {
                continue;
            };
            if self.clock.is_over() {
                break;
            }
            if listed.contains(&offset.0) {
                continue;
            }
            let mut covered = Vec::new();
            // What was found before an error still counts.
            let _ = self.root(header).and_then(|root| {
                root.for_each_range(self.dwarf, header, |low, high| {
                    covered.extend(indices(addresses, low, high));
                    covered.len() <= addresses.len() && !self.clock.step()
                })
            });
            covered.sort_unstable();
            covered.dedup();
            if !covered.is_empty() {
                units.extend(self.entry(offset, covered));
            }
        }
        units
    }

    fn entry(&self, offset: DebugInfoOffset, covered: Vec<usize>) -> Option<Covering> {
        let header = self.dwarf.debug_info.header_from_offset(offset).ok()?;
        Some(Covering {
            offset,
            length: header.length_including_self(),
            covered,
        })
    }

    /// The units that `.debug_aranges` lists, by offset, and those of them that cover addresses.
    fn listed(&self, addresses: &[u64]) -> (HashSet<usize>, BTreeMap<usize, Vec<usize>>) {
        let mut listed = HashSet::new();
        let mut covering: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        let mut sets = self.dwarf.debug_aranges.headers();
        while let Ok(Some(set)) = sets.next() {
            let unit = set.debug_info_offset().0;
            let mut entries = set.entries();
            let mut covered = Vec::new();
            while let Ok(Some(entry)) = entries.next() {
                let range = entry.range();
                covered.extend(indices(addresses, range.begin, range.end));
                if entry.length() != 0 {
                    listed.insert(unit);
                }
                if covered.len() > addresses.len() || self.clock.step() {
                    break;
                }
            }
            if !covered.is_empty() {
                covering.entry(unit).or_default().append(&mut covered);
            }
            if listed.len() > MAX_UNITS || self.clock.is_over() {
                break;
            }
        }
        for covered in covering.values_mut() {
            covered.sort_unstable();
            covered.dedup();
        }
        (listed, covering)
    }

    /// Where the unit starts that holds this offset of `.debug_info`.
    pub(super) fn holding(&self, offset: DebugInfoOffset) -> Option<DebugInfoOffset> {
        let start = |header: &UnitHeader<Pages<'a>>| header.offset().as_debug_info_offset();
        let headers = self.headers();
        let after = headers
            .partition_point(|header| start(header).is_some_and(|start| start.0 <= offset.0));
        start(headers.get(after.checked_sub(1)?)?)
    }

    /// Reads what is common to the entries of the unit that starts at this offset; `None` if it
    /// is broken or out of all proportion.
    pub(super) fn open(&self, offset: DebugInfoOffset) -> Option<Unit<'a>> {
        let header = self.dwarf.debug_info.header_from_offset(offset).ok()?;
        let root = self.root(&header).ok()?;
        if let Some(offset) = root.line_program
            && self.line_header_length(offset).ok()? > MAX_LINE_HEADER
        {
            self.clock.cut();
            return None;
        }
        let abbreviations = self.abbreviations(&header).ok()?;
        gimli::Unit::new_with_abbreviations(self.dwarf, header, abbreviations).ok()
    }

    fn abbreviations(&self, header: &UnitHeader<Pages<'a>>) -> Result<Arc<Abbreviations>> {
        let offset = header.debug_abbrev_offset();
        if let Some((last, abbreviations)) = &*self.abbreviations.borrow()
            && *last == offset
        {
            return Ok(Arc::clone(abbreviations));
        }
        let mut section = *self.dwarf.debug_abbrev.reader();
        let end = offset.0.saturating_add(MAX_ABBREVIATIONS);
        let cut = end < section.len();
        section.truncate(end.min(section.len()))?;
        let table = header.abbreviations(&DebugAbbrev::from(section));
        if cut && table.is_err() {
            self.clock.cut();
        }
        let table = Arc::new(table?);
        *self.abbreviations.borrow_mut() = Some((offset, Arc::clone(&table)));
        Ok(table)
    }

    fn root(&self, header: &UnitHeader<Pages<'a>>) -> Result<Root<'a>> {
        let abbreviations = self.abbreviations(header)?;
        let mut entries = header.entries_raw(&abbreviations, None)?;
        let abbreviation = entries.read_abbreviation()?.ok_or(Error::MissingUnitDie)?;
        let mut root = Root::new();
        for spec in abbreviation.attributes() {
            let attribute = entries.read_attribute(*spec)?;
            match (attribute.name(), attribute.value()) {
                (gimli::DW_AT_low_pc, value) => root.low = Some(value),
                (gimli::DW_AT_high_pc, value) => root.high = Some(value),
                (gimli::DW_AT_ranges, value) => root.ranges = Some(value),
                (gimli::DW_AT_stmt_list, AttributeValue::DebugLineRef(offset)) => {
                    root.line_program = Some(offset);
                }
                (_, AttributeValue::DebugAddrBase(base)) => root.addresses = base,
                (_, AttributeValue::DebugRngListsBase(base)) => root.lists = base,
                _ => {}
            }
        }
        if root.lists.0 == 0 {
            let encoding = header.encoding();
            root.lists = DebugRngListsBase::default_for_encoding_and_file(
                encoding,
                gimli::DwarfFileType::Main,
            );
        }
        Ok(root)
    }

    /// The length of a line program's header in bytes, as it says itself (DWARF 5, 6.2.4).
    fn line_header_length(&self, offset: DebugLineOffset) -> Result<u64> {
        let mut reader = *self.dwarf.debug_line.reader();
        reader.skip(offset.0)?;
        let (_, format) = reader.read_initial_length()?;
        if reader.read_u16()? >= 5 {
            reader.skip(2)?;
        }
        Ok(reader.read_length(format)? as u64)
    }
}

/// The attributes of a unit's first entry that say where its code lies.
struct Root<'a> {
    low: Option<AttributeValue<Pages<'a>>>,
    high: Option<AttributeValue<Pages<'a>>>,
    ranges: Option<AttributeValue<Pages<'a>>>,
    line_program: Option<DebugLineOffset>,
    addresses: DebugAddrBase,
    lists: DebugRngListsBase,
}

impl<'a> Root<'a> {
    fn new() -> Self {
        Root {
            low: None,
            high: None,
            ranges: None,
            line_program: None,
            addresses: DebugAddrBase(0),
            lists: DebugRngListsBase(0),
        }
    }

    /// Calls `visit` with the bounds of each range until it answers false.
    fn for_each_range(
        &self,
        dwarf: &Dwarf<'a>,
        header: &UnitHeader<Pages<'a>>,
        mut visit: impl FnMut(u64, u64) -> bool,
    ) -> Result<()> {
        let encoding = header.encoding();
        let address = |value| match value {
            Some(AttributeValue::Addr(address)) => Ok(Some(address)),
            Some(AttributeValue::DebugAddrIndex(index)) => dwarf
                .debug_addr
                .get_address(encoding.address_size, self.addresses, index)
                .map(Some),
            _ => Ok(None),
        };
        let low = address(self.low)?;
        let offset = match self.ranges {
            Some(AttributeValue::RangeListsRef(offset)) => Some(RangeListsOffset(offset.0)),
            Some(AttributeValue::DebugRngListsIndex(index)) => {
                Some(dwarf.ranges.get_offset(encoding, self.lists, index)?)
            }
            _ => None,
        };
        if let Some(offset) = offset {
            let base = low.unwrap_or(0);
            let lists = &dwarf.ranges;
            let mut ranges =
                lists.ranges(offset, encoding, base, &dwarf.debug_addr, self.addresses)?;
            for _ in 0..MAX_RANGES {
                match ranges.next()? {
                    Some(range) if visit(range.begin, range.end) => {}
                    _ => break,
                }
            }
            return Ok(());
        }
        let high = match self.high {
            Some(AttributeValue::Udata(size)) => low.and_then(|low| low.checked_add(size)),
            other => address(other)?,
        };
        if let (Some(low), Some(high)) = (low, high) {
            visit(low, high);
        }
        Ok(())
    }
}

/// The indices of the ascending addresses within `low..high`. Code at address 0 is what a linker
/// has thrown away.
pub(super) fn indices(addresses: &[u64], low: u64, high: u64) -> std::ops::Range<usize> {
    if low == 0 || low >= high {
        return 0..0;
    }
    let first = addresses.partition_point(|&address| address < low);
    let rest = addresses.get(first..).unwrap_or_default();
    first..first + rest.partition_point(|&address| address < high)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed test may panic")]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::time::Duration;

    use super::super::super::clock::Budget;
    use super::super::super::decompress::Unpacked;
    use super::super::super::elf::Elf;
    use super::super::super::source::Source;
    use super::super::super::tests::image::{Part, image};
    use super::super::Sections;
    use super::*;

    #[test]
    fn no_set_is_read_once_time_is_up() {
        static GIVEN_UP: AtomicBool = AtomicBool::new(false);
        let sets = (0..100_u32).flat_map(|unit| {
            let entry = [[1_u8, 0, 0, 0, 0, 0, 0, 0]; 2].concat();
            // Unit length, version, unit, address and segment size, padding; the end.
            let mut set = [&28_u32.to_le_bytes()[..], &[2, 0], &unit.to_le_bytes()].concat();
            set.extend([8, 0, 0, 0, 0, 0]);
            set.extend(entry);
            set
        });
        let bytes = image(&[Part::new(".debug_aranges", sets.collect())]);
        let elf = Elf::parse(Source::Bytes(Unpacked::of(bytes))).unwrap();
        let plenty = Budget::lasting(Duration::from_secs(3600), &GIVEN_UP);
        let reading = Clock::for_details(&plenty);
        let sections = Sections::of(&elf, &reading);
        let dwarf = sections.dwarf();
        for (time, expected) in [(Duration::from_secs(3600), 100), (Duration::ZERO, 1)] {
            let clock = Clock::for_details(&Budget::lasting(time, &GIVEN_UP));
            let (listed, _) = Units::new(&dwarf, &clock).listed(&[5]);
            assert_eq!(listed.len(), expected);
        }
    }
}
