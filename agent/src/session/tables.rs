//! The `TABLES` map: unwind tables of modules and mapping tables of processes, each an array of
//! its own behind one slot.

use std::collections::VecDeque;

use agent_ebpf::MAX_TABLES;
use agent_ebpf::unwind::{BLOCK_WORDS, Block, Mapping, mappings};
use aya::maps::{Array, ArrayOfMaps, MapData, MapError};

/// `BPF_F_INNER_MAP` (linux/bpf.h, 5.10): inner arrays may differ in length.
const INNER_MAP: u32 = 1 << 12;

/// Why a table could not be handed to the kernel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No slot is left.
    #[error("more than {MAX_TABLES} modules and processes in one run")]
    Full,
    /// The kernel refused the map.
    #[error("the kernel refused an unwind table of {bytes} bytes{}", memlock_hint(.source))]
    Map {
        /// Its size.
        bytes: usize,
        /// What the kernel answered.
        source: MapError,
    },
}

fn memlock_hint(error: &MapError) -> &'static str {
    match error {
        MapError::CreateError { io_error, .. } if io_error.raw_os_error() == Some(libc::EPERM) => {
            " (kernels before 5.11 charge it to RLIMIT_MEMLOCK: `ulimit -l unlimited`)"
        }
        _ => "",
    }
}

/// Slots given back that rest before they are used again: what a walk under way, or a child whose
/// fork was not told, may still look at.
const RESTING: usize = 256;

/// The map and the slots given out.
///
/// A module's slot is its own for the whole run, since frames name it. A process's slot is in no
/// frame; it may be shared, and is given back when nobody uses it any more.
pub struct Tables {
    map: ArrayOfMaps<MapData, Array<MapData, Block>>,
    next: u32,
    /// The modules' tables, to be read back.
    arrays: Vec<Option<Array<MapData, Block>>>,
    /// How many processes use a slot.
    users: Vec<u32>,
    resting: VecDeque<u16>,
}

impl Tables {
    /// Takes the map over; slot 0 stays empty.
    pub fn new(map: ArrayOfMaps<MapData, Array<MapData, Block>>) -> Self {
        Self {
            map,
            next: 1,
            arrays: vec![None],
            users: vec![0],
            resting: VecDeque::new(),
        }
    }

    /// Gives out a slot, for a module or for the first user of a mapping table.
    ///
    /// # Errors
    /// [`Error::Full`].
    pub fn reserve(&mut self) -> Result<u16, Error> {
        let full = self.next >= MAX_TABLES;
        if (full || self.resting.len() > RESTING)
            && let Some(slot) = self.resting.pop_front()
        {
            self.users[usize::from(slot)] = 1;
            return Ok(slot);
        }
        if full {
            return Err(Error::Full);
        }
        self.next += 1;
        self.arrays.push(None);
        self.users.push(1);
        Ok((self.next - 1) as u16)
    }

    /// One process more uses this mapping table. Slot 0 is nobody's.
    pub fn share(&mut self, slot: u16) {
        if slot != 0
            && let Some(users) = self.users.get_mut(usize::from(slot))
        {
            *users += 1;
        }
    }

    /// Whether several processes use this mapping table.
    pub fn is_shared(&self, slot: u16) -> bool {
        self.users
            .get(usize::from(slot))
            .is_some_and(|&users| users > 1)
    }

    /// One process less uses this mapping table. Slot 0 is nobody's.
    pub fn give_back(&mut self, slot: u16) {
        if slot != 0
            && let Some(users) = self.users.get_mut(usize::from(slot))
            && *users > 0
        {
            *users -= 1;
            if *users == 0 {
                self.resting.push_back(slot);
            }
        }
    }

    /// Puts a module's table in its slot.
    ///
    /// # Errors
    /// [`Error::Map`] when the kernel has no memory for it.
    pub fn put_module(&mut self, slot: u16, blocks: &[Block]) -> Result<(), Error> {
        let array = self.put(slot, blocks)?;
        if let Some(held) = self.arrays.get_mut(usize::from(slot)) {
            *held = Some(array);
        }
        Ok(())
    }

