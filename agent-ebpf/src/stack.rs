//! Captures the kernel and the user stack of the current task into a scratch slot.

use agent_ebpf::unwind::{
    BLOCK_WORDS, Block, Extended, Mapping, Memory, Module, Registers, Step, kind, mappings,
    register, search, sign, step as apply,
};
use agent_ebpf::{Counter, End, MAX_KERNEL_FRAMES, MAX_USER_FRAMES, frame};
use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::pt_regs;
use aya_ebpf::helpers::generated::{
    bpf_get_current_task, bpf_get_current_task_btf, bpf_task_pt_regs,
};
use aya_ebpf::helpers::{bpf_probe_read_kernel, generated};

use crate::count;
use crate::maps::{FRAMES, SCRATCH, Scratch, TABLES, config};

/// `CS` of user code has the requested privilege level 3 in its low bits.
const USER_MODE: u64 = 3;
/// System calls that replace the program (asm/unistd_64.h).
const EXECVE: u64 = 59;
/// See [`EXECVE`].
const EXECVEAT: u64 = 322;

/// `value & M`, by an instruction that the optimiser cannot drop: the verifier needs to see the
/// bound even where it follows from what came before.
#[inline(always)]
pub fn mask<const M: u64>(value: u64) -> usize {
    let mut masked = value;
    // SAFETY: arithmetic on one register.
    unsafe { core::arch::asm!("{x} &= {m}", x = inout(reg) masked, m = const M) };
    masked as usize
}

/// The scratch of this CPU for one kind of probe, claimed until [`release`].
#[inline(always)]
pub fn claim(slot: u32) -> Option<&'static mut Scratch> {
    let scratch = SCRATCH.get_ptr_mut(slot)?;
    // SAFETY: a per-CPU map value: it lives as long as the program, and only this CPU uses it;
    // `busy` keeps out a nested run.
    let scratch = unsafe { &mut *scratch };
    if scratch.busy != 0 {
        return None;
    }
    scratch.busy = 1;
    Some(scratch)
}

/// Lets go of what [`claim`] took.
#[inline(always)]
pub fn release(scratch: &mut Scratch) {
    scratch.busy = 0;
}

/// Starts a stack: no frames yet.
#[inline(always)]
pub fn begin(scratch: &mut Scratch, table: u32) {
    scratch.table = table;
    scratch.frames_len = 0;
    scratch.depth = 0;
    scratch.fallbacks = 0;
    scratch.leaf = 1;
    scratch.hash = config::hash_seed();
    scratch.mapping.start = 1;
    scratch.mapping.end = 0;
    scratch.record.kernel_frames = 0;
    scratch.record.end = End::NoUserRegisters as u32;
}

/// Appends the kernel part of the stack.
#[inline(always)]
pub fn kernel(ctx: &impl EbpfContext, scratch: &mut Scratch) {
    // SAFETY: the buffer is larger than the size given.
    let bytes = unsafe {
        generated::bpf_get_stack(
            ctx.as_ptr(),
            scratch.frames.as_mut_ptr().cast(),
            (MAX_KERNEL_FRAMES * 8) as u32,
            0,
        )
    };
    if bytes <= 0 {
        return;
    }
    let count = (bytes as u64 / 8) as u32;
    scratch.frames_len = count;
    scratch.record.kernel_frames = count as u16;
    let mut hash = scratch.hash;
    let mut i = 0u32;
    while i < MAX_KERNEL_FRAMES as u32 {
        if i >= count {
            break;
        }
        // SAFETY: the mask keeps the index inside the array.
        let address = unsafe { *scratch.frames.as_ptr().add(mask::<2047>(i as u64)) };
        hash = mix(hash, address);
        i += 1;
    }
    scratch.hash = hash;
}

