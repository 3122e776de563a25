//! One step of a stack walk: table row + registers + a way to read memory -> the caller's
//! registers. Pure: it runs in the kernel and in host tests.
//!
//! # The table of a module
//!
//! A table is an array of [`Block`]s of 4 KiB, in three parts:
//!
//! 1. **Directory**, from block 0: one `u32` for each 256 bytes of the module's virtual
//!    addresses from [`Module::base`] on. Bits 8..32 are the index of the bucket's first row,
//!    bits 0..8 its number of rows.
//! 2. **Rows**, from block [`Module::rows`]: one `u32` each, sorted. The rows of a bucket and the
//!    row before them lie in one block, so that a search needs one look-up.
//! 3. **Extended rules**, from block [`Module::extended`]: [`Extended`], 16 bytes each.
//!
//! A row holds from its address up to the next row's. Its fields, from the top: the low 8 bits
//! of the address (24..32), the [`kind`] (21..24), where the caller's rbp was saved (16..21), the
//! CFA offset in words (0..16). The rule of x86-64 that the return address lies at CFA-8 is built in.

use crate::End;

/// Words in a block.
pub const BLOCK_WORDS: usize = 1024;
/// One element of a table map: 4 KiB.
pub type Block = [u32; BLOCK_WORDS];
/// log2 of the bytes of address space that one directory entry covers.
pub const BUCKET_BITS: u32 = 8;
/// Most rows that a bucket can name.
pub const BUCKET_ROWS: u32 = 255;
/// Words of an extended rule.
pub const EXTENDED_WORDS: usize = 4;

/// What a row says about its frame.
pub mod kind {
    /// CFA = rsp + 8 × offset.
    pub const RSP: u32 = 0;
    /// CFA = rbp + 8 × offset.
    pub const RBP: u32 = 1;
    /// The low 21 bits are the index of an [`super::Extended`] rule.
    pub const EXTENDED: u32 = 2;
    /// CFA = rsp + 8 × offset + (8 if (pc & 15) >= the rbp field, else 0): a PLT entry.
    pub const PLT: u32 = 3;
    /// A signal frame: the registers are those of the `ucontext` at rsp.
    pub const SIGNAL: u32 = 4;
    /// The return address is undefined: the root of a thread.
    pub const ROOT: u32 = 5;
    /// No unwind information from here on: follow the frame pointer. With the CFA offset
    /// [`super::SWITCHED`] it may point to another stack.
    pub const NONE: u32 = 6;
    /// There is a rule, but not one that a row can say.
    pub const UNSUPPORTED: u32 = 7;
}

/// CFA offset of a [`kind::NONE`] row: the code has changed to another stack and kept rbp, as
/// Go's `systemstack` does, so that the frame pointer need not lie above rsp.
pub const SWITCHED: u32 = 1;

/// Packs a row from the low 8 bits of its address, its [`kind`], rbp field and CFA offset in words.
pub const fn row(low: u8, kind: u32, rbp: u32, cfa: u32) -> u32 {
    (low as u32) << 24 | (kind & 7) << 21 | (rbp & 31) << 16 | cfa & 0xffff
}

/// A rule that a row has no room for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extended {
    /// One of [`cfa`].
    pub cfa_kind: u8,
    /// DWARF number of the register that the CFA is computed from (AMD64 ABI figure 3.36).
    pub cfa_register: u8,
    /// One of [`saved`].
    pub rbp_kind: u8,
    /// 0: the return address is at CFA-8. Otherwise it is in the register of this DWARF number
    /// less one, known in the innermost frame only: glibc's `vfork`.
    pub return_register: u8,
    /// Bytes added to the register.
    pub cfa_offset: i32,
    /// Bytes added after the load ([`cfa::DEREF`]).
    pub cfa_offset2: i32,
    /// Bytes from the base of [`Extended::rbp_kind`] to the saved rbp.
    pub rbp_offset: i32,
}
const _: () = assert!(size_of::<Extended>() == 4 * EXTENDED_WORDS);

