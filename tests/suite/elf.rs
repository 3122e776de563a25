//! Where the sections of an ELF file lie, for tests that damage them (gABI, 64-bit little-endian).

use std::ops::Range;

fn number(bytes: &[u8], at: usize, width: usize) -> usize {
    bytes[at..at + width]
        .iter()
        .rev()
        .fold(0, |sum, &byte| sum << 8 | usize::from(byte))
}

/// Position of the section header table.
pub(crate) fn section_headers(file: &[u8]) -> Range<usize> {
    let start = number(file, 0x28, 8);
    start..start + number(file, 0x3a, 2) * number(file, 0x3c, 2)
}

/// Position of the contents of the section `name`; panics if there is none.
pub(crate) fn section(file: &[u8], name: &str) -> Range<usize> {
    let headers = &file[section_headers(file)];
    let size = number(file, 0x3a, 2);
    let contents = |index: usize| {
        let header = &headers[index * size..];
        let start = number(header, 0x18, 8);
        start..start + number(header, 0x20, 8)
    };
    let names = &file[contents(number(file, 0x3e, 2))];
    let is_named = |index: &usize| {
        let at = number(headers, index * size, 4);
        names[at..].starts_with(format!("{name}\0").as_bytes())
    };
    let index = (0..headers.len() / size).find(is_named);
    contents(index.unwrap_or_else(|| panic!("no section {name}")))
}
