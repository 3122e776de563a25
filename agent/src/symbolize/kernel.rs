//! Names of kernel addresses, from the text of `/proc/kallsyms`.

use std::io::{BufRead, BufReader, Read};

use super::demangle;
use crate::profile::{Frame, Space, Unnamed};

/// Bytes read at a time: the kernel formats a buffer's worth per call.
const BUFFER: usize = 1 << 16;
/// Longest line, in bytes: kernel names have at most 511.
const MAX_LINE: u64 = 4096;
/// A symbol has no size: what begins so far before an address does not cover it.
const REACH: u64 = 64 << 10;
/// As [`REACH`], of what the kernel makes up while it runs: a page for each trampoline and for the
/// instructions that kprobes have displaced.
const REACH_OF_PAGE: u64 = 4096;
/// Where the kernel's text and that of its start end: what follows is no code, up to the next symbol.
const ENDS: [&str; 2] = ["_etext", "_einittext"];

/// Names kernel addresses, which are in ascending order, from the lines of `/proc/kallsyms`
/// (`address type name [module]`; proc_kallsyms is not ordered). One frame per address; its
/// module is `[kernel]` or the name of the kernel module in brackets.
///
/// The symbols are not kept: one pass finds the nearest start before each address. It names the
/// address unless it is too far away to be what covers it: programs and modules may have been
/// unloaded, and what comes before their place is another's. Symbols that
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
        let symbol = last.as_ref().filter(|symbol| symbol.covers(*address));
        vec![frame(*address, symbol, reason)]
    };
    addresses.iter().zip(nearest).map(name).collect()
}

#[derive(Clone)]
struct Symbol {
    start: u64,
    /// How far it goes at most, in bytes.
    reach: u64,
    name: String,
    module: String,
}

impl Symbol {
    fn of((start, name, module): (u64, &str, Option<&str>)) -> Self {
        Symbol {
            start,
            reach: match module {
                None if ENDS.contains(&name) => 0,
                Some("[bpf]") if is_trampoline(name) => REACH_OF_PAGE,
                Some(module) if module.starts_with("[__builtin__") => REACH_OF_PAGE,
                _ => REACH,
            },
            name: demangle::demangle(name),
            module: module.unwrap_or("[kernel]").to_owned(),
        }
    }

    /// Whether an address that does not come before it can be its.
    fn covers(&self, address: u64) -> bool {
        address - self.start < self.reach
    }
}

/// Whether this is code that only leads to BPF programs.
fn is_trampoline(name: &str) -> bool {
    name.starts_with("bpf_trampoline_") || name.starts_with("bpf_dispatcher_")
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
    fn what_no_symbol_covers_has_no_name() {
        let text = "\
ffffffff81000000 T _stext
ffffffff8209f000 T last_function
ffffffff82209988 T _etext
ffffffff83783000 T _sinittext
ffffffff837f8900 t last_of_the_start
ffffffff837f8910 T _einittext
ffffffffc0201000 t ftrace_trampoline\t[__builtin__ftrace]
ffffffffc0203000 t bpf_trampoline_6442\t[bpf]
ffffffffc0210040 t bpf_prog_6deef7357e7b4530_sd_devices\t[bpf]
ffffffffc0400000 t ext4_map\t[ext4]
";
        let name = |address: u64| names(text, &[address]).remove(0).0.unwrap_or_default();
        // Far from any symbol in the text, behind its end, and behind that of the start.
        assert_eq!(name(0xffff_ffff_8108_0000), "");
        assert_eq!(name(0xffff_ffff_8209_f123), "last_function");
        assert_eq!(name(0xffff_ffff_8220_9988), "");
        assert_eq!(name(0xffff_ffff_8220_9a00), "");
        assert_eq!(name(0xffff_ffff_837f_890f), "last_of_the_start");
        assert_eq!(name(0xffff_ffff_837f_8920), "");
        assert_eq!(name(0xffff_ffff_c000_0000), "");
        // A page for each trampoline.
        assert_eq!(name(0xffff_ffff_c020_1fff), "ftrace_trampoline");
        assert_eq!(name(0xffff_ffff_c020_2000), "");
        assert_eq!(name(0xffff_ffff_c020_3010), "bpf_trampoline_6442");
        assert_eq!(name(0xffff_ffff_c020_4000), "");
        let program = "bpf_prog_6deef7357e7b4530_sd_devices";
        assert_eq!(name(0xffff_ffff_c021_1000), program);
        assert_eq!(name(0xffff_ffff_c022_0040), "");
        assert_eq!(name(0xffff_ffff_c040_ffff), "ext4_map");
        assert_eq!(name(0xffff_ffff_c041_0000), "");
        let frame = &kernel(text.as_bytes(), &[0xffff_ffff_c041_0000])[0][0];
        assert_eq!(frame.unnamed, Some(Unnamed::NotCovered));
        assert_eq!(frame.module.as_deref(), Some("[kernel]"));
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