/// How an [`Extended`] rule finds the CFA.
pub mod cfa {
    /// register + offset.
    pub const REGISTER: u8 = 0;
    /// *(register + offset) + offset2.
    pub const DEREF: u8 = 1;
}

/// Where an [`Extended`] rule finds the caller's rbp.
pub mod saved {
    /// Unchanged.
    pub const SAME: u8 = 0;
    /// At CFA + offset.
    pub const AT_CFA: u8 = 1;
    /// At rbp + offset.
    pub const AT_RBP: u8 = 2;
    /// At rsp + offset.
    pub const AT_RSP: u8 = 3;
}

/// Numbers of the registers (AMD64 ABI, figure 3.36).
pub mod register {
    /// rbp.
    pub const RBP: usize = 6;
    /// rsp.
    pub const RSP: usize = 7;
    /// How many general registers there are.
    pub const COUNT: usize = 16;
}

/// Where a module's parts lie in its table.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Module {
    /// The virtual address (ELF) that the first bucket starts at; a multiple of 256.
    pub base: u64,
    /// Number of buckets; 0 while the table is not ready.
    pub buckets: u32,
    /// Block number of the first row block.
    pub rows: u32,
    /// Block number of the first block of extended rules.
    pub extended: u32,
    /// Slot of the table in the `TABLES` map.
    pub table: u32,
}
const _: () = assert!(size_of::<Module>() == 24);

/// One executable mapping of a process: an entry of its mapping table.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// First address after it.
    pub end: u64,
    /// Runtime address minus ELF virtual address.
    pub bias: u64,
    /// The module mapped here; `table` 0 for code without a file (JIT).
    pub module: Module,
    /// Zero.
    pub reserved: u64,
    /// Zero.
    pub reserved2: u64,
}
const _: () = assert!(size_of::<Mapping>() == 64);

/// The mapping table of a process: sorted start addresses, then the entries.
pub mod mappings {
    /// Start addresses in one block.
    pub const STARTS_PER_BLOCK: usize = 512;
    /// Blocks of start addresses, always present; unused places hold `u64::MAX`.
    pub const START_BLOCKS: usize = 4;
    /// Entries in one block.
    pub const ENTRIES_PER_BLOCK: usize = 64;
    /// Most mappings of one process.
    pub const MAX: usize = STARTS_PER_BLOCK * START_BLOCKS;
}

/// The registers of one frame.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    /// Instruction pointer: exact in a leaf, the return address in a caller.
    pub pc: u64,
    /// Stack pointer.
    pub sp: u64,
    /// Frame pointer.
    pub bp: u64,
}

/// What one step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The registers are the caller's; its pc is a return address.
    Caller,
    /// The registers are those that a signal interrupted; its pc is exact.
    Interrupted,
    /// The walk is over.
    End(End),
}

/// One past the highest address of user space, with five-level paging.
const USER_END: u64 = 1 << 56;

/// All ones where the top bit of `value` is set, else 0: a comparison without a branch, so that
/// a search is one path for the verifier. In the kernel it is an instruction that the optimiser
/// cannot turn into a branch again.
#[inline(always)]
pub fn sign(value: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let mut value = value;
        // SAFETY: arithmetic on one register.
        unsafe { core::arch::asm!("{x} s>>= 63", x = inout(reg) value) };
        value
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        (value as i64 >> 63) as u64
    }
}

/// Position of the row that holds at `low` among `count` sorted rows beginning at `first`.
///
/// `word(i)` reads row `i`. The result is at least `first - 1`: the row before the bucket holds
/// where none of its own does. Most buckets have few rows.
#[inline(always)]
pub fn search(first: u32, count: u32, low: u8, word: impl Fn(u32) -> u32) -> u32 {
    if count < 16 {
        search_below::<16>(first, count, low, word)
    } else {
        search_below::<256>(first, count, low, word)
    }
}

