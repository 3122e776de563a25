//! `.gopclntab`: the stack depth at each instruction of a Go program, which has no `.eh_frame`.

use std::ops::Range;

use agent_ebpf::unwind::{SWITCHED, kind, row};

use super::eh_frame::relative;
use super::layout::Layout;
use super::rule::UNSUPPORTED;
use super::{Code, Error, Piece, Source, uncovered};
use crate::elf::{self, Headers, ReadAt, word, xword};
use crate::gopclntab::{Header, Steps, locate};

/// `_func.flag`: the outermost function of a stack.
const TOP_FRAME: u8 = 1;
/// `_func.flag`: writes to rsp, so that the depth is not known behind the write.
const SP_WRITE: u8 = 2;

/// A parsed table.
pub(super) struct Table {
    bytes: Vec<u8>,
    header: Header,
    functions: usize,
    names: usize,
    pctab: usize,
    functab: usize,
}

impl Table {
    /// Reads the table of a Go program; `None` if it is none, or of an unknown version.
    pub(super) fn read<F: ReadAt + ?Sized>(file: &F, headers: &Headers) -> Option<Self> {
        let location = locate(file, headers)?;
        let header = Header::read(file, headers, location)?;
        let bytes = elf::read_range(file, location.offset, location.size, ".gopclntab").ok()?;
        let functab = usize::try_from(header.functab).ok()?;
        let entries = bytes.get(functab..)?.len() / (2 * header.field());
        Some(Self {
            functions: usize::try_from(header.functions).ok()?.min(entries),
            names: usize::try_from(header.names).ok()?,
            pctab: usize::try_from(header.pctab).ok()?,
            functab,
            header,
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
        self.header.text.saturating_add(self.field(i))
    }

    fn field(&self, i: usize) -> u64 {
        let at = self.functab.saturating_add(i * self.header.field());
        if self.header.field() == 8 {
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
        let flag = *function.get(self.header.function.flag)?;
        let name = self
            .names
            .checked_add(word(function, self.header.function.name) as usize)?;
        let name = self.bytes.get(name..)?;
        Some(match special(name.get(..name.len().min(64))?, flag) {
            Some(row) => Source::Row(row),
            None => Source::Go(word(function, self.header.function.pcsp)),
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
        let bytes = self
            .pctab
            .checked_add(pcsp as usize)
            .and_then(|at| self.bytes.get(at..))
            .unwrap_or_default();
        let mut pc = range.start;
        for (depth, length) in Steps::new(bytes) {
            if pc >= range.end {
                break;
            }
            layout.push(relative(pc, base), depth_row(depth))?;
            pc = pc.saturating_add(length.max(1));
        }
        Ok(())
    }
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
