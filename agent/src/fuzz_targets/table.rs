//! What must hold of every unwind table.

use agent_ebpf::unwind::{BLOCK_WORDS, Block, EXTENDED_WORDS, kind};

use crate::unwind;

/// Builds the table of an ELF image, and checks that the kernel's step can search it.
pub(super) fn check(image: &[u8]) {
    let Ok(table) = unwind::build_from_bytes(image) else {
        return;
    };
    let module = table.module;
    let words = |from: u32, to: usize| -> Vec<u32> {
        let blocks: &[Block] = table.blocks.get(from as usize..to).unwrap_or_default();
        blocks.concat()
    };
    let directory = words(0, module.rows as usize);
    let rows = words(module.rows, module.extended as usize);
    let rules = words(module.extended, table.blocks.len()).len() / EXTENDED_WORDS;
    assert!(directory.len() >= module.buckets as usize);
    assert!(module.base.is_multiple_of(256));
    for entry in directory.iter().take(module.buckets as usize) {
        let (first, count) = ((entry >> 8) as usize, (entry & 0xff) as usize);
        // The row before a bucket's first holds where none of its own does, and lies in the same block.
        assert!(first > 0 && (first - 1) / BLOCK_WORDS == (first + count - 1) / BLOCK_WORDS);
        let bucket = rows.get(first - 1..first + count);
        assert!(bucket.is_some(), "a bucket's rows lie outside the table");
        let bucket = bucket.unwrap_or_default();
        assert!(bucket.iter().skip(1).is_sorted_by_key(|row| row >> 24));
        for row in bucket {
            let is_extended = row >> 21 & 7 == kind::EXTENDED;
            assert!(!is_extended || ((row & 0x1f_ffff) as usize) < rules);
        }
    }
}
