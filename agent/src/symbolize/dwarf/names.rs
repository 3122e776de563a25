//! The name of a function's entry, which may stand at another entry, in another unit or in the
//! file that `dwz` made.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use gimli::{AttributeValue, DebugInfoOffset, UnitOffset};

use super::super::demangle::{self, MAX_NAME};
use super::super::reader::Pages;
use super::clock::Clock;
use super::units::Units;
use super::{Dwarf, Unit};

/// References followed from one entry to the next.
const MAX_REFERENCES: usize = 16;
/// Units held open for references into them.
const MAX_OPEN: usize = 16;

pub(super) struct Names<'w, 'a> {
    main: File<'w, 'a>,
    units: &'w Units<'w, 'a>,
    /// The alternate file. Its units are listed when the first reference into it is met.
    alternate: Option<File<'w, 'a>>,
    alternate_units: std::cell::OnceCell<Units<'w, 'a>>,
    clock: &'w Clock,
}

struct File<'w, 'a> {
    dwarf: &'w Dwarf<'a>,
    open: RefCell<HashMap<usize, Rc<Unit<'a>>>>,
}

/// What one entry says of its name.
#[derive(Default)]
struct Entry<'a> {
    linkage: Option<String>,
    name: Option<String>,
    reference: Option<AttributeValue<Pages<'a>>>,
}

impl<'w, 'a> Names<'w, 'a> {
    pub(super) fn new(dwarf: &'w Dwarf<'a>, units: &'w Units<'w, 'a>, clock: &'w Clock) -> Self {
        let file = |dwarf| File {
            dwarf,
            open: RefCell::default(),
        };
        Names {
            main: file(dwarf),
            units,
            alternate: dwarf.sup().map(file),
            alternate_units: std::cell::OnceCell::new(),
            clock,
        }
    }

    /// The demangled name of the entry at this offset: its linkage name if there is one.
    pub(super) fn of(&self, unit: &Unit<'a>, entry: UnitOffset) -> Option<String> {
        let mut name = None;
        let mut other: Option<Rc<Unit<'a>>> = None;
        let mut offset = entry;
        let mut in_alternate = false;
        for _ in 0..MAX_REFERENCES {
            let file = match in_alternate {
                false => &self.main,
                true => self.alternate.as_ref()?,
            };
            let found = read(file.dwarf, other.as_deref().unwrap_or(unit), offset)?;
            if let Some(linkage) = found.linkage {
                return Some(demangle::demangle(&linkage));
            }
            name = name.or(found.name);
            match found.reference {
                Some(AttributeValue::UnitRef(next)) => offset = next,
                Some(AttributeValue::DebugInfoRef(next)) => {
                    (other, offset) = self.enter(next, in_alternate)?;
                }
                Some(AttributeValue::DebugInfoRefSup(next)) => {
                    in_alternate = true;
                    (other, offset) = self.enter(next, true)?;
                }
                _ => break,
            }
        }
        name.map(demangle::shorten)
    }

    /// The unit that holds this offset, and the offset within it.
    fn enter(
        &self,
        offset: DebugInfoOffset,
        in_alternate: bool,
    ) -> Option<(Option<Rc<Unit<'a>>>, UnitOffset)> {
        let (file, units) = match in_alternate {
            false => (&self.main, self.units),
            true => {
                let file = self.alternate.as_ref()?;
                let units = || Units::of(file.dwarf, self.clock);
                (file, self.alternate_units.get_or_init(units))
            }
        };
        let number = units.holding(offset)?;
        let mut open = file.open.borrow_mut();
        if !open.contains_key(&number) {
            if open.len() >= MAX_OPEN {
                open.clear();
            }
            open.insert(number, Rc::new(units.open(number)?));
        }
        let unit = Rc::clone(open.get(&number)?);
        let offset = offset.to_unit_offset(&unit.header)?;
        Some((Some(unit), offset))
    }
}

fn read<'a>(dwarf: &Dwarf<'a>, unit: &Unit<'a>, offset: UnitOffset) -> Option<Entry<'a>> {
    let mut entries = unit.entries_raw(Some(offset)).ok()?;
    let abbreviation = entries.read_abbreviation().ok()??;
    let mut entry = Entry::default();
    let text = |value| {
        let text = dwarf.attr_string(unit, value).ok()?;
        text.text(2 * MAX_NAME + 1).ok()
    };
    for spec in abbreviation.attributes() {
        let attribute = entries.read_attribute(*spec).ok()?;
        match attribute.name() {
            gimli::DW_AT_linkage_name | gimli::DW_AT_MIPS_linkage_name => {
                entry.linkage = text(attribute.value());
            }
            gimli::DW_AT_name => entry.name = text(attribute.value()),
            gimli::DW_AT_abstract_origin | gimli::DW_AT_specification => {
                entry.reference = Some(attribute.value());
            }
            _ => {}
        }
    }
    Some(entry)
}
