//! Makes the inputs that fuzzing starts from, of real files: `cargo xtask fuzz` runs this.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use agent_ebpf::record;

use crate::bundle::Form;
use crate::bundle::zip::Writer;
use crate::capture::{Capture, SCHEMA};
use crate::elf::{self, Headers};
use crate::output::Format;
use crate::output::fixture::{self, capture};

/// A program with a frame of each kind, as small as compilers make it.
const C: &str = "
__attribute__((noinline)) static int leaf(int x) { volatile int y = x; return y * 3; }
static inline int mid(int x) { return leaf(x) + leaf(x + 1); }
__attribute__((noinline)) int wide(int x) { volatile char b[x + 16]; b[x] = 1; return mid(x) + b[x]; }
void _start(void) { wide(7); __asm__ volatile(\"mov $60, %eax\\n xor %edi, %edi\\n syscall\"); }
";
/// Symbols in the forms that demanglers know.
const SYMBOLS: [&str; 9] = [
    "_ZN4deep2er5Shape4areaEl",
    "_ZNSt6vectorIiSaIiEE9push_backERKi",
    "_ZZ4mainENKUlvE_clEv",
    "_ZN3foo3barINS_3BazILi3EEEEEvT_DpS2_",
    "_ZSt9__invokeIRZ3fooiEUlT_E_JiEENSt15__invoke_resultIS1_JDpT0_EE4typeEOS1_DpOS5_",
    "_RNvCs1234_7mycrate3foo",
    "_RINvNtC3std3mem8align_ofNtNtC3std3mem12DiscriminantE",
    "_ZN4core3fmt9Formatter3pad17h0123456789abcdefE",
    "memcpy@@GLIBC_2.14",
];

struct Seeds(PathBuf);

impl Seeds {
    fn put(&self, target: &str, name: &str, bytes: &[u8]) {
        let directory = self.0.join(target);
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join(name), bytes).unwrap();
    }
}

#[test]
#[ignore = "it writes files, for `cargo xtask fuzz`"]
fn seeds_are_written() {
    let Some(directory) = std::env::var_os("FUZZ_SEEDS") else {
        return;
    };
    let seeds = Seeds(directory.into());
    captures(&seeds);
    texts(&seeds);
    records(&seeds);
    btf(&seeds);
    programs(&seeds);
}

fn captures(seeds: &Seeds) {
    let (mut whole, mut interval) = (capture::capture(), capture::capture());
    whole.connections.drain(..30);
    whole.syscalls.drain(..30);
    interval.connections.truncate(1);
    interval.syscalls.truncate(1);
    let hostile = Capture {
        profile: fixture::hostile(),
        ..Capture::default()
    };
    for (name, mut capture) in [
        ("whole", whole),
        ("interval", interval),
        ("hostile", hostile),
    ] {
        capture.meta.schema = SCHEMA.into();
        let form = |form: Form| form.render(&capture).unwrap();
        let documents = [
            ("meta.json", Form::Meta),
            ("profile.json", Form::Profile(Format::Json)),
            ("connections.json", Form::Connections),
            ("syscalls.json", Form::Syscalls),
        ];
        let mut writer = Writer::new(Vec::new(), 0);
        for (entry, document) in documents {
            writer.add(entry, &form(document)).unwrap();
        }
        seeds.put("zip", name, &writer.finish().unwrap());
        let bytes = documents.map(|(_, document)| form(document)).join(&0);
        seeds.put("bundle", name, &bytes);
        seeds.put("folded", name, &form(Form::Profile(Format::Folded)));
        let packed = form(Form::Profile(Format::Pprof));
        let mut unpacked = Vec::new();
        std::io::copy(
            &mut flate2::read::GzDecoder::new(packed.as_slice()),
            &mut unpacked,
        )
        .unwrap();
        seeds.put("pprof", name, &unpacked);
        seeds.put("pprof", &format!("{name}.gz"), &packed);
    }
    let empty = fixture::empty();
    seeds.put(
        "folded",
        "empty",
        &crate::output::render(Format::Folded, &empty).unwrap(),
    );
    seeds.put(
        "folded",
        "marks",
        b"a;b_[k];c 3\nmain;run;x y 12\t4\n\n# c over 3 s at 9 Hz\na 1\n",
    );
}

fn texts(seeds: &Seeds) {
    for (index, symbol) in SYMBOLS.iter().enumerate() {
        seeds.put("demangle", &index.to_string(), symbol.as_bytes());
    }
    let maps = "00400000-00401000 r-xp 00000000 08:02 173521 /usr/bin/a (deleted)\n\
        7ffd1000-7ffd3000 r-xp 00000000 00:00 0                  [vdso]\n";
    seeds.put("maps", "maps", maps.as_bytes());
    seeds.put("maps", "stat", &fs::read("/proc/self/stat").unwrap());
    let perf = "10 10 LazyCompile:*f /a/b.js:3:4\n1000 20 JS:~g x.js:1:2\n0x1000 8 py::h:/p.py\n\
        7f0000000000 ff _ZN1a1bEv\nffffffffffffff00 ff end\n";
    seeds.put("perf_map", "jit", perf.as_bytes());
    let kernel = "0000000000000010 T a\nffffffff81000000 t b\t[mod]\nffffffff81000000 D c\n";
    seeds.put("kallsyms", "kernel", kernel.as_bytes());
}

/// A record of each kind that the kernel programs send, as long as it is.
fn records(seeds: &Seeds) {
    let lengths = [
        (record::STACK, 48 + 24),
        (record::SAMPLE, 40),
        (record::REPEAT, 16),
        (record::FORK, 24),
        (record::EXEC, 24),
        (record::EXIT, 24),
        (record::TCP, size_of::<agent_ebpf::connection::Report>()),
        (
            record::TCP_REQUESTS,
            size_of::<agent_ebpf::exchange::Batch>(),
        ),
        (record::DEFERRED, 2048 + 64),
        (record::SYSCALL, 112 + 40),
        (record::SYSCALL_STACK, 48 + 24),
    ];
    let mut all = Vec::new();
    for (kind, length) in lengths {
        let mut bytes = vec![0; length];
        bytes[..4].copy_from_slice(&kind.to_ne_bytes());
        bytes[4..8].copy_from_slice(&1u32.to_ne_bytes());
        if matches!(kind, record::STACK | record::SYSCALL_STACK) {
            bytes[44..46].copy_from_slice(&1u16.to_ne_bytes());
            bytes[46..48].copy_from_slice(&2u16.to_ne_bytes());
        }
        let framed = [&(length as u16).to_le_bytes()[..], &bytes].concat();
        seeds.put("records", &kind.to_string(), &framed);
        all.extend(framed);
    }
    seeds.put("records", "all", &all);
    // A walk: registers, rows that lead on, a stack of return addresses.
    let mut walk = vec![0, 16, 0, 0, 0, 64];
    walk.resize(22 + 2, 0);
    for _ in 0..8 {
        walk.extend_from_slice(&1u32.to_le_bytes());
    }
    for _ in 0..32 {
        walk.extend_from_slice(&0x40_0010_u64.to_le_bytes());
    }
    seeds.put("unwind_step", "plain", &walk);
}

/// The BTF of this kernel's smallest modules, and the first types of the kernel's own.
fn btf(seeds: &Seeds) {
    let Ok(entries) = fs::read_dir("/sys/kernel/btf") else {
        return;
    };
    for entry in entries.flatten() {
        let bytes = fs::read(entry.path()).unwrap_or_default();
        if bytes.len() < 16 << 10 {
            seeds.put("btf", &entry.file_name().to_string_lossy(), &bytes);
        }
    }
    let mut small = vec![0x9f, 0xeb, 1, 0, 24, 0, 0, 0];
    let words: [u32; 16] = [
        0,
        36,
        36,
        8,
        1,
        4 << 24 | 2,
        16,
        5,
        2,
        0,
        0,
        2,
        64,
        5,
        4 << 24,
        0,
    ];
    small.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    small.truncate(24 + 36);
    small.extend_from_slice(b"\0pid\0ns\0");
    seeds.put("btf", "small", &small);
}

/// Compiled programs, whole and in sections.
fn programs(seeds: &Seeds) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("p.c");
    fs::write(&path, C).unwrap();
    let flags = [
        "-g -O1",
        "-g -O2 -gdwarf-4 -gz",
        "-O2 -fno-asynchronous-unwind-tables",
        "-g -gdwarf-5 -O0",
    ];
    for (index, flags) in flags.iter().enumerate() {
        let program = compile(directory.path(), flags);
        let bytes = fs::read(&program).unwrap();
        let name = format!("c{index}");
        seeds.put("unwind_table", &name, &bytes);
        seeds.put("symbolize", &name, &bytes);
        seeds.put("debug_info", &name, &debug_sections(&bytes));
        seeds.put("cfi", &name, &section(&bytes, ".eh_frame"));
        seeds.put("sweep", &name, &section(&bytes, ".text"));
        streams(seeds, &name, &section(&bytes, ".text"), directory.path());
    }
    let libc = fs::read("/lib/x86_64-linux-gnu/libc.so.6").unwrap_or_default();
    let part = section(&libc, ".eh_frame");
    seeds.put("cfi", "libc", part.get(..8 << 10).unwrap_or_default());
    let part = section(&libc, ".text");
    seeds.put("sweep", "libc", part.get(..8 << 10).unwrap_or_default());
    for magic in [0xffff_fff0_u32, 0xffff_fff1] {
        seeds.put("gopclntab", &format!("{magic:x}"), &go_table(magic));
    }
}

