//! Debug information with circles, without ends, and packed a thousand to one.

use std::io::Write;
use std::process::{Command, Stdio};

use super::image::{CODE, CODE_SIZE, Image, Part, SHF_COMPRESSED};
use super::{Case, Says};

/// Tags, attributes and forms (DWARF 5, section 7.5).
const COMPILE_UNIT: u64 = 0x11;
const SUBPROGRAM: u64 = 0x2e;
const INLINED: u64 = 0x1d;
const IMPORTED_UNIT: u64 = 0x3d;
const NAME: u64 = 0x03;
const STMT_LIST: u64 = 0x10;
const LOW_PC: u64 = 0x11;
const HIGH_PC: u64 = 0x12;
const IMPORT: u64 = 0x18;
const ABSTRACT_ORIGIN: u64 = 0x31;
const SPECIFICATION: u64 = 0x47;
const RANGES: u64 = 0x55;
const ADDR: u64 = 0x01;
const DATA8: u64 = 0x07;
const STRING: u64 = 0x08;
const STRP: u64 = 0x0e;
const REF_ADDR: u64 = 0x10;
const REF4: u64 = 0x13;
const SEC_OFFSET: u64 = 0x17;
const STRX: u64 = 0x1a;
/// Bytes of a unit's header, and of its first entry.
const HEADER: u32 = 11;
const ROOT: u32 = 17;