    /// Puts a process's mapping table in its slot, in place of the one there; walks under way
    /// still see the old one whole.
    ///
    /// # Errors
    /// [`Error::Map`] when the kernel has no memory for it.
    pub fn put_mappings(&mut self, slot: u16, sorted: &[Mapping]) -> Result<(), Error> {
        self.put(slot, &mapping_blocks(sorted)).map(drop)
    }

    /// The kernel answers after an RCU grace period: some milliseconds.
    fn put(&mut self, slot: u16, blocks: &[Block]) -> Result<Array<MapData, Block>, Error> {
        let bytes = size_of_val(blocks);
        let failed = |source| Error::Map { bytes, source };
        let mut array =
            Array::<MapData, Block>::create(blocks.len() as u32, INNER_MAP).map_err(failed)?;
        for (index, block) in blocks.iter().enumerate() {
            array.set(index as u32, block, 0).map_err(failed)?;
        }
        self.map.set(u32::from(slot), &array, 0).map_err(failed)?;
        Ok(array)
    }

    /// Reads a block of a module's table back.
    pub fn block(&self, slot: u32, index: u32) -> Option<Block> {
        self.arrays
            .get(slot as usize)?
            .as_ref()?
            .get(&index, 0)
            .ok()
    }
}

/// The blocks of a process's mapping table; `sorted` by address, at most [`mappings::MAX`].
fn mapping_blocks(sorted: &[Mapping]) -> Vec<Block> {
    let entry_blocks = sorted.len().div_ceil(mappings::ENTRIES_PER_BLOCK).max(1);
    let mut blocks = vec![[u32::MAX; BLOCK_WORDS]; mappings::START_BLOCKS];
    blocks.resize(mappings::START_BLOCKS + entry_blocks, [0; BLOCK_WORDS]);
    for (index, mapping) in sorted.iter().enumerate() {
        let start = &mut blocks[index / mappings::STARTS_PER_BLOCK];
        let at = index % mappings::STARTS_PER_BLOCK * 2;
        start[at..at + 2].copy_from_slice(&words(mapping.start));
        let block = &mut blocks[mappings::START_BLOCKS + index / mappings::ENTRIES_PER_BLOCK];
        let at = index % mappings::ENTRIES_PER_BLOCK * 16;
        block[at..at + 16].copy_from_slice(&mapping_words(mapping));
    }
    blocks
}

fn words(value: u64) -> [u32; 2] {
    [value as u32, (value >> 32) as u32]
}

fn mapping_words(mapping: &Mapping) -> [u32; 16] {
    let module = &mapping.module;
    let longs = [mapping.start, mapping.end, mapping.bias, module.base];
    let mut out = [0; 16];
    for (pair, long) in out.chunks_exact_mut(2).zip(longs) {
        pair.copy_from_slice(&words(long));
    }
    out[8..12].copy_from_slice(&[module.buckets, module.rows, module.extended, module.table]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use agent_ebpf::unwind::Module;

    #[test]
    fn a_mapping_has_the_layout_of_the_abi() {
        let mapping = Mapping {
            start: 0x1_0000_0001,
            end: 2,
            bias: 3,
            module: Module {
                base: 4,
                buckets: 5,
                rows: 6,
                extended: 7,
                table: 8,
            },
            ..Mapping::default()
        };
        // SAFETY: `Mapping` is repr(C), made of integers without padding, 64 bytes long.
        let expected: [u32; 16] = unsafe { std::mem::transmute(mapping) };
        assert_eq!(mapping_words(&mapping), expected);
    }

    #[test]
    fn many_mappings_fill_several_blocks() {
        let sorted: Vec<Mapping> = (0..600)
            .map(|i| Mapping {
                start: i * 4096,
                ..Mapping::default()
            })
            .collect();
        let blocks = mapping_blocks(&sorted);
        assert_eq!(blocks.len(), mappings::START_BLOCKS + 10);
        assert_eq!(blocks[1][0], 512 * 4096);
        assert_eq!(blocks[1][176..178], [u32::MAX; 2]);
        assert_eq!(blocks[mappings::START_BLOCKS + 9][16 * 23], 599 * 4096);
    }
}
