//! Rules read from the instructions themselves, for code that comes without any: C libraries
//! built without unwind tables (musl) and hand-written assembly.
//!
//! A sweep over the instructions keeps how far rsp is below the return address, and carries it
//! along jumps. Where that is lost (rsp computed at run time) there is no rule, and the frame
//! pointer has to do.

use std::collections::{BTreeSet, HashMap};

use agent_ebpf::unwind::{kind, row};
use iced_x86::{Code as Opcode, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};

use super::layout::NONE;
use super::{Code, Piece, Source};
use crate::elf::{self, Headers, ReadAt, half, word, xword};

/// Most bytes of code that are looked at.
const MAX_CODE: u64 = 16 << 20;
/// Sweeps over a range: later ones know the jumps that lead back.
const SWEEPS: usize = 3;
/// Functions that nothing names begin at a multiple of this.
const ALIGNMENT: u64 = 16;

/// What is known before an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing.
    Unknown,
    /// The outermost frame: it cleared rbp before anything else (AMD64 ABI 3.4.1).
    Root,
    /// A frame.
    Frame(Frame),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Frame {
    /// Bytes between rsp and the return address, where known.
    depth: Option<i64>,
    /// The same of rbp, where it is the frame pointer.
    pointer: Option<i64>,
    /// The depth behind the push of the caller's rbp.
    saved_rbp: Option<i64>,
}

const ENTRY: State = State::Frame(Frame { depth: Some(0), pointer: None, saved_rbp: None });

impl State {
    fn row(self) -> u32 {
        let State::Frame(frame) = self else {
            return if self == State::Root { row(0, kind::ROOT, 0, 0) } else { NONE };
        };
        let (kind, depth) = match (frame.pointer, frame.depth) {
            (Some(depth), _) => (kind::RBP, depth),
            (None, Some(depth)) => (kind::RSP, depth),
            (None, None) => return NONE,
        };
        let words = |depth: i64| {
            let words = u16::try_from(depth / 8 + 1).ok().filter(|_| depth >= 0 && depth % 8 == 0);
            words.map(u32::from)
        };
        let saved = match frame.saved_rbp {
            None => Some(0),
            Some(depth) => words(depth).filter(|k| (2..32).contains(k)),
        };
        match (words(depth), saved) {
            (Some(offset), Some(saved)) => row(0, kind, saved, offset),
            _ => NONE,
        }
    }

    /// The state behind an instruction that flows on to the next one.
    fn after(self, instruction: &Instruction) -> State {
        let State::Frame(mut frame) = self else { return self };
        let to = instruction.op0_register();
        let clears = matches!(instruction.mnemonic(), Mnemonic::Xor | Mnemonic::Sub)
            && to == instruction.op1_register()
            && instruction.op0_kind() == OpKind::Register;
        if clears && to.full_register() == Register::RBP && frame == (Frame { depth: Some(0), ..Frame::default() }) {
            return State::Root;
        }
        match instruction.mnemonic() {
            Mnemonic::Push if to == Register::RBP => {
                frame.saved_rbp = frame.saved_rbp.or(frame.depth.map(|depth| depth + 8));
            }
            Mnemonic::Pop if to == Register::RBP => {
                if frame.saved_rbp == frame.depth {
                    frame.saved_rbp = None;
                }
                frame.pointer = None;
            }
            Mnemonic::Mov if to == Register::RBP => {
                frame.pointer = frame.depth.filter(|_| instruction.op1_register() == Register::RSP);
            }
            Mnemonic::Leave => {
                return State::Frame(Frame { depth: frame.pointer.map(|depth| depth - 8), ..Frame::default() });
            }
            _ if writes(instruction, Register::RBP) => frame.pointer = None,
            _ => {}
        }
        frame.depth = depth_after(&frame, instruction);
        State::Frame(frame)
    }
}

/// Whether the first operand is this register and is written.
fn writes(instruction: &Instruction, register: Register) -> bool {
    let reads_only = matches!(instruction.mnemonic(), Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Push | Mnemonic::Bt);
    instruction.op0_kind() == OpKind::Register && instruction.op0_register().full_register() == register && !reads_only
}

fn depth_after(frame: &Frame, instruction: &Instruction) -> Option<i64> {
    if matches!(instruction.flow_control(), FlowControl::Call | FlowControl::IndirectCall) {
        return frame.depth;
    }
    if instruction.is_stack_instruction() {
        return frame.depth?.checked_sub(instruction.stack_pointer_increment().into());
    }
    if !writes(instruction, Register::RSP) {
        return frame.depth;
    }
    let relative = |base: Register| match base {
        Register::RSP => frame.depth,
        Register::RBP => frame.pointer,
        _ => None,
    };
    match instruction.code() {
        Opcode::Sub_rm64_imm8 | Opcode::Sub_rm64_imm32 => frame.depth?.checked_add(instruction.immediate(1) as i64),
        Opcode::Add_rm64_imm8 | Opcode::Add_rm64_imm32 => frame.depth?.checked_sub(instruction.immediate(1) as i64),
        Opcode::Lea_r64_m if instruction.memory_index() == Register::None => {
            relative(instruction.memory_base())?.checked_sub(instruction.memory_displacement64() as i64)
        }
        Opcode::Mov_r64_rm64 | Opcode::Mov_rm64_r64 => relative(instruction.op1_register()),
        _ => None,
    }
}

