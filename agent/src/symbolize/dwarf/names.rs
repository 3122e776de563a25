//! The name of a function's entry, which may stand at another entry, in another unit or in the
//! file that `dwz` made.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use gimli::{AttributeValue, DebugInfoOffset, DwTag, UnitOffset};

use super::super::clock::Clock;
use super::super::demangle::{self, MAX_NAME};
use super::super::reader::Pages;
use super::scopes::Scopes;
use super::units::Units;
use super::{Dwarf, Unit};

/// References followed from one entry to the next.
const MAX_REFERENCES: usize = 16;
/// Scopes that a name is qualified with.
const MAX_SCOPES: usize = 32;
/// Units held open for references into them.
const MAX_OPEN: usize = 16;

pub(super) struct Names<'w, 'a> {
    main: File<'w, 'a>,
    units: &'w Units<'w, 'a>,
    /// The alternate file. Its units are listed when the first reference into it is met.
    alternate: Option<File<'w, 'a>>,
    alternate_units: std::cell::OnceCell<Units<'w, 'a>>,
    scopes: Scopes<'w>,
    clock: &'w Clock,
}

/// A function's name.
#[derive(Clone)]
pub(super) struct Name {
    pub(super) text: String,
    /// Whether it is put together from names of the source, without parameters: compilers give
    /// no linkage name to functions that are not visible outside their unit.
    pub(super) bare: bool,
}

struct File<'w, 'a> {
    dwarf: &'w Dwarf<'a>,
    open: RefCell<HashMap<usize, Rc<Unit<'a>>>>,
}

/// An entry of the unit that is being named or, by reference, of another one.
struct Place<'u, 'a> {
    own: &'u Unit<'a>,
    other: Option<Rc<Unit<'a>>>,
    in_alternate: bool,
    offset: UnitOffset,
}

impl<'a> Place<'_, 'a> {
    fn unit(&self) -> &Unit<'a> {
        self.other.as_deref().unwrap_or(self.own)
    }
}

