//! Files that are broken in every way still give an answer.

use std::io::Write;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use super::image::{Part, file_header, image, section_header};
use super::*;

/// A small generator of numbers (xorshift), the same on every run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % below as u64) as usize
    }
}

fn name(bytes: &[u8], addresses: &[u64]) -> Vec<Vec<Frame>> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    module(&file, "m", &NoDebugFiles, addresses, &Budget::start())
}

fn mutate(bytes: &[u8], addresses: &[u64], seed: u64, variants: usize) {
    let mut numbers = Numbers(seed);
    let start = Instant::now();
    for _ in 0..variants {
        let mut broken = bytes.to_vec();
        for _ in 0..1 + numbers.next(12) {
            let at = numbers.next(broken.len());
            broken[at] = match numbers.next(4) {
                0 => 0xff,
                1 => 0,
                2 => numbers.next(256) as u8,
                _ => broken[at] ^ (1 << numbers.next(8)),
            };
        }
        if numbers.next(16) == 0 {
            broken.truncate(numbers.next(bytes.len()));
        }
        let begin = Instant::now();
        let named = name(&broken, addresses);
        assert!(begin.elapsed() < Duration::from_secs(5));
        assert_eq!(named.len(), addresses.len());
        assert!(named.iter().all(|frames| !frames.is_empty()));
        for frame in named.iter().flatten() {
            assert_eq!(frame.function.is_none(), frame.unnamed.is_some());
        }
        if start.elapsed() > Duration::from_secs(20) {
            return;
        }
    }
}

#[test]
fn mutated_debug_information() {
    for flags in ["-gdwarf-5", "-gdwarf-4", "-g -gz"] {
        let program = Program::cpp(&format!(
            "g++ -O2 {flags} -shared -fPIC -nostdlib p.cc -o program"
        ));
        let addresses = addresses(&program.path, &["area", "plain_c"], 5);
        mutate(
            &fs::read(&program.path).unwrap(),
            &addresses,
            0x1234_5678_9abc_def1,
            1500,
        );
    }
}

#[test]
fn mutated_mini_debug_info() {
    let program = Program::cpp(
        "g++ -O1 -shared -fPIC -nostdlib p.cc -o program; objcopy --only-keep-debug program mini; xz mini; strip program; objcopy --add-section .gnu_debugdata=mini.xz program",
    );
    mutate(
        &fs::read(&program.path).unwrap(),
        &[0x1000, 0x1100],
        77,
        1000,
    );
}

#[test]
fn every_truncation() {
    let program = Program::cpp("g++ -O2 -g -shared -fPIC -nostdlib p.cc -o program");
    let bytes = fs::read(&program.path).unwrap();
    for length in (0..bytes.len()).step_by(97) {
        let frames = name(&bytes[..length], &[0x1000]);
        assert_eq!(frames.len(), 1);
    }
    assert_eq!(name(&[], &[1])[0][0].unnamed, Some(Unnamed::Malformed));
    assert_eq!(
        name(b"#!/bin/sh\n", &[1])[0][0].unnamed,
        Some(Unnamed::Malformed)
    );
    let directory = File::open("/").unwrap();
    let frames = module(&directory, "m", &NoDebugFiles, &[1], &Budget::start());
    assert_eq!(frames[0][0].unnamed, Some(Unnamed::FileUnavailable));
}

/// Functions inlined into each other tens of thousands of times: no recursion may follow them.
#[test]
fn deep_nesting() {
    let depth = 50_000;
    let open = ".uleb128 2\n.quad f\n.quad 16\n".repeat(depth);
    let close = ".byte 0\n".repeat(depth);
    let source = format!(
        ".globl f\n.type f,@function\nf: .skip 16,0x90\n.size f,16\n.section .debug_abbrev,\"\",@progbits\nab:
.uleb128 1,0x11\n.byte 1\n.uleb128 0x11,1,0x12,7,0,0
.uleb128 2,0x1d\n.byte 1\n.uleb128 0x11,1,0x12,7,0,0
.uleb128 3,0x2e\n.byte 1\n.uleb128 0x11,1,0x12,7,0,0\n.byte 0
.section .debug_info,\"\",@progbits\n.long e-b\nb: .short 4\n.long ab\n.byte 8
.uleb128 1\n.quad f\n.quad 16\n.uleb128 3\n.quad f\n.quad 16\n{open}{close}.byte 0,0\ne:\n"
    );
    let program = build("p.s", &source, "gcc -shared -nostdlib p.s -o program");
    let (at, _, _) = functions(&program.path)
        .into_iter()
        .find(|(_, _, name)| name == "f")
        .unwrap();
    let frames = &program.name(&[at + 3])[0];
    assert_eq!(frames.last().unwrap().function.as_deref(), Some("f"));
    assert!(frames.len() > 100 && frames.len() < 1000);
}