/// [`search`] among fewer than `LIMIT` rows, a power of two.
#[inline(always)]
fn search_below<const LIMIT: u64>(
    first: u32,
    count: u32,
    low: u8,
    word: impl Fn(u32) -> u32,
) -> u32 {
    let mut below = 0u64;
    let mut step = LIMIT / 2;
    while step > 0 {
        let candidate = below + step;
        let last = word((first as u64 + candidate) as u32 - 1);
        // Not negative where the bucket has that many rows and the last of them is not above.
        let inside = (count as u64).wrapping_sub(candidate);
        let not_above = (low as u64).wrapping_sub((last >> 24) as u64);
        below += step & !sign(inside | not_above);
        step >>= 1;
    }
    (first as u64 + below) as u32 - 1
}

/// How a step reads the memory of the process; `None` where it cannot be read.
pub trait Memory {
    /// The word at `address`.
    fn word(&self, address: u64) -> Option<u64>;
    /// The words at `address` and `address + 8`.
    fn pair(&self, address: u64) -> Option<[u64; 2]>;
    /// General register `number` (AMD64 ABI numbering), known only where the registers are those
    /// of the processor: in a leaf and in what a signal interrupted.
    fn register(&self, number: u8) -> Option<u64>;
    /// Extended rule `index` of the module.
    fn extended(&self, index: u32) -> Option<Extended>;
}

/// Offsets in the `ucontext` that the kernel pushes for a signal handler
/// (`struct rt_sigframe`, arch/x86/include/asm/sigframe.h, and `struct sigcontext_64`, 6.18):
/// at the handler's return rsp points to it.
pub mod ucontext {
    /// r8, the first of the general registers.
    pub const GENERAL: u64 = 40;
    /// rbp.
    pub const RBP: u64 = GENERAL + 10 * 8;
    /// rsp; rip follows it.
    pub const RSP: u64 = GENERAL + 15 * 8;
}

/// Applies `row` to the registers of a frame.
///
/// `leaf`: the registers are the processor's own, the pc is exact.
#[inline(always)]
pub fn step(row: u32, regs: &mut Registers, leaf: bool, memory: &impl Memory) -> Step {
    let kind = row >> 21 & 7;
    let offset = 8 * (row & 0xffff) as u64;
    let rbp = row >> 16 & 31;
    if kind <= kind::RBP {
        let base = if kind == kind::RSP { regs.sp } else { regs.bp };
        return plain(base.wrapping_add(offset), rbp, regs, leaf, memory);
    }
    match kind {
        kind::PLT => {
            let pushed = if regs.pc & 15 >= rbp as u64 { 8 } else { 0 };
            plain(regs.sp.wrapping_add(offset + pushed), 0, regs, leaf, memory)
        }
        kind::EXTENDED => extended(row & 0x1f_ffff, regs, leaf, memory),
        kind::SIGNAL => interrupted(regs, memory),
        kind::ROOT => Step::End(End::Root),
        kind::NONE => frame_pointer(regs, leaf, row & 0xffff == SWITCHED, memory),
        _ => Step::End(End::UnsupportedRule),
    }
}

/// A CFA must lie above the frame's stack pointer; in a leaf that has pushed nothing yet it lies
/// one word above.
#[inline(always)]
fn plausible(cfa: u64, sp: u64) -> bool {
    cfa > sp && cfa < USER_END
}

/// The rule of nearly every frame: return address at CFA-8, rbp kept or saved at CFA-8k.
#[inline(always)]
fn plain(cfa: u64, k: u32, regs: &mut Registers, leaf: bool, memory: &impl Memory) -> Step {
    if !plausible(cfa, regs.sp) {
        return Step::End(End::ImplausibleCfa);
    }
    let pc;
    if k == 2 {
        let Some(pair) = memory.pair(cfa.wrapping_sub(16)) else {
            return Step::End(End::ReadFault);
        };
        regs.bp = pair[0];
        pc = pair[1];
    } else {
        let Some(word) = memory.word(cfa.wrapping_sub(8)) else {
            return Step::End(End::ReadFault);
        };
        pc = word;
        if k != 0 {
            let Some(word) = memory.word(cfa.wrapping_sub(8 * k as u64)) else {
                return Step::End(End::ReadFault);
            };
            regs.bp = word;
        }
    }
    called_from(pc, cfa, regs, leaf)
}

