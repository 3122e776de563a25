//! The kept inputs of the fuzzer, and small changes of them, without the fuzzer.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::cell::Cell;
use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::Once;

use super::image::{self, Image};
use super::{TARGETS, seeds};
use crate::elf::Headers;
use crate::unwind;

thread_local! {
    /// Panics of this thread, those too that the parsers catch.
    static PANICS: Cell<u32> = const { Cell::new(0) };
}

fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            PANICS.set(PANICS.get() + 1);
            before(info);
        }));
    });
}

/// Whether the target runs through without a panic.
fn survives(target: fn(&[u8]), bytes: &[u8]) -> bool {
    let before = PANICS.get();
    let _ = panic::catch_unwind(AssertUnwindSafe(|| target(bytes)));
    PANICS.get() == before
}

fn directory(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz/corpus")
        .join(target)
}

fn kept(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(directory(target)).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
        .into_iter()
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect()
}

#[test]
fn a_panic_is_noticed_where_it_is_caught_too() {
    count_panics();
    fn caught(_: &[u8]) {
        let _ = panic::catch_unwind(|| panic!("on purpose"));
    }
    assert!(!survives(caught, &[]));
    assert!(survives(|_| {}, &[]));
}

#[test]
fn every_kept_input_is_survived() {
    count_panics();
    for (name, target) in TARGETS {
        let inputs = kept(name);
        assert!(!inputs.is_empty(), "{name} has no inputs");
        for (path, bytes) in inputs {
            assert!(survives(*target, &bytes), "{}", path.display());
        }
    }
}

#[test]
fn cut_and_changed_inputs_are_survived() {
    count_panics();
    for (name, target) in TARGETS {
        for (path, bytes) in kept(name).into_iter().step_by(16) {
            let half = bytes.len() / 2;
            let mut changed = bytes.clone();
            for place in changed.iter_mut().step_by(61) {
                *place ^= 0x81;
            }
            let twice = [bytes.as_slice(), &bytes].concat();
            for bytes in [&bytes[..half], &changed, &twice] {
                assert!(survives(*target, bytes), "changed: {}", path.display());
            }
        }
    }
}

#[test]
fn every_target_survives_nothing_and_noise() {
    count_panics();
    let noise: Vec<u8> = (0..4096u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    for (name, target) in TARGETS {
        assert!(survives(*target, &[]), "{name}");
        assert!(survives(*target, &noise), "{name}");
    }
}

#[test]
fn every_target_has_a_program() {
    let programs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/fuzz_targets");
    let mut files: Vec<_> = fs::read_dir(programs)
        .unwrap()
        .map(|entry| {
            entry
                .unwrap()
                .path()
                .file_stem()
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    files.sort();
    assert!(files.iter().eq(TARGETS.iter().map(|(name, _)| name)));
}

#[test]
fn the_images_lead_the_parsers_to_their_sections() {
    let code = [0x55, 0x48, 0x89, 0xe5, 0x5d, 0xc3];
    let table = seeds::go_table(0xffff_fff1);
    let image = Image::new(&[(".text", &code), (".gopclntab", &table)]);
    let image = image.in_memory(1 << 16).bytes();
    let table = unwind::build_from_bytes(&image).unwrap();
    assert_eq!(table.module.base, image::BASE);
    // The rows of the first 256 bytes: the functions' depths, which no sweep over six bytes gives.
    let rows = table.blocks[0][0] & 0xff;
    assert!(rows >= 4, "{rows} rows");
    let headers = Headers::read(image.as_slice()).unwrap();
    let names: Vec<_> = headers
        .sections
        .iter()
        .map(|section| section.name.as_str())
        .collect();
    assert_eq!(names, ["", ".text", ".gopclntab", ".shstrtab"]);
}
