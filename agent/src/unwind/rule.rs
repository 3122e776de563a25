//! The rules of one code address and their encoding as a row.

use agent_ebpf::unwind::{Extended, cfa, kind, register, row, saved};
use gimli::{EndianSlice, Expression, LittleEndian, Operation};

use super::layout::Layout;

type Reader<'a> = EndianSlice<'a, LittleEndian>;

/// How the CFA is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cfa {
    /// register + offset.
    Register { register: u16, offset: i64 },
    /// *(register + offset) + offset2.
    Deref {
        register: u16,
        offset: i64,
        offset2: i64,
    },
    /// rsp + offset + (8 if (pc & 15) >= threshold).
    Plt { offset: i64, threshold: u64 },
    /// An expression of another form.
    Unsupported,
}

/// Where the caller's value of a register is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Saved {
    /// In the register.
    Same,
    /// Nowhere.
    Undefined,
    /// At CFA + offset.
    AtCfa(i64),
    /// At register + offset.
    AtRegister { register: u16, offset: i64 },
    /// In another register.
    In(u16),
    /// Somewhere else.
    Unsupported,
}

/// The rules that hold at one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rules {
    pub(super) cfa: Cfa,
    pub(super) rbp: Saved,
    pub(super) return_address: Saved,
}

impl Rules {
    /// The rules before any instruction.
    pub(super) const INITIAL: Self = Self {
        cfa: Cfa::Unsupported,
        rbp: Saved::Same,
        return_address: Saved::Same,
    };

    /// The row for these rules, without its address byte; `signal` says that the code is a
    /// signal trampoline.
    pub(super) fn row(&self, signal: bool, layout: &mut Layout) -> u32 {
        // The return of a handler pops nothing but the return address: at the trampoline rsp
        // is at the `ucontext`, whatever expression its CFI uses to say so.
        if signal && !matches!(self.cfa, Cfa::Register { .. }) {
            return row(0, kind::SIGNAL, 0, 0);
        }
        match self.return_address {
            Saved::Undefined => return row(0, kind::ROOT, 0, 0),
            Saved::AtCfa(-8) => self.small(),
            Saved::In(_) => None,
            _ => return UNSUPPORTED,
        }
        .or_else(|| layout.extend(self.extended()?))
        .unwrap_or(UNSUPPORTED)
    }

    /// The row that says all by itself, if it can.
    fn small(&self) -> Option<u32> {
        let (kind, offset) = match self.cfa {
            Cfa::Register { register, offset } if usize::from(register) == register::RSP => {
                (kind::RSP, offset)
            }
            Cfa::Register { register, offset } if usize::from(register) == register::RBP => {
                (kind::RBP, offset)
            }
            // The rbp field holds the threshold: a PLT entry does not touch rbp.
            Cfa::Plt { offset, threshold } if self.rbp == Saved::Same => {
                return Some(row(
                    0,
                    kind::PLT,
                    u32::try_from(threshold).ok().filter(|&t| t < 32)?,
                    words(offset)?,
                ));
            }
            _ => return None,
        };
        let rbp = match self.rbp {
            Saved::Same | Saved::Undefined => 0,
            Saved::AtCfa(at) => words(at.checked_neg()?).filter(|k| (2..32).contains(k))?,
            _ => return None,
        };
        Some(row(0, kind, rbp, words(offset)?))
    }

    fn extended(&self) -> Option<Extended> {
        let (cfa_kind, register, offset, offset2) = match self.cfa {
            Cfa::Register { register, offset } => (cfa::REGISTER, register, offset, 0),
            Cfa::Deref {
                register,
                offset,
                offset2,
            } => (cfa::DEREF, register, offset, offset2),
            Cfa::Plt { .. } | Cfa::Unsupported => return None,
        };
        let (rbp_kind, rbp_offset) = match self.rbp {
            Saved::Same | Saved::Undefined => (saved::SAME, 0),
            Saved::AtCfa(at) => (saved::AT_CFA, at),
            Saved::AtRegister { register, offset } => match usize::from(register) {
                register::RBP => (saved::AT_RBP, offset),
                register::RSP => (saved::AT_RSP, offset),
                _ => return None,
            },
            Saved::In(_) | Saved::Unsupported => return None,
        };
        let return_register = match self.return_address {
            Saved::In(register) => number(register)?.checked_add(1)?,
            _ => 0,
        };
        Some(Extended {
            cfa_kind,
            cfa_register: number(register)?,
            rbp_kind,
            return_register,
            cfa_offset: offset.try_into().ok()?,
            cfa_offset2: offset2.try_into().ok()?,
            rbp_offset: rbp_offset.try_into().ok()?,
        })
    }
}

