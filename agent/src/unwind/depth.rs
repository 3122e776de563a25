//! What one instruction does to the depth of the stack.

use agent_ebpf::unwind::{kind, row};
use iced_x86::{Code as Opcode, FlowControl, Instruction, Mnemonic, OpKind, Register};

use super::layout::NONE;

/// What is known before an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing.
    Unknown,
    /// The outermost frame: it cleared rbp before anything else (AMD64 ABI 3.4.1).
    Root,
    /// A frame.
    Frame(Frame),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Frame {
    /// Bytes between rsp and the return address, where known.
    depth: Option<i64>,
    /// The same of rbp, where it is the frame pointer.
    pointer: Option<i64>,
    /// The depth behind the push of the caller's rbp.
    saved_rbp: Option<i64>,
}

impl State {
    /// At a function's first instruction.
    pub(super) const ENTRY: State = State::Frame(Frame {
        depth: Some(0),
        pointer: None,
        saved_rbp: None,
    });

    /// The row for this state, without its address byte.
    pub(super) fn row(self) -> u32 {
        let State::Frame(frame) = self else {
            return if self == State::Root {
                row(0, kind::ROOT, 0, 0)
            } else {
                NONE
            };
        };
        let (kind, depth) = match (frame.pointer, frame.depth) {
            (Some(depth), _) => (kind::RBP, depth),
            (None, Some(depth)) => (kind::RSP, depth),
            (None, None) => return NONE,
        };
        let words = |depth: i64| {
            let words = u16::try_from(depth / 8 + 1)
                .ok()
                .filter(|_| depth >= 0 && depth % 8 == 0);
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
    pub(super) fn after(self, instruction: &Instruction) -> State {
        let State::Frame(mut frame) = self else {
            return self;
        };
        let to = instruction.op0_register();
        let clears = matches!(instruction.mnemonic(), Mnemonic::Xor | Mnemonic::Sub)
            && to == instruction.op1_register()
            && instruction.op0_kind() == OpKind::Register;
        if clears
            && to.full_register() == Register::RBP
            && frame
                == (Frame {
                    depth: Some(0),
                    ..Frame::default()
                })
        {
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
                frame.pointer = frame
                    .depth
                    .filter(|_| instruction.op1_register() == Register::RSP);
            }
            Mnemonic::Leave => {
                return State::Frame(Frame {
                    depth: frame.pointer.map(|depth| depth - 8),
                    ..Frame::default()
                });
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
    let reads_only = matches!(
        instruction.mnemonic(),
        Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Push | Mnemonic::Bt
    );
    instruction.op0_kind() == OpKind::Register
        && instruction.op0_register().full_register() == register
        && !reads_only
}

fn depth_after(frame: &Frame, instruction: &Instruction) -> Option<i64> {
    if matches!(
        instruction.flow_control(),
        FlowControl::Call | FlowControl::IndirectCall
    ) {
        return frame.depth;
    }
    if instruction.is_stack_instruction() {
        return frame
            .depth?
            .checked_sub(instruction.stack_pointer_increment().into());
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
        Opcode::Sub_rm64_imm8 | Opcode::Sub_rm64_imm32 => {
            frame.depth?.checked_add(instruction.immediate(1) as i64)
        }
        Opcode::Add_rm64_imm8 | Opcode::Add_rm64_imm32 => {
            frame.depth?.checked_sub(instruction.immediate(1) as i64)
        }
        Opcode::Lea_r64_m if instruction.memory_index() == Register::None => {
            relative(instruction.memory_base())?
                .checked_sub(instruction.memory_displacement64() as i64)
        }
        Opcode::Mov_r64_rm64 | Opcode::Mov_rm64_r64 => relative(instruction.op1_register()),
        _ => None,
    }
}
