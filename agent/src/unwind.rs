//! Unwind tables: ELF file in, blocks of [`agent_ebpf::unwind`] rows out.
//!
//! The code addresses of a module are split into [`Piece`]s with one source of rules each:
//! `.eh_frame` entries first, then, for what they leave uncovered, what is known of PLT
//! sections, the program's entry and signal trampolines. Everything in the file is distrusted:
//! malformed entries are counted and left out.

mod code;
mod depth;
mod eh_frame;
mod fill;
mod gopclntab;
mod layout;
mod rule;
mod sweep;
#[cfg(test)]
mod tests;

use std::sync::Mutex;

use agent_ebpf::unwind::{BUCKET_BITS, Block, Module};

use crate::elf::{self, Headers, ReadAt};
use eh_frame::{Fde, Section};
use layout::{Layout, NONE};

/// Most rows of a table, padding included: twenty times those of the largest programs. (A directory
/// entry has 24 bits for a row's index.)
const MAX_ROWS: usize = 1 << 23;
/// Most bytes between the first and the last code address of a table.
const MAX_SPAN: u64 = 1 << 31;
/// Most pieces of a module.
const MAX_PIECES: usize = 1 << 21;
/// Largest `.eh_frame` that is read, in bytes: several times that of the largest programs.
const MAX_EH_FRAME: u64 = 48 << 20;
/// Bytes of rules from which on a table is large: only one such is built at a time.
const LARGE: u64 = 8 << 20;
/// Bytes between two functions that count as padding: no call returns there, so they need no row.
const PADDING: u32 = 16;

/// Why a module has no table.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The ELF file cannot be read.
    #[error(transparent)]
    Elf(#[from] elf::Error),
    /// No segment of the file is executable.
    #[error("the ELF file has no executable segment")]
    NoCode,
    /// Neither `.eh_frame` nor another source says anything about the code.
    #[error("the ELF file has no unwind information")]
    NoRules,
    /// More rows than a table can hold.
    #[error("more than {MAX_ROWS} unwind rows")]
    TooManyRows,
    /// A library that parses it panicked.
    #[error("the unwind information is malformed in a way that was not foreseen")]
    Panicked,
}

/// What a table was built from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Bytes of `.eh_frame`.
    pub eh_frame_bytes: u64,
    /// Entries of `.eh_frame` that describe code.
    pub fdes: u64,
    /// Entries that are malformed, in whole or from some instruction on.
    pub bad_fdes: u64,
    /// Entries for addresses that are not code of this file, most often 0: discarded functions.
    pub stray_fdes: u64,
    /// Rows, without padding.
    pub rows: u64,
    /// Rules that cannot be expressed.
    pub unsupported_rows: u64,
    /// Distinct extended rules.
    pub extended: u64,
    /// Rows left out because their 256 bytes of code had too many.
    pub cut_rows: u64,
}

/// The unwind table of a module.
#[derive(Clone, Debug)]
pub struct Table {
    /// The blocks of the table map.
    pub blocks: Vec<Block>,
    /// Where the parts lie in them; its table slot is 0.
    pub module: Module,
    /// What it was built from.
    pub report: Report,
}

/// Where the rules for a range of code come from.
#[derive(Clone, Copy, Debug)]
enum Source {
    /// The FDE at this offset in `.eh_frame`.
    Fde(u32),
    /// The depths at this offset in the pc tables of `.gopclntab`.
    Go(u32),
    /// One row for all of it.
    Row(u32),
}

/// A range of code with one source of rules. Addresses are relative to [`Code::origin`].
#[derive(Clone, Copy, Debug)]
struct Piece {
    start: u32,
    end: u32,
    source: Source,
}

/// The executable addresses of a file.
struct Code {
    /// The lowest one, rounded down to a bucket.
    origin: u64,
    /// Sorted ranges relative to the origin, none of which overlap.
    ranges: Vec<(u32, u32)>,
}

impl Code {
    fn new(headers: &Headers) -> Result<Self, Error> {
        let exec = || {
            headers
                .segments
                .iter()
                .filter(|segment| segment.exec && segment.memsz > 0)
        };
        let lowest = exec()
            .map(|segment| segment.vaddr)
            .min()
            .ok_or(Error::NoCode)?;
        let origin = lowest >> BUCKET_BITS << BUCKET_BITS;
        let clamp = |address: u64| address.saturating_sub(origin).min(MAX_SPAN) as u32;
        let mut ranges: Vec<_> = exec()
            .map(|segment| {
                (
                    clamp(segment.vaddr),
                    clamp(segment.vaddr.saturating_add(segment.memsz)),
                )
            })
            .collect();
        ranges.sort_unstable();
        ranges.dedup_by(|next, range| {
            let overlaps = next.0 < range.1;
            if overlaps {
                range.1 = range.1.max(next.1);
            }
            overlaps
        });
        Ok(Self { origin, ranges })
    }