pub(super) const CASES: &[Case] = &[
    Case::new(
        "a function whose origin is itself",
        "`DW_AT_abstract_origin` leads to its own entry",
        |directory| {
            let function = [&[2][..], &range(), &(HEADER + ROOT).to_le_bytes()].concat();
            described(&[(ABSTRACT_ORIGIN, REF4)], function).carried(directory)
        },
        &[Says::Unnamed("not_covered")],
    ),
    Case::new(
        "specifications in a circle",
        "`DW_AT_specification` of two entries lead to each other",
        |directory| {
            let first = HEADER + ROOT;
            let function = |other: u32| [&[2][..], &range(), &other.to_le_bytes()].concat();
            let both = [function(first + 21), function(first)].concat();
            described(&[(SPECIFICATION, REF4)], both).carried(directory)
        },
        &[Says::Unnamed("not_covered")],
    ),
    Case::new(
        "20,000 origins",
        "each entry's origin is the next one",
        |directory| {
            let function = |i: u32| {
                let next = HEADER + ROOT + 21 * (i + 1);
                [&[2][..], &range(), &next.to_le_bytes()].concat()
            };
            let all = (0..20_000).flat_map(function).collect();
            described(&[(ABSTRACT_ORIGIN, REF4)], all).carried(directory)
        },
        &[Says::Unnamed("not_covered")],
    ),
    Case::new(
        "a unit that imports itself",
        "`DW_TAG_imported_unit` leads to the unit that it stands in",
        |directory| {
            let abbreviation = abbreviation(3, IMPORTED_UNIT, false, &[(IMPORT, REF_ADDR)]);
            let entries = [&[3, 0, 0, 0, 0][..], &named_function(b"imported")].concat();
            unit(&[(NAME, STRING)], &abbreviation, entries).carried(directory)
        },
        &[Says::Name("imported")],
    ),
    Case::new(
        "an abbreviation of a million attributes",
        "its entry takes 16 MB",
        |directory| {
            let attributes = vec![(0x2000, DATA8); 1_000_000];
            let wide = abbreviation(3, SUBPROGRAM, false, &attributes);
            let entries = [named_function(b"narrow"), vec![3], vec![0; 8_000_000]].concat();
            unit(&[(NAME, STRING)], &wide, entries).carried(directory)
        },
        &[Says::Unnamed("gave_up")],
    ),
    Case::new(
        "ten million abbreviations",
        "a table of 80 MB",
        |directory| {
            let one = |code| abbreviation(code, SUBPROGRAM, false, &[]);
            let table: Vec<u8> = (3..10_000_000).flat_map(one).collect();
            unit(&[(NAME, STRING)], &table, named_function(b"late")).carried(directory)
        },
        &[Says::Unnamed("gave_up")],
    ),
    Case::new(
        "functions inlined 200,000 deep",
        "each entry lies in the one before",
        |directory| {
            let inlined = abbreviation(3, INLINED, true, &[(LOW_PC, ADDR), (HIGH_PC, DATA8)]);
            let open = [&[3][..], &range()].concat().repeat(200_000);
            let function = [&[4][..], &range(), b"outermost\0"].concat();
            let outer = [(LOW_PC, ADDR), (HIGH_PC, DATA8), (NAME, STRING)];
            let outer = abbreviation(4, SUBPROGRAM, true, &outer);
            let entries = [function, open, vec![0; 200_000]].concat();
            unit(&[(NAME, STRING)], &[inlined, outer].concat(), entries).carried(directory)
        },
        &[Says::Name("outermost")],
    ),
    Case::new(
        "a million units",
        "each as short as a unit can be",
        |directory| {
            let one = [8_u32.to_le_bytes(), [4, 0, 0, 0], [0, 0, 8, 0]].concat();
            let image = Image::new().part(Part::new(".debug_abbrev", [0; 16]));
            image
                .part(Part::new(".debug_info", one.repeat(1_000_000)))
                .carried(directory)
        },
        &[Says::Unnamed("gave_up")],
    ),
    Case::new(
        "a unit of 2^64 bytes",
        "its length is 2^64-1",
        |directory| {
            let info = [vec![0xff; 12], vec![5, 0, 1, 8, 0, 0, 0, 0], vec![1; 64]].concat();
            Image::named(b"work")
                .part(Part::new(".debug_info", info))
                .carried(directory)
        },
        &[Says::Name("work")],
    ),
    Case::new(
        "strings beyond the end",
        "`DW_FORM_strp` of 2^32-16",
        |directory| {
            let name = 0xffff_fff0_u32.to_le_bytes();
            let function = [&[2][..], &range(), &name].concat();
            described(&[(NAME, STRP)], function).carried(directory)
        },
        &[Says::Unnamed("not_covered")],
    ),
    Case::new(
        "string indices beyond the end",
        "`DW_FORM_strx` of 2^60, without a table of offsets",
        |directory| {
            let function = [&[2][..], &range(), &uleb(1 << 60)].concat();
            described(&[(NAME, STRX)], function).carried(directory)
        },
        &[Says::Unnamed("not_covered")],
    ),
    Case::new(
        "an index of names beyond the end",
        "`.debug_names` counts 2^32-1 names; the agent does not use it",
        |directory| {
            let index = Part::new(".debug_names", [0xff; 64]);
            unit(&[(NAME, STRING)], &[], named_function(b"found"))
                .part(index)
                .carried(directory)
        },
        &[Says::Name("found")],
    ),
    Case::new(
        "a name of 10 MB",
        "`DW_AT_name` in place",
        |directory| {
            unit(&[(NAME, STRING)], &[], named_function(&[b'n'; 10 << 20])).carried(directory)
        },
        &[Says::OneOf(&[
            Says::Name("nnnnnnnn"),
            Says::Unnamed("gave_up"),
        ])],
    ),
    Case::new(
        "ranges without an end",
        "`.debug_ranges` of 200 MB for one function",
        |directory| {
            let ranges = [1_u64.to_le_bytes(), 2_u64.to_le_bytes()]
                .concat()
                .repeat(12 << 20);
            let abbreviation = abbreviation(3, SUBPROGRAM, false, &[(RANGES, SEC_OFFSET)]);
            let entries = [&[3, 0, 0, 0, 0][..], &named_function(b"other")].concat();
            unit(&[(NAME, STRING)], &abbreviation, entries)
                .part(Part::new(".debug_ranges", ranges))
                .carried(directory)
        },
        &[Says::Name("other")],
    ),
    Case::new(
        "address ranges without an end",
        "`.debug_aranges` of 200 MB, each range over everything",
        |directory| {
            let head = [
                &[0xff; 4][..],
                &(200_u64 << 20).to_le_bytes(),
                &[2, 0],
                &[0; 8],
                &[8, 0],
            ];
            let mut ranges = head.concat();
            ranges.resize(32, 0);
            ranges.extend(
                [0x1000_u64.to_le_bytes(), 1_u64.to_le_bytes()]
                    .concat()
                    .repeat(12 << 20),
            );
            Image::new()
                .part(Part::new(".debug_info", [0; 64]))
                .part(Part::new(".debug_aranges", ranges))
                .carried(directory)
        },
        &[Says::Unnamed("not_covered")],
    ),
    Case::new(
        "a line program without an end",
        "200 MB of instructions that add no row",
        |directory| lines(4, &[0, 0], &vec![6; 200 << 20]).carried(directory),
        &[Says::Name("lined")],
    ),
    Case::new(
        "a million rows a second",
        "100 MB of rows for one address",
        |directory| {
            let program = [&[0, 9, 2][..], &CODE.to_le_bytes(), &[1; 100 << 20]].concat();
            lines(4, &[0, 0], &program).carried(directory)
        },
        &[Says::Name("lined")],
    ),
    Case::new(
        "a million source files",
        "the header of a line program as large as it may be, of empty names",
        |directory| {
            let count = 900_000;
            let files = [
                &[1, 1, 8, 1, 0][..],
                &[1, 1, 8],
                &uleb(count),
                &vec![0; count as usize],
            ];
            lines(5, &files.concat(), &[]).carried(directory)
        },
        &[Says::Unnamed("gave_up")],
    ),
    Case::new(
        "sections of 7 GB",
        "all sections of debug information are holes of 7 GB",
        |directory| {
            let names = [
                "info",
                "abbrev",
                "addr",
                "aranges",
                "line",
                "line_str",
                "ranges",
                "rnglists",
                "str",
                "str_offsets",
            ];
            let part = |name| Part::hole(&format!(".debug_{name}"), 7 << 30);
            names
                .into_iter()
                .map(part)
                .fold(Image::new(), Image::part)
                .carried(directory)
        },
        &[Says::Unnamed("not_covered")],
    ),
    Case::new(
        "a zlib bomb",
        "a packed section that says it holds 4 GB",
        |directory| packed(1, 4 << 30, zlib(1)).carried(directory),
        &[Says::Unnamed("gave_up")],
    ),
    Case::new(
        "zlib bombs of an honest ratio",
        "four packed sections of 450 MB each, packed 45 to one as real ones are not",
        |directory| {
            let stream = zlib(450);
            let part = |name| compressed(name, 1, 450 << 20, stream.clone());
            let names = [
                ".debug_info",
                ".debug_abbrev",
                ".debug_aranges",
                ".debug_line",
            ];
            names
                .into_iter()
                .map(part)
                .fold(Image::new(), Image::part)
                .carried(directory)
        },
        &[Says::Unnamed("gave_up")],
    ),
    Case::new(
        "a Zstandard bomb",
        "32 kB that unpack to a gigabyte",
        |directory| packed(2, 1 << 30, zstd(0x58, 8192)).carried(directory),
        &[Says::Unnamed("gave_up")],
    ),
    Case::new(
        "a Zstandard window of 2 TB",
        "the frame asks for a window of 2 TB for a section of 1 MB",
        |directory| packed(2, 1 << 20, zstd(0xf8, 8)).carried(directory),
        &[Says::Unnamed("not_covered")],
    ),
    Case::new(
        "an xz bomb",
        "MiniDebugInfo that unpacks to 300 MB of zeros",
        |directory| mini(xz(300 << 20)).carried(directory),
        &[Says::Unnamed("gave_up")],
    ),
    Case::new(
        "an xz dictionary of 4 GB",
        "MiniDebugInfo whose filter asks for it",
        |directory| {
            let mut stream = xz(1 << 20);
            // The stream's header is 12 bytes; size, flags, filter, length; the dictionary.
            let at = if stream[13] & 0xc0 == 0 { 16 } else { 20 };
            stream[at] = 40;
            mini(stream).carried(directory)
        },
        &[Says::Unnamed("gave_up")],
    ),
    Case::new(
        "a supplementary file that is itself",
        "`.gnu_debugaltlink` names the file, by its own build id",
        |directory| {
            let id = super::image::note(b"GNU\0", 3, &[7; 20]);
            let link = [&b"carried\0"[..], &[7; 20]].concat();
            unit(&[(NAME, STRING)], &[], named_function(b"own"))
                .part(Part::new(".note.gnu.build-id", id).kind(super::image::SHT_NOTE))
                .part(Part::new(".gnu_debugaltlink", link))
                .carried(directory)
        },
        &[Says::Name("own")],
    ),
];

