//! Functions, inlined functions and source lines from DWARF.
//!
//! Only what the addresses need is read: the units that cover them, each walked once from its
//! first entry to its last without recursion, and kept no longer than that. A unit that is
//! broken costs its own names.

mod functions;
mod lines;
mod names;
mod scopes;
mod units;

use std::collections::HashMap;

use gimli::SectionId;

use super::clock::Clock;
use super::elf::Elf;
use super::reader::{Contents, Pages};
use functions::Found;
use lines::Lines;
use names::{Name, Names};
use units::{Covering, Units};

/// Bytes of `.debug_info` that are worked on before what was read is dropped.
const BATCH: usize = 16 << 20;

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
    /// Whether the name is put together from those of the source, without parameters.
    pub(super) bare: bool,
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
    clock: &Clock,
) -> Vec<Vec<Site>> {
    let first = Sections::of(elf, clock);
    let plan = Units::new(&first.dwarf(), clock).covering(addresses);
    first.note_refusals(clock);
    // What had to be unpacked whole stays; pages go with what they were read for.
    let kept = first.is_packed().then_some(first);
    let mut sites = vec![Vec::new(); addresses.len()];
    let mut rest = plan.as_slice();
    while !rest.is_empty() && !clock.is_over() {
        let mut length = 0_usize;
        let fits = |unit: &&Covering| {
            length = length.saturating_add(unit.length);
            kept.is_some() || length <= BATCH
        };
        let count = rest.iter().take_while(fits).count().max(1);
        let (batch, later) = rest.split_at(count);
        let fresh = kept.is_none().then(|| Sections::of(elf, clock));
        if let Some(sections) = kept.as_ref().or(fresh.as_ref()) {
            describe_batch(sections, alternate, batch, addresses, &mut sites, clock);
        }
        rest = later;
    }
    sites
}

fn describe_batch(
    sections: &Sections<'_>,
    alternate: Option<&Elf<'_>>,
    batch: &[Covering],
    addresses: &[u64],
    sites: &mut [Vec<Site>],
    clock: &Clock,
) {
    let alternate = alternate.map(|elf| Sections::of(elf, clock));
    let mut dwarf = sections.dwarf();
    if let Some(alternate) = &alternate {
        dwarf.set_sup(alternate.dwarf());
    }
    let units = Units::new(&dwarf, clock);
    let names = Names::new(&dwarf, &units, clock);
    for Covering {
        offset, covered, ..
    } in batch
    {
        let mut wanted = covered.clone();
        wanted.retain(|&index| sites[index].is_empty());
        let inside: Vec<u64> = wanted.iter().map(|&index| addresses[index]).collect();
        if inside.is_empty() || clock.is_over() {
            continue;
        }
        let Some(unit) = units.open(*offset) else {
            continue;
        };
        let described = describe(&dwarf, &unit, &names, &inside, clock);
        for (index, found) in wanted.into_iter().zip(described) {
            sites[index] = found;
        }
    }
    for sections in [Some(sections), alternate.as_ref()].into_iter().flatten() {
        sections.note_refusals(clock);
    }
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
    name: &mut impl FnMut(gimli::UnitOffset) -> Option<Name>,
) -> Vec<Site> {
    if found.function.is_none() && row.is_none() {
        return Vec::new();
    }
    let mut place = row;
    let mut sites = Vec::with_capacity(found.inlined.len() + 1);
    let mut push = |entry: Option<gimli::UnitOffset>, place: Option<(u64, u32)>| {
        let name = entry.and_then(&mut *name);
        sites.push(Site {
            bare: name.as_ref().is_some_and(|name| name.bare),
            function: name.map(|name| name.text),
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
    fn of(elf: &'a Elf<'a>, clock: &'a Clock) -> Self {
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
        let contents = used.map(|id| (id, Contents::of(elf, id.name(), clock)));
        Sections(contents.into_iter().collect(), Contents::of(elf, "", clock))
    }

    /// Notes whether a section asked for too much memory.
    fn note_refusals(&self, clock: &Clock) {
        if self.0.values().any(Contents::was_refused) {
            clock.cut();
        }
    }

    /// Whether `.debug_info` is compressed.
    fn is_packed(&self) -> bool {
        let info = self.0.get(&SectionId::DebugInfo);
        info.is_some_and(Contents::is_packed)
    }

    fn dwarf(&'a self) -> Dwarf<'a> {
        let reader = |id: SectionId| self.0.get(&id).unwrap_or(&self.1).reader();
        gimli::Dwarf::load(|id| Ok::<_, std::convert::Infallible>(reader(id)))
            .unwrap_or_else(|never| match never {})
    }
}
