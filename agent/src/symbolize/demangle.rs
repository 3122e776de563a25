//! From linker names to readable ones.

use std::fmt;

use cpp_demangle::{DemangleOptions, ParseOptions, Symbol};

/// Longest name that is given out, in bytes.
pub(super) const MAX_NAME: usize = 4096;
/// How deep a C++ name may nest.
const MAX_DEPTH: u32 = 96;

/// The name as a programmer wrote it: C++ with parameters, Rust without the hash; anything else
/// (C, Go) as it is. At most [`MAX_NAME`] bytes, ending in `…` if there were more.
pub(super) fn demangle(name: &str) -> String {
    if name.len() <= 2 * MAX_NAME
        && let Some(name) = rust(name).or_else(|| cpp(name))
    {
        return name;
    }
    shorten(name.to_owned())
}

/// A name as debug information has it. GCC's integer types are spelled there as its messages
/// spell them (`long unsigned int`); here as the demangler does.
pub(super) fn source_name(name: &str) -> String {
    const SPELLINGS: [(&str, &str); 7] = [
        ("long long unsigned int", "unsigned long long"),
        ("long long int", "long long"),
        ("long unsigned int", "unsigned long"),
        ("long int", "long"),
        ("short unsigned int", "unsigned short"),
        ("short int", "short"),
        ("__int128 unsigned", "unsigned __int128"),
    ];
    let mut name = name.to_owned();
    for (from, to) in SPELLINGS {
        if name.contains(from) {
            name = replace_words(&name, from, to);
        }
    }
    name
}

fn replace_words(text: &str, from: &str, to: &str) -> String {
    let is_word = |byte: Option<&u8>| {
        byte.is_some_and(|&byte| byte == b'_' || byte >= 0x80 || byte.is_ascii_alphanumeric())
    };
    let bytes = text.as_bytes();
    let mut replaced = String::with_capacity(text.len());
    let mut copied = 0;
    for (start, found) in text.match_indices(from) {
        let end = start + found.len();
        let before = start.checked_sub(1).and_then(|before| bytes.get(before));
        if !is_word(before) && !is_word(bytes.get(end)) {
            replaced.push_str(&text[copied..start]);
            replaced.push_str(to);
            copied = end;
        }
    }
    replaced.push_str(&text[copied..]);
    replaced
}

/// The name of a symbol without the version that linkers put behind it: `memcpy@@GLIBC_2.14`.
pub(super) fn without_version(symbol: &str) -> &str {
    match symbol.split_once('@') {
        Some((name, version)) if !name.is_empty() && version != "plt" => name,
        _ => symbol,
    }
}

/// Cuts a name that is longer than [`MAX_NAME`].
pub(super) fn shorten(mut name: String) -> String {
    if name.len() > MAX_NAME {
        let mut end = MAX_NAME - '…'.len_utf8();
        while !name.is_char_boundary(end) {
            end -= 1;
        }
        name.truncate(end);
        name.push('…');
    }
    name
}

fn rust(name: &str) -> Option<String> {
    let symbol = rustc_demangle::try_demangle(name).ok()?;
    bounded(|out| fmt::write(out, format_args!("{symbol:#}")))
}

fn cpp(name: &str) -> Option<String> {
    if !name.starts_with("_Z") {
        return None;
    }
    let options = ParseOptions::default().recursion_limit(MAX_DEPTH);
    let symbol = Symbol::new_with_options(name.as_bytes(), &options).ok()?;
    let options = DemangleOptions::default().recursion_limit(MAX_DEPTH);
    bounded(|out| symbol.structured_demangle(out, &options))
}

/// Collects what is written, up to the limit: a short mangled name can stand for a very long one.
fn bounded(write: impl FnOnce(&mut Bounded) -> fmt::Result) -> Option<String> {
    let mut out = Bounded(String::new());
    match write(&mut out) {
        Err(_) if out.0.len() <= MAX_NAME => None,
        _ => Some(shorten(out.0)),
    }
}

struct Bounded(String);

impl fmt::Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.push_str(text);
        if self.0.len() > MAX_NAME {
            return Err(fmt::Error);
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed test may panic")]
mod tests {
    use super::*;

    #[test]
    fn every_language() {
        assert_eq!(demangle("main"), "main");
        assert_eq!(demangle("main.(*Server).Serve"), "main.(*Server).Serve");
        assert_eq!(demangle("_ZN3foo3barEi"), "foo::bar(int)");
        assert_eq!(demangle("_Z3foov.cold"), "foo() [clone .cold]");
        assert_eq!(
            demangle("_ZN4core3fmt9Formatter3pad17h0123456789abcdefE"),
            "core::fmt::Formatter::pad"
        );
        assert_eq!(
            demangle("_RNvNtCs1234_7mycrate3foo3bar"),
            "mycrate::foo::bar"
        );
        assert_eq!(demangle("_Zgarbage"), "_Zgarbage");
    }

    #[test]
    fn spellings_of_the_source() {
        let name = "f<long unsigned int, short int, my_long int, unsigned int>";
        assert_eq!(
            source_name(name),
            "f<unsigned long, short, my_long int, unsigned int>"
        );
        assert_eq!(source_name("operator long long int"), "operator long long");
    }

    #[test]
    fn versions_are_dropped() {
        assert_eq!(without_version("memcpy@@GLIBC_2.14"), "memcpy");
        assert_eq!(without_version("memcpy@GLIBC_2.2.5"), "memcpy");
        assert_eq!(without_version("malloc@plt"), "malloc@plt");
        assert_eq!(without_version("@"), "@");
    }

    #[test]
    fn long_names_are_cut() {
        let cut = demangle(&"é".repeat(9000));
        assert!(cut.len() <= MAX_NAME && cut.ends_with('…'));
    }

    #[test]
    fn short_names_for_long_ones_are_cut() {
        // Each substitution doubles what stands before it.
        let mut pairs = String::from("1a");
        for _ in 0..40 {
            pairs = format!("St4pairI{pairs}S0_E");
        }
        assert!(demangle(&format!("_Z1f{pairs}")).len() <= MAX_NAME);
    }
}