/// Appends the user part, from the registers given, and notes why it ended.
#[inline(always)]
pub fn user(slot: u32, scratch: &mut Scratch) {
    let mut i = 0;
    let mut end = if scratch.regs.pc == 0 {
        i = MAX_USER_FRAMES as u32;
        End::NoUserRegisters as u32
    } else {
        End::DepthLimit as u32
    };
    while i < MAX_USER_FRAMES as u32 {
        let outcome = unwind_step(slot);
        if outcome != CONTINUE {
            end = outcome;
            break;
        }
        i += 1;
    }
    let followed = end == End::Root as u32 || end == End::RootFramePointer as u32;
    let faulted = end == End::ReadFault as u32;
    if !followed && (memory_is_gone() || faulted && is_executing(scratch)) {
        scratch.frames_len = scratch.frames_len.saturating_sub(scratch.depth);
        scratch.depth = 0;
        end = End::Exiting as u32;
    }
    scratch.record.end = end;
    count(Counter::FramePointerFallback, scratch.fallbacks as u64);
}

/// Whether the thread was in `execve` when its stack could not be read: the old program's memory
/// goes before the call returns.
#[inline(always)]
fn is_executing(scratch: &Scratch) -> bool {
    let call = scratch.saved.orig_rax;
    scratch.record.kernel_frames > 0 && (call == EXECVE || call == EXECVEAT)
}

/// Whether the current thread has left its address space for good (`exit_mm`, linux/kernel/exit.c).
#[inline(always)]
fn memory_is_gone() -> bool {
    // SAFETY: the helper has no preconditions.
    let task = unsafe { bpf_get_current_task() };
    // SAFETY: the helper checks the address.
    let mm = unsafe { bpf_probe_read_kernel((task + config::task_mm() as u64) as *const u64) };
    mm == Ok(0)
}

/// Fills in the registers of a program that was interrupted in user mode.
#[inline(always)]
pub fn registers_from(regs: &pt_regs, scratch: &mut Scratch) -> bool {
    if regs.cs & USER_MODE != USER_MODE {
        return false;
    }
    scratch.regs = Registers {
        pc: regs.rip,
        sp: regs.rsp,
        bp: regs.rbp,
    };
    // DWARF order (AMD64 ABI, figure 3.36): rax rdx rcx rbx rsi rdi rbp rsp r8 … r15.
    scratch.general[0] = regs.rax;
    scratch.general[1] = regs.rdx;
    scratch.general[2] = regs.rcx;
    scratch.general[3] = regs.rbx;
    scratch.general[4] = regs.rsi;
    scratch.general[5] = regs.rdi;
    scratch.general[6] = regs.rbp;
    scratch.general[7] = regs.rsp;
    scratch.general[8] = regs.r8;
    scratch.general[9] = regs.r9;
    scratch.general[10] = regs.r10;
    scratch.general[11] = regs.r11;
    scratch.general[12] = regs.r12;
    scratch.general[13] = regs.r13;
    scratch.general[14] = regs.r14;
    scratch.general[15] = regs.r15;
    true
}

/// Fills in the user registers that the kernel saved when the current task entered it.
#[inline(always)]
pub fn registers_of_task(scratch: &mut Scratch) {
    scratch.regs.pc = 0;
    let saved: *const pt_regs = if config::has_task_pt_regs() != 0 {
        // SAFETY: helpers without preconditions; the kernel checks the pointer's type.
        unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) as *const pt_regs }
    } else {
        // SAFETY: the helper has no preconditions.
        let task = unsafe { bpf_get_current_task() };
        // SAFETY: the helper checks the address.
        let stack =
            unsafe { bpf_probe_read_kernel((task + config::task_stack() as u64) as *const u64) };
        match stack {
            Ok(stack) => (stack + config::pt_regs_offset() as u64) as *const pt_regs,
            Err(_) => return,
        }
    };
    let buffer = &raw mut scratch.saved;
    // SAFETY: the buffer is as large as the size given; the helper checks the address.
    let failed = unsafe {
        generated::bpf_probe_read_kernel(buffer.cast(), size_of::<pt_regs>() as u32, saved.cast())
    };
    if failed == 0 {
        // SAFETY: just filled in.
        registers_from(unsafe { &*buffer }, scratch);
    }
}