/// The DWARF number of a general register.
fn number(register: u16) -> Option<u8> {
    let number = u8::try_from(register).ok()?;
    (usize::from(number) < register::COUNT).then_some(number)
}

/// The row of a rule that cannot be said.
pub(super) const UNSUPPORTED: u32 = row(0, kind::UNSUPPORTED, 0, 0);

/// A byte offset as a row's number of words.
fn words(offset: i64) -> Option<u32> {
    (offset & 7 == 0)
        .then_some(offset >> 3)
        .and_then(|words| u16::try_from(words).ok())
        .map(u32::from)
}

/// Most operations of a CFA expression that are looked at.
const MAX_OPERATIONS: usize = 9;

/// Recognises the forms of CFA expression that compilers, linkers and OpenSSL's assembly write.
pub(super) fn cfa_expression(expression: Expression<Reader>) -> Cfa {
    let mut operations = [const { Operation::Nop }; MAX_OPERATIONS];
    let Some(operations) = parse(expression, &mut operations) else {
        return Cfa::Unsupported;
    };
    use Operation::{And, Deref, Ge, Plus, PlusConstant, RegisterOffset, Shl, UnsignedConstant};
    match *operations {
        [
            RegisterOffset {
                register, offset, ..
            },
        ] => Cfa::Register {
            register: register.0,
            offset,
        },
        [
            RegisterOffset {
                register, offset, ..
            },
            Deref {
                space: false,
                size: 8,
                ..
            },
        ] => Cfa::Deref {
            register: register.0,
            offset,
            offset2: 0,
        },
        [
            RegisterOffset {
                register, offset, ..
            },
            Deref {
                space: false,
                size: 8,
                ..
            },
            PlusConstant { value },
        ] => match i64::try_from(value) {
            Ok(offset2) => Cfa::Deref {
                register: register.0,
                offset,
                offset2,
            },
            Err(_) => Cfa::Unsupported,
        },
        [
            RegisterOffset {
                register: gimli::X86_64::RSP,
                offset,
                ..
            },
            RegisterOffset {
                register: gimli::X86_64::RA,
                offset: 0,
                ..
            },
            UnsignedConstant { value: 15 },
            And,
            UnsignedConstant { value: threshold },
            Ge,
            UnsignedConstant { value: 3 },
            Shl,
            Plus,
        ] => Cfa::Plt { offset, threshold },
        _ => Cfa::Unsupported,
    }
}

/// Recognises `register + offset` as the place where a register is saved.
pub(super) fn saved_expression(expression: Expression<Reader>) -> Saved {
    let mut operations = [const { Operation::Nop }; MAX_OPERATIONS];
    match parse(expression, &mut operations) {
        Some(
            [
                Operation::RegisterOffset {
                    register, offset, ..
                },
            ],
        ) => Saved::AtRegister {
            register: register.0,
            offset: *offset,
        },
        _ => Saved::Unsupported,
    }
}

/// Parses an expression into `operations`; `None` when it is malformed or too long.
fn parse<'o, 'a>(
    expression: Expression<Reader<'a>>,
    operations: &'o mut [Operation<Reader<'a>>; MAX_OPERATIONS],
) -> Option<&'o [Operation<Reader<'a>>]> {
    let encoding = gimli::Encoding {
        address_size: 8,
        format: gimli::Format::Dwarf32,
        version: 4,
    };
    let mut iter = expression.operations(encoding);
    let mut count = 0;
    while let Some(operation) = iter.next().ok()? {
        *operations.get_mut(count)? = operation;
        count += 1;
    }
    operations.get(..count)
}