/// What one entry says of its name.
#[derive(Default)]
struct Entry<'a> {
    tag: Option<DwTag>,
    linkage: Option<String>,
    name: Option<String>,
    language: Option<gimli::DwLang>,
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
            scopes: Scopes::new(clock),
            clock,
        }
    }

    /// The name of the entry at this offset: its demangled linkage name if there is one, else its
    /// name in the source after those of the scopes around it (`space::Type::function`).
    pub(super) fn of(&self, unit: &Unit<'a>, entry: UnitOffset) -> Option<Name> {
        let mut place = Place {
            own: unit,
            other: None,
            in_alternate: false,
            offset: entry,
        };
        let found = self.resolve(&mut place)?;
        if let Some(linkage) = found.linkage {
            return Some(Name {
                text: demangle::demangle(&linkage),
                bare: false,
            });
        }
        let mut text = demangle::source_name(&found.name?);
        if self.has_scopes(unit) {
            self.qualify(place, &mut text);
        }
        let text = demangle::shorten(text);
        Some(Name { text, bare: true })
    }

    /// Puts the names of the scopes around `place` before the name of what is there.
    fn qualify(&self, mut place: Place<'_, 'a>, text: &mut String) {
        let mut scopes = Vec::new();
        while scopes.len() < MAX_SCOPES && !self.clock.step() {
            let scope = self
                .scopes
                .parent(place.unit(), place.in_alternate, place.offset);
            let Some(scope) = scope else { break };
            place.offset = scope;
            let Some(entry) = self.resolve(&mut place) else {
                break;
            };
            if let Some(linkage) = entry.linkage {
                // A function, whose name is complete.
                scopes.push(demangle::demangle(&linkage));
                break;
            }
            scopes.push(match (entry.name, entry.tag) {
                (Some(name), _) => demangle::source_name(&name),
                (None, Some(gimli::DW_TAG_lexical_block)) => String::new(),
                (None, Some(gimli::DW_TAG_namespace)) => "(anonymous namespace)".to_owned(),
                (None, _) => "{unnamed}".to_owned(),
            });
        }
        for scope in scopes.iter().filter(|scope| !scope.is_empty()) {
            if text.len() > MAX_NAME {
                break;
            }
            text.insert_str(0, "::");
            text.insert_str(0, scope);
        }
    }

    /// Whether functions of the unit's language have longer names than their entries give them:
    /// C has no scopes, and Go's names are complete.
    fn has_scopes(&self, unit: &Unit<'a>) -> bool {
        let root = unit.entries_raw(None).map(|entries| entries.next_offset());
        let root = root.ok().and_then(|root| read(self.main.dwarf, unit, root));
        let language = root.and_then(|root| root.language);
        !matches!(
            language,
            Some(
                gimli::DW_LANG_C
                    | gimli::DW_LANG_C89
                    | gimli::DW_LANG_C99
                    | gimli::DW_LANG_C11
                    | gimli::DW_LANG_C17
                    | gimli::DW_LANG_Go
                    | gimli::DW_LANG_Mips_Assembler
            )
        )
    }

    /// Follows the references from an entry to where its name stands, and `place` with them to
    /// its first declaration. A linkage name ends the search.
    fn resolve(&self, place: &mut Place<'_, 'a>) -> Option<Entry<'a>> {
        let mut entry = self.read(place)?;
        for _ in 0..MAX_REFERENCES {
            if entry.linkage.is_some() {
                break;
            }
            let Some(reference) = entry.reference.take() else {
                break;
            };
            let Some(next) = self
                .follow(place, reference)
                .and_then(|()| self.read(place))
            else {
                break;
            };
            entry.linkage = next.linkage;
            entry.name = entry.name.or(next.name);
            entry.reference = next.reference;
        }
        Some(entry)
    }

    fn read(&self, place: &Place<'_, 'a>) -> Option<Entry<'a>> {
        let file = match place.in_alternate {
            false => &self.main,
            true => self.alternate.as_ref()?,
        };
        read(file.dwarf, place.unit(), place.offset)
    }

    fn follow(
        &self,
        place: &mut Place<'_, 'a>,
        reference: AttributeValue<Pages<'a>>,
    ) -> Option<()> {
        match reference {
            AttributeValue::UnitRef(next) => place.offset = next,
            AttributeValue::DebugInfoRef(next) => {
                (place.other, place.offset) = self.enter(next, place.in_alternate)?;
            }
            AttributeValue::DebugInfoRefSup(next) => {
                (place.other, place.offset) = self.enter(next, true)?;
                place.in_alternate = true;
            }
            _ => return None,
        }
        Some(())
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
                let units = || Units::new(file.dwarf, self.clock);
                (file, self.alternate_units.get_or_init(units))
            }
        };
        let start = units.holding(offset)?;
        let mut open = file.open.borrow_mut();
        if !open.contains_key(&start.0) {
            if open.len() >= MAX_OPEN {
                open.clear();
            }
            open.insert(start.0, Rc::new(units.open(start)?));
        }
        let unit = Rc::clone(open.get(&start.0)?);
        let offset = offset.to_unit_offset(&unit.header)?;
        Some((Some(unit), offset))
    }
}

fn read<'a>(dwarf: &Dwarf<'a>, unit: &Unit<'a>, offset: UnitOffset) -> Option<Entry<'a>> {
    let mut entries = unit.entries_raw(Some(offset)).ok()?;
    let abbreviation = entries.read_abbreviation().ok()??;
    let mut entry = Entry {
        tag: Some(abbreviation.tag()),
        ..Entry::default()
    };
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
            gimli::DW_AT_language => {
                entry.language = match attribute.value() {
                    AttributeValue::Language(language) => Some(language),
                    _ => None,
                };
            }
            gimli::DW_AT_abstract_origin | gimli::DW_AT_specification => {
                entry.reference = Some(attribute.value());
            }
            _ => {}
        }
    }
    Some(entry)
}
