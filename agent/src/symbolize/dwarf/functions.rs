//! The functions of one unit that hold the given addresses.

use gimli::{Abbreviation, AttributeValue, EntriesRaw, Result, UnitOffset};

use super::super::clock::Clock;
use super::super::reader::Pages;
use super::units::{MAX_RANGES, indices};
use super::{Dwarf, Unit};

/// Inlining deeper than this is cut at the inner end.
const MAX_INLINED: usize = 256;

/// The functions at one address.
#[derive(Clone, Default)]
pub(super) struct Found {
    /// Entry of the physical function.
    pub(super) function: Option<UnitOffset>,
    /// The functions inlined there, from the outermost to the innermost.
    pub(super) inlined: Vec<Inlined>,
    /// The innermost of all these, as a [`Scope::id`].
    scope: usize,
}

/// A function that the compiler inlined.
#[derive(Clone)]
pub(super) struct Inlined {
    /// Its entry.
    pub(super) entry: UnitOffset,
    /// File (index into the unit's files) and line of the call.
    pub(super) call: Option<(u64, u32)>,
}

/// An entry above the current one that holds some of the addresses.
struct Scope {
    depth: isize,
    id: usize,
}

/// Finds the functions at each of the ascending addresses. A broken entry ends the search; what
/// was found before it stays.
pub(super) fn find(
    dwarf: &Dwarf<'_>,
    unit: &Unit<'_>,
    addresses: &[u64],
    clock: &Clock,
) -> Vec<Found> {
    let mut walk = Walk {
        dwarf,
        unit,
        addresses,
        clock,
        found: vec![Found::default(); addresses.len()],
        scopes: Vec::new(),
        next_id: 1,
    };
    // The error has no bearing on what was found.
    let _ = walk.run();
    walk.found
}

struct Walk<'w, 'a> {
    dwarf: &'w Dwarf<'a>,
    unit: &'w Unit<'a>,
    addresses: &'w [u64],
    clock: &'w Clock,
    found: Vec<Found>,
    scopes: Vec<Scope>,
    next_id: usize,
}

