//! Reads a table as the kernel does.

use agent::unwind::Table;
use agent_ebpf::unwind::{BLOCK_WORDS, BUCKET_BITS, EXTENDED_WORDS, Extended, kind, row, search};

/// The row that holds at a virtual address.
pub(crate) fn find_row(table: &Table, address: u64) -> u32 {
    let none = row(0, kind::NONE, 0, 0);
    let module = &table.module;
    let Some(inside) = address.checked_sub(module.base) else {
        return none;
    };
    let bucket = inside >> BUCKET_BITS;
    if bucket >= u64::from(module.buckets) {
        return none;
    }
    let bucket = bucket as usize;
    let entry = table.blocks[bucket / BLOCK_WORDS][bucket % BLOCK_WORDS];
    let (first, count) = (entry >> 8, entry & 0xff);
    assert!(first > 0, "a row lies before every bucket");
    let block = (first as usize - 1) / BLOCK_WORDS;
    let rows = &table.blocks[module.rows as usize + block];
    let at = search(first, count, address as u8, |i| {
        rows[i as usize % BLOCK_WORDS]
    });
    assert_eq!(
        at as usize / BLOCK_WORDS,
        block,
        "a search stays in one block"
    );
    rows[at as usize % BLOCK_WORDS]
}

/// Extended rule `index`.
pub(crate) fn extended(table: &Table, index: u32) -> Option<Extended> {
    let per_block = (BLOCK_WORDS / EXTENDED_WORDS) as u32;
    let block = table
        .blocks
        .get((table.module.extended + index / per_block) as usize)?;
    let words = block
        .chunks_exact(EXTENDED_WORDS)
        .nth((index % per_block) as usize)?;
    let [cfa_kind, cfa_register, rbp_kind, return_register] = words[0].to_le_bytes();
    Some(Extended {
        cfa_kind,
        cfa_register,
        rbp_kind,
        return_register,
        cfa_offset: words[1] as i32,
        cfa_offset2: words[2] as i32,
        rbp_offset: words[3] as i32,
    })
}

/// The [`kind`] of a row.
pub(crate) fn kind_of(row: u32) -> u32 {
    row >> 21 & 7
}
