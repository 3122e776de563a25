//! Where functions without a name start: whoever strips a module leaves its `.eh_frame`, which
//! has an entry (FDE) for every function.
//!
//! Source: the LSB core specification, "Exception Frames": the sorted table of `.eh_frame_hdr`.

use gimli::{
    BaseAddresses, EhFrame, EhFrameHdr, EhFrameOffset, ParsedEhFrameHdr, Pointer, UnwindSection,
};

use super::clock::Clock;
use super::elf::Elf;
use super::reader::{Contents, Pages};
use crate::unwind;

/// Bytes of an address.
const ADDRESS: u8 = 8;
/// Largest `.eh_frame` that is read from end to end, in bytes.
const MAX_SCAN: u64 = 16 << 20;
/// Matches after which a section is taken for a hostile one (every FDE covering every address).
const MAX_MATCHES: usize = 1 << 24;

/// The start (ELF virtual address) of the function that covers each of the ascending addresses;
/// `None` where the module does not tell.
pub(super) fn starts(elf: &Elf<'_>, addresses: &[u64], clock: &Clock) -> Vec<Option<u64>> {
    let header = Contents::of(elf, ".eh_frame_hdr", clock);
    let vaddr = |name| elf.section(name).map_or(0, |section| section.address);
    let bases = BaseAddresses::default()
        .set_eh_frame_hdr(vaddr(".eh_frame_hdr"))
        .set_eh_frame(vaddr(".eh_frame"));
    let header = EhFrameHdr::from(header.reader()).parse(&bases, ADDRESS);
    match header {
        Ok(header) if header.table().is_some() => looked_up(elf, &header, &bases, addresses, clock),
        _ => scanned(elf, vaddr(".eh_frame"), addresses),
    }
}

/// Finds each address in the sorted table, reading only the pages on the way.
fn looked_up(
    elf: &Elf<'_>,
    header: &ParsedEhFrameHdr<Pages<'_>>,
    bases: &BaseAddresses,
    addresses: &[u64],
    clock: &Clock,
) -> Vec<Option<u64>> {
    let frames = Contents::of(elf, ".eh_frame", clock);
    let mut section = EhFrame::from(frames.reader());
    section.set_address_size(ADDRESS);
    let start = |&address: &u64| {
        let Pointer::Direct(entry) = header.table()?.lookup(address, bases).ok()? else {
            return None;
        };
        let offset = entry.checked_sub(bases.eh_frame.section?)?;
        let offset = EhFrameOffset(usize::try_from(offset).ok()?);
        let entry = section.fde_from_offset(bases, offset, EhFrame::cie_from_offset);
        let entry = entry.ok().filter(|entry| entry.contains(address))?;
        Some(entry.initial_address())
    };
    addresses.iter().map(start).collect()
}

/// Goes through all entries: some static programs have no table.
fn scanned(elf: &Elf<'_>, vaddr: u64, addresses: &[u64]) -> Vec<Option<u64>> {
    let mut starts = vec![None; addresses.len()];
    let Some(bytes) = elf.contents(".eh_frame", MAX_SCAN) else {
        return starts;
    };
    let mut matches = 0;
    unwind::for_each_function(&bytes, vaddr, |start, end| {
        let first = addresses.partition_point(|&address| address < start);
        let inside = addresses.iter().zip(&mut starts).skip(first);
        for (_, found) in inside.take_while(|&(&address, _)| address < end) {
            found.get_or_insert(start);
            matches += 1;
            if matches > MAX_MATCHES {
                return;
            }
        }
    });
    starts
}
