//! Source files and lines of one unit.

use std::collections::HashMap;

use gimli::{AttributeValue, LineRow, Result};

use super::super::clock::Clock;
use super::super::demangle::MAX_NAME;
use super::super::reader::Pages;
use super::units::indices;
use super::{Dwarf, Unit};

pub(super) struct Lines<'w, 'a> {
    dwarf: &'w Dwarf<'a>,
    unit: &'w Unit<'a>,
    paths: HashMap<u64, Option<String>>,
}

impl<'w, 'a> Lines<'w, 'a> {
    pub(super) fn new(dwarf: &'w Dwarf<'a>, unit: &'w Unit<'a>) -> Self {
        Lines {
            dwarf,
            unit,
            paths: HashMap::new(),
        }
    }

    /// File (for [`Lines::path`]) and line of each of the ascending addresses; line 0 where the
    /// compiler gave none. Runs the unit's line program once and keeps no table.
    pub(super) fn find(&self, addresses: &[u64], clock: &Clock) -> Vec<Option<(u64, u32)>> {
        let mut places = vec![None; addresses.len()];
        // What was found before an error still counts.
        let _ = self.run(addresses, &mut places, clock);
        places
    }

    fn run(
        &self,
        addresses: &[u64],
        places: &mut [Option<(u64, u32)>],
        clock: &Clock,
    ) -> Result<()> {
        let Some(program) = self.unit.line_program.clone() else {
            return Ok(());
        };
        let mut rows = program.rows();
        // The start of the row before, unless a sequence begins here, and its place.
        let mut last: Option<(u64, (u64, u32))> = None;
        let mut discarded = false;
        while let Some((_, row)) = rows.next_row()? {
            if clock.step() {
                break;
            }
            match last {
                None => discarded = row.address() == 0,
                Some((start, place)) if !discarded => {
                    for index in indices(addresses, start, row.address()) {
                        if let Some(slot) = places.get_mut(index) {
                            slot.get_or_insert(place);
                        }
                    }
                }
                Some(_) => {}
            }
            last = (!row.end_sequence()).then(|| (row.address(), place(row)));
        }
        Ok(())
    }

    /// The path of the unit's file of this index.
    pub(super) fn path(&mut self, file: u64) -> Option<String> {
        if let Some(path) = self.paths.get(&file) {
            return path.clone();
        }
        let path = self.join(file);
        self.paths.insert(file, path.clone());
        path
    }

    fn join(&self, file: u64) -> Option<String> {
        let header = self.unit.line_program.as_ref()?.header();
        let entry = header.file(file)?;
        let mut path = self.text(entry.path_name())?;
        let directory = entry.directory(header).and_then(|value| self.text(value));
        let root = self.unit.comp_dir.and_then(|root| root.text(MAX_NAME).ok());
        for parent in [directory, root].into_iter().flatten() {
            if path.starts_with('/') {
                break;
            }
            if !parent.is_empty() {
                path = format!("{}/{path}", parent.trim_end_matches('/'));
            }
        }
        Some(path)
    }

    fn text(&self, value: AttributeValue<Pages<'a>>) -> Option<String> {
        let text = self.dwarf.attr_string(self.unit, value).ok()?;
        text.text(MAX_NAME).ok()
    }
}

fn place(row: &LineRow) -> (u64, u32) {
    let line = row.line().and_then(|line| u32::try_from(line.get()).ok());
    (row.file_index(), line.unwrap_or(0))
}