/// One step of a running hash.
#[inline(always)]
pub fn mix(hash: u64, value: u64) -> u64 {
    let hash = (hash ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash ^ hash >> 29
}

/// What [`unwind_step`] returns while there are more frames; otherwise an [`End`].
const CONTINUE: u32 = 100;

/// One frame: names it by its mapping, finds its row and steps to its caller.
///
/// A global function: the verifier checks it once by itself, so that the loop around it costs
/// it nothing. Its state is in the scratch that `slot` names.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn unwind_step(slot: u32) -> u32 {
    let Some(scratch) = SCRATCH.get_ptr_mut(slot) else {
        return End::NoUserRegisters as u32;
    };
    // SAFETY: as in `claim`, which the caller did.
    let scratch = unsafe { &mut *scratch };
    let leaf = scratch.leaf != 0;
    let pc = scratch.regs.pc - !leaf as u64;
    if pc < scratch.mapping.start || pc >= scratch.mapping.end {
        if !find_mapping(scratch, pc) {
            push(scratch, frame::pack(0, pc));
            return End::NoMapping as u32;
        }
    }
    let module = scratch.mapping.module;
    let address = pc.wrapping_sub(scratch.mapping.bias);
    if module.table == 0 {
        push(scratch, frame::pack(0, pc));
        return follow(scratch, row_none(), leaf);
    }
    push(scratch, frame::pack(module.table as u16, address));
    if module.buckets == 0 {
        return End::TablePending as u32;
    }
    let row = find_row(&module, address);
    follow(scratch, row, leaf)
}

#[inline(always)]
fn row_none() -> u32 {
    agent_ebpf::unwind::row(0, kind::NONE, 0, 0)
}

#[inline(always)]
fn follow(scratch: &mut Scratch, row: u32, leaf: bool) -> u32 {
    if row >> 21 & 7 == kind::NONE {
        scratch.fallbacks += 1;
    }
    let mut regs = scratch.regs;
    let outcome = apply(row, &mut regs, leaf, &Process { scratch });
    scratch.regs = regs;
    match outcome {
        Step::Caller => {
            scratch.leaf = 0;
            CONTINUE
        }
        Step::Interrupted => {
            // The pc is exact again; of the registers only pc, sp and bp were restored.
            scratch.leaf = 2;
            CONTINUE
        }
        Step::End(end) => end as u32,
    }
}

/// Appends a frame; the walk's bound keeps it in the array, the mask shows it to the verifier.
#[inline(always)]
fn push(scratch: &mut Scratch, frame: u64) {
    let index = mask::<2047>(scratch.frames_len as u64);
    const _: () = assert!(FRAMES == 2048);
    // SAFETY: the index is below FRAMES.
    unsafe { *scratch.frames.as_mut_ptr().add(index) = frame };
    scratch.frames_len += 1;
    scratch.depth += 1;
    scratch.hash = mix(scratch.hash, frame);
}

#[inline(always)]
fn block(table: u32, index: u32) -> Option<*const Block> {
    TABLES.get(table)?.get_ptr(index)
}

/// Word `index` of a block.
///
/// # Safety
/// The pointer is to a whole block.
#[inline(always)]
unsafe fn word(block: *const Block, index: u32) -> u32 {
    let index = mask::<1023>(index as u64);
    const _: () = assert!(BLOCK_WORDS == 1024);
    // SAFETY: the index is below BLOCK_WORDS.
    unsafe { *block.cast::<u32>().add(index) }
}

/// The row that holds at `address`; one of kind NONE where the table has none.
#[inline(always)]
fn find_row(module: &Module, address: u64) -> u32 {
    let bucket = address.wrapping_sub(module.base) >> agent_ebpf::unwind::BUCKET_BITS;
    if address < module.base || bucket >= module.buckets as u64 {
        return row_none();
    }
    let Some(table) = TABLES.get(module.table) else {
        return row_none();
    };
    let bucket = bucket as u32;
    let Some(directory) = table.get_ptr(bucket / BLOCK_WORDS as u32) else {
        return row_none();
    };
    // SAFETY: a whole block.
    let entry = unsafe { word(directory, bucket) };
    let (first, count) = (entry >> 8, entry & 0xff);
    if first == 0 {
        return row_none();
    }
    let block_index = (first - 1) / BLOCK_WORDS as u32;
    let Some(rows) = table.get_ptr(module.rows.wrapping_add(block_index)) else {
        return row_none();
    };
    // SAFETY: a whole block; the rows of a bucket do not leave it.
    let at = search(first, count, address as u8, |i| unsafe { word(rows, i) });
    // SAFETY: as above.
    unsafe { word(rows, at) }
}

