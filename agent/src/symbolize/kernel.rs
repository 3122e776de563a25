//! Names of kernel addresses, from the text of `/proc/kallsyms`.

use std::io::{BufRead, BufReader, Read};

use super::demangle;
use crate::profile::{Frame, Space, Unnamed};

/// Bytes read at a time: the kernel formats a buffer's worth per call.
const BUFFER: usize = 1 << 16;
/// Longest line, in bytes: kernel names have at most 511.
const MAX_LINE: u64 = 4096;

/// Names kernel addresses, which are in ascending order, from the lines of `/proc/kallsyms`
/// (`address type name [module]`; proc_kallsyms is not ordered). One frame per address; its
/// module is `[kernel]` or the name of the kernel module in brackets.
///
/// The symbols are not kept: one pass finds the nearest start before each address. Symbols that
/// the kernel shows with address zero (`kernel.kptr_restrict`) leave the frames as
/// [`Unnamed::KernelHidden`].
pub fn kernel(kallsyms: impl Read, addresses: &[u64]) -> Vec<Vec<Frame>> {
    let mut nearest: Vec<Option<Symbol>> = vec![None; addresses.len()];
    let mut lines = 0_u64;
    let mut shown = false;
    for_each_line(kallsyms, |line| {
        let Some(symbol) = parse(line) else { return };
        lines += 1;
        shown |= symbol.0 != 0;
        let first = addresses.partition_point(|&address| address < symbol.0);
        if let Some(slot) = nearest.get_mut(first)
            && slot.as_ref().is_none_or(|slot| slot.start < symbol.0)
            && symbol.0 != 0
        {
            *slot = Some(Symbol::of(symbol));
        }
    });
    let reason = match (lines, shown) {
        (0, _) => Unnamed::NoSymbols,
        (_, false) => Unnamed::KernelHidden,
        (_, true) => Unnamed::NotCovered,
    };
    let mut last = None;
    let name = |(address, slot): (&u64, Option<Symbol>)| {
        last = slot.or(last.take());
        vec![frame(*address, last.as_ref(), reason)]
    };
    addresses.iter().zip(nearest).map(name).collect()
}

#[derive(Clone)]
struct Symbol {
    start: u64,
    name: String,
    module: String,
}

impl Symbol {
    fn of((start, name, module): (u64, &str, Option<&str>)) -> Self {
        Symbol {
            start,
            name: demangle::demangle(name),
            module: module.unwrap_or("[kernel]").to_owned(),
        }
    }
}

/// Address, name and module of a line that names code.
fn parse(line: &str) -> Option<(u64, &str, Option<&str>)> {
    let mut fields = line.split_ascii_whitespace();
    let address = u64::from_str_radix(fields.next()?, 16).ok()?;
    let kind = fields.next()?;
    let name = fields.next()?;
    matches!(kind, "t" | "T" | "w" | "W").then(|| (address, name, fields.next()))
}

fn for_each_line(reader: impl Read, mut visit: impl FnMut(&str)) {
    let mut reader = BufReader::with_capacity(BUFFER, reader);
    let mut line = Vec::new();
    loop {
        line.clear();
        match reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        if let Ok(line) = std::str::from_utf8(&line) {
            visit(line);
        }
    }
}

fn frame(address: u64, symbol: Option<&Symbol>, reason: Unnamed) -> Frame {
    let module = symbol.map_or("[kernel]", |symbol| &symbol.module);
    Frame {
        function: symbol.map(|symbol| symbol.name.clone()),
        unnamed: symbol.is_none().then_some(reason),
        ..Frame::at(Space::Kernel, Some(module.to_owned()), address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
ffffffff81000000 T _stext
ffffffff81000100 D some_data
ffffffffc0000000 t ext4_map\t[ext4]
garbage
ffffffff81000200 T do_syscall_64
ffffffff81000080 t early
";

    fn names(text: &str, addresses: &[u64]) -> Vec<(Option<String>, Option<String>)> {
        kernel(text.as_bytes(), addresses)
            .into_iter()
            .flatten()
            .map(|frame| (frame.function, frame.module))
            .collect()
    }

    #[test]
    fn the_nearest_start_before_an_address_names_it() {
        let found = names(
            TEXT,
            &[
                0xffff_ffff_8000_0000,
                0xffff_ffff_8100_0000,
                0xffff_ffff_8100_007f,
                0xffff_ffff_8100_0150,
                0xffff_ffff_8100_0200,
                0xffff_ffff_8100_0201,
                0xffff_ffff_c000_0010,
            ],
        );
        let functions: Vec<_> = found.iter().map(|(name, _)| name.as_deref()).collect();
        let expected = [
            None,
            Some("_stext"),
            Some("_stext"),
            Some("early"),
            Some("do_syscall_64"),
            Some("do_syscall_64"),
            Some("ext4_map"),
        ];
        assert_eq!(functions, expected);
        assert_eq!(found[6].1.as_deref(), Some("[ext4]"));
        assert_eq!(found[1].1.as_deref(), Some("[kernel]"));
    }

    #[test]
    fn hidden_addresses_are_told_from_missing_ones() {
        let reason = |text: &str| kernel(text.as_bytes(), &[1 << 63])[0][0].unnamed;
        assert_eq!(
            reason("0000000000000000 T a\n0000000000000000 t b\n"),
            Some(Unnamed::KernelHidden)
        );
        assert_eq!(reason(""), Some(Unnamed::NoSymbols));
        assert_eq!(reason("ffffffff81000000 T a\n"), Some(Unnamed::NotCovered));
    }
}
