//! Rows for code that `.eh_frame` leaves out.

use agent_ebpf::unwind::{kind, row};

use super::{Code, Piece, Source, uncovered};
use crate::elf::{self, Headers, ReadAt};

/// Bytes of a program's entry code that are taken for its root where nothing says its length.
const ENTRY_BYTES: u64 = 64;
/// Bytes of an entry of a PLT.
const PLT_ENTRY: u64 = 16;
/// Most bytes of uncovered code that are searched for signal trampolines.
const MAX_SEARCH: u64 = 64 << 20;
/// Bytes read at once in that search.
const CHUNK: u64 = 1 << 18;
/// Bytes that a read counts for at least.
const MIN_READ: u64 = 1 << 10;
/// `mov $15, %rax; syscall`: `rt_sigreturn`, as musl and Go write it.
const SIGRETURN: [&[u8]; 2] = [
    &[0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05],
    &[0xb8, 0x0f, 0, 0, 0, 0x0f, 0x05],
];

/// Adds pieces for the gaps; where two begin at the same address the later one holds.
pub(super) fn fill<F: ReadAt + ?Sized>(
    file: &F,
    headers: &Headers,
    code: &Code,
    gaps: &[(u32, u32)],
    pieces: &mut Vec<Piece>,
) {
    let mut add = |start: u64, end: u64, row: u32| {
        if let Some(piece) = code.piece(start, end, Source::Row(row)) {
            pieces.extend(uncovered(gaps, piece));
        }
    };
    for name in [".plt.sec", ".plt.got"] {
        if let Some(section) = headers.section(name) {
            add(
                section.vaddr,
                section.vaddr.saturating_add(section.size),
                words(1),
            );
        }
    }
    plt(file, headers, &mut add);
    for address in trampolines(file, headers, code, gaps) {
        // A handler returns to its first byte: looked up as the byte before, inside a call.
        let start = address.saturating_sub(1);
        add(
            start,
            address + SIGRETURN[0].len() as u64,
            row(0, kind::SIGNAL, 0, 0),
        );
    }
    if headers.entry != 0 {
        add(
            headers.entry,
            headers.entry.saturating_add(ENTRY_BYTES),
            row(0, kind::ROOT, 0, 0),
        );
    }
}

/// The row CFA = rsp + 8 × words.
fn words(words: u32) -> u32 {
    row(0, kind::RSP, 0, words)
}

/// The lazy-binding PLT (psABI AMD64, figure 5.3): entry 0 pushes one word more on top of the
/// relocation index that the other entries push in their middle.
fn plt<F: ReadAt + ?Sized>(file: &F, headers: &Headers, add: &mut impl FnMut(u64, u64, u32)) {
    let Some(section) = headers.section(".plt") else {
        return;
    };
    let Ok(bytes) = elf::read_range(
        file,
        section.offset,
        section.size.min(2 * PLT_ENTRY),
        ".plt",
    ) else {
        return;
    };
    let end = section.vaddr.saturating_add(section.size);
    let mut start = section.vaddr;
    let mut entry = bytes.as_slice();
    const PUSH_RIP_RELATIVE: [u8; 2] = [0xff, 0x35];
    if entry.starts_with(&PUSH_RIP_RELATIVE) {
        let pushed = start.saturating_add(6);
        add(start, pushed, words(2));
        start = start.saturating_add(PLT_ENTRY);
        add(pushed, start, words(3));
        entry = entry.get(PLT_ENTRY as usize..).unwrap_or_default();
    }
    const PUSH_IMMEDIATE: u8 = 0x68;
    const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];
    let row = match entry {
        [0xff, 0x25, _, _, _, _, PUSH_IMMEDIATE, ..] => row(0, kind::PLT, 11, 1),
        [a, b, c, d, PUSH_IMMEDIATE, ..] if [*a, *b, *c, *d] == ENDBR64 => row(0, kind::PLT, 9, 1),
        _ => words(1),
    };
    add(start, end, row);
}

/// The virtual addresses of signal trampolines in the gaps.
fn trampolines<F: ReadAt + ?Sized>(
    file: &F,
    headers: &Headers,
    code: &Code,
    gaps: &[(u32, u32)],
) -> Vec<u64> {
    let mut found = Vec::new();
    let mut budget = MAX_SEARCH;
    let overlap = SIGRETURN[0].len() as u64 - 1;
    for &(start, end) in gaps {
        let (mut at, end) = (code.origin + u64::from(start), code.origin + u64::from(end));
        while at < end && budget > 0 {
            let want = CHUNK.min(end - at);
            let Ok(bytes) = headers.read_vaddr(file, at, want) else {
                break;
            };
            for pattern in SIGRETURN {
                let hits = bytes
                    .windows(pattern.len())
                    .enumerate()
                    .filter(|(_, window)| *window == pattern);
                found.extend(hits.map(|(i, _)| at + i as u64));
            }
            budget = budget.saturating_sub(want.max(MIN_READ));
            at += if want == CHUNK { CHUNK - overlap } else { want };
        }
    }
    found
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed test may panic")]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// Zeros, and how often they were read.
    struct Zeros(Cell<u64>);

    impl ReadAt for Zeros {
        fn read_exact_at(&self, buffer: &mut [u8], _: u64) -> std::io::Result<()> {
            buffer.fill(0);
            self.0.set(self.0.get() + 1);
            Ok(())
        }

        fn size(&self) -> std::io::Result<u64> {
            Ok(1 << 32)
        }
    }

    #[test]
    fn reads_of_short_gaps_are_limited() {
        let size = 1 << 24;
        let headers = Headers {
            segments: vec![elf::Segment {
                vaddr: 0,
                offset: 0,
                filesz: size,
                memsz: size,
                exec: true,
            }],
            ..Headers::default()
        };
        let code = Code {
            origin: 0,
            ranges: vec![(0, size as u32)],
        };
        let gaps: Vec<_> = (0..200_000).map(|i| (64 * i, 64 * i + 16)).collect();
        let file = Zeros(Cell::new(0));
        assert!(trampolines(&file, &headers, &code, &gaps).is_empty());
        assert_eq!(file.0.get(), MAX_SEARCH / MIN_READ);
    }
}
