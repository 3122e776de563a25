//! `.gopclntab`: the stack depth at each instruction of a Go program, which has no `.eh_frame`.
//!
//! Source: Go's `runtime/symtab.go` and `debug/gosym/pclntab.go`, versions 1.16 to 1.24.

use std::ops::Range;

use agent_ebpf::unwind::{SWITCHED, kind, row};

use super::eh_frame::relative;
use super::layout::Layout;
use super::rule::UNSUPPORTED;
use super::{Code, Error, Piece, Source, uncovered};
use crate::elf::{self, Headers, ReadAt, word, xword};

/// Names of the section: of a fixed program and of a position-independent one.
const SECTIONS: [&str; 2] = [".gopclntab", ".data.rel.ro.gopclntab"];
/// `_func.flag`: the outermost function of a stack.
const TOP_FRAME: u8 = 1;
/// `_func.flag`: writes to rsp, so that the depth is not known behind the write.
const SP_WRITE: u8 = 2;

/// Where the fields of a version lie, in bytes.
struct Format {
    /// In the header: the first of the table offsets (names).
    offsets: usize,
    /// In an entry of the function table: size of a field.
    field: usize,
    /// In `_func`.
    name: usize,
    pcsp: usize,
    flag: usize,
}

/// A parsed table.
pub(super) struct Table {
    bytes: Vec<u8>,
    format: Format,
    /// The virtual address that entries of the function table count from.
    text: u64,
    functions: usize,
    names: usize,
    pctab: usize,
    functab: usize,
}

impl Table {
    /// Reads the table of a Go program; `None` if it is none, or of an unknown version.
    pub(super) fn read<F: ReadAt + ?Sized>(file: &F, headers: &Headers) -> Option<Self> {
        let (bytes, vaddr) = locate(file, headers)?;
        let format = match word(&bytes, 0) {
            0xffff_fffa => Format {
                offsets: 24,
                field: 8,
                name: 8,
                pcsp: 20,
                flag: 41,
            },
            0xffff_fff0 => Format {
                offsets: 32,
                field: 4,
                name: 4,
                pcsp: 16,
                flag: 37,
            },
            0xffff_fff1 => Format {
                offsets: 32,
                field: 4,
                name: 4,
                pcsp: 16,
                flag: 41,
            },
            _ => return None,
        };
        // Instructions of one byte, pointers of eight.
        if bytes.get(6..8)? != [1, 8] {
            return None;
        }
        let text = match (format.field, xword(&bytes, 24)) {
            (4, 0) => relocated(file, headers, vaddr.saturating_add(24))?,
            (4, text) => text,
            _ => 0,
        };
        let at = |i: usize| usize::try_from(xword(&bytes, format.offsets + 8 * i)).ok();
        let (functions, names, pctab, functab) = (
            usize::try_from(xword(&bytes, 8)).ok()?,
            at(0)?,
            at(3)?,
            at(4)?,
        );
        let entries = bytes.get(functab..)?.len() / (2 * format.field);
        Some(Self {
            text,
            functions: functions.min(entries),
            names,
            pctab,
            functab,
            format,
            bytes,
        })
    }

    /// Adds a piece for each function in a gap.
    pub(super) fn fill(&self, code: &Code, gaps: &[(u32, u32)], pieces: &mut Vec<Piece>) {
        for i in 0..self.functions {
            let (start, end) = (self.entry(2 * i), self.entry(2 * i + 2));
            let Some(source) = self.source(i) else {
                continue;
            };
            let signal = matches!(source, Source::Row(SIGNAL));
            // A handler returns to the trampoline's first byte: looked up as the byte before.
            let Some(piece) = code.piece(start.saturating_sub(signal.into()), end, source) else {
                continue;
            };
            // The depths count from the function's start.
            pieces.extend(uncovered(gaps, piece).filter(|part| part.start == piece.start));
        }
    }

    /// Field `i` of the function table as an address.
    fn entry(&self, i: usize) -> u64 {
        self.text.saturating_add(self.field(i))
    }

    fn field(&self, i: usize) -> u64 {
        let at = self.functab.saturating_add(i * self.format.field);
        if self.format.field == 8 {
            xword(&self.bytes, at)
        } else {
            word(&self.bytes, at).into()
        }
    }

