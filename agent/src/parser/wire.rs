//! What the agent and its parser say to each other, as bytes.
//!
//! Numbers are little-endian; a list is its length as a `u32` and its elements. What comes from the
//! parser is distrusted: [`Reader`] gives `None` for anything that is not as it should be, and each
//! list and text has a limit.

use agent_ebpf::unwind::{BLOCK_WORDS, Block, Module};

use crate::elf::{self, Segment};
use crate::profile::Unnamed;
use crate::symbolize::debug_files::Wanted;
use crate::unwind::Report;

/// Longest text, in bytes: a name or a path.
pub(super) const MAX_TEXT: usize = 64 << 10;
/// Most functions at one address, inlined ones included.
pub(super) const MAX_FUNCTIONS: u32 = 1024;
/// Most blocks of one unwind table: 64 MiB.
pub(super) const MAX_BLOCKS: u32 = 1 << 14;
/// Longest build id, in bytes.
pub(super) const MAX_BUILD_ID: usize = 64;

/// What a message is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Kind {
    /// To the parser, with a file: its segments and its unwind table. The answers:
    /// `Segments`, then `Blocks` as often as needed, then `Table`; or `Refused`.
    WantTable = 1,
    /// To the parser, with a file: [`NamesRequest`]. The answers: `Find` as often as needed, then
    /// `BuildId`, `Names` as often as needed, `Done`.
    WantNames,
    /// To the parser, with a perf map: [`NamesRequest`]. The answers: `Names`, `Done`.
    WantJitNames,
    /// To the parser, with a file that may be the one wanted. The answer is `Verdict`.
    Candidate,
    /// To the parser: no file is left.
    NoCandidate,
    /// From the parser, when it begins: the protections that it lacks, as texts.
    Hello,
    /// From the parser.
    Segments,
    /// From the parser: blocks of the table.
    Blocks,
    /// From the parser: the rest of the table.
    Table,
    /// From the parser: why there is no table, as a text.
    Refused,
    /// From the parser: the build id, empty for none.
    BuildId,
    /// From the parser: the functions at the next addresses.
    Names,
    /// From the parser: a file wanted, [`Wanted`].
    Find,
    /// From the parser: 1 if the candidate is the file wanted, else 0.
    Verdict,
    /// From the parser: that was all.
    Done,
}

impl Kind {
    const ALL: [Kind; 15] = [
        Kind::WantTable,
        Kind::WantNames,
        Kind::WantJitNames,
        Kind::Candidate,
        Kind::NoCandidate,
        Kind::Hello,
        Kind::Segments,
        Kind::Blocks,
        Kind::Table,
        Kind::Refused,
        Kind::BuildId,
        Kind::Names,
        Kind::Find,
        Kind::Verdict,
        Kind::Done,
    ];

    pub(super) fn of(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|&kind| kind as u32 == number)
    }
}

/// One function at an address; without a name, why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Function {
    pub(super) name: Result<String, Unnamed>,
    pub(super) file: Option<String>,
    pub(super) line: Option<u32>,
    /// Where a function without a name starts.
    pub(super) start: Option<u64>,
}

/// Addresses to be named, in ascending order, and the time for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NamesRequest {
    /// Milliseconds in which debug information may be read.
    pub(super) details_ms: u64,
    /// Milliseconds for everything.
    pub(super) total_ms: u64,
    pub(super) addresses: Vec<u64>,
}

/// Reasons that a parser may give, each with its number on the wire.
const REASONS: [(u8, Unnamed); 5] = [
    (1, Unnamed::FileUnavailable),
    (2, Unnamed::Malformed),
    (3, Unnamed::NoSymbols),
    (4, Unnamed::NotCovered),
    (5, Unnamed::GaveUp),
];

/// Bits that say which parts of a [`Function`] follow.
const NAMED: u8 = 1;
const FILE: u8 = 2;
const LINE: u8 = 4;
const START: u8 = 8;