    /// The part of a range of virtual addresses that lies in the code range of its first address.
    fn piece(&self, start: u64, end: u64, source: Source) -> Option<Piece> {
        let start = u32::try_from(start.checked_sub(self.origin)?).ok()?;
        let after = self.ranges.partition_point(|&(first, _)| first <= start);
        let &(_, limit) = self.ranges.get(after.checked_sub(1)?)?;
        let end = end.saturating_sub(self.origin).min(u64::from(limit)) as u32;
        (start < end).then_some(Piece { start, end, source })
    }
}

/// Builds the unwind table of an ELF file, reading only the parts it needs.
///
/// # Errors
/// When the file is no x86-64 ELF file with code and rules, or the table would be too large.
/// Malformed unwind entries are no error: [`Report::bad_fdes`] counts them.
pub fn build<F: ReadAt + ?Sized>(file: &F) -> Result<Table, Error> {
    let headers = Headers::read(file)?;
    let code = Code::new(&headers)?;
    let mut report = Report::default();
    let _turn = is_large(&headers).then(|| LARGE_ONE.lock());
    let (bytes, vaddr) = match read_eh_frame(file, &headers) {
        Err(error @ elf::Error::TooLong { .. }) => return Err(error.into()),
        read => read.ok().flatten().unwrap_or_default(),
    };
    report.eh_frame_bytes = bytes.len() as u64;
    let mut section = Section::new(&bytes, vaddr);
    let mut pieces = fde_pieces(&mut section, &code, &mut report);
    pieces.sort_by_key(|piece| piece.start);
    let go = gopclntab::Table::read(file, &headers);
    if let Some(go) = &go {
        go.fill(&code, &gaps(&code, &pieces), &mut pieces);
        pieces.sort_by_key(|piece| piece.start);
    }
    for fill in [fill::fill, code::fill] {
        let gaps = gaps(&code, &pieces);
        fill(file, &headers, &code, &gaps, &mut pieces);
        pieces.sort_by_key(|piece| piece.start);
    }
    let layout = write(&code, &pieces, &mut section, go.as_ref(), &mut report)?;
    report.rows = layout.rows;
    report.cut_rows = layout.cut;
    report.extended = layout.extended();
    drop((go, pieces));
    let (blocks, module) = layout.finish()?;
    Ok(Table {
        blocks,
        module,
        report,
    })
}

/// Held while a large table is built, so that several do not take their memory at the same time.
static LARGE_ONE: Mutex<()> = Mutex::new(());

fn is_large(headers: &Headers) -> bool {
    let large = |section: &elf::Section| section.in_file && section.size > LARGE;
    let mut rules = headers
        .sections
        .iter()
        .filter(|section| section.name == ".eh_frame" || section.name.ends_with(".gopclntab"));
    headers.sections.is_empty() || rules.any(large)
}

/// Builds the unwind table of an ELF image in memory, for example the vDSO.
///
/// # Errors
/// As for [`build`].
pub fn build_from_bytes(image: &[u8]) -> Result<Table, Error> {
    build(image)
}

/// Calls `found` with the virtual addresses of the start and the end of each function that a
/// `.eh_frame` section describes, in the section's order. `vaddr` is the section's own.
pub(crate) fn for_each_function(bytes: &[u8], vaddr: u64, mut found: impl FnMut(u64, u64)) {
    let mut section = Section::new(bytes, vaddr);
    section.for_each_fde(&mut Report::default(), |fde| found(fde.start, fde.end));
}