/// An xz stream of gigabytes of zeros and a section that claims to be huge.
#[test]
fn bombs() {
    let program = Program::cpp(
        "g++ -shared -fPIC -nostdlib p.cc -o program; strip program; head -c 300000000 /dev/zero | xz -0 > bomb.xz; objcopy --add-section .gnu_debugdata=bomb.xz program",
    );
    let begin = Instant::now();
    assert_eq!(program.name(&[0x10])[0].len(), 1);
    assert!(begin.elapsed() < Duration::from_secs(10));
}

/// Names of sections that never end.
#[test]
fn section_names_are_cut_before_they_are_searched() {
    const COUNT: u16 = 4000;
    const NAMES: u64 = 1 << 20;
    let end = 64 * (u64::from(COUNT) + 1);
    let header = section_header(0, object::elf::SHT_STRTAB, 0, end, NAMES, 0);
    let mut bytes = file_header(64, COUNT, 1);
    bytes.extend(header.repeat(usize::from(COUNT)));
    bytes.extend(vec![b'x'; NAMES as usize]);
    let begin = Instant::now();
    let elf = Elf::parse(Source::Bytes(decompress::Unpacked::of(bytes))).unwrap();
    assert!(begin.elapsed() < Duration::from_secs(10));
    assert_eq!(elf.sections.len(), usize::from(COUNT));
    assert_eq!(elf.sections[7].name, "x".repeat(64));
}

/// Bytes of files that hold nothing but their first few.
const SPARSE: u64 = 1 << 40;
static NEVER: AtomicBool = AtomicBool::new(false);
static AT_ONCE: AtomicBool = AtomicBool::new(true);

/// A file that starts with these bytes and then is one hole.
fn sparse(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.set_len(SPARSE).unwrap();
    file
}

/// Why the first frame has no name, if naming ends in time.
fn reason(file: &File, debug: &dyn DebugFiles, budget: &Budget) -> Option<Unnamed> {
    let begin = Instant::now();
    let frames = module(file, "m", debug, &[0x1000, 0x2000], budget);
    assert!(begin.elapsed() < Duration::from_secs(10));
    frames[0][0].unnamed
}

#[test]
fn a_symbol_table_of_holes() {
    let mut bytes = file_header(64, 3, 0);
    bytes.extend(section_header(0, object::elf::SHT_STRTAB, 0, 0, 64, 0));
    bytes.extend(section_header(0, object::elf::SHT_STRTAB, 0, 0, 64, 0));
    let size = SPARSE - 4096;
    bytes.extend(section_header(0, object::elf::SHT_SYMTAB, 0, 4096, size, 1));
    let budget = Budget::lasting(Duration::from_millis(200), &NEVER);
    let found = reason(&sparse(&bytes), &NoDebugFiles, &budget);
    assert_eq!(found, Some(Unnamed::GaveUp));
}

#[test]
fn a_debug_file_of_holes() {
    struct Offers(File);
    impl DebugFiles for Offers {
        fn find(
            &self,
            _: &debug_files::Wanted<'_>,
            accept: &mut dyn FnMut(&File) -> bool,
        ) -> Option<File> {
            assert!(!accept(&self.0));
            None
        }
    }
    let link = Part::new(".gnu_debuglink", b"x\0\0\0\x01\x02\x03\x04".to_vec());
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&image(&[link])).unwrap();
    let offers = Offers(sparse(&image(&[])));
    let budget = Budget::lasting(Duration::from_millis(200), &NEVER);
    assert_eq!(reason(&file, &offers, &budget), Some(Unnamed::GaveUp));
}

#[test]
fn a_used_up_budget_leaves_the_rest_without_names() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&image(&[])).unwrap();
    let hour = Duration::from_secs(3600);
    for (time, given_up, expected) in [
        (hour, &NEVER, Unnamed::NoSymbols),
        (Duration::ZERO, &NEVER, Unnamed::GaveUp),
        (hour, &AT_ONCE, Unnamed::GaveUp),
    ] {
        let budget = Budget::lasting(time, given_up);
        assert_eq!(reason(&file, &NoDebugFiles, &budget), Some(expected));
    }
}

/// Debug information that unpacks to a thousand times its size.
#[test]
fn a_packed_section_that_asks_for_too_much() {
    let zeros = vec![0; 2 << 20];
    let mut packed = Vec::new();
    for field in [1_u64, zeros.len() as u64, 1] {
        packed.extend(field.to_le_bytes());
    }
    let mut encoder = flate2::write::ZlibEncoder::new(packed, flate2::Compression::default());
    encoder.write_all(&zeros).unwrap();
    let mut info = Part::new(".debug_info", encoder.finish().unwrap());
    info.flags = u64::from(object::elf::SHF_COMPRESSED);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&image(&[info])).unwrap();
    let found = reason(&file, &NoDebugFiles, &Budget::start());
    assert_eq!(found, Some(Unnamed::GaveUp));
}
