//! Rules read from the instructions themselves, for code that comes without any: C libraries
//! built without unwind tables (musl) and hand-written assembly.
//!
//! A sweep over the instructions keeps how far rsp is below the return address, and carries it
//! along jumps. Where that is lost (rsp computed at run time) there is no rule, and the frame
//! pointer has to do.

use std::collections::BTreeSet;

use super::sweep::sweeps;
use super::{Code, MAX_PIECES, Piece, Source};
use crate::elf::{self, Headers, ReadAt, half, word, xword};

/// Most bytes of code that are looked at.
const MAX_CODE: u64 = 16 << 20;
/// Shorter gaps, in bytes, are padding or data.
const MIN_GAP: u32 = 64;
/// With fewer bytes in gaps and no names of functions, calls to them are not searched for.
const MIN_UNNAMED: u64 = 16 << 10;
/// Functions that nothing names begin at a multiple of this.
pub(super) const ALIGNMENT: u64 = 16;
/// Most places where functions begin.
const MAX_STARTS: usize = 1 << 20;
/// Bytes of a symbol table that are read at a time.
const SYMBOLS: u64 = 24 << 12;
/// Most bytes of a symbol table that are read: 5 million symbols.
const MAX_SYMBOLS: u64 = 120 << 20;

/// Adds pieces for the code in the gaps.
pub(super) fn fill<F: ReadAt + ?Sized>(
    file: &F,
    headers: &Headers,
    code: &Code,
    gaps: &[(u32, u32)],
    pieces: &mut Vec<Piece>,
) {
    let mut budget = MAX_CODE;
    let mut wanted = gaps.to_vec();
    wanted.retain(|&(start, end)| {
        let rest = budget
            .checked_sub(u64::from(end - start))
            .filter(|_| end - start >= MIN_GAP);
        budget = rest.unwrap_or(budget);
        rest.is_some()
    });
    if wanted.is_empty() {
        return;
    }
    let starts = Starts::find(file, headers, code, &wanted);
    for (start, end) in wanted {
        let Ok(bytes) =
            headers.read_vaddr(file, code.origin + u64::from(start), u64::from(end - start))
        else {
            continue;
        };
        for (at, row) in sweeps(
            &bytes,
            code.origin + u64::from(start),
            &starts.addresses,
            starts.complete,
        ) {
            if pieces.len() >= MAX_PIECES {
                return;
            }
            let start = (at - code.origin) as u32;
            pieces.push(Piece {
                start,
                end,
                source: Source::Row(row),
            });
        }
    }
}

/// Where functions begin in the gaps, as far as the file says.
struct Starts {
    addresses: BTreeSet<u64>,
    /// Whether these are all.
    complete: bool,
}

impl Starts {
    fn find<F: ReadAt + ?Sized>(
        file: &F,
        headers: &Headers,
        code: &Code,
        gaps: &[(u32, u32)],
    ) -> Self {
        let in_gap = |address: &u64| {
            let at = address
                .checked_sub(code.origin)
                .and_then(|at| u32::try_from(at).ok());
            at.is_some_and(|at| {
                let next = gaps.partition_point(|&(start, _)| start <= at);
                next.checked_sub(1)
                    .and_then(|i| gaps.get(i))
                    .is_some_and(|&(_, end)| at < end)
            })
        };
        let complete = headers.section(".symtab").is_some();
        let table = if complete { ".symtab" } else { ".dynsym" };
        let mut addresses = BTreeSet::new();
        let mut add = |address: u64| {
            if in_gap(&address) && addresses.len() < MAX_STARTS {
                addresses.insert(address);
            }
        };
        for_each_function(file, headers, table, &mut add);
        let size: u64 = gaps
            .iter()
            .map(|&(start, end)| u64::from(end - start))
            .sum();
        if !complete && size >= MIN_UNNAMED {
            for_each_call(file, headers, &mut add);
        }
        Self {
            addresses,
            complete,
        }
    }
}

/// Calls `found` with the addresses of the functions in a symbol table.
fn for_each_function<F: ReadAt + ?Sized>(
    file: &F,
    headers: &Headers,
    table: &str,
    found: &mut impl FnMut(u64),
) {
    const STT_FUNC: u8 = 2;
    let is_function =
        |symbol: &&[u8]| word(symbol, 4) as u8 & 15 == STT_FUNC && half(symbol, 6) != 0;
    let Some(section) = headers.section(table) else {
        return;
    };
    let size = section.size.min(MAX_SYMBOLS);
    for at in (0..size).step_by(SYMBOLS as usize) {
        let length = SYMBOLS.min(size - at);
        let offset = section.offset.saturating_add(at);
        let Ok(bytes) = elf::read_range(file, offset, length, "symbol table") else {
            return;
        };
        let functions = bytes.chunks_exact(24).filter(is_function);
        functions.for_each(|symbol| found(xword(symbol, 8)));
    }
}

/// Calls `found` with the aligned targets of what looks like a direct call, in code with rules too.
fn for_each_call<F: ReadAt + ?Sized>(file: &F, headers: &Headers, found: &mut impl FnMut(u64)) {
    const CALL: u8 = 0xe8;
    let mut budget = MAX_CODE;
    for segment in headers.segments.iter().filter(|segment| segment.exec) {
        let Some(rest) = budget.checked_sub(segment.filesz) else {
            continue;
        };
        budget = rest;
        let bytes = headers
            .read_vaddr(file, segment.vaddr, segment.filesz)
            .unwrap_or_default();
        for (i, _) in bytes.iter().enumerate().filter(|&(_, &byte)| byte == CALL) {
            let next = segment.vaddr.wrapping_add(i as u64 + 5);
            let target = next.wrapping_add_signed((word(&bytes, i + 1) as i32).into());
            if target % ALIGNMENT == 0 && target.wrapping_sub(segment.vaddr) < segment.filesz {
                found(target);
            }
        }
    }
}