/// A message in the making.
#[derive(Clone, Debug, Default)]
pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    pub(super) fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.u32(bytes.len() as u32);
        self.0.extend_from_slice(bytes);
    }

    /// A text; what is beyond [`MAX_TEXT`] is cut.
    pub(super) fn text(&mut self, text: &str) {
        let mut end = text.len().min(MAX_TEXT);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        self.bytes(text.get(..end).unwrap_or_default().as_bytes());
    }

    pub(super) fn texts(&mut self, texts: &[String]) {
        self.u32(texts.len() as u32);
        texts.iter().for_each(|text| self.text(text));
    }

    pub(super) fn wanted(&mut self, wanted: &Wanted<'_>) {
        match wanted {
            Wanted::BuildId(id) => {
                self.u8(1);
                self.bytes(id);
            }
            Wanted::Link(name) => {
                self.u8(2);
                self.text(name);
            }
            Wanted::Path(path) => {
                self.u8(3);
                self.text(path);
            }
        }
    }

    pub(super) fn names_request(&mut self, request: &NamesRequest) {
        self.u64(request.details_ms);
        self.u64(request.total_ms);
        self.u32(request.addresses.len() as u32);
        request.addresses.iter().for_each(|&it| self.u64(it));
    }

    pub(super) fn segments(&mut self, segments: &[Segment]) {
        self.u32(segments.len() as u32);
        for segment in segments {
            for word in [
                segment.vaddr,
                segment.offset,
                segment.filesz,
                segment.memsz,
                u64::from(segment.exec),
            ] {
                self.u64(word);
            }
        }
    }

    pub(super) fn blocks(&mut self, blocks: &[Block]) {
        let words = blocks.iter().flatten();
        words.for_each(|&word| self.u32(word));
    }

    pub(super) fn table(&mut self, module: &Module, report: &Report) {
        self.u64(module.base);
        for word in [module.buckets, module.rows, module.extended] {
            self.u32(word);
        }
        for count in counts(report) {
            self.u64(count);
        }
    }

    pub(super) fn functions(&mut self, functions: &[Function]) {
        self.u32(functions.len() as u32);
        for function in functions {
            self.function(function);
        }
    }

    fn function(&mut self, function: &Function) {
        let bit = |bit: u8, is: bool| if is { bit } else { 0 };
        self.u8(bit(NAMED, function.name.is_ok())
            | bit(FILE, function.file.is_some())
            | bit(LINE, function.line.is_some())
            | bit(START, function.start.is_some()));
        match &function.name {
            Ok(name) => self.text(name),
            Err(reason) => {
                let known = REASONS.iter().find(|(_, it)| it == reason);
                self.u8(known.map_or(0, |&(number, _)| number));
            }
        }
        if let Some(file) = &function.file {
            self.text(file);
        }
        if let Some(line) = function.line {
            self.u32(line);
        }
        if let Some(start) = function.start {
            self.u64(start);
        }
    }
}

/// The counts of a report in the order of their fields.
fn counts(report: &Report) -> [u64; 8] {
    [
        report.eh_frame_bytes,
        report.fdes,
        report.bad_fdes,
        report.stray_fdes,
        report.rows,
        report.unsupported_rows,
        report.extended,
        report.cut_rows,
    ]
}

/// A message being read. Each method takes what it names off the front; `None` if it is not there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'b>(pub(super) &'b [u8]);

impl<'b> Reader<'b> {
    fn take(&mut self, count: usize) -> Option<&'b [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    pub(super) fn bytes(&mut self, most: usize) -> Option<&'b [u8]> {
        let length = self.u32()? as usize;
        if length > most {
            return None;
        }
        self.take(length)
    }

    pub(super) fn text(&mut self) -> Option<String> {
        let bytes = self.bytes(MAX_TEXT)?;
        Some(std::str::from_utf8(bytes).ok()?.to_owned())
    }

    pub(super) fn texts(&mut self, most: u32) -> Option<Vec<String>> {
        let count = self.u32().filter(|&count| count <= most)?;
        (0..count).map(|_| self.text()).collect()
    }

