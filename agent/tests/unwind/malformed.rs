//! Malformed files: an error or a table, never a panic, and soon.

use std::time::{Duration, Instant};

use agent::elf::Headers;

/// Longest time that one small file may take.
const LIMIT: Duration = Duration::from_secs(2);

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

/// An ELF file with its code and unwind information: the dynamic loader is a small one.
fn sample() -> (Vec<u8>, std::ops::Range<usize>) {
    let bytes = std::fs::read("/lib64/ld-linux-x86-64.so.2").unwrap();
    let headers = Headers::read(bytes.as_slice()).unwrap();
    let section = headers.section(".eh_frame").unwrap();
    let range = section.offset as usize..(section.offset + section.size) as usize;
    (bytes, range)
}

fn build(image: &[u8]) -> Option<agent::unwind::Table> {
    let begin = Instant::now();
    let table = agent::unwind::build_from_bytes(image).ok();
    assert!(begin.elapsed() < LIMIT, "{:?}", begin.elapsed());
    table
}

/// A search must work at any address of any table.
fn search_everywhere(table: &agent::unwind::Table) {
    for bucket in 0..u64::from(table.module.buckets).min(2000) {
        for low in [0, 1, 127, 255] {
            crate::table::find_row(table, table.module.base + bucket * 256 + low);
        }
    }
}

#[test]
fn mutated_unwind_entries() {
    let (original, range) = sample();
    let mut random = Random(0x5eed);
    let mut image = original.clone();
    let mut bad = 0;
    for round in 0..100 {
        for _ in 0..=random.below(1 << (round % 8)) {
            let at = range.start + random.below(range.len());
            image[at] = match random.below(4) {
                0 => 0xff,
                1 => 0,
                2 => image[at] ^ 1 << random.below(8),
                _ => random.next() as u8,
            };
        }
        if let Some(table) = build(&image) {
            bad += table.report.bad_fdes;
            search_everywhere(&table);
        }
        image[range.clone()].copy_from_slice(&original[range.clone()]);
    }
    assert!(bad > 0, "no mutation reached an entry");
}

#[test]
fn mutated_headers() {
    let (original, _) = sample();
    let sections = u64::from_le_bytes(original[40..48].try_into().unwrap()) as usize;
    let mut random = Random(0xe1f);
    let mut image = original.clone();
    for _ in 0..100 {
        let mut touched = Vec::new();
        for _ in 0..1 + random.below(4) {
            let base = if random.below(2) == 0 { 0 } else { sections };
            let at = base + random.below((original.len() - base).min(1024));
            touched.push(at);
            image[at] = random.next() as u8;
        }
        if let Some(table) = build(&image) {
            search_everywhere(&table);
        }
        for at in touched {
            image[at] = original[at];
        }
    }
}

#[test]
fn truncated_files() {
    let (original, range) = sample();
    for end in [
        0,
        1,
        63,
        64,
        100,
        1000,
        range.start,
        range.start + 7,
        range.end - 1,
    ] {
        build(&original[..end]);
    }
}

#[test]
fn text_is_no_elf_file() {
    let error = agent::unwind::build_from_bytes(&[b'#'; 4096]).unwrap_err();
    assert_eq!(error.to_string(), "not a 64-bit little-endian ELF file");
}
