//! Call frame information, Go's function table, and instructions to read rules from.

use std::path::Path;

use super::image::{CODE, CODE_SIZE, E_SHOFF, Image, Part, Segment};
use super::{Case, Says};
use crate::harness::Target;

/// Where the section with the rules is said to be mapped.
const FRAMES: u64 = 0x10_0000;

const MALFORMED: Says = Says::Note("malformed entries of .eh_frame");

pub(super) const CASES: &[Case] = &[
    Case::new(
        "entries that are their own CIE",
        "each FDE's pointer leads back to itself",
        |directory| frames(entry(4, &[0; 20]).repeat(1000)).carried(directory),
        &[MALFORMED, Says::Name("work")],
    ),
    Case::new(
        "a CIE of 100 MB",
        "initial instructions without an end, mostly a hole",
        giant_cie,
        &[Says::Name("work")],
    ),
    Case::new(
        "a section of 900 MB",
        "`.eh_frame` is a hole of 900 MB",
        |directory| {
            let part = Part::hole(".eh_frame", 900 << 20).at(FRAMES);
            Image::named(b"work").part(part).carried(directory)
        },
        &[
            Says::Note(".eh_frame takes 943718400 bytes"),
            Says::Name("work"),
        ],
    ),
    Case::new(
        "rules that only a segment leads to",
        "no section headers; `PT_GNU_EH_FRAME` leads into a segment of 8 TB",
        |directory| {
            // Version 1, a relative pointer to `.eh_frame`, no table.
            let header = [&[1, 0x1b, 0xff, 0xff][..], &0x100_u32.to_le_bytes()].concat();
            Image::new()
                .part(Part::new(".eh_frame_hdr", header))
                .segment(Segment::code(0x2000, 8 << 40))
                .segment(Segment {
                    kind: 0x6474_e550,
                    ..Segment::code(0x2000, 8)
                })
                .patch(E_SHOFF, &[0; 8])
                .length(9 << 40)
                .carried(directory)
        },
        &[Says::Unnamed("no_symbols")],
    ),
    Case::new(
        "a million functions at one place",
        "a million FDEs, each of the whole code",
        |directory| {
            let entries = |i: usize| fde(cie().len() + 32 * i, CODE, 1 << 30, &[0; 3]);
            let entries = (0..1_000_000).flat_map(entries);
            frames(cie().into_iter().chain(entries).collect()).carried(directory)
        },
        &[Says::Name("work")],
    ),
    Case::new(
        "four million short functions",
        "an FDE for every 16 bytes of 64 MB of code",
        many_functions,
        &[Says::Name("work")],
    ),
    Case::new(
        "rules without an end",
        "16 MB of instructions that never advance, for one function",
        |directory| {
            let remember = vec![0x0a; 16 << 20];
            let entry = fde(cie().len(), CODE, CODE_SIZE, &remember);
            frames([cie(), entry].concat()).carried(directory)
        },
        &[MALFORMED, Says::Name("work")],
    ),
    Case::new(
        "a rule for every byte",
        "16 MB of instructions that advance by one byte and change the rule",
        |directory| {
            let rows = [0x41, 0x0e, 8, 0x41, 0x0e, 16].repeat(16 << 18);
            let entry = fde(cie().len(), CODE, 1 << 31, &rows);
            frames([cie(), entry].concat())
                .segment(Segment::code(CODE, 1 << 31))
                .length(1 << 32)
                .carried(directory)
        },
        &[Says::Name("work")],
    ),
    Case::new(
        "64-bit lengths",
        "an entry of 2^64-1 bytes",
        |directory| frames([[0xff; 12].to_vec(), vec![0; 64]].concat()).carried(directory),
        &[MALFORMED, Says::Name("work")],
    ),
    Case::new(
        "expressions in a circle",
        "the CFA is an expression that jumps back to its own start",
        |directory| {
            // DW_CFA_def_cfa_expression of DW_OP_skip -3.
            let entry = fde(cie().len(), CODE, CODE_SIZE, &[0x0f, 3, 0x2f, 0xfd, 0xff]);
            frames([cie(), entry].concat()).carried(directory)
        },
        &[Says::End("unsupported_rule"), Says::Name("work")],
    ),
    Case::new(
        "a CFA that does not move",
        "the caller's frame is said to be this one",
        |directory| {
            // DW_CFA_def_cfa rsp, 0; DW_CFA_same_value ra.
            let entry = fde(cie().len(), CODE, CODE_SIZE, &[0x0c, 7, 0, 0x08, 16]);
            frames([cie(), entry].concat()).carried(directory)
        },
        &[Says::End("unsupported_rule"), Says::Name("work")],
    ),
    Case::new(
        "jumps everywhere",
        "16 MB of code that is nothing but conditional jumps, and no rules",
        jumps,
        &[Says::Name("work")],
    ),
    Case::new(
        "a function table of 2^62 functions",
        "`.gopclntab` says so, and where its parts are: beyond the end",
        |directory| {
            let mut table = go_header(1 << 62);
            table.extend([u64::MAX / 2; 5].iter().flat_map(|part| part.to_le_bytes()));
            go(table).carried(directory)
        },
        &[Says::Unnamed("no_symbols")],
    ),
    Case::new(
        "a function table without depths",
        "`.gopclntab` with 100,000 functions that share one list of depths without an end",
        go_depths,
        &[Says::Name("liar")],
    ),
    Case::new(
        "a function table of 900 MB",
        "`.gopclntab` is a hole behind its header",
        |directory| {
            let mut table = go_header(10_000_000);
            table.extend([72_u64; 5].iter().flat_map(|part| part.to_le_bytes()));
            let part = Part::new(".gopclntab", table).claims(None, 900 << 20);
            let image = Image::new().part(part).length(1000 << 20);
            image.carried(directory)
        },
        &[Says::Unnamed("no_symbols")],
    ),
];

