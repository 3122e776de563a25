#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use agent_ebpf::unwind::{BLOCK_WORDS, BUCKET_BITS, Block, Extended, Module, kind, row, search};

use super::layout::{Layout, NONE};
use super::{Code, PADDING, Piece, Source, gaps};

const BASE: u64 = 0x40_0000;

/// The row, without its address byte, that the kernel's search finds.
fn find((blocks, module): &(Vec<Block>, Module), address: u64) -> Option<u32> {
    let bucket = (address.checked_sub(module.base)? >> BUCKET_BITS) as usize;
    if bucket >= module.buckets as usize {
        return None;
    }
    let entry = blocks[bucket / BLOCK_WORDS][bucket % BLOCK_WORDS];
    let (first, count) = (entry >> 8, entry & 0xff);
    let block = (first as usize - 1) / BLOCK_WORDS;
    assert!(
        count == 0 || (first + count - 1) as usize / BLOCK_WORDS == block,
        "a bucket leaves its block"
    );
    let rows = &blocks[module.rows as usize + block];
    let at = search(first, count, address as u8, |i| {
        rows[i as usize % BLOCK_WORDS]
    });
    assert_eq!(
        at as usize / BLOCK_WORDS,
        block,
        "the search leaves its block"
    );
    Some(rows[at as usize % BLOCK_WORDS] & 0xff_ffff)
}

/// A table of these rows, and the plain meaning of them: the last row at or before an address.
fn check(span: u32, rows: &[(u32, u32)]) {
    let mut layout = Layout::new(BASE, span);
    for &(address, row) in rows {
        layout.push(address, row).unwrap();
    }
    let table = layout.finish().unwrap();
    for address in 0..span {
        let before = rows.partition_point(|&(at, _)| at <= address);
        let expected = before.checked_sub(1).map_or(NONE, |i| rows[i].1);
        assert_eq!(
            find(&table, BASE + u64::from(address)),
            Some(expected),
            "{address:#x}"
        );
    }
}

fn numbered(i: u32) -> u32 {
    row(0, kind::RSP, 0, i % 0xfff0 + 1)
}

#[test]
fn before_the_first_row_and_outside() {
    check(
        0x1000,
        &[
            (0x234, numbered(1)),
            (0x235, numbered(2)),
            (0xfff, numbered(3)),
        ],
    );
    let mut layout = Layout::new(BASE, 0x1000);
    layout.push(0x10, numbered(1)).unwrap();
    layout.push(0x1000, numbered(2)).unwrap();
    let table = layout.finish().unwrap();
    assert_eq!(find(&table, BASE - 1), None);
    assert_eq!(find(&table, BASE + 0x1000), None);
    assert_eq!(find(&table, BASE + 0xfff), Some(numbered(1)));
}

#[test]
fn empty_buckets_take_the_row_before() {
    check(
        0x4000,
        &[
            (0x80, numbered(1)),
            (0x2000, numbered(2)),
            (0x3fff, numbered(3)),
        ],
    );
}

#[test]
fn bucket_borders() {
    let rows: Vec<_> = (0..64).map(|i| (i * 0x100, numbered(i))).collect();
    check(0x4000, &rows);
    let rows: Vec<_> = (0..64).map(|i| (i * 0x100 + 0xff, numbered(i))).collect();
    check(0x4000, &rows);
}

#[test]
fn block_borders() {
    for per_bucket in [1u32, 3, 7, 64, 100, 200, 255] {
        let rows: Vec<_> = (0..6000 / per_bucket * per_bucket)
            .map(|i| ((i / per_bucket) * 0x100 + i % per_bucket, numbered(i)))
            .collect();
        check((6000 / per_bucket) << BUCKET_BITS, &rows);
    }
    // Empty buckets where a block ends.
    let rows: Vec<_> = (0..1023).map(|i| (i * 2, numbered(i))).collect();
    check(0x2000, &rows);
}

#[test]
fn more_than_one_directory_block() {
    let rows: Vec<_> = (0..3000).map(|i| (i * 0x100 + 7, numbered(i))).collect();
    check(3000 << BUCKET_BITS, &rows);
}

#[test]
fn a_full_bucket_is_cut_and_counted() {
    let mut layout = Layout::new(BASE, 0x200);
    for i in 0..0x100 {
        layout.push(i, numbered(i)).unwrap();
    }
    layout.push(0x100, numbered(1000)).unwrap();
    assert_eq!(layout.cut, 1);
    let table = layout.finish().unwrap();
    assert_eq!(find(&table, BASE + 254), Some(numbered(254)));
    assert_eq!(find(&table, BASE + 255), Some(numbered(254)));
    assert_eq!(find(&table, BASE + 0x100), Some(numbered(1000)));
}