fn compile(directory: &Path, flags: &str) -> PathBuf {
    let done = Command::new("cc")
        .args(flags.split(' '))
        .args([
            "-nostdlib",
            "-Wl,-Ttext=0x1000",
            "-static",
            "-Wl,-z,noseparate-code,--build-id",
            "-o",
            "program",
            "p.c",
        ])
        .current_dir(directory)
        .status();
    assert!(done.unwrap().success(), "cc {flags}");
    directory.join("program")
}

/// A table of two Go functions, in the layout of Go 1.18 or 1.20.
pub(super) fn go_table(magic: u32) -> Vec<u8> {
    let names = b"main.main\0runtime.goexit\0".to_vec();
    let steps = vec![0, 2, 0x10, 4, 0x20, 0, 0, 0];
    let parts = [names, vec![0; 4], b"a.go\0".to_vec(), steps];
    let record = |entry: u32, name: u32| {
        [
            entry, name, 0, 0, 1, 1, 1, 3, 0, 7, 0, 4, 1, 1, 1, 0, 0, 0, 0,
        ]
    };
    let (first, second) = (record(0, 0), record(0x40, 10));
    let start = 4 * 5;
    let mut functions = vec![0, start, 0x40, start + 4 * first.len() as u32, 0x80];
    functions.extend(first.iter().chain(&second));
    let functions: Vec<u8> = functions
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    let mut table = magic.to_le_bytes().to_vec();
    table.extend_from_slice(&[0, 0, 1, 8]);
    let mut at = 72;
    let mut header = vec![2, 1, super::image::BASE];
    for part in &parts {
        header.push(at);
        at += part.len() as u64;
    }
    header.push(at);
    table.extend(header.iter().flat_map(|word| word.to_le_bytes()));
    [table, parts.concat(), functions].concat()
}