/// Sets the caller's pc and sp.
#[inline(always)]
fn called_from(pc: u64, cfa: u64, regs: &mut Registers, leaf: bool) -> Step {
    regs.pc = pc;
    regs.sp = cfa;
    if pc == 0 {
        // A thread's first function "called" by nothing: musl's and Go's thread starts.
        return Step::End(if leaf {
            End::NoRow
        } else {
            End::RootFramePointer
        });
    }
    Step::Caller
}

#[inline(always)]
fn extended(index: u32, regs: &mut Registers, leaf: bool, memory: &impl Memory) -> Step {
    let Some(rule) = memory.extended(index) else {
        return Step::End(End::UnsupportedRule);
    };
    let base = match rule.cfa_register as usize {
        register::RSP => regs.sp,
        register::RBP => regs.bp,
        _ => match memory.register(rule.cfa_register) {
            Some(value) => value,
            None => return Step::End(End::UnsupportedRule),
        },
    };
    let mut cfa = base.wrapping_add(rule.cfa_offset as i64 as u64);
    if rule.cfa_kind == cfa::DEREF {
        let Some(word) = memory.word(cfa) else {
            return Step::End(End::ReadFault);
        };
        cfa = word.wrapping_add(rule.cfa_offset2 as i64 as u64);
    }
    let popped = rule.return_register != 0;
    if !(plausible(cfa, regs.sp) || popped && cfa == regs.sp) {
        return Step::End(End::ImplausibleCfa);
    }
    let pc = if popped {
        memory.register(rule.return_register - 1)
    } else {
        memory.word(cfa.wrapping_sub(8))
    };
    let Some(pc) = pc else {
        return Step::End(if popped {
            End::UnsupportedRule
        } else {
            End::ReadFault
        });
    };
    if rule.rbp_kind != saved::SAME {
        let base = match rule.rbp_kind {
            saved::AT_CFA => cfa,
            saved::AT_RBP => regs.bp,
            _ => regs.sp,
        };
        let Some(word) = memory.word(base.wrapping_add(rule.rbp_offset as i64 as u64)) else {
            return Step::End(End::ReadFault);
        };
        regs.bp = word;
    }
    called_from(pc, cfa, regs, leaf)
}

#[inline(always)]
fn interrupted(regs: &mut Registers, memory: &impl Memory) -> Step {
    let context = regs.sp;
    let Some(bp) = memory.word(context.wrapping_add(ucontext::RBP)) else {
        return Step::End(End::ReadFault);
    };
    let Some([sp, pc]) = memory.pair(context.wrapping_add(ucontext::RSP)) else {
        return Step::End(End::ReadFault);
    };
    *regs = Registers { pc, sp, bp };
    Step::Interrupted
}

/// Follows the frame pointer of code that has no row; with `switched` it may point below rsp.
#[inline(always)]
pub fn frame_pointer(
    regs: &mut Registers,
    leaf: bool,
    switched: bool,
    memory: &impl Memory,
) -> Step {
    if regs.bp == 0 && !leaf {
        return Step::End(End::RootFramePointer);
    }
    if (regs.bp < regs.sp && !switched) || regs.bp >= USER_END || regs.bp & 7 != 0 {
        return Step::End(End::NoRow);
    }
    let Some([bp, pc]) = memory.pair(regs.bp) else {
        return Step::End(End::ReadFault);
    };
    let cfa = regs.bp.wrapping_add(16);
    regs.bp = bp;
    called_from(pc, cfa, regs, leaf)
}