/// Adds pieces for the code in the gaps.
pub(super) fn fill<F: ReadAt + ?Sized>(
    file: &F,
    headers: &Headers,
    code: &Code,
    gaps: &[(u32, u32)],
    pieces: &mut Vec<Piece>,
) {
    let mut starts = None;
    let mut budget = MAX_CODE;
    for &(start, end) in gaps {
        let Some(rest) = budget.checked_sub(u64::from(end - start)) else { continue };
        budget = rest;
        let address = code.origin + u64::from(start);
        let Ok(bytes) = headers.read_vaddr(file, address, u64::from(end - start)) else { continue };
        let starts = starts.get_or_insert_with(|| function_symbols(file, headers));
        let mut previous = None;
        for (at, row) in sweeps(&bytes, address, starts) {
            let at = (at - code.origin) as u32;
            if previous != Some(row) {
                pieces.push(Piece { start: at, end, source: Source::Row(row) });
            }
            previous = Some(row);
        }
    }
}

/// The addresses of the functions in `.symtab`.
fn function_symbols<F: ReadAt + ?Sized>(file: &F, headers: &Headers) -> BTreeSet<u64> {
    const STT_FUNC: u8 = 2;
    let Some(section) = headers.section(".symtab") else { return BTreeSet::new() };
    let bytes = elf::read_range(file, section.offset, section.size, ".symtab").unwrap_or_default();
    let is_function = |symbol: &&[u8]| word(symbol, 4) as u8 & 15 == STT_FUNC && half(symbol, 6) != 0;
    bytes.chunks_exact(24).filter(is_function).map(|symbol| xword(symbol, 8)).collect()
}

/// The rows of a range of code.
fn sweeps(bytes: &[u8], address: u64, symbols: &BTreeSet<u64>) -> Vec<(u64, u32)> {
    let mut sweep = Sweep {
        end: address + bytes.len() as u64,
        starts: symbols.range(address..address + bytes.len() as u64).copied().collect(),
        start: address,
        targets: HashMap::new(),
        indirect: State::Unknown,
        rows: Vec::new(),
    };
    for _ in 0..SWEEPS {
        let known = (sweep.targets.len(), sweep.starts.len());
        sweep.rows.clear();
        sweep.run(bytes);
        if known == (sweep.targets.len(), sweep.starts.len()) {
            break;
        }
    }
    sweep.rows
}

struct Sweep {
    start: u64,
    end: u64,
    /// Where functions are known to begin.
    starts: BTreeSet<u64>,
    /// The states that jumps carry to their targets.
    targets: HashMap<u64, State>,
    /// The state at the function's last indirect jump: a switch leads to blocks that no direct
    /// jump does.
    indirect: State,
    rows: Vec<(u64, u32)>,
}

impl Sweep {
    fn run(&mut self, bytes: &[u8]) {
        let mut decoder = Decoder::with_ip(64, bytes, self.start, DecoderOptions::NONE);
        let mut instruction = Instruction::default();
        let mut state = ENTRY;
        let mut flows = true;
        while decoder.can_decode() {
            decoder.decode_out(&mut instruction);
            let at = instruction.ip();
            if self.starts.contains(&at) {
                (state, self.indirect) = (ENTRY, State::Unknown);
            } else if !flows {
                if matches!(instruction.mnemonic(), Mnemonic::Nop | Mnemonic::Int3) {
                    continue;
                }
                state = self.targets.get(&at).copied().unwrap_or(self.unreached(at));
            }
            let row = state.row();
            if self.rows.last().is_none_or(|&(_, last)| last != row) {
                self.rows.push((at, row));
            }
            (state, flows) = self.step(state, &instruction);
        }
    }

    /// The state of a block that no known jump leads to.
    fn unreached(&self, at: u64) -> State {
        match self.indirect {
            State::Unknown if at % ALIGNMENT == 0 => ENTRY,
            state => state,
        }
    }

    /// The state behind an instruction and whether it flows on.
    fn step(&mut self, state: State, instruction: &Instruction) -> (State, bool) {
        let target = instruction.near_branch_target();
        let inside = (self.start..self.end).contains(&target);
        match instruction.flow_control() {
            FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch | FlowControl::XbeginXabortXend => {
                if inside && state != State::Unknown && !self.starts.contains(&target) {
                    self.targets.entry(target).or_insert(state);
                }
                (state, instruction.flow_control() != FlowControl::UnconditionalBranch)
            }
            FlowControl::IndirectBranch => {
                self.indirect = state;
                (State::Unknown, false)
            }
            FlowControl::Call if inside => {
                self.starts.insert(target);
                (state, true)
            }
            FlowControl::Return | FlowControl::Exception => (State::Unknown, false),
            _ if instruction.is_invalid() => (State::Unknown, false),
            _ if instruction.mnemonic() == Mnemonic::Hlt => (State::Unknown, false),
            _ => (state.after(instruction), true),
        }
    }
}
