//! Debug information and symbols that are kept outside a module's own tables: each file found is
//! proved to belong to it before it is used.

use std::fs::File;

use super::clock::Clock;
use super::debug_files::{DebugFiles, Wanted};
use super::decompress::{self, Failure, Unpacked};
use super::dwarf;
use super::elf::Elf;
use super::source::Source;
use super::symtab;

/// Largest `.gnu_debugdata`, in bytes.
const MAX_MINI: u64 = 8 << 20;
/// Bytes read at a time for a checksum.
const BATCH: u64 = 1 << 17;

/// What belongs to a module besides its own file.
#[derive(Default)]
pub(super) struct Separate<'a> {
    /// The separate debug file.
    debug: Option<Elf<'a>>,
    /// MiniDebugInfo: the names of functions that are not exported.
    mini: Option<Elf<'a>>,
    /// The file with what `dwz` found common to several.
    pub(super) alternate: Option<Elf<'a>>,
}

impl<'a> Separate<'a> {
    /// Looks for what the module lacks.
    pub(super) fn find(elf: &Elf<'_>, files: &dyn DebugFiles, clock: &Clock) -> Self {
        let mut separate = Separate::default();
        let own = dwarf::is_in(elf);
        if !own {
            separate.debug = debug_file(elf, files, clock);
        }
        if separate.debug.is_none() && !symtab::has_symtab(elf) {
            separate.mini = elf
                .contents(".gnu_debugdata", MAX_MINI)
                .and_then(|packed| mini(&packed, clock))
                .and_then(|bytes| Elf::parse(Source::Bytes(bytes)));
        }
        separate.alternate = match own {
            true => alternate(elf, files),
            false => separate
                .debug
                .as_ref()
                .and_then(|debug| alternate(debug, files)),
        };
        separate
    }

    /// The file with the debug information of `elf`.
    pub(super) fn debug_info<'e>(&'e self, elf: &'e Elf<'a>) -> Option<&'e Elf<'a>> {
        [Some(elf), self.debug.as_ref()]
            .into_iter()
            .flatten()
            .find(|elf| dwarf::is_in(elf))
    }

    /// The files whose symbol tables are searched, in this order.
    pub(super) fn symbol_files<'e>(
        &'e self,
        elf: &'e Elf<'a>,
    ) -> impl Iterator<Item = &'e Elf<'a>> {
        let own = Some(elf);
        let others = [self.debug.as_ref(), self.mini.as_ref()];
        let order = match symtab::has_symtab(elf) {
            true => [own, None, None],
            false => [others[0], others[1], own],
        };
        order.into_iter().flatten()
    }
}

fn mini(packed: &[u8], clock: &Clock) -> Option<Unpacked> {
    let unpacked = decompress::mini_debug_info(packed, &decompress::MEMORY, clock);
    if unpacked.as_ref().err() == Some(&Failure::TooMuch) {
        clock.cut();
    }
    unpacked.ok()
}

fn debug_file<'a>(elf: &Elf<'_>, files: &dyn DebugFiles, clock: &Clock) -> Option<Elf<'a>> {
    let id = elf.build_id();
    if let Some(id) = &id {
        let by_id = first(files, &Wanted::BuildId(id), |file, _| {
            file.build_id().as_ref() == Some(id)
        });
        if by_id.is_some() {
            return by_id;
        }
    }
    let (name, sum) = elf.debug_link()?;
    first(files, &Wanted::Link(&name), |file, source| {
        // Two build ids say as much as the checksum, without reading all of the file.
        match (&id, file.build_id()) {
            (Some(id), Some(other)) => *id == other,
            _ => checksum(source, clock) == Some(sum),
        }
    })
}

fn alternate<'a>(elf: &Elf<'_>, files: &dyn DebugFiles) -> Option<Elf<'a>> {
    let (path, id) = elf.alternate_link()?;
    let wanted = [Wanted::BuildId(&id), Wanted::Path(&path)];
    wanted.iter().find_map(|wanted| {
        first(files, wanted, |file, _| {
            file.build_id().as_ref() == Some(&id)
        })
    })
}

fn first<'a>(
    files: &dyn DebugFiles,
    wanted: &Wanted<'_>,
    belongs: impl Fn(&Elf<'_>, &Source<'_>) -> bool,
) -> Option<Elf<'a>> {
    files
        .find(wanted, &mut |file: &File| {
            let elf = Source::file(file).and_then(Elf::parse);
            elf.is_some_and(|elf| belongs(&elf, &elf.source))
        })
        .and_then(|file| Elf::parse(Source::owned(file)?))
}

/// The CRC-32 of the whole file; `None` if that takes too long.
fn checksum(source: &Source<'_>, clock: &Clock) -> Option<u32> {
    let mut sum = flate2::Crc::new();
    let mut offset = 0;
    while offset < source.len() {
        if clock.is_over() {
            return None;
        }
        let bytes = source.read_up_to(offset, BATCH)?;
        sum.update(&bytes);
        offset += bytes.len() as u64;
    }
    Some(sum.sum())
}
