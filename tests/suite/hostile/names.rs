//! Symbol tables, and the names in them.

use std::path::Path;

use super::image::{CODE, Image, Part, SHT_STRTAB, SHT_SYMTAB, function, symbol};
use super::{Case, Says};
use crate::harness::Target;

pub(super) const CASES: &[Case] = &[
    Case::new(
        "ten million symbols",
        "empty ones in a hole, and the true one at the end",
        ten_million,
        &[Says::OneOf(&[Says::Name("last"), Says::Unnamed("gave_up")])],
    ),
    Case::new(
        "a symbol table of 8 TB",
        "a hole",
        |directory| {
            let table = Part::hole(".symtab", 8 << 40).kind(SHT_SYMTAB).link(1);
            Image::new().part(table).carried(directory)
        },
        &[Says::Unnamed("gave_up")],
    ),
    Case::new(
        "three million symbols over everything",
        "each covers all addresses",
        |directory| {
            let everywhere = |i| function(1, i % CODE, u64::MAX);
            let table = (0..3_000_000).flat_map(everywhere).collect();
            Image::new()
                .symbols(table, b"\0everywhere\0")
                .carried(directory)
        },
        &[Says::OneOf(&[
            Says::Name("everywhere"),
            Says::Unnamed("gave_up"),
        ])],
    ),
    Case::new(
        "a million names for one function",
        "symbols of the same place, each with its own name",
        |directory| {
            let names: Vec<u8> = (0..1_000_000)
                .flat_map(|i| format!("n{i:06}\0").into_bytes())
                .collect();
            let table = (0..1_000_000).flat_map(|i| symbol(8 * i)).collect();
            Image::new().symbols(table, &names).carried(directory)
        },
        &[Says::OneOf(&[
            Says::Name("n0000"),
            Says::Unnamed("gave_up"),
        ])],
    ),
    Case::new(
        "a name of 10 MB",
        "a symbol's, of one letter",
        |directory| Image::named(&[b'x'; 10 << 20]).carried(directory),
        &[Says::Name("xxxxxxxxxxxxxxxx")],
    ),
    Case::new(
        "names without an end",
        "`.strtab` has no zero byte",
        |directory| {
            let image = Image::new().symbols(symbol(1).to_vec(), &[b'y'; 9000]);
            image.carried(directory)
        },
        &[Says::Name("yyyyyyyyyyyyyyyy")],
    ),
    Case::new(
        "names beyond the end",
        "symbols whose names are at 2^32-1",
        |directory| {
            let table = symbol(u32::MAX).repeat(10_000);
            Image::new().symbols(table, b"\0name\0").carried(directory)
        },
        &[Says::Unnamed("not_covered")],
    ),
    Case::new(
        "a table of names that is no table",
        "`sh_link` is 2^32-1",
        |directory| {
            let table = Part::new(".symtab", symbol(1))
                .kind(SHT_SYMTAB)
                .link(u32::MAX);
            Image::new().part(table).carried(directory)
        },
        &[Says::Unnamed("no_symbols")],
    ),
    Case::new(
        "C++ names that double",
        "`a<a<…>, a<…>>`, each part a substitution of the part before, 40 deep",
        |directory| Image::named(doubling_cpp(40).as_bytes()).carried(directory),
        &[Says::Name("f(a<int, int>, a<a<int, int>, a<int, int> >")],
    ),
    Case::new(
        "C++ names 4,000 deep",
        "a pointer to a pointer to a pointer…",
        |directory| {
            let name = format!("_Z1f{}i", "P".repeat(4000));
            Image::named(name.as_bytes()).carried(directory)
        },
        &[Says::Name("_Z1fPPPPPPPP")],
    ),
    Case::new(
        "Rust names that double",
        "tuples of back-references to the tuple before, 40 deep",
        |directory| Image::named(doubling_rust(40).as_bytes()).carried(directory),
        &[Says::Name("a::<((), ()), (((), ()), ((), ()))")],
    ),
    Case::new(
        "Rust names in a circle",
        "a back-reference to itself",
        |directory| Image::named(b"_RIC1aTB4_B4_EE").carried(directory),
        &[Says::Name("_RIC1aTB4_B4_EE")],
    ),
    Case::new(
        "names that move the cursor",
        "escapes, marks of direction, line breaks, markup",
        |directory| {
            let name = b"\x1b[2J\x1b]0;x\x07</script>]]>\xe2\x80\xae\n\xff\xc2\x9b;# 1 2";
            Image::named(name).carried(directory)
        },
        &[Says::Words(
            "\\u{1b}[2J\\u{1b}]0;x\\u{7}</script>]]>\\u{202e}\\u{a}",
        )],
    ),
    Case::new(
        "a function of 2^64 bytes",
        "its start and its size wrap around",
        |directory| {
            let table = function(1, u64::MAX, u64::MAX);
            Image::new()
                .symbols(table.to_vec(), b"\0around\0")
                .carried(directory)
        },
        &[Says::Unnamed("not_covered")],
    ),
];

fn ten_million(directory: &Path) -> Target {
    let hole = 24 * 9_999_998;
    // What follows the hole belongs to the table too.
    let table = Part::hole(".symtab", hole).kind(SHT_SYMTAB).link(4);
    assert_eq!(hole % 16, 0);
    Image::new()
        .part(table.claims(None, hole + 24))
        .part(Part::new(".last", symbol(1)))
        .part(Part::new(".strtab", b"\0last\0").kind(SHT_STRTAB))
        .carried(directory)
}

/// The digits of a C++ substitution (Itanium ABI, `<seq-id>`).
fn substitution(index: usize) -> String {
    let digits = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ";
    match index.checked_sub(1) {
        None => "S_".to_owned(),
        Some(number) => {
            let (high, low) = (number / 36, number % 36);
            let high = (high > 0).then(|| char::from(digits[high]).to_string());
            format!("S{}{}_", high.unwrap_or_default(), char::from(digits[low]))
        }
    }
}

/// `f(a<int, int>, a<S, S>, …)`, where S is the parameter before.
fn doubling_cpp(depth: usize) -> String {
    let mut name = "_Z1f1aIiiE".to_owned();
    for level in 1..depth {
        let last = substitution(level);
        name += &format!("S_I{last}{last}E");
    }
    name
}

/// `a::<((), ()), (B, B), …>`, where B is the argument before.
fn doubling_rust(depth: usize) -> String {
    let mut name = "IC1a".to_owned();
    let mut last = name.len();
    name += "TuuE";
    for _ in 1..depth {
        let reference = base_62(last);
        last = name.len();
        name += &format!("TB{reference}B{reference}E");
    }
    format!("_R{name}E")
}

/// A number as Rust's mangling writes it (RFC 2603, `<base-62-number>`).
fn base_62(number: usize) -> String {
    let digits = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    let Some(mut number) = number.checked_sub(1) else {
        return "_".to_owned();
    };
    let mut text = Vec::new();
    loop {
        text.insert(0, digits[number % 62]);
        number /= 62;
        if number == 0 {
            text.push(b'_');
            return String::from_utf8(text).unwrap();
        }
    }
}