#[test]
fn equal_neighbours_are_one_row() {
    let mut layout = Layout::new(BASE, 0x1000);
    for address in [0, 0x10, 0x500, 0x510] {
        layout
            .push(address, numbered(u32::from(address >= 0x510)))
            .unwrap();
    }
    let table = layout.finish().unwrap();
    assert_eq!(find(&table, BASE + 0x50f), Some(numbered(0)));
    assert_eq!(table.0[0].iter().map(|entry| entry & 0xff).sum::<u32>(), 2);
}

#[test]
fn extended_rules_are_kept_once() {
    let mut layout = Layout::new(BASE, 0x100);
    let rule = |offset| Extended {
        cfa_register: 10,
        cfa_offset: offset,
        rbp_offset: -16,
        ..Extended::default()
    };
    let rows = [1, 2, 1].map(|offset| layout.extend(rule(offset)).unwrap());
    assert_eq!(rows[0], rows[2]);
    assert_eq!(rows[1], row(0, kind::EXTENDED, 0, 0) | 1);
    let (blocks, module) = layout.finish().unwrap();
    assert_eq!(
        blocks[module.extended as usize][..8],
        [10 << 8, 1, 0, 0xffff_fff0, 10 << 8, 2, 0, 0xffff_fff0]
    );
}

fn piece(start: u32, end: u32) -> Piece {
    Piece {
        start,
        end,
        source: Source::Row(NONE),
    }
}

/// Every address at a multiple of [`PADDING`] is in a gap or it is not.
#[test]
fn gaps_are_code_that_no_piece_covers() {
    let code = Code {
        origin: 0,
        ranges: vec![(0x100, 0x400), (0x400, 0x500), (0x700, 0x1000)],
    };
    let pieces = [
        (0, 0x110),
        (0x180, 0x600),
        (0x200, 0x220),
        (0x480, 0x4a0),
        (0x800, 0x2000),
    ]
    .map(|(start, end)| piece(start, end));
    let found = gaps(&code, &pieces);
    // A piece ends where the next one starts, at the latest.
    let covered = [(0, 0x110), (0x180, 0x220), (0x480, 0x4a0), (0x800, 0x2000)];
    let covered = [&covered[..], &[(0x200, 0x220)]].concat();
    let inside = |ranges: &[(u32, u32)], at: u32| {
        let holds = |&(start, end): &(u32, u32)| start <= at && at < end;
        ranges.iter().any(holds)
    };
    for at in (0..0x1100).step_by(PADDING as usize) {
        let expected = inside(&code.ranges, at) && !inside(&covered, at);
        assert_eq!(inside(&found, at), expected, "{at:#x}");
    }
}

/// As many pieces as ranges of code.
#[test]
fn gaps_are_found_in_one_pass() {
    const COUNT: u32 = 50_000;
    let code = Code {
        origin: 0,
        ranges: (0..COUNT).map(|i| (64 * i, 64 * i + 64)).collect(),
    };
    let pieces: Vec<_> = (0..COUNT).map(|i| piece(64 * i, 64 * i + 32)).collect();
    let begin = std::time::Instant::now();
    assert_eq!(gaps(&code, &pieces).len(), COUNT as usize);
    for i in 0..COUNT {
        let start = u64::from(64 * i + 5);
        let found = code.piece(start, start + 100, Source::Row(NONE)).unwrap();
        assert_eq!(found.end, 64 * i + 64);
    }
    assert!(begin.elapsed() < std::time::Duration::from_secs(10));
}

#[test]
#[ignore = "measures: TABLE_FILES=a:b cargo test --release -p agent --lib unwind -- --ignored --nocapture"]
fn speed() {
    let paths = std::env::var("TABLE_FILES").unwrap_or("/lib/x86_64-linux-gnu/libc.so.6".into());
    for path in paths.split(':') {
        let begin = std::time::Instant::now();
        let table = super::build(&std::fs::File::open(path).unwrap()).unwrap();
        let elapsed = begin.elapsed();
        let rate = table.report.eh_frame_bytes as f64 / 1e6 / elapsed.as_secs_f64();
        println!(
            "{path}: {elapsed:?} {rate:.0} MB/s, {} blocks, {:?}",
            table.blocks.len(),
            table.report
        );
    }
}
