//! Headers with absurd counts, offsets and sizes; notes; links to separate debug files.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use super::image::{
    CODE, E_MACHINE, E_PHNUM, E_PHOFF, E_SHNUM, E_SHOFF, E_SHSTRNDX, E_TYPE, Image, Part, SHT_NOTE,
    Segment, note,
};
use super::{Case, Says};
use crate::harness::Target;

pub(super) const CASES: &[Case] = &[
    Case::new(
        "section count of 2^64",
        "`e_shnum` is 0 and the first header says 2^64-1 sections",
        section_count,
        &[Says::Unnamed("malformed")],
    ),
    Case::new(
        "section headers beyond the end",
        "`e_shoff` is 2^64-64",
        |directory| {
            work()
                .patch(E_SHOFF, &(u64::MAX - 63).to_le_bytes())
                .carried(directory)
        },
        &[Says::Unnamed("malformed")],
    ),
    Case::new(
        "65,535 sections",
        "as many headers as the field can count, nearly all of them zeros",
        |directory| {
            let end = 65_535 * 64 + 0x10000;
            work()
                .patch(E_SHNUM, &[0xff, 0xff])
                .length(end)
                .carried(directory)
        },
        &[Says::Name("work")],
    ),
    Case::new(
        "names of sections beyond the end",
        "`e_shstrndx` is 65,534",
        |directory| work().patch(E_SHSTRNDX, &[0xfe, 0xff]).carried(directory),
        &[Says::Name("work")],
    ),
    Case::new(
        "a gigabyte of section names",
        "`.shstrtab` of 1,000 MB",
        gigabyte_of_names,
        &[Says::Name("work")],
    ),
    Case::new(
        "65,535 segments",
        "`e_phnum` is 65,535 and the table ends before",
        |directory| work().patch(E_PHNUM, &[0xff, 0xff]).carried(directory),
        &[
            Says::Note("program header table lies outside the file"),
            Says::Name("work"),
        ],
    ),
    Case::new(
        "segments beyond the end",
        "`e_phoff` is 2^63",
        |directory| {
            work()
                .patch(E_PHOFF, &(1_u64 << 63).to_le_bytes())
                .carried(directory)
        },
        &[
            Says::Note("program header table lies outside the file"),
            Says::Name("work"),
        ],
    ),
    Case::new(
        "a segment of 2^63 bytes",
        "an executable segment that is larger than the address space",
        |directory| {
            work()
                .segment(Segment::code(0x3000, 1 << 63))
                .carried(directory)
        },
        &[Says::Name("work")],
    ),
    Case::new(
        "overlapping segments",
        "60 executable segments that all lie over each other",
        overlapping_segments,
        &[Says::Unnamed("not_covered")],
    ),
    Case::new(
        "sections of 2^63 bytes",
        "every section says that it has 2^63 bytes",
        huge_sections,
        &[Says::Unnamed("no_symbols")],
    ),
    Case::new(
        "one range, all sections",
        "debug information, unwind information, symbols and names are the same bytes",
        overlapping_sections,
        &[Says::Unnamed("not_covered")],
    ),
    Case::new(
        "another machine",
        "the file says that it is for arm64",
        |directory| work().patch(E_MACHINE, &[183, 0]).carried(directory),
        &[
            Says::Note("ELF machine 183 is not x86-64"),
            Says::Name("work"),
        ],
    ),
    Case::new(
        "another class",
        "the file says that it is a 32-bit one, of the other byte order",
        |directory| work().patch(4, &[1, 2]).carried(directory),
        &[
            Says::Note("not a 64-bit little-endian ELF file"),
            Says::Unnamed("malformed"),
        ],
    ),
    Case::new(
        "a core file",
        "the file's type is none that is ever mapped",
        |directory| work().patch(E_TYPE, &[4, 0]).carried(directory),
        &[Says::Name("work")],
    ),
    Case::new(
        "no ELF file at all",
        "zeros and code",
        |directory| Image::new().patch(0, &[0; 64]).carried(directory),
        &[
            Says::Note("not a 64-bit little-endian ELF file"),
            Says::Unnamed("malformed"),
        ],
    ),
    Case::new(
        "a file of 8 TB",
        "a hole of 8 TB, with the symbol table at its end",
        |directory| {
            let image = Image::named(b"far").part(Part::hole(".data", 8 << 40));
            image.length(9 << 40).carried(directory)
        },
        &[Says::Name("far")],
    ),
    Case::new(
        "a build id of 60 kB",
        "the note is as long as a note section may be",
        |directory| build_id(&[0xab; 60 << 10]).carried(directory),
        &[Says::Name("work")],
    ),
    Case::new(
        "notes without an end",
        "100 note sections of 64 kB, each full of empty notes",
        empty_notes,
        &[Says::Name("work")],
    ),
    Case::new(
        "a note of 4 GB",
        "`n_namesz` and `n_descsz` are 2^32-1",
        |directory| {
            let part = Part::new(".note", [0xff; 64]).kind(SHT_NOTE);
            work().part(part).carried(directory)
        },
        &[Says::Name("work")],
    ),
    Case::new(
        "a debug link to itself",
        "`.gnu_debuglink` names the file itself",
        |directory| linked(b"carried").carried(directory),
        &[Says::Unnamed("no_symbols")],
    ),
    Case::new(
        "a debug link to a pipe",
        "`.gnu_debuglink` names a FIFO, which nobody must open",
        |directory| {
            make_node(directory, "pipe", &["p"]);
            linked(b"pipe").carried(directory)
        },
        &[Says::Unnamed("no_symbols")],
    ),
    Case::new(
        "a debug link to a device",
        "`.gnu_debuglink` leads to `/dev/zero`",
        |directory| {
            symlink("/dev/zero", directory.join("device")).unwrap();
            linked(b"device").carried(directory)
        },
        &[Says::Unnamed("no_symbols")],
    ),
    Case::new(
        "debug links in a circle",
        "`.gnu_debuglink` leads to links that lead to each other",
        |directory| {
            symlink("two", directory.join("one")).unwrap();
            symlink("one", directory.join("two")).unwrap();
            linked(b"one").carried(directory)
        },
        &[Says::Unnamed("no_symbols")],
    ),
    Case::new(
        "a debug file of 8 TB",
        "`.gnu_debuglink` names a hole whose checksum takes for ever",
        endless_debug_file,
        &[Says::Unnamed("gave_up")],
    ),
    Case::new(
        "a debug link out of its directory",
        "`.gnu_debuglink` is `../../../etc/passwd`",
        |directory| linked(b"../../../etc/passwd").carried(directory),
        &[Says::Unnamed("no_symbols")],
    ),
];

