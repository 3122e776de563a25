//! Functions, inlined functions and source lines from DWARF.
//!
//! Only what the addresses need is read: the units that cover them, each walked once from its
//! first entry to its last without recursion, and kept no longer than that. A unit that is
//! broken costs its own names.

mod clock;
mod functions;
mod lines;
mod names;
mod units;

use std::collections::HashMap;

use gimli::SectionId;

use super::elf::Elf;
use super::reader::{Contents, Pages};
use clock::Clock;
use functions::Found;
use lines::Lines;
use names::Names;
use units::Units;

type Dwarf<'a> = gimli::Dwarf<Pages<'a>>;
type Unit<'a> = gimli::Unit<Pages<'a>>;

/// One function at an address, as far as the debug information tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Site {
    /// Demangled name.
    pub(super) function: Option<String>,
    /// Source file.
    pub(super) file: Option<String>,
    /// Line, from 1.
    pub(super) line: Option<u32>,
}

/// Whether there is debug information in this file at all.
pub(super) fn is_in(elf: &Elf<'_>) -> bool {
    elf.section(".debug_info").is_some() || elf.section(".zdebug_info").is_some()
}

/// The functions at each of the addresses (ELF virtual addresses, ascending), innermost first,
/// the physical function last; nothing for an address that is not described.
///
/// `alternate` is the file that `.gnu_debugaltlink` names.
pub(super) fn sites(
    elf: &Elf<'_>,
    alternate: Option<&Elf<'_>>,
    addresses: &[u64],
) -> Vec<Vec<Site>> {
    let sections = Sections::of(elf);
    let mut dwarf = sections.dwarf();
    let alternate = alternate.map(Sections::of);
    if let Some(alternate) = &alternate {
        dwarf.set_sup(alternate.dwarf());
    }
    let mut sites = vec![Vec::new(); addresses.len()];
    let clock = Clock::start();
    let units = Units::of(&dwarf, &clock);
    let names = Names::new(&dwarf, &units, &clock);
    units.for_each_covering(addresses, |unit, covered| {
        let open = covered.iter().copied();
        let wanted: Vec<usize> = open.filter(|&index| sites[index].is_empty()).collect();
        let inside: Vec<u64> = wanted.iter().map(|&index| addresses[index]).collect();
        let Some(unit) = units.open(unit).filter(|_| !inside.is_empty()) else {
            return;
        };
        for (index, found) in wanted
            .into_iter()
            .zip(describe(&dwarf, &unit, &names, &inside, &clock))
        {
            sites[index] = found;
        }
    });
    sites
}

/// The functions at these ascending addresses, all of one unit.
fn describe<'a>(
    dwarf: &Dwarf<'a>,
    unit: &Unit<'a>,
    names: &Names<'_, 'a>,
    addresses: &[u64],
    clock: &Clock,
) -> Vec<Vec<Site>> {
    let found = functions::find(dwarf, unit, addresses, clock);
    let mut lines = Lines::new(dwarf, unit);
    let rows = lines.find(addresses, clock);
    let mut memo = HashMap::new();
    let mut name = |entry| {
        memo.entry(entry)
            .or_insert_with(|| names.of(unit, entry))
            .clone()
    };
    found
        .into_iter()
        .zip(rows)
        .map(|(found, row)| chain(found, row, &mut lines, &mut name))
        .collect()
}

/// Strings the inlined functions together: each one's place is where the next inner one was
/// called, the innermost one's is the row of the line table.
fn chain(
    found: Found,
    row: Option<(u64, u32)>,
    lines: &mut Lines<'_, '_>,
    name: &mut impl FnMut(gimli::UnitOffset) -> Option<String>,
) -> Vec<Site> {
    if found.function.is_none() && row.is_none() {
        return Vec::new();
    }
    let mut place = row;
    let mut sites = Vec::with_capacity(found.inlined.len() + 1);
    let mut push = |entry: Option<gimli::UnitOffset>, place: Option<(u64, u32)>| {
        sites.push(Site {
            function: entry.and_then(&mut *name),
            file: place.and_then(|(file, _)| lines.path(file)),
            line: place.map(|(_, line)| line).filter(|&line| line != 0),
        });
    };
    for inlined in found.inlined.iter().rev() {
        push(Some(inlined.entry), place);
        place = inlined.call;
    }
    push(found.function, place);
    sites
}

/// The sections of one file that are used.
struct Sections<'a>(HashMap<SectionId, Contents<'a>>, Contents<'a>);

impl<'a> Sections<'a> {
    fn of(elf: &'a Elf<'a>) -> Self {
        let used = [
            SectionId::DebugAbbrev,
            SectionId::DebugAddr,
            SectionId::DebugAranges,
            SectionId::DebugInfo,
            SectionId::DebugLine,
            SectionId::DebugLineStr,
            SectionId::DebugRanges,
            SectionId::DebugRngLists,
            SectionId::DebugStr,
            SectionId::DebugStrOffsets,
        ];
        let contents = used.map(|id| (id, Contents::of(elf, id.name())));
        Sections(contents.into_iter().collect(), Contents::of(elf, ""))
    }

    fn dwarf(&'a self) -> Dwarf<'a> {
        let reader = |id: SectionId| self.0.get(&id).unwrap_or(&self.1).reader();
        gimli::Dwarf::load(|id| Ok::<_, std::convert::Infallible>(reader(id)))
            .unwrap_or_else(|never| match never {})
    }
}
