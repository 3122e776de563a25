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
/// Shorter gaps, in bytes, are padding or data.
const MIN_GAP: u32 = 64;
/// With fewer bytes in gaps and no names of functions, calls to them are not searched for.
const MIN_UNNAMED: u64 = 16 << 10;
/// Sweeps over a range: later ones know the jumps that lead back.
const SWEEPS: usize = 8;
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
    let mut budget = MAX_CODE;
    let mut wanted = gaps.to_vec();
    wanted.retain(|&(start, end)| {
        let rest = budget.checked_sub(u64::from(end - start)).filter(|_| end - start >= MIN_GAP);
        budget = rest.unwrap_or(budget);
        rest.is_some()
    });
    if wanted.is_empty() {
        return;
    }
    let starts = Starts::find(file, headers, code, &wanted);
    for (start, end) in wanted {
        let Ok(bytes) = headers.read_vaddr(file, code.origin + u64::from(start), u64::from(end - start)) else {
            continue;
        };
        for (at, row) in sweeps(&bytes, code.origin + u64::from(start), &starts) {
            let start = (at - code.origin) as u32;
            pieces.push(Piece { start, end, source: Source::Row(row) });
        }
    }
}

/// Where functions begin in the gaps, as far as the file says.
struct Starts {
    addresses: BTreeSet<u64>,
    /// Whether these are all.
    complete: bool,
}

impl Starts {
    fn find<F: ReadAt + ?Sized>(file: &F, headers: &Headers, code: &Code, gaps: &[(u32, u32)]) -> Self {
        let in_gap = |address: &u64| {
            let at = address.checked_sub(code.origin).and_then(|at| u32::try_from(at).ok());
            at.is_some_and(|at| {
                let next = gaps.partition_point(|&(start, _)| start <= at);
                next.checked_sub(1).and_then(|i| gaps.get(i)).is_some_and(|&(_, end)| at < end)
            })
        };
        let complete = headers.section(".symtab").is_some();
        let symbols = function_symbols(file, headers, if complete { ".symtab" } else { ".dynsym" });
        let mut addresses: BTreeSet<_> = symbols.into_iter().filter(in_gap).collect();
        let size: u64 = gaps.iter().map(|&(start, end)| u64::from(end - start)).sum();
        if !complete && size >= MIN_UNNAMED {
            addresses.extend(called(file, headers).into_iter().filter(in_gap));
        }
        Self { addresses, complete }
    }
}

/// The addresses of the functions in a symbol table.
fn function_symbols<F: ReadAt + ?Sized>(file: &F, headers: &Headers, table: &str) -> Vec<u64> {
    const STT_FUNC: u8 = 2;
    let is_function = |symbol: &&[u8]| word(symbol, 4) as u8 & 15 == STT_FUNC && half(symbol, 6) != 0;
    let Some(section) = headers.section(table) else { return Vec::new() };
    let bytes = elf::read_range(file, section.offset, section.size, "symbol table").unwrap_or_default();
    bytes.chunks_exact(24).filter(is_function).map(|symbol| xword(symbol, 8)).collect()
}

/// The aligned targets of what looks like a direct call, in code with rules too.
fn called<F: ReadAt + ?Sized>(file: &F, headers: &Headers) -> Vec<u64> {
    const CALL: u8 = 0xe8;
    let mut targets = Vec::new();
    for segment in headers.segments.iter().filter(|segment| segment.exec && segment.filesz <= MAX_CODE) {
        let bytes = headers.read_vaddr(file, segment.vaddr, segment.filesz).unwrap_or_default();
        for (i, _) in bytes.iter().enumerate().filter(|&(_, &byte)| byte == CALL) {
            let next = segment.vaddr.wrapping_add(i as u64 + 5);
            let target = next.wrapping_add_signed((word(&bytes, i + 1) as i32).into());
            if target % ALIGNMENT == 0 && target.wrapping_sub(segment.vaddr) < segment.filesz {
                targets.push(target);
            }
        }
    }
    targets
}

/// The rows of a range of code.
fn sweeps(bytes: &[u8], address: u64, starts: &Starts) -> Vec<(u64, u32)> {
    let mut sweep = Sweep {
        end: address + bytes.len() as u64,
        starts: starts.addresses.range(address..address + bytes.len() as u64).copied().collect(),
        start: address,
        targets: HashMap::new(),
        indirect: State::Unknown,
        guess: false,
        rows: Vec::new(),
    };
    sweep.settle(bytes);
    if !starts.complete {
        sweep.guess = true;
        sweep.rows.clear();
        sweep.run(bytes);
        sweep.guess = false;
        sweep.settle(bytes);
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
    /// Whether aligned blocks that nothing leads to are taken for functions.
    guess: bool,
    rows: Vec<(u64, u32)>,
}

impl Sweep {
    /// Sweeps until nothing new is found.
    fn settle(&mut self, bytes: &[u8]) {
        for _ in 0..SWEEPS {
            let known = (self.targets.len(), self.starts.len());
            self.rows.clear();
            self.run(bytes);
            if known == (self.targets.len(), self.starts.len()) {
                break;
            }
        }
    }

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
                state = self.targets.get(&at).copied().unwrap_or_else(|| self.unreached(at));
            } else if !matches!(state, State::Frame(_)) {
                state = self.targets.get(&at).copied().unwrap_or(state);
            }
            let row = state.row();
            if self.rows.last().is_none_or(|&(_, last)| last != row) {
                self.rows.push((at, row));
            }
            (state, flows) = self.step(state, &instruction);
        }
    }

    /// The state of a block that no known jump leads to.
    fn unreached(&mut self, at: u64) -> State {
        if self.guess && self.indirect == State::Unknown && at % ALIGNMENT == 0 {
            self.starts.insert(at);
            return ENTRY;
        }
        self.indirect
    }

    /// Takes an address of code that is loaded into a register for a function's.
    fn pointer(&mut self, instruction: &Instruction) {
        let address = match instruction.code() {
            Opcode::Lea_r64_m if instruction.is_ip_rel_memory_operand() => instruction.ip_rel_memory_address(),
            Opcode::Mov_r32_imm32 | Opcode::Mov_rm64_imm32 => instruction.immediate(1),
            _ => return,
        };
        if address > self.start && address < self.end && address % ALIGNMENT == 0 {
            self.starts.insert(address);
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
                    let tail_call = instruction.flow_control() == FlowControl::UnconditionalBranch && state == ENTRY;
                    if tail_call && target % ALIGNMENT == 0 {
                        self.starts.insert(target);
                    }
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
            _ => {
                self.pointer(instruction);
                (state.after(instruction), true)
            }
        }
    }
}