    fn source(&self, i: usize) -> Option<Source> {
        let function = self
            .functab
            .checked_add(usize::try_from(self.field(2 * i + 1)).ok()?)?;
        let function = self.bytes.get(function..)?;
        let flag = *function.get(self.format.flag)?;
        let name = self
            .names
            .checked_add(word(function, self.format.name) as usize)?;
        let name = self.bytes.get(name..)?;
        Some(match special(name.get(..name.len().min(64))?, flag) {
            Some(row) => Source::Row(row),
            None => Source::Go(word(function, self.format.pcsp)),
        })
    }

    /// Adds the rows of the function in `range`, whose depths are at `pcsp`.
    pub(super) fn rows(
        &self,
        range: Range<u64>,
        pcsp: u32,
        base: u64,
        layout: &mut Layout,
    ) -> Result<(), Error> {
        let mut bytes = self
            .pctab
            .checked_add(pcsp as usize)
            .and_then(|at| self.bytes.get(at..))
            .unwrap_or_default();
        let (mut pc, mut depth) = (range.start, -1i64);
        while pc < range.end {
            let (Some(change), Some(length)) = (varint(&mut bytes), varint(&mut bytes)) else {
                break;
            };
            if change == 0 && pc != range.start {
                break;
            }
            depth = depth.wrapping_add((change >> 1) as i64 ^ -((change & 1) as i64));
            layout.push(relative(pc, base), depth_row(depth))?;
            pc = pc.saturating_add(length.max(1));
        }
        Ok(())
    }
}

/// The bytes of the table and their virtual address.
fn locate<F: ReadAt + ?Sized>(file: &F, headers: &Headers) -> Option<(Vec<u8>, u64)> {
    if let Some(section) = SECTIONS.iter().find_map(|name| headers.section(name)) {
        let bytes = elf::read_range(file, section.offset, section.size, ".gopclntab").ok()?;
        return Some((bytes, section.vaddr));
    }
    // The system linker puts that of a position-independent program among other constants.
    headers.section(".go.buildinfo")?;
    let section = headers.section(".data.rel.ro")?;
    let mut bytes = elf::read_range(file, section.offset, section.size, ".data.rel.ro").ok()?;
    const BEHIND_VERSION: [u8; 7] = [0xff, 0xff, 0xff, 0, 0, 1, 8];
    let at = 8 * bytes
        .chunks_exact(8)
        .position(|start| start.ends_with(&BEHIND_VERSION))?;
    Some((bytes.split_off(at), section.vaddr.saturating_add(at as u64)))
}

const SIGNAL: u32 = row(0, kind::SIGNAL, 0, 0);

/// The row of a function whose depths do not lead to its caller.
fn special(name: &[u8], flag: u8) -> Option<u32> {
    let name = name.strip_prefix(b"runtime.").unwrap_or_default();
    let name = name.split(|&byte| byte == 0 || byte == b'.').next()?;
    match name {
        b"sigreturn" | b"sigreturn__sigaction" => Some(SIGNAL),
        // It returns to the trampoline.
        b"sigtramp" | b"cgoSigtramp" => None,
        // The goroutine does not wait for what runs on the scheduler's stack: this is its root.
        b"mcall" | b"morestack" | b"goexit" | b"mstart" | b"rt0_go" => {
            Some(row(0, kind::ROOT, 0, 0))
        }
        _ if flag & TOP_FRAME != 0 => Some(row(0, kind::ROOT, 0, 0)),
        // `systemstack` and its like change to another stack and keep rbp.
        _ if flag & SP_WRITE != 0 => Some(row(0, kind::NONE, 0, SWITCHED)),
        _ => None,
    }
}

/// The row for a depth: bytes between rsp and the return address. Every function that has a
/// frame saves rbp below its return address.
fn depth_row(depth: i64) -> u32 {
    match u32::try_from(depth / 8 + 1) {
        Ok(words) if depth >= 0 && depth % 8 == 0 && words <= 0xffff => {
            row(0, kind::RSP, if depth > 0 { 2 } else { 0 }, words)
        }
        _ => UNSUPPORTED,
    }
}

/// An unsigned LEB128 number of at most 32 bits.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..35).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// The virtual address that the dynamic loader stores at `address` (`R_X86_64_RELATIVE`).
fn relocated<F: ReadAt + ?Sized>(file: &F, headers: &Headers, address: u64) -> Option<u64> {
    const RELATIVE: u64 = 8;
    let section = headers.section(".rela.dyn")?;
    let bytes = elf::read_range(file, section.offset, section.size, ".rela.dyn").ok()?;
    let found = bytes
        .chunks_exact(24)
        .find(|rela| xword(rela, 0) == address && xword(rela, 8) == RELATIVE)?;
    Some(xword(found, 16))
}
