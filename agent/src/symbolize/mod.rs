//! Names of addresses: open files in, [`Frame`]s out.
//!
//! Nothing here needs privileges or opens a path of the target, except [`debug_files`], which
//! finds separate debug information. No file is mapped; each is read in pieces, and what its
//! headers claim is believed only as far as its size allows. A file that is broken costs names:
//! its addresses come back with the reason, never as an error.
//!
//! - [`module()`]: an ELF file (its debug information, the separate debug file, Go's function table,
//!   MiniDebugInfo, `.symtab`, `.dynsym`, stubs of the procedure linkage table)
//! - [`perf_map()`]: the file in which a JIT lists its code
//! - [`kernel()`]: the text of `/proc/kallsyms`

mod clock;
pub mod debug_files;
mod decompress;
mod demangle;
mod dwarf;
mod elf;
mod extent;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod go;
mod kernel;
mod perf_map;
mod plt;
mod reader;
mod separate;
mod source;
mod symtab;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::profile::{Frame, Space, Unnamed};

pub use clock::{Budget, give_up};
pub use debug_files::{DebugFiles, NoDebugFiles};
pub use elf::build_id;
pub use kernel::kernel;
pub use perf_map::{NotTrusted, check_perf_map_owner, perf_map};

use clock::Clock;
use dwarf::Site;
use elf::Elf;
use separate::Separate;
use source::Source;

/// Names addresses of one module. `file` is the module itself, `name` its name as it is shown,
/// `debug` finds its separate debug information; `addresses` are ELF virtual addresses in
/// ascending order, those of calls being the return address minus one.
///
/// For each address the functions there, innermost (inlined) first, the physical function last;
/// at least one frame, which says in [`Frame::unnamed`] why it has no name if it has none.
/// Debug information that takes more than two seconds is given up for the symbol table, and so is
/// everything when the run's `budget` is used up.
pub fn module(
    file: &File,
    name: &str,
    debug: &dyn DebugFiles,
    addresses: &[u64],
    budget: &Budget,
) -> Vec<Vec<Frame>> {
    // The libraries that parse this outside input are written not to panic; if one does, that
    // costs this module's names and not the profile.
    let named = catch_unwind(AssertUnwindSafe(|| named(file, debug, addresses, budget)))
        .unwrap_or(Err(Unnamed::Malformed))
        .unwrap_or_else(|reason| Named::nothing(addresses, reason));
    let places = addresses.iter().zip(named.sites).zip(named.starts);
    places
        .map(|((&address, sites), start)| frames(name, address, sites, start, named.reason))
        .collect()
}

/// What is known of each address.
struct Named {
    sites: Vec<Vec<Site>>,
    /// Where physical functions without a name start.
    starts: Vec<Option<u64>>,
    /// Why functions without a name have none.
    reason: Unnamed,
}

impl Named {
    fn nothing(addresses: &[u64], reason: Unnamed) -> Self {
        Named {
            sites: vec![Vec::new(); addresses.len()],
            starts: vec![None; addresses.len()],
            reason,
        }
    }
}

/// Turns what is known of an address into frames.
fn frames(
    module: &str,
    address: u64,
    sites: Vec<Site>,
    start: Option<u64>,
    reason: Unnamed,
) -> Vec<Frame> {
    let sites = match sites.is_empty() {
        true => vec![Site::default()],
        false => sites,
    };
    let physical = sites.len() - 1;
    let frame = |(index, site): (usize, Site)| Frame {
        space: Space::User,
        module: Some(module.to_owned()),
        unnamed: site.function.is_none().then_some(reason),
        function_start: start.filter(|_| index == physical && site.function.is_none()),
        function: site.function,
        file: site.file,
        line: site.line,
        inlined: index != physical,
        address,
    };
    sites.into_iter().enumerate().map(frame).collect()
}

