//! The unwind step on rows, rules, registers and memory of any content.

use agent_ebpf::unwind::{
    BLOCK_WORDS, Block, Extended, Mapping, Memory, Module, Registers, Step, register, step,
};
use agent_ebpf::{DeferredRecord, End, MAX_USER_FRAMES, SampleRecord, record};

use crate::probe::cpu::RawStack;
use crate::session::deferred::{Code, Deferred};

/// Where the stack of a walk begins; small numbers of the input count from here.
const STACK: u64 = 0x7fff_0000;
/// Where its code begins.
const CODE: u64 = 0x40_0000;

/// Reads values off the input; zeros when it has ended.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let (head, rest) = self.0.split_at(N.min(self.0.len()));
        for (byte, &value) in array.iter_mut().zip(head) {
            *byte = value;
        }
        self.0 = rest;
        array
    }

    fn word(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    /// A small offset from where the stack or the code is, or any value.
    fn address(&mut self, base: u64) -> u64 {
        match self.array() {
            [0xff] => u64::from_le_bytes(self.array()),
            [high] => base + (u64::from(high) << 8 | u64::from(self.array::<1>()[0])),
        }
    }

    fn registers(&mut self) -> Registers {
        Registers {
            pc: self.address(CODE),
            sp: self.address(STACK),
            bp: self.address(STACK),
        }
    }
}

/// Memory from [`STACK`] on, the general registers, and one extended rule.
struct Process<'a> {
    stack: &'a [u8],
    general: u64,
    rule: Extended,
}

impl Memory for Process<'_> {
    fn word(&self, address: u64) -> Option<u64> {
        let at = usize::try_from(address.checked_sub(STACK)?).ok()?;
        let bytes = self.stack.get(at..)?.first_chunk()?;
        Some(u64::from_le_bytes(*bytes))
    }

    fn pair(&self, address: u64) -> Option<[u64; 2]> {
        Some([self.word(address)?, self.word(address.checked_add(8)?)?])
    }

    fn register(&self, number: u8) -> Option<u64> {
        (usize::from(number) < register::COUNT).then_some(self.general)
    }

    fn extended(&self, index: u32) -> Option<Extended> {
        (index < 8).then_some(self.rule)
    }
}

/// Applies rows, one after another, to a frame and its callers.
pub(super) fn steps(bytes: &[u8]) {
    let mut input = Input(bytes);
    let mut regs = input.registers();
    let [cfa_kind, cfa_register, rbp_kind, return_register] = input.array();
    let rule = Extended {
        cfa_kind,
        cfa_register,
        rbp_kind,
        return_register,
        cfa_offset: input.word() as i32,
        cfa_offset2: input.word() as i32,
        rbp_offset: input.word() as i32,
    };
    let general = input.address(STACK);
    let rows: [[u8; 4]; 8] = std::array::from_fn(|_| input.array());
    let process = Process {
        stack: input.0,
        general,
        rule,
    };
    let mut leaf = true;
    for row in rows.map(u32::from_le_bytes) {
        let before = regs;
        match step(row, &mut regs, leaf, &process) {
            Step::Caller => {
                // A register may hold the return address, in the innermost frame; a switch of stacks leads anywhere.
                let switched = row >> 21 & 7 == agent_ebpf::unwind::kind::NONE;
                let popped = row >> 21 & 7 == agent_ebpf::unwind::kind::EXTENDED;
                assert!(regs.sp > before.sp || switched || popped && regs.sp == before.sp);
                assert!(regs.pc != 0);
                leaf = false;
            }
            Step::Interrupted => leaf = true,
            Step::End(_) => break,
        }
    }
}

/// One module whose table is made of the input's bytes, as often as they go into its blocks.
struct Table<'a> {
    module: Module,
    words: &'a [u8],
}

impl Code for Table<'_> {
    fn mapping(&self, address: u64) -> Option<Mapping> {
        let end = CODE + 0x1_0000;
        (CODE..end).contains(&address).then_some(Mapping {
            start: CODE,
            end,
            bias: CODE,
            module: self.module,
            ..Mapping::default()
        })
    }

    fn block(&self, _: u32, index: u32) -> Option<Block> {
        let words = self.words.as_chunks::<4>().0;
        if index > 8 || words.is_empty() {
            return None;
        }
        let skipped = index as usize * BLOCK_WORDS % words.len();
        let mut words = words.iter().cycle().skip(skipped);
        Some(std::array::from_fn(|_| {
            words.next().map_or(0, |&word| u32::from_le_bytes(word))
        }))
    }
}

/// Finishes a walk on tables of any content.
pub(super) fn deferred(bytes: &[u8]) {
    let mut input = Input(bytes);
    let regs = input.registers();
    let [leaf, end, base, buckets, rows, extended, stack_words, _] = input.array();
    let general = input.address(STACK);
    let (words, stack) = input
        .0
        .split_at(input.0.len() - input.0.len().min(8 * stack_words as usize));
    let code = Table {
        module: Module {
            base: u64::from(base) << 8,
            buckets: buckets.into(),
            rows: rows.into(),
            extended: extended.into(),
            table: 1,
        },
        words,
    };
    let sample = sample(regs, leaf.into(), end.into(), general, stack);
    let Some(mut sample) = Deferred::decode(&sample) else {
        assert!(End::from_number(end.into()).is_none());
        return;
    };
    let _ = sample.walk(&code);
    let finished = RawStack::decode(&sample.record());
    assert!(finished.is_some_and(|stack| stack.user.len() <= MAX_USER_FRAMES));
}

/// A [`DeferredRecord`] of a walk that stopped in its first frame.
fn sample(regs: Registers, leaf: u32, end: u32, general: u64, stack: &[u8]) -> Vec<u8> {
    let mut bytes = record::DEFERRED.to_ne_bytes().to_vec();
    bytes.resize(size_of::<SampleRecord>(), 0);
    for word in [end, 1 << 16] {
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    for word in [regs.pc, regs.sp, regs.bp] {
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    for word in [leaf, stack.len() as u32] {
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    for _ in 0..register::COUNT {
        bytes.extend_from_slice(&general.to_ne_bytes());
    }
    bytes.resize(size_of::<DeferredRecord>(), 0);
    bytes.extend_from_slice(stack);
    bytes
}
