//! What the fuzz targets reach of naming, beside its public functions.

use super::clock::{Budget, Clock};
use super::debug_files::Wanted;
use super::decompress::{self, Memory, Method, Packed};
use super::demangle::{self, MAX_NAME};
use super::source::Source;
use super::{DebugFiles, go};
use crate::elf::ReadAt;
use std::fs::File;

/// The module itself, whatever is looked for: a separate debug file that refers to itself.
pub(crate) struct Itself<'a>(pub(crate) &'a File);

impl DebugFiles for Itself<'_> {
    fn find(&self, _: &Wanted<'_>, accept: &mut dyn FnMut(&File) -> bool) -> Option<File> {
        let file = self.0.try_clone().ok()?;
        accept(&file).then_some(file)
    }
}

/// The name for people and the one of debug information.
pub(crate) fn names(name: &str) {
    for shown in [
        demangle::demangle(demangle::without_version(name)),
        demangle::shorten(demangle::source_name(name)),
    ] {
        assert!(shown.len() <= MAX_NAME);
    }
}

/// Unpacks one stream in one of the three formats, as if it held `size` bytes.
pub(crate) fn unpack(file: &File, method: u8, size: u64) {
    static MEMORY: Memory = Memory::new(64 << 20);
    let Some(source) = Source::file(file) else {
        return;
    };
    let budget = Budget::start();
    let clock = Clock::for_details(&budget);
    let packed = || Packed::new(&source, 0, source.len());
    let unpacked = match method % 3 {
        0 => decompress::section(Method::Zlib, packed(), size, &MEMORY, &clock),
        1 => decompress::section(Method::Zstd, packed(), size, &MEMORY, &clock),
        _ => {
            let bytes = source.read(0, source.len(), source.len());
            decompress::mini_debug_info(&bytes.unwrap_or_default(), &MEMORY, &clock)
        }
    };
    if let Ok(unpacked) = unpacked
        && method % 3 < 2
    {
        assert_eq!(unpacked.len() as u64, size);
    }
}

/// The functions of a Go program at these addresses.
pub(crate) fn go_sites<F: ReadAt + ?Sized>(file: &F, addresses: &[u64]) {
    let Some(table) = go::Table::open(file) else {
        return;
    };
    for &address in addresses {
        let _ = table.sites(address);
    }
}