fn named(
    file: &File,
    debug: &dyn DebugFiles,
    addresses: &[u64],
    budget: &Budget,
) -> Result<Named, Unnamed> {
    if budget.is_over() {
        return Err(Unnamed::GaveUp);
    }
    let source = Source::file(file).ok_or(Unnamed::FileUnavailable)?;
    let elf = Elf::parse(source).ok_or(Unnamed::Malformed)?;
    let details = Clock::for_details(budget);
    let separate = Separate::find(&elf, debug, &details);
    let mut named = Named::nothing(addresses, Unnamed::NotCovered);
    let debug_info = separate.debug_info(&elf);
    if let Some(debug_info) = debug_info {
        // A panic in here costs the debug information alone.
        let described = catch_unwind(AssertUnwindSafe(|| {
            dwarf::sites(debug_info, separate.alternate.as_ref(), addresses, &details)
        }));
        named.sites = described.unwrap_or(named.sites);
    }
    let go = Clock::for_details(budget);
    add_go(file, addresses, &mut named.sites, &go);
    let symbols = Clock::for_symbols(budget);
    let tables = add_symbols(&elf, &separate, addresses, &mut named.sites, &symbols);
    if [details, go, symbols].iter().any(Clock::has_cut) {
        named.reason = Unnamed::GaveUp;
    } else if !tables && debug_info.is_none() && named.sites.iter().all(Vec::is_empty) {
        named.reason = Unnamed::NoSymbols;
    }
    if !budget.is_over() {
        add_starts(&elf, addresses, &mut named, &Clock::for_symbols(budget));
    }
    Ok(named)
}

/// Looks up where the physical functions start that have no name.
fn add_starts(elf: &Elf<'_>, addresses: &[u64], named: &mut Named, clock: &Clock) {
    let is_unnamed = |sites: &[Site]| sites.last().is_none_or(|site| site.function.is_none());
    let unnamed: Vec<usize> = (0..addresses.len())
        .filter(|&at| is_unnamed(&named.sites[at]))
        .collect();
    if unnamed.is_empty() {
        return;
    }
    let wanted: Vec<u64> = unnamed.iter().map(|&at| addresses[at]).collect();
    let starts = catch_unwind(AssertUnwindSafe(|| extent::starts(elf, &wanted, clock)));
    for (at, start) in unnamed.iter().zip(starts.unwrap_or_default()) {
        named.starts[*at] = start;
    }
}

/// Names what the debug information does not describe by the table of a Go program.
fn add_go(file: &File, addresses: &[u64], sites: &mut [Vec<Site>], clock: &Clock) {
    if !sites.iter().any(Vec::is_empty) || clock.is_over() {
        return;
    }
    let Some(table) = go::Table::open(file) else {
        return;
    };
    for (sites, &address) in sites.iter_mut().zip(addresses) {
        if sites.is_empty() && !clock.is_over() {
            *sites = table.sites(address).unwrap_or_default();
        }
    }
}

/// Fills in physical functions that have no name yet from the symbol tables; whether there is
/// any.
fn add_symbols(
    elf: &Elf<'_>,
    separate: &Separate<'_>,
    addresses: &[u64],
    sites: &mut [Vec<Site>],
    clock: &Clock,
) -> bool {
    let mut any = false;
    for elf in separate.symbol_files(elf) {
        let missing: Vec<usize> = (0..sites.len())
            .filter(|&at| is_missing(&sites[at]))
            .collect();
        let wanted: Vec<u64> = missing.iter().map(|&at| addresses[at]).collect();
        let Some(names) = symtab::names(elf, &wanted, clock) else {
            continue;
        };
        any = true;
        for (at, name) in missing.into_iter().zip(names) {
            set_name(&mut sites[at], name.as_deref());
        }
    }
    for (sites, &address) in sites.iter_mut().zip(addresses) {
        if is_missing(sites) && !clock.is_over() {
            set_name(sites, plt::name(elf, address).as_deref());
        }
    }
    any
}

/// Whether the physical function has no name or only a bare one.
fn is_missing(sites: &[Site]) -> bool {
    sites
        .last()
        .is_none_or(|site| site.function.is_none() || site.bare)
}

/// Names the physical function after its symbol. A part that the compiler split off (`name.cold`)
/// keeps the bare name that the debug information gives it.
fn set_name(sites: &mut Vec<Site>, symbol: Option<&str>) {
    let Some(symbol) = symbol.map(demangle::without_version) else {
        return;
    };
    let name = demangle::demangle(symbol);
    match sites.last_mut() {
        Some(physical) if is_part(symbol, physical.function.as_deref()) => {}
        Some(physical) => {
            physical.function = Some(name);
            physical.bare = false;
        }
        None => sites.push(Site {
            function: Some(name),
            ..Site::default()
        }),
    }
}

fn is_part(symbol: &str, function: Option<&str>) -> bool {
    function
        .and_then(|function| symbol.strip_prefix(function))
        .is_some_and(|suffix| suffix.starts_with('.'))
}