    /// A file that belongs to a module: names as long as they may be in a file system.
    pub(super) fn wanted(&mut self) -> Option<Wanted<'b>> {
        let text = |bytes| std::str::from_utf8(bytes).ok();
        match self.u8()? {
            1 => Some(Wanted::BuildId(self.bytes(MAX_BUILD_ID)?)),
            2 => Some(Wanted::Link(text(self.bytes(libc::NAME_MAX as usize)?)?)),
            3 => Some(Wanted::Path(text(self.bytes(libc::PATH_MAX as usize)?)?)),
            _ => None,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn names_request(&mut self) -> Option<NamesRequest> {
        let (details_ms, total_ms) = (self.u64()?, self.u64()?);
        let count = self.u32()? as usize;
        let addresses = self.take(count.checked_mul(8)?)?.chunks_exact(8);
        let address = |bytes: &[u8]| bytes.try_into().ok().map(u64::from_le_bytes);
        Some(NamesRequest {
            details_ms,
            total_ms,
            addresses: addresses.map(address).collect::<Option<_>>()?,
        })
    }

    /// Segments, no more than an ELF file may have.
    pub(super) fn segments(&mut self) -> Option<Vec<Segment>> {
        let most = u32::from(elf::MAX_SEGMENTS);
        let count = self.u32().filter(|&count| count <= most)?;
        (0..count)
            .map(|_| {
                Some(Segment {
                    vaddr: self.u64()?,
                    offset: self.u64()?,
                    filesz: self.u64()?,
                    memsz: self.u64()?,
                    exec: self.u64()? != 0,
                })
            })
            .collect()
    }

    /// Whole blocks up to the end of the message, appended to `blocks`, which keeps to
    /// [`MAX_BLOCKS`].
    pub(super) fn blocks(&mut self, blocks: &mut Vec<Block>) -> Option<()> {
        let pieces = self.0.chunks_exact(4 * BLOCK_WORDS);
        let too_many = blocks.len() + pieces.len() > MAX_BLOCKS as usize;
        if !pieces.remainder().is_empty() || too_many {
            return None;
        }
        for piece in pieces {
            let mut block: Block = [0; BLOCK_WORDS];
            for (word, bytes) in block.iter_mut().zip(piece.chunks_exact(4)) {
                *word = u32::from_le_bytes(bytes.try_into().ok()?);
            }
            blocks.push(block);
        }
        self.0 = &[];
        Some(())
    }

    /// Where the parts of a table of so many blocks lie, which must be within it.
    pub(super) fn table(&mut self, blocks: usize) -> Option<(Module, Report)> {
        let module = Module {
            base: self.u64()?,
            buckets: self.u32()?,
            rows: self.u32()?,
            extended: self.u32()?,
            table: 0,
        };
        let directory = module.buckets.div_ceil(BLOCK_WORDS as u32);
        let order = [0, directory, module.rows, module.extended];
        let fits = order.is_sorted() && module.extended as usize <= blocks;
        if !fits || module.buckets == 0 {
            return None;
        }
        let report = Report {
            eh_frame_bytes: self.u64()?,
            fdes: self.u64()?,
            bad_fdes: self.u64()?,
            stray_fdes: self.u64()?,
            rows: self.u64()?,
            unsupported_rows: self.u64()?,
            extended: self.u64()?,
            cut_rows: self.u64()?,
        };
        Some((module, report))
    }

    /// The functions at one address: at least one.
    pub(super) fn functions(&mut self) -> Option<Vec<Function>> {
        let count = self
            .u32()
            .filter(|count| (1..=MAX_FUNCTIONS).contains(count))?;
        (0..count).map(|_| self.function()).collect()
    }

    fn function(&mut self) -> Option<Function> {
        let bits = self.u8()?;
        if bits & !(NAMED | FILE | LINE | START) != 0 {
            return None;
        }
        let name = match bits & NAMED != 0 {
            true => Ok(self.text()?),
            false => {
                let number = self.u8()?;
                Err(REASONS.iter().find(|(it, _)| *it == number)?.1)
            }
        };
        let file = (bits & FILE != 0).then(|| self.text());
        let line = (bits & LINE != 0).then(|| self.u32());
        let start = (bits & START != 0).then(|| self.u64());
        Some(Function {
            name,
            file: transposed(file)?,
            line: transposed(line)?,
            start: transposed(start)?,
        })
    }
}

/// `None` where something was to be there and is not.
fn transposed<T>(value: Option<Option<T>>) -> Option<Option<T>> {
    match value {
        Some(None) => None,
        Some(some) => Some(some),
        None => Some(None),
    }
}
