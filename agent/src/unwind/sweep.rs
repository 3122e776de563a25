//! Sweeps over a range of instructions that carry the depth of the stack along.

use std::collections::{BTreeSet, HashMap};

use iced_x86::{Code as Opcode, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic};

use super::code::ALIGNMENT;
use super::depth::State;

/// Sweeps over a range until it is given up: later ones know the jumps that lead back.
const SWEEPS: usize = 4;
/// Most targets of jumps whose states are kept, and most rows: a range with more is out of all
/// proportion, and goes without the rest.
const MAX_TARGETS: usize = 1 << 18;
const MAX_ROWS: usize = 1 << 20;

/// The rows of a range of code at an address; functions begin at `starts`, and nowhere else when
/// these are `complete`.
pub(super) fn sweeps(
    bytes: &[u8],
    address: u64,
    starts: &BTreeSet<u64>,
    complete: bool,
) -> Vec<(u64, u32)> {
    let mut sweep = Sweep {
        start: address,
        starts: Marks::new(bytes.len()),
        targeted: Marks::new(bytes.len()),
        targets: HashMap::new(),
        indirect: State::Unknown,
        guess: false,
        rows: Vec::new(),
    };
    for start in starts.range(address..address.saturating_add(bytes.len() as u64)) {
        sweep.starts.insert(start - address);
    }
    sweep.settle(bytes);
    if !complete {
        sweep.guess = true;
        sweep.rows.clear();
        sweep.run(bytes);
        sweep.guess = false;
        sweep.settle(bytes);
    }
    sweep.rows
}

/// A set of places in a range of code.
struct Marks {
    words: Vec<u64>,
    count: usize,
}

impl Marks {
    fn new(bytes: usize) -> Self {
        Self {
            words: vec![0; bytes.div_ceil(64)],
            count: 0,
        }
    }

    fn contains(&self, at: u64) -> bool {
        self.words
            .get(at as usize / 64)
            .is_some_and(|word| word >> (at % 64) & 1 != 0)
    }

    /// Adds a place; false if it was there or lies outside.
    fn insert(&mut self, at: u64) -> bool {
        let Some(word) = self.words.get_mut(at as usize / 64) else {
            return false;
        };
        let new = *word >> (at % 64) & 1 == 0;
        *word |= 1 << (at % 64);
        self.count += usize::from(new);
        new
    }
}

struct Sweep {
    /// The address of the range.
    start: u64,
    /// Where functions are known to begin, relative to the range like all places here.
    starts: Marks,
    /// The targets of jumps and the states that these carry there.
    targeted: Marks,
    targets: HashMap<u64, State>,
    /// The state at the function's last indirect jump: a switch leads to blocks that no direct
    /// jump does.
    indirect: State,
    /// Whether aligned blocks that nothing leads to are taken for functions.
    guess: bool,
    rows: Vec<(u64, u32)>,
}

impl Sweep {
    /// Sweeps until nothing new is found.
    fn settle(&mut self, bytes: &[u8]) {
        for _ in 0..SWEEPS {
            let known = (self.targeted.count, self.starts.count);
            self.rows.clear();
            self.run(bytes);
            if known == (self.targeted.count, self.starts.count) {
                break;
            }
        }
    }

    fn run(&mut self, bytes: &[u8]) {
        let mut decoder = Decoder::with_ip(64, bytes, self.start, DecoderOptions::NONE);
        let mut instruction = Instruction::default();
        let mut state = State::ENTRY;
        let mut flows = true;
        while decoder.can_decode() {
            decoder.decode_out(&mut instruction);
            let at = instruction.ip() - self.start;
            if self.starts.contains(at) {
                (state, self.indirect) = (State::ENTRY, State::Unknown);
            } else if !flows {
                if matches!(instruction.mnemonic(), Mnemonic::Nop | Mnemonic::Int3) {
                    continue;
                }
                state = self.carried(at).unwrap_or_else(|| self.unreached(at));
            } else if !matches!(state, State::Frame(_)) {
                state = self.carried(at).unwrap_or(state);
            }
            let row = state.row();
            if self.rows.len() >= MAX_ROWS {
                return;
            }
            if self.rows.last().is_none_or(|&(_, last)| last != row) {
                self.rows.push((self.start + at, row));
            }
            (state, flows) = self.step(state, &instruction);
        }
    }

    /// The state that a jump carries here.
    fn carried(&self, at: u64) -> Option<State> {
        self.targeted
            .contains(at)
            .then(|| self.targets.get(&at).copied())
            .flatten()
    }

    /// The state of a block that no known jump leads to.
    fn unreached(&mut self, at: u64) -> State {
        if self.guess
            && self.indirect == State::Unknown
            && (self.start + at).is_multiple_of(ALIGNMENT)
        {
            self.starts.insert(at);
            return State::ENTRY;
        }
        self.indirect
    }

    /// Takes an address of code that is loaded into a register for a function's.
    fn pointer(&mut self, instruction: &Instruction) {
        let address = match instruction.code() {
            Opcode::Lea_r64_m if instruction.is_ip_rel_memory_operand() => {
                instruction.ip_rel_memory_address()
            }
            Opcode::Mov_r32_imm32 | Opcode::Mov_rm64_imm32 => instruction.immediate(1),
            _ => return,
        };
        if address % ALIGNMENT == 0 {
            self.starts.insert(address.wrapping_sub(self.start));
        }
    }

    /// The state behind an instruction and whether it flows on.
    fn step(&mut self, state: State, instruction: &Instruction) -> (State, bool) {
        let target = instruction.near_branch_target();
        let place = target.wrapping_sub(self.start);
        match instruction.flow_control() {
            FlowControl::ConditionalBranch
            | FlowControl::UnconditionalBranch
            | FlowControl::XbeginXabortXend => {
                let goes_on = instruction.flow_control() != FlowControl::UnconditionalBranch;
                if !goes_on && state == State::ENTRY && target.is_multiple_of(ALIGNMENT) {
                    self.starts.insert(place);
                }
                if state != State::Unknown
                    && self.targets.len() < MAX_TARGETS
                    && self.targeted.insert(place)
                {
                    self.targets.insert(place, state);
                }
                (state, goes_on)
            }
            FlowControl::IndirectBranch => {
                self.indirect = state;
                (State::Unknown, false)
            }
            FlowControl::Call => {
                self.starts.insert(place);
                (state, true)
            }
            FlowControl::Return | FlowControl::Exception => (State::Unknown, false),
            _ if instruction.is_invalid() => (State::Unknown, false),
            _ => {
                self.pointer(instruction);
                (state.after(instruction), true)
            }
        }
    }
}
