//! Writes rows, in the order of their addresses, into the blocks of a table.

use agent_ebpf::unwind::{
    BLOCK_WORDS, BUCKET_BITS, BUCKET_ROWS, Block, EXTENDED_WORDS, Extended, Module, kind, row,
};
use std::collections::HashMap;

use super::{Error, MAX_ROWS};

/// Bytes of address space in a bucket.
const BUCKET: u32 = 1 << BUCKET_BITS;
/// Where a row's address byte begins.
const LOW_SHIFT: u32 = 24;
/// Most rules that a row's index can name.
const MAX_EXTENDED: usize = 1 << 21;
/// The row of code without a rule.
pub(super) const NONE: u32 = row(0, kind::NONE, 0, 0);

/// A table under construction. Rows are given without their address byte.
pub(super) struct Layout {
    /// The directory's blocks, then the row blocks.
    blocks: Vec<Block>,
    base: u64,
    buckets: u32,
    directory_blocks: usize,
    /// Rows written so far, padding included.
    written: usize,
    /// The bucket being filled and its rows.
    bucket: u32,
    pending: Vec<u32>,
    /// The row in force after the last one pushed, and before the pending ones.
    last: u32,
    before: u32,
    /// The address of the last push, relative to the base.
    address: Option<u32>,
    extended: Vec<Extended>,
    extended_index: HashMap<[u32; EXTENDED_WORDS], u32>,
    /// Rows left out because their bucket was full.
    pub(super) cut: u64,
    /// Rows, without padding.
    pub(super) rows: u64,
}

impl Layout {
    /// A table of the virtual addresses from `base`, a multiple of 256, up to `base + span`.
    pub(super) fn new(base: u64, span: u32) -> Self {
        let buckets = span.div_ceil(BUCKET);
        let directory_blocks = (buckets as usize).div_ceil(BLOCK_WORDS);
        Self {
            blocks: vec![[0; BLOCK_WORDS]; directory_blocks],
            base,
            buckets,
            directory_blocks,
            written: 0,
            bucket: 0,
            pending: Vec::with_capacity(BUCKET_ROWS as usize),
            last: NONE,
            before: NONE,
            address: None,
            extended: Vec::new(),
            extended_index: HashMap::new(),
            cut: 0,
            rows: 0,
        }
    }

    /// Adds a row that holds from `address` (relative to the base) on. Addresses that do not
    /// ascend or lie beyond the span are left out, and so are rows equal to the one in force.
    pub(super) fn push(&mut self, address: u32, row: u32) -> Result<(), Error> {
        if self.address.is_some_and(|last| address <= last) || address / BUCKET >= self.buckets {
            return Ok(());
        }
        self.address = Some(address);
        if row == self.last {
            return Ok(());
        }
        while self.bucket < address / BUCKET {
            self.finish_bucket()?;
        }
        if self.pending.len() >= BUCKET_ROWS as usize {
            self.cut += 1;
            return Ok(());
        }
        self.pending.push((address % BUCKET) << LOW_SHIFT | row);
        self.last = row;
        Ok(())
    }

    /// The row that stands for an extended rule; `None` when there are too many rules.
    pub(super) fn extend(&mut self, rule: Extended) -> Option<u32> {
        let words = extended_words(&rule);
        let next = self.extended.len();
        if next >= MAX_EXTENDED && !self.extended_index.contains_key(&words) {
            return None;
        }
        let index = *self.extended_index.entry(words).or_insert(next as u32);
        if index as usize == next {
            self.extended.push(rule);
        }
        Some(row(0, kind::EXTENDED, 0, 0) | index)
    }

    /// How many distinct extended rules there are.
    pub(super) fn extended(&self) -> u64 {
        self.extended.len() as u64
    }

    /// Writes the current bucket's rows and its directory entry, and goes to the next bucket.
    fn finish_bucket(&mut self) -> Result<(), Error> {
        let room = BLOCK_WORDS - self.written % BLOCK_WORDS;
        // The row before the bucket has to lie in the block of the bucket's own rows: repeat it at
        // the beginning of a new block.
        if room == BLOCK_WORDS || room < self.pending.len() {
            let pad = if room == BLOCK_WORDS { 1 } else { room + 1 };
            for _ in 0..pad {
                self.write(self.before);
            }
        }
        if self.written + self.pending.len() > MAX_ROWS {
            return Err(Error::TooManyRows);
        }
        let entry = (self.written as u32) << 8 | self.pending.len() as u32;
        let at = self.bucket as usize;
        if let Some(slot) = self
            .blocks
            .get_mut(at / BLOCK_WORDS)
            .and_then(|block| block.get_mut(at % BLOCK_WORDS))
        {
            *slot = entry;
        }
        let pending = std::mem::take(&mut self.pending);
        for &row in &pending {
            self.write(row);
        }
        self.rows += pending.len() as u64;
        self.pending = pending;
        self.pending.clear();
        self.before = self.last;
        self.bucket += 1;
        Ok(())
    }

    fn write(&mut self, row: u32) {
        if self.written.is_multiple_of(BLOCK_WORDS) {
            self.blocks.push([0; BLOCK_WORDS]);
        }
        if let Some(slot) = self
            .blocks
            .last_mut()
            .and_then(|block| block.get_mut(self.written % BLOCK_WORDS))
        {
            *slot = row;
        }
        self.written += 1;
    }

    /// Writes the rows that are left: no more can be pushed.
    pub(super) fn finish_rows(&mut self) -> Result<(), Error> {
        while self.bucket < self.buckets {
            self.finish_bucket()?;
        }
        Ok(())
    }

    /// The finished blocks and where their parts lie.
    pub(super) fn finish(mut self) -> Result<(Vec<Block>, Module), Error> {
        self.finish_rows()?;
        let module = Module {
            base: self.base,
            buckets: self.buckets,
            rows: self.directory_blocks as u32,
            extended: self.blocks.len() as u32,
            table: 0,
        };
        for rules in self.extended.chunks(BLOCK_WORDS / EXTENDED_WORDS) {
            let mut block = [0; BLOCK_WORDS];
            for (slot, rule) in block.chunks_exact_mut(EXTENDED_WORDS).zip(rules) {
                slot.copy_from_slice(&extended_words(rule));
            }
            self.blocks.push(block);
        }
        self.blocks.shrink_to_fit();
        Ok((self.blocks, module))
    }
}

/// The words of a rule as they lie in memory.
fn extended_words(rule: &Extended) -> [u32; EXTENDED_WORDS] {
    [
        u32::from_le_bytes([
            rule.cfa_kind,
            rule.cfa_register,
            rule.rbp_kind,
            rule.return_register,
        ]),
        rule.cfa_offset as u32,
        rule.cfa_offset2 as u32,
        rule.rbp_offset as u32,
    ]
}
