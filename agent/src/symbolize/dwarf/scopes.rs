//! What an entry lies in: namespaces, types and functions. Entries do not say where their parent
//! is, so it is searched from the unit's first entry downwards, one level at a time; each level
//! is read once and only if a name in it is asked for.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use gimli::{Result, UnitOffset};

use super::super::clock::Clock;
use super::Unit;
use super::functions::sibling;

/// Deepest nesting that is searched.
const MAX_DEPTH: usize = 64;
/// Scopes held at once; sixteen bytes each.
const MAX_HELD: usize = 1 << 19;

/// The file (main or alternate), the unit's offset in it, the entry's offset in the unit.
pub(super) type Key = (bool, usize, usize);

/// The levels read so far.
pub(super) struct Scopes<'w> {
    clock: &'w Clock,
    levels: RefCell<HashMap<Key, Rc<[Scope]>>>,
    held: Cell<usize>,
}

/// An entry with children, as offsets in its unit.
struct Scope {
    start: usize,
    /// The first entry behind its children.
    end: usize,
}

impl<'w> Scopes<'w> {
    pub(super) fn new(clock: &'w Clock) -> Self {
        Scopes {
            clock,
            levels: RefCell::default(),
            held: Cell::new(0),
        }
    }

    /// The innermost scope around this entry of the unit; `None` at the top of the unit. `file`
    /// tells the units of several files apart.
    pub(super) fn parent(
        &self,
        unit: &Unit<'_>,
        file: bool,
        entry: UnitOffset,
    ) -> Option<UnitOffset> {
        let start = unit.header.offset().as_debug_info_offset()?.0;
        let mut parent = None;
        let mut container = unit.entries_raw(None).ok()?.next_offset();
        for _ in 0..MAX_DEPTH {
            let level = self.level(unit, (file, start, container.0));
            let after = level.partition_point(|scope| scope.start <= entry.0);
            let around = after.checked_sub(1).and_then(|before| level.get(before));
            match around {
                Some(scope) if scope.start < entry.0 && entry.0 < scope.end => {
                    container = UnitOffset(scope.start);
                    parent = Some(container);
                }
                _ => return parent,
            }
        }
        None
    }

    fn level(&self, unit: &Unit<'_>, key: Key) -> Rc<[Scope]> {
        if let Some(level) = self.levels.borrow().get(&key) {
            return Rc::clone(level);
        }
        let mut scopes = Vec::new();
        // What stands before an error still counts.
        let _ = children(unit, UnitOffset(key.2), self.clock, &mut scopes);
        let mut levels = self.levels.borrow_mut();
        let mut held = self.held.get().saturating_add(scopes.len() + 1);
        if held > MAX_HELD {
            levels.clear();
            held = scopes.len() + 1;
        }
        self.held.set(held);
        let level: Rc<[Scope]> = scopes.into();
        levels.insert(key, Rc::clone(&level));
        level
    }
}

/// Lists the scopes directly in `container`, in order.
fn children(
    unit: &Unit<'_>,
    container: UnitOffset,
    clock: &Clock,
    scopes: &mut Vec<Scope>,
) -> Result<()> {
    let mut entries = unit.entries_raw(Some(container))?;
    // Depth at which `entries` began.
    let mut base = 0;
    while !entries.is_empty() && !clock.step() && scopes.len() < MAX_HELD {
        let offset = entries.next_offset();
        let depth = base + entries.next_depth();
        if depth <= 1
            && let Some(open) = scopes.last_mut()
        {
            open.end = open.end.min(offset.0);
        }
        if depth <= 0 && offset != container {
            break;
        }
        let Some(abbreviation) = entries.read_abbreviation()? else {
            continue;
        };
        if depth <= 0 || !abbreviation.has_children() {
            entries.skip_attributes(abbreviation.attributes())?;
            continue;
        }
        if depth == 1 && is_scope(abbreviation.tag()) {
            scopes.push(Scope {
                start: offset.0,
                end: usize::MAX,
            });
        }
        if let Some(next) = sibling(&mut entries, abbreviation)?
            && next.0 > offset.0
        {
            entries = unit.entries_raw(Some(next))?;
            base = depth;
        }
    }
    Ok(())
}

/// Whether functions may stand in an entry of this kind.
fn is_scope(tag: gimli::DwTag) -> bool {
    matches!(
        tag,
        gimli::DW_TAG_namespace
            | gimli::DW_TAG_module
            | gimli::DW_TAG_class_type
            | gimli::DW_TAG_interface_type
            | gimli::DW_TAG_structure_type
            | gimli::DW_TAG_union_type
            | gimli::DW_TAG_enumeration_type
            | gimli::DW_TAG_subprogram
            | gimli::DW_TAG_inlined_subroutine
            | gimli::DW_TAG_lexical_block
    )
}