/// A file in whose function `work` the target is.
fn work() -> Image {
    Image::named(b"work")
}

fn section_count(directory: &Path) -> Target {
    // The first header is where the file header says: over the code's padding.
    let image = work()
        .patch(E_SHNUM, &[0, 0])
        .patch(E_SHOFF, &0x1800_u64.to_le_bytes());
    image
        .patch(0x1800 + 0x20, &u64::MAX.to_le_bytes())
        .carried(directory)
}

fn gigabyte_of_names(directory: &Path) -> Target {
    // The header of the names' section is the last one, and its size the field at 0x20 of it.
    let path = directory.join("carried");
    let image = work();
    image.write(&path);
    let bytes = fs::read(&path).unwrap();
    let headers = crate::elf::section_headers(&bytes);
    let last = headers.end as u64 - 64;
    let size = (1000_u64 << 20).to_le_bytes();
    image
        .patch(last + 0x20, &size)
        .length(1100 << 20)
        .carried(directory)
}

fn overlapping_segments(directory: &Path) -> Target {
    let segments = (0..59).map(|i| Segment {
        address: CODE - 0x100 * (i % 8),
        memory_size: 0x1000 << i.min(40),
        ..Segment::code(CODE, 0x1000 + 0x800 * i)
    });
    segments
        .fold(work(), Image::segment)
        .length(1 << 20)
        .carried(directory)
}

const NAMES: [&str; 7] = [
    ".debug_info",
    ".debug_abbrev",
    ".debug_line",
    ".debug_str",
    ".eh_frame",
    ".eh_frame_hdr",
    ".gopclntab",
];

fn huge_sections(directory: &Path) -> Target {
    let part = |name| Part::new(name, []).claims(None, 1 << 63);
    let image = NAMES.into_iter().map(part).fold(Image::new(), Image::part);
    let symbols = part(".symtab").kind(super::image::SHT_SYMTAB).link(1);
    image.part(symbols).carried(directory)
}

fn overlapping_sections(directory: &Path) -> Target {
    let part = |name| Part::new(name, []).claims(Some(CODE), 0x1000);
    let image = NAMES.into_iter().map(part).fold(Image::new(), Image::part);
    let symbols = part(".symtab").kind(super::image::SHT_SYMTAB).link(1);
    image.part(symbols).carried(directory)
}

fn build_id(id: &[u8]) -> Image {
    let note = note(b"GNU\0", 3, id);
    work().part(Part::new(".note.gnu.build-id", note).kind(SHT_NOTE))
}

fn empty_notes(directory: &Path) -> Target {
    let part = |_| Part::new(".note", vec![0; 64 << 10]).kind(SHT_NOTE);
    (0..100)
        .map(part)
        .fold(work(), Image::part)
        .carried(directory)
}

/// A file without symbols and with a link to a debug file.
fn linked(name: &[u8]) -> Image {
    let mut link = [name, b"\0"].concat();
    link.resize(link.len().next_multiple_of(4), 0);
    link.extend([1, 2, 3, 4]);
    Image::new().part(Part::new(".gnu_debuglink", link))
}

fn endless_debug_file(directory: &Path) -> Target {
    let path = directory.join("endless");
    Image::new().write(&path);
    let file = File::options().write(true).open(&path).unwrap();
    file.set_len(8 << 40).unwrap();
    linked(b"endless").carried(directory)
}

/// Makes what `mknod` makes.
pub(super) fn make_node(directory: &Path, name: &str, arguments: &[&str]) {
    let status = Command::new("mknod")
        .arg(directory.join(name))
        .args(arguments)
        .status();
    assert!(status.unwrap().success(), "mknod {arguments:?}");
}