fn uleb(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

fn abbreviation(code: u64, tag: u64, children: bool, attributes: &[(u64, u64)]) -> Vec<u8> {
    let mut bytes = [uleb(code), uleb(tag), vec![children.into()]].concat();
    for &(name, form) in attributes {
        bytes.extend(uleb(name));
        bytes.extend(uleb(form));
    }
    bytes.extend([0, 0]);
    bytes
}

/// `DW_AT_low_pc` and `DW_AT_high_pc` of the code.
fn range() -> Vec<u8> {
    [CODE.to_le_bytes(), CODE_SIZE.to_le_bytes()].concat()
}

/// An entry of abbreviation 2, if its further attribute is a name in place.
fn named_function(name: &[u8]) -> Vec<u8> {
    [&[2][..], &range(), name, b"\0"].concat()
}

/// A unit that covers the code. Abbreviation 2 is that of functions, with bounds and `further`
/// attributes; `abbreviations` are more of them.
fn unit(further: &[(u64, u64)], abbreviations: &[u8], entries: Vec<u8>) -> Image {
    let root = [(LOW_PC, ADDR), (HIGH_PC, DATA8)];
    with_root(&root, &[], further, abbreviations, entries)
}

fn described(further: &[(u64, u64)], entries: Vec<u8>) -> Image {
    unit(further, &[], entries)
}

fn with_root(
    root: &[(u64, u64)],
    values: &[u8],
    further: &[(u64, u64)],
    abbreviations: &[u8],
    entries: Vec<u8>,
) -> Image {
    let function = [&[(LOW_PC, ADDR), (HIGH_PC, DATA8)], further].concat();
    let table = [
        abbreviation(1, COMPILE_UNIT, true, root),
        abbreviation(2, SUBPROGRAM, false, &function),
        abbreviations.to_vec(),
        vec![0],
    ];
    let body = [&[1][..], &range(), values, &entries, &[0]].concat();
    let length = HEADER - 4 + body.len() as u32;
    let header = [&length.to_le_bytes()[..], &[4, 0, 0, 0, 0, 0, 8]].concat();
    Image::new()
        .part(Part::new(".debug_abbrev", table.concat()))
        .part(Part::new(".debug_info", [header, body].concat()))
}

/// A function `lined` in a unit with a line program; `files` are its tables of names.
fn lines(version: u8, files: &[u8], program: &[u8]) -> Image {
    let mut rest = vec![1, 1, 1, 0xfb, 14, 13];
    rest.extend([0, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 1]);
    rest.extend(files);
    let mut head = vec![version, 0];
    if version == 5 {
        head.extend([8, 0]);
    }
    head.extend((rest.len() as u32).to_le_bytes());
    let length = (head.len() + rest.len() + program.len()) as u32;
    let program = [&length.to_le_bytes(), &head[..], &rest, program].concat();

    let root = [(LOW_PC, ADDR), (HIGH_PC, DATA8), (STMT_LIST, SEC_OFFSET)];
    let function = named_function(b"lined");
    with_root(&root, &[0; 4], &[(NAME, STRING)], &[], function)
        .part(Part::new(".debug_line", program))
}

/// A packed section (gABI, `Elf64_Chdr`).
fn compressed(name: &str, method: u32, size: u64, stream: Vec<u8>) -> Part {
    let mut bytes = [method.to_le_bytes(), [0; 4]].concat();
    bytes.extend(size.to_le_bytes());
    bytes.extend(1_u64.to_le_bytes());
    bytes.extend(stream);
    Part::new(name, bytes).flags(SHF_COMPRESSED)
}

fn packed(method: u32, size: u64, stream: Vec<u8>) -> Image {
    Image::new().part(compressed(".debug_info", method, size, stream))
}

/// So many megabytes that pack 45 to one: one is packed, and the result repeated, which a full
/// flush allows (RFC 1951: no block refers to what is before it).
fn zlib(megabytes: usize) -> Vec<u8> {
    let mut plain = vec![0_u8; 1 << 20];
    let mut state = 1_u32;
    for place in plain.iter_mut().step_by(80) {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *place = (state >> 24) as u8;
    }
    let mut deflate = flate2::Compress::new(flate2::Compression::best(), false);
    let mut block = Vec::with_capacity(1 << 20);
    deflate
        .compress_vec(&plain, &mut block, flate2::FlushCompress::Full)
        .unwrap();
    let ratio = plain.len() / block.len();
    assert!((20..50).contains(&ratio), "packed {ratio} to one");
    [
        &[0x78, 0xda][..],
        &block.repeat(megabytes),
        &[3, 0, 0, 0, 0, 1],
    ]
    .concat()
}

/// A frame of blocks of 128 kB that are each one byte (RFC 8878, 3.1.1.2).
fn zstd(window: u8, blocks: u32) -> Vec<u8> {
    let mut frame = 0xfd2f_b528_u32.to_le_bytes().to_vec();
    frame.extend([0, window]);
    for block in 0..blocks {
        let last = u32::from(block + 1 == blocks);
        let header = last | 1 << 1 | (128 << 10) << 3;
        frame.extend(&header.to_le_bytes()[..3]);
        frame.push(0);
    }
    frame
}

/// So many zeros, packed.
fn xz(size: u64) -> Vec<u8> {
    let mut xz = Command::new("xz")
        .args(["-0", "--check=crc32"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("xz is installed by `cargo xtask setup`");
    let mut input = xz.stdin.take().unwrap();
    let writer = std::thread::spawn(move || {
        let piece = vec![0; 1 << 20];
        for _ in 0..size >> 20 {
            input.write_all(&piece).unwrap();
        }
    });
    let output = xz.wait_with_output().unwrap();
    writer.join().unwrap();
    output.stdout
}

fn mini(stream: Vec<u8>) -> Image {
    Image::new().part(Part::new(".gnu_debugdata", stream))
}