fn section(image: &[u8], name: &str) -> Vec<u8> {
    let found = Headers::read(image).ok().and_then(|headers| {
        let section = headers.section(name)?;
        elf::read_range(image, section.offset, section.size, "section").ok()
    });
    found.unwrap_or_default()
}

/// As the target `debug_info` takes them apart.
fn debug_sections(image: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    for name in super::DEBUG_SECTIONS {
        let bytes = section(image, name);
        all.extend_from_slice(&(bytes.len() as u16).to_le_bytes());
        all.extend_from_slice(&bytes);
    }
    all
}

/// The bytes in the three formats that sections and MiniDebugInfo come in.
fn streams(seeds: &Seeds, name: &str, bytes: &[u8], directory: &Path) {
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    zlib.write_all(bytes).unwrap();
    fs::write(directory.join("plain"), bytes).unwrap();
    let packed = |program: &str| {
        let done = Command::new(program)
            .args(["-c", "plain"])
            .current_dir(directory)
            .output();
        done.ok().map(|output| output.stdout)
    };
    let zstd =
        ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest);
    let streams = [zlib.finish().ok(), Some(zstd), packed("xz")];
    for (method, stream) in streams.into_iter().enumerate() {
        let mut seed = vec![method as u8];
        seed.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        seed.extend(stream.unwrap_or_default());
        seeds.put("decompress", &format!("{name}.{method}"), &seed);
    }
}