/// The bytes and the virtual address of `.eh_frame`: by the section's header or, where these are
/// stripped, by the pointer in `.eh_frame_hdr`.
fn read_eh_frame<F: ReadAt + ?Sized>(
    file: &F,
    headers: &Headers,
) -> Result<Option<(Vec<u8>, u64)>, elf::Error> {
    if let Some(section) = headers.section(".eh_frame") {
        let (offset, size) = (section.offset, section.size);
        let bytes = elf::read_at_most(file, offset, size, MAX_EH_FRAME, ".eh_frame")?;
        return Ok(Some((bytes, section.vaddr)));
    }
    let Some(header_vaddr) = headers.eh_frame_hdr else {
        return Ok(None);
    };
    let header = headers.read_vaddr(file, header_vaddr, 32)?;
    let bases = gimli::BaseAddresses::default().set_eh_frame_hdr(header_vaddr);
    let parsed = gimli::EhFrameHdr::new(&header, gimli::LittleEndian).parse(&bases, 8);
    let Ok(gimli::Pointer::Direct(vaddr)) = parsed.map(|parsed| parsed.eh_frame_ptr()) else {
        return Ok(None);
    };
    // Its length is not known: up to the end of the segment; a zero entry ends the section.
    Ok(Some((
        headers.read_vaddr(file, vaddr, MAX_EH_FRAME)?,
        vaddr,
    )))
}

fn fde_pieces(section: &mut Section, code: &Code, report: &mut Report) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut stray = 0;
    section.for_each_fde(report, |fde| {
        match code.piece(fde.start, fde.end, Source::Fde(fde.offset)) {
            Some(piece) if pieces.len() < MAX_PIECES => pieces.push(piece),
            _ => stray += 1,
        }
    });
    report.stray_fdes = stray;
    pieces
}

/// The end of each piece as the next one's start allows.
fn clipped(pieces: &[Piece]) -> impl Iterator<Item = (&Piece, u32, Option<u32>)> {
    pieces.iter().enumerate().map(|(i, piece)| {
        let next = pieces.get(i + 1).map(|next| next.start);
        (piece, piece.end.min(next.unwrap_or(u32::MAX)), next)
    })
}

/// The ranges of code, longer than padding, that no piece covers.
fn gaps(code: &Code, pieces: &[Piece]) -> Vec<(u32, u32)> {
    let mut gaps = Vec::new();
    let mut covered = 0;
    let mut ranges = code.ranges.as_slice();
    let ends = clipped(pieces)
        .map(|(piece, end, _)| (piece.start, end))
        .chain([(u32::MAX, u32::MAX)]);
    for (start, end) in ends {
        // Nothing before `covered` is looked at again.
        while let [(_, limit), rest @ ..] = ranges
            && *limit <= covered
        {
            ranges = rest;
        }
        for &(first, limit) in ranges.iter().take_while(|&&(first, _)| first < start) {
            let (from, to) = (covered.max(first), start.min(limit));
            if from < to && to - from >= PADDING {
                gaps.push((from, to));
            }
        }
        covered = covered.max(end);
    }
    gaps
}

/// The parts of a piece that lie in gaps.
fn uncovered(gaps: &[(u32, u32)], piece: Piece) -> impl Iterator<Item = Piece> {
    let first = gaps.partition_point(|&(_, end)| end <= piece.start);
    gaps.iter()
        .skip(first)
        .take_while(move |&&(start, _)| start < piece.end)
        .map(move |&(start, end)| Piece {
            start: start.max(piece.start),
            end: end.min(piece.end),
            ..piece
        })
}

/// Writes the rows of sorted pieces.
fn write(
    code: &Code,
    pieces: &[Piece],
    section: &mut Section,
    go: Option<&gopclntab::Table>,
    report: &mut Report,
) -> Result<Layout, Error> {
    let first = pieces.first().ok_or(Error::NoRules)?.start >> BUCKET_BITS << BUCKET_BITS;
    let last = pieces.iter().map(|piece| piece.end).max().unwrap_or(first);
    let base = code.origin + u64::from(first);
    let mut layout = Layout::new(base, last - first);
    for (piece, end, next) in clipped(pieces) {
        let range = code.origin + u64::from(piece.start)..code.origin + u64::from(end);
        match (piece.source, go) {
            _ if range.is_empty() => continue,
            (Source::Fde(offset), _) => {
                let fde = Fde {
                    start: range.start,
                    end: range.end,
                    offset,
                };
                section.rows(&fde, base, &mut layout, report)?;
            }
            (Source::Go(pcsp), Some(go)) => go.rows(range, pcsp, base, &mut layout)?,
            (Source::Go(_), None) => {}
            (Source::Row(row), _) => layout.push(piece.start - first, row)?,
        }
        if next.is_none_or(|next| next - end >= PADDING) {
            layout.push(end - first, NONE)?;
        }
    }
    layout.finish_rows()?;
    Ok(layout)
}