impl<'a> Walk<'_, 'a> {
    fn run(&mut self) -> Result<()> {
        let mut entries = self.unit.entries_raw(None)?;
        // Depth at which `entries` began, and that of the outermost function around the entry.
        let mut base = 0;
        let mut function: Option<isize> = None;
        while !entries.is_empty() && !self.clock.step() {
            let offset = entries.next_offset();
            let depth = base + entries.next_depth();
            let Some(abbreviation) = entries.read_abbreviation()? else {
                continue;
            };
            function = function.filter(|&outer| outer < depth);
            let inlined = match abbreviation.tag() {
                gimli::DW_TAG_subprogram => {
                    function.get_or_insert(depth);
                    false
                }
                gimli::DW_TAG_inlined_subroutine => true,
                tag if function.is_none() && abbreviation.has_children() && is_type(tag) => {
                    // Members are only declared here; their code has entries elsewhere. Not so
                    // those of a function's local types.
                    if let Some(next) = sibling(&mut entries, abbreviation)?
                        && next.0 > offset.0
                    {
                        entries = self.unit.entries_raw(Some(next))?;
                        base = depth;
                    }
                    continue;
                }
                _ => {
                    entries.skip_attributes(abbreviation.attributes())?;
                    continue;
                }
            };
            self.leave(depth);
            if inlined && self.scopes.is_empty() {
                entries.skip_attributes(abbreviation.attributes())?;
                continue;
            }
            let code = self.read(&mut entries, abbreviation)?;
            let hits = self.hits(&code);
            if hits.is_empty() {
                continue;
            }
            let entry = inlined.then_some(Inlined {
                entry: offset,
                call: code
                    .call_line
                    .map(|line| (code.call_file.unwrap_or(0), line)),
            });
            self.record(offset, entry, &hits);
            self.scopes.push(Scope {
                depth,
                id: self.next_id,
            });
            self.next_id += 1;
        }
        Ok(())
    }

    /// Forgets the scopes that ended before an entry of this depth.
    fn leave(&mut self, depth: isize) {
        while self.scopes.last().is_some_and(|scope| scope.depth >= depth) {
            self.scopes.pop();
        }
    }

    fn record(&mut self, offset: UnitOffset, inlined: Option<Inlined>, hits: &[usize]) {
        for &hit in hits {
            let Some(found) = self.found.get_mut(hit) else {
                continue;
            };
            let inside = self.scopes.iter().any(|scope| scope.id == found.scope);
            match &inlined {
                Some(inlined) if inside && found.inlined.len() < MAX_INLINED => {
                    found.inlined.push(inlined.clone());
                }
                None if inside || found.function.is_none() => {
                    found.function = Some(offset);
                    found.inlined.clear();
                }
                // Two functions that claim one address: the first has it.
                _ => continue,
            }
            found.scope = self.next_id;
        }
    }

    fn read(
        &self,
        entries: &mut EntriesRaw<'_, '_, Pages<'a>>,
        abbreviation: &Abbreviation,
    ) -> Result<Code<'a>> {
        let mut code = Code::default();
        for spec in abbreviation.attributes() {
            let attribute = entries.read_attribute(*spec)?;
            match attribute.name() {
                gimli::DW_AT_low_pc => code.low = self.address(attribute.value()),
                gimli::DW_AT_high_pc => code.high = Some(attribute.value()),
                gimli::DW_AT_ranges => code.ranges = Some(attribute.value()),
                gimli::DW_AT_call_file => {
                    code.call_file = match attribute.value() {
                        AttributeValue::FileIndex(index) => Some(index),
                        value => value.udata_value(),
                    };
                }
                gimli::DW_AT_call_line => {
                    let line = attribute.udata_value();
                    code.call_line = line.and_then(|line| u32::try_from(line).ok());
                }
                _ => {}
            }
        }
        Ok(code)
    }

    fn address(&self, value: AttributeValue<Pages<'a>>) -> Option<u64> {
        self.dwarf.attr_address(self.unit, value).ok().flatten()
    }

    /// The ascending indices of the addresses that the code covers.
    fn hits(&self, code: &Code<'a>) -> Vec<usize> {
        if let Some(ranges) = code.ranges {
            // Ranges before a broken one count.
            let mut hits = Vec::new();
            let _ = self.hits_in_ranges(ranges, &mut hits);
            hits.sort_unstable();
            hits.dedup();
            return hits;
        }
        let (Some(low), Some(high)) = (code.low, code.high) else {
            return Vec::new();
        };
        let high = match high {
            AttributeValue::Udata(size) => low.checked_add(size),
            value => self.address(value),
        };
        indices(self.addresses, low, high.unwrap_or(0)).collect()
    }

    fn hits_in_ranges(
        &self,
        ranges: AttributeValue<Pages<'a>>,
        hits: &mut Vec<usize>,
    ) -> Result<()> {
        let Some(mut ranges) = self.dwarf.attr_ranges(self.unit, ranges)? else {
            return Ok(());
        };
        for _ in 0..MAX_RANGES {
            let Some(range) = ranges.next()? else { break };
            hits.extend(indices(self.addresses, range.begin, range.end));
            if hits.len() > self.addresses.len() || self.clock.step() {
                break;
            }
        }
        Ok(())
    }
}

fn is_type(tag: gimli::DwTag) -> bool {
    matches!(
        tag,
        gimli::DW_TAG_structure_type
            | gimli::DW_TAG_class_type
            | gimli::DW_TAG_union_type
            | gimli::DW_TAG_enumeration_type
    )
}

/// Passes over the attributes; the entry after all children if one of them tells.
pub(super) fn sibling(
    entries: &mut EntriesRaw<'_, '_, Pages<'_>>,
    abbreviation: &Abbreviation,
) -> Result<Option<UnitOffset>> {
    let attributes = abbreviation.attributes();
    let is_sibling = |spec: &gimli::AttributeSpecification| spec.name() == gimli::DW_AT_sibling;
    if !attributes.iter().any(is_sibling) {
        entries.skip_attributes(attributes)?;
        return Ok(None);
    }
    let mut next = None;
    for spec in attributes {
        let attribute = entries.read_attribute(*spec)?;
        if let (gimli::DW_AT_sibling, AttributeValue::UnitRef(offset)) =
            (attribute.name(), attribute.value())
        {
            next = Some(offset);
        }
    }
    Ok(next)
}

/// The attributes of an entry that say where its code is and whence it was inlined.
#[derive(Default)]
struct Code<'a> {
    low: Option<u64>,
    high: Option<AttributeValue<Pages<'a>>>,
    ranges: Option<AttributeValue<Pages<'a>>>,
    call_file: Option<u64>,
    call_line: Option<u32>,
}
