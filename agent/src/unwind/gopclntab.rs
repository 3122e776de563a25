//! `.gopclntab`: the stack depth at each instruction of a Go program, which has no `.eh_frame`.

use std::cell::Cell;
use std::ops::Range;

use agent_ebpf::unwind::{SWITCHED, kind, row};

use super::eh_frame::relative;
use super::layout::Layout;
use super::rule::UNSUPPORTED;
use super::{Code, Error, MAX_PIECES, MAX_ROWS, Piece, Source, uncovered};
use crate::elf::{self, Headers, ReadAt, word, xword};
use crate::gopclntab::{Header, Steps, locate};

/// `_func.flag`: the outermost function of a stack.
const TOP_FRAME: u8 = 1;
/// `_func.flag`: writes to rsp, so that the depth is not known behind the write.
const SP_WRITE: u8 = 2;

/// Most depths of a program: more than it may have rows.
const MAX_DEPTHS: usize = 2 * MAX_ROWS;

/// A parsed table.
pub(super) struct Table {
    bytes: Vec<u8>,
    header: Header,
    functions: usize,
    names: usize,
    pctab: usize,
    functab: usize,
    /// Depths that may still be looked at: functions can share a list of millions.
    depths: Cell<usize>,
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
            functions: usize::try_from(header.functions)
                .ok()?
                .min(entries)
                .min(MAX_PIECES),
            names: usize::try_from(header.names).ok()?,
            pctab: usize::try_from(header.pctab).ok()?,
            functab,
            depths: Cell::new(MAX_DEPTHS),
            header,
            bytes,
        })
    }

    /// Adds a piece for each function in a gap.
    pub(super) fn fill(&self, code: &Code, gaps: &[(u32, u32)], pieces: &mut Vec<Piece>) {
        for i in 0..self.functions {
            if pieces.len() >= MAX_PIECES {
                break;
            }
            let (start, end) = (self.entry(2 * i), self.entry(2 * i + 2));
            let Some(source) = self.source(i) else {
                continue;
            };
            let signal = matches!(source, Source::Row(SIGNAL));
            // A handler returns to the trampoline's first byte: looked up as the byte before.
            let Some(piece) = code.piece(start.saturating_sub(signal.into()), end, source) else {
                continue;
            };
            // The depths count from the function's start, which only the first part can have.
            let part = uncovered(gaps, piece).next();
            pieces.extend(part.filter(|part| part.start == piece.start));
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
            let left = self.depths.get().checked_sub(1);
            self.depths.set(left.ok_or(Error::TooManyRows)?);
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed test may panic")]
mod tests {
    use super::*;
    use crate::gopclntab::{Function, Version};

    /// A table of these starts of functions, whose records are all the same and whose depths change
    /// with every byte.
    fn table(starts: &[u32], depths: usize) -> Table {
        let record = (8 * starts.len()) as u32;
        let fields = starts.iter().flat_map(|&start| [start, record]);
        let mut bytes: Vec<u8> = fields.flat_map(u32::to_le_bytes).collect();
        bytes.extend([0; 64]);
        let pctab = bytes.len();
        bytes.extend([2, 1].repeat(4096));
        Table {
            functions: starts.len() - 1,
            names: record as usize,
            pctab,
            functab: 0,
            depths: Cell::new(depths),
            header: Header {
                version: Version::Go120,
                function: Function {
                    name: 4,
                    pcsp: 16,
                    flag: 41,
                },
                text: 0,
                functions: 0,
                names: 0,
                units: 0,
                files: 0,
                pctab: 0,
                functab: 0,
            },
            bytes,
        }
    }

    #[test]
    fn functions_that_cover_all_gaps_cost_no_more_than_others() {
        const COUNT: u32 = 20_000;
        let code = Code {
            origin: 0,
            ranges: vec![(0, 64 * COUNT)],
        };
        let gaps: Vec<_> = (0..COUNT).map(|i| (64 * i, 64 * i + 32)).collect();
        let starts = [0, 64 * COUNT].repeat(COUNT as usize / 2);
        let mut pieces = Vec::new();
        let begin = std::time::Instant::now();
        table(&starts, MAX_DEPTHS).fill(&code, &gaps, &mut pieces);
        assert!(begin.elapsed() < std::time::Duration::from_secs(1));
        assert_eq!(pieces.len(), COUNT as usize / 2);
        assert!(
            pieces
                .iter()
                .all(|piece| (piece.start, piece.end) == (0, 32))
        );
    }

    #[test]
    fn depths_that_many_functions_share_are_limited() {
        let table = table(&[0, 4096], 5000);
        let mut layout = Layout::new(0, 1 << 16);
        assert!(table.rows(0..4096, 0, 0, &mut layout).is_ok());
        assert!(matches!(
            table.rows(4096..8192, 0, 0, &mut layout),
            Err(Error::TooManyRows)
        ));
    }
}