/// Finds the executable mapping around `pc` in the process's table and keeps it in the scratch.
#[inline(always)]
fn find_mapping(scratch: &mut Scratch, pc: u64) -> bool {
    const STARTS: u32 = mappings::STARTS_PER_BLOCK as u32;
    let Some(table) = TABLES.get(scratch.table) else {
        return false;
    };
    let mut chosen = 0u64;
    let mut i = 1u32;
    while i < mappings::START_BLOCKS as u32 {
        let Some(starts) = table.get_ptr(i) else {
            return false;
        };
        // SAFETY: a whole block of u64.
        chosen += 1 & starts_at_or_before(unsafe { *starts.cast::<u64>() }, pc);
        i += 1;
    }
    let chosen = mask::<3>(chosen) as u32;
    let Some(starts) = table.get_ptr(chosen) else {
        return false;
    };
    let starts = starts.cast::<u64>();
    let mut below = 0u64;
    let mut step = STARTS as u64 / 2;
    while step > 0 {
        let index = mask::<511>(below + step);
        // SAFETY: the index is below STARTS.
        let start = unsafe { *starts.add(index) };
        below += step & starts_at_or_before(start, pc);
        step >>= 1;
    }
    // SAFETY: the index is below STARTS.
    if unsafe { *starts.add(mask::<511>(below)) } > pc {
        return false;
    }
    let entry = chosen * STARTS + below as u32;
    let entries = mappings::START_BLOCKS as u32 + entry / mappings::ENTRIES_PER_BLOCK as u32;
    let Some(entries) = table.get_ptr(entries) else {
        return false;
    };
    let index = mask::<63>(entry as u64);
    // SAFETY: the index is below ENTRIES_PER_BLOCK, and a block is as large as that many.
    unsafe {
        copy_mapping(
            entries.cast::<Mapping>().add(index),
            &raw mut scratch.mapping,
        )
    };
    pc >= scratch.mapping.start && pc < scratch.mapping.end
}

/// All ones where `start <= pc`. Both are below 2^63, or `start` is `u64::MAX`: an unused place.
#[inline(always)]
fn starts_at_or_before(start: u64, pc: u64) -> u64 {
    !sign(pc.wrapping_sub(start) | start)
}

/// Copies an entry word by word: a call of `memcpy` would be a loop over bytes.
///
/// # Safety
/// Both are valid.
#[inline(always)]
unsafe fn copy_mapping(from: *const Mapping, to: *mut Mapping) {
    const WORDS: usize = size_of::<Mapping>() / 8;
    let mut i = 0;
    while i < WORDS {
        // SAFETY: inside both; volatile, so that it stays a copy of words.
        unsafe {
            let word = from.cast::<u64>().add(i).read_volatile();
            to.cast::<u64>().add(i).write_volatile(word);
        }
        i += 1;
    }
}

/// The memory of the current process.
struct Process<'a> {
    scratch: &'a Scratch,
}

impl Memory for Process<'_> {
    #[inline(always)]
    fn word(&self, address: u64) -> Option<u64> {
        // SAFETY: the helper checks the address.
        unsafe { aya_ebpf::helpers::bpf_probe_read_user(address as *const u64).ok() }
    }

    #[inline(always)]
    fn pair(&self, address: u64) -> Option<[u64; 2]> {
        // SAFETY: the helper checks the address.
        unsafe { aya_ebpf::helpers::bpf_probe_read_user(address as *const [u64; 2]).ok() }
    }

    #[inline(always)]
    fn register(&self, number: u8) -> Option<u64> {
        if self.scratch.leaf != 1 || number as usize >= register::COUNT {
            return None;
        }
        // SAFETY: the mask keeps the index inside the array.
        Some(unsafe { *self.scratch.general.as_ptr().add(mask::<15>(number as u64)) })
    }

    #[inline(always)]
    fn extended(&self, index: u32) -> Option<Extended> {
        let module = &self.scratch.mapping.module;
        let block = block(module.table, module.extended.wrapping_add(index / 256))?;
        // SAFETY: 256 rules fill a block, the mask keeps the index below that.
        Some(unsafe { *block.cast::<Extended>().add(mask::<255>(index as u64)) })
    }
}
