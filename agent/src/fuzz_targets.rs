//! What the fuzzer calls: each parser of outside input as a function of bytes, with what must hold of
//! its result. The programs are in `fuzz/`; a unit test runs the kept inputs through the same functions.
//!
//! A target must not panic, whatever the bytes, nor take long, nor more memory than a small multiple of them.

mod image;
mod records;
#[cfg(test)]
mod seeds;
mod table;
#[cfg(test)]
mod tests;
mod walk;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use crate::bundle::zip::{Archive, Writer};
use crate::bundle::{self, Form};
use crate::output::{Format, text::Paths};
use crate::session::btf::Offsets;
use crate::symbolize::{self, Budget};
use crate::{elf, input, process};
use image::Image;

/// A target: its name, which is that of its program and of its corpus, and what it runs.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: &[Target] = &[
    ("btf", btf),
    ("bundle", bundle),
    ("cfi", cfi),
    ("debug_info", debug_info),
    ("decompress", decompress),
    ("demangle", demangle),
    ("folded", folded),
    ("gopclntab", gopclntab),
    ("kallsyms", kallsyms),
    ("maps", maps),
    ("perf_map", perf_map),
    ("pprof", pprof),
    ("records", records),
    ("sweep", sweep),
    ("symbolize", symbolize),
    ("unwind_step", unwind_step),
    ("unwind_table", unwind_table),
    ("zip", zip),
];

/// An `.eh_frame` section of a file with 64 KiB of code: CFI to rows.
pub fn cfi(bytes: &[u8]) {
    let image = Image::new(&[(".text", &[0xcc]), (".eh_frame", bytes)]);
    table::check(&image.in_memory(1 << 16).bytes());
}

/// Instructions without unwind information.
pub fn sweep(bytes: &[u8]) {
    table::check(&Image::new(&[(".text", bytes)]).bytes());
}

/// An ELF file: its unwind table.
pub fn unwind_table(bytes: &[u8]) {
    table::check(bytes);
    let segments = segments_of(bytes);
    for segment in segments.iter().take(16) {
        let _ = elf::bias(0x7f00_0000_0000, segment.offset & !0xfff, &segments);
    }
}

fn segments_of(bytes: &[u8]) -> Vec<elf::Segment> {
    elf::segments(bytes).unwrap_or_default()
}

/// `.gopclntab`, for unwinding and for names.
pub fn gopclntab(bytes: &[u8]) {
    let image = Image::new(&[(".text", &[0xcc]), (".gopclntab", bytes)]);
    let image = image.in_memory(1 << 16).bytes();
    table::check(&image);
    let addresses: Vec<u64> = (0..32).map(|i| image::BASE + i * 8).collect();
    symbolize::fuzz::go_sites(image.as_slice(), &addresses);
}

/// An ELF file: the names of addresses in it, it being its own separate debug file too.
pub fn symbolize(bytes: &[u8]) {
    let mut addresses = vec![0, 0x1000, u64::MAX];
    for segment in segments_of(bytes).iter().take(4) {
        let step = (segment.memsz / 8).max(1);
        addresses.extend((0..9).map(|i| segment.vaddr.wrapping_add(i * step)));
    }
    name(bytes, addresses);
}

/// The sections of debug information, in the order of the input.
const DEBUG_SECTIONS: [&str; 9] = [
    ".debug_info",
    ".debug_abbrev",
    ".debug_str",
    ".debug_line",
    ".debug_line_str",
    ".debug_ranges",
    ".debug_rnglists",
    ".debug_addr",
    ".debug_str_offsets",
];

/// Sections of debug information, each behind its length, of a file with a page of code.
pub fn debug_info(bytes: &[u8]) {
    let code = [0xcc; 4096];
    let mut sections = vec![(".text", code.as_slice())];
    let mut rest = bytes;
    for name in DEBUG_SECTIONS {
        let Some((length, after)) = rest.split_first_chunk() else {
            break;
        };
        let length = usize::from(u16::from_le_bytes(*length)).min(after.len());
        let (section, after) = after.split_at(length);
        sections.push((name, section));
        rest = after;
    }
    let addresses = (0..32).map(|i| image::BASE + i * 8).collect();
    name(&Image::new(&sections).bytes(), addresses);
}

fn name(image: &[u8], mut addresses: Vec<u64>) {
    addresses.sort_unstable();
    addresses.dedup();
    let Some(file) = file_of(image) else { return };
    let debug = symbolize::fuzz::Itself(&file);
    let frames = symbolize::module(&file, "module", &debug, &addresses, &Budget::start());
    assert_eq!(frames.len(), addresses.len());
    assert!(frames.iter().all(|frames| !frames.is_empty()));
}