/// A named file with this `.eh_frame`.
fn frames(bytes: Vec<u8>) -> Image {
    Image::named(b"work").part(Part::new(".eh_frame", bytes).at(FRAMES))
}

/// An entry with this id and these bytes.
fn entry(id: u32, bytes: &[u8]) -> Vec<u8> {
    let length = 4 + bytes.len() as u32;
    [&length.to_le_bytes()[..], &id.to_le_bytes(), bytes].concat()
}

/// A CIE without augmentation: absolute addresses; CFA = rsp + 8, return address at CFA - 8.
fn cie() -> Vec<u8> {
    entry(0, &[1, 0, 1, 0x78, 16, 0x0c, 7, 8, 0x90, 1, 0, 0])
}

/// An FDE at an offset of the section whose CIE is its first entry.
fn fde(offset: usize, start: u64, length: u64, instructions: &[u8]) -> Vec<u8> {
    let mut bytes = [start.to_le_bytes(), length.to_le_bytes()].concat();
    bytes.extend(instructions);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    entry(offset as u32 + 4, &bytes)
}

fn giant_cie(directory: &Path) -> Target {
    let length: u32 = 100 << 20;
    let mut head = cie();
    head[..4].copy_from_slice(&length.to_le_bytes());
    let part = Part::new(".eh_frame", head)
        .at(FRAMES)
        .claims(None, 101 << 20);
    let image = Image::named(b"work").part(part).length(110 << 20);
    image.carried(directory)
}

fn many_functions(directory: &Path) -> Target {
    let mut bytes = cie();
    for i in 0..4 << 20_u64 {
        bytes.extend(fde(bytes.len(), CODE + 16 * i, 16, &[]));
    }
    let image = frames(bytes).segment(Segment::code(CODE, 64 << 20));
    image.length(200 << 20).carried(directory)
}

fn jumps(directory: &Path) -> Target {
    // je +7, at every other byte: each has a target of its own.
    let code = [0x74, 0x07].repeat(8 << 20);
    let at = 0x2000;
    Image::new()
        .part(Part::new(".text.jumps", code).flags(6).at(at))
        .segment(Segment::code(at, 16 << 20))
        .symbols(super::image::symbol(1).to_vec(), b"\0work\0")
        .carried(directory)
}

/// The start of a table of Go 1.20 up to the offsets of its parts; code starts at [`CODE`].
fn go_header(functions: u64) -> Vec<u8> {
    let mut header = 0xffff_fff1_u32.to_le_bytes().to_vec();
    header.extend([0, 0, 1, 8]);
    for field in [functions, 0, CODE] {
        header.extend(field.to_le_bytes());
    }
    header
}

fn go(table: Vec<u8>) -> Image {
    let size = table.len() as u64;
    // In a segment, since the runtime reads the start of the code through memory.
    Image::new()
        .part(Part::new(".gopclntab", table).at(0x2000))
        .segment(Segment {
            flags: 4,
            ..Segment::code(0x2000, size)
        })
}

fn go_depths(directory: &Path) -> Target {
    let functions: u64 = 100_000;
    let (names, depths, functab) = (72_u64, 80_u64, 80 + (1 << 20));
    let mut table = go_header(functions);
    for part in [names, 0, 0, depths, functab] {
        table.extend(part.to_le_bytes());
    }
    table.extend(b"liar\0\0\0\0");
    // The depth goes up and down by one, every byte.
    table.extend([2, 1, 1, 1].repeat(1 << 18));
    let record = 8 * functions as u32 + 8;
    for i in 0..=functions as u32 {
        table.extend((16 * i).to_le_bytes());
        table.extend(record.to_le_bytes());
    }
    // Entry, name, arguments, deferreturn, depths, …
    for field in [0_u32, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0] {
        table.extend(field.to_le_bytes());
    }
    go(table)
        .segment(Segment::code(CODE, 0x1000))
        .carried(directory)
}