/// A compressed section or MiniDebugInfo: the format, the unpacked size (4 bytes), the stream.
pub fn decompress(bytes: &[u8]) {
    if let Some((&[method, a, b, c, _], stream)) = bytes.split_first_chunk()
        && let Some(file) = file_of(stream)
    {
        symbolize::fuzz::unpack(&file, method, u32::from_le_bytes([a, b, c, 0]).into());
    }
}

/// A symbol.
pub fn demangle(bytes: &[u8]) {
    symbolize::fuzz::names(&String::from_utf8_lossy(bytes));
}

/// A perf map.
pub fn perf_map(bytes: &[u8]) {
    let Some(file) = file_of(bytes) else { return };
    let addresses = [0, 1, 0x10, 0x1000, 0x1010, 0x7f00_0000_0000, u64::MAX];
    assert_eq!(
        symbolize::perf_map(&file, &addresses, &Budget::start()).len(),
        addresses.len()
    );
}

/// `/proc/kallsyms`.
pub fn kallsyms(bytes: &[u8]) {
    let addresses = [0, 1, 0x10, 0xffff_ffff_8100_0000, u64::MAX];
    assert_eq!(symbolize::kernel(bytes, &addresses).len(), addresses.len());
}

/// `/proc/PID/maps` and `/proc/PID/stat`.
pub fn maps(bytes: &[u8]) {
    for map in process::maps::read(bytes).unwrap_or_default().maps {
        let _ = map.name();
    }
    let _ = process::parse_stat(bytes);
}

/// Kernel BTF.
pub fn btf(bytes: &[u8]) {
    let wanted = ["task_struct.tgid", "pid.level", "upid.ns", "a.b", "s.", "."];
    if let Ok(offsets) = Offsets::read(bytes, &wanted) {
        for path in wanted {
            let _ = offsets.of(path);
        }
    }
}

/// Records of the ring buffer and of perf's side band.
pub fn records(bytes: &[u8]) {
    records::take(bytes);
}

/// Rows, extended rules, registers and memory of any content.
pub fn unwind_step(bytes: &[u8]) {
    walk::steps(bytes);
    walk::deferred(bytes);
}

/// Folded stacks.
pub fn folded(bytes: &[u8]) {
    if std::str::from_utf8(bytes).is_ok() {
        let _ = input::read_bytes(bytes);
    }
}

/// A pprof profile, packed or not.
pub fn pprof(bytes: &[u8]) {
    if !bytes.starts_with(b"PK") {
        let _ = input::read_bytes(bytes);
    }
}

/// An archive.
pub fn zip(bytes: &[u8]) {
    let _ = input::read_bytes(bytes);
    if let Ok(mut archive) = Archive::open(bytes, 1 << 20) {
        let names = archive.names().count();
        assert!(names <= 1 << 16);
        let _ = archive.read("meta.json");
    }
}

/// The documents of a bundle, a zero byte between them; what is read can be written in every form.
pub fn bundle(bytes: &[u8]) {
    let names = [
        "meta.json",
        "profile.json",
        "connections.json",
        "syscalls.json",
    ];
    let mut documents = bytes.splitn(names.len(), |&byte| byte == 0);
    let mut writer = Writer::new(Vec::new(), 0);
    for name in names {
        let document = documents.next().unwrap_or_default();
        assert!(writer.add(name, document).is_ok());
    }
    let Ok(archive) = writer.finish() else { return };
    let _ = input::read_bytes(&archive);
    let Ok(capture) = bundle::read(&archive) else {
        return;
    };
    let _ = Paths::new(&capture.profile).iter().count();
    let formats = Format::ALL.map(Form::Profile);
    let documents = [
        Form::Markdown,
        Form::Page,
        Form::Connections,
        Form::Syscalls,
        Form::Meta,
    ];
    for form in formats.into_iter().chain(documents) {
        assert!(form.render(&capture).is_ok(), "{form:?} cannot be written");
    }
}

/// A file without a name that holds the bytes; `None` where the system has no room for it.
fn file_of(bytes: &[u8]) -> Option<File> {
    let directories = ["/dev/shm".into(), std::env::temp_dir()];
    let mut file = directories.into_iter().find_map(|directory| {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_TMPFILE);
        options.open(directory).ok()
    })?;
    file.write_all(bytes).ok()?;
    Some(file)
}
