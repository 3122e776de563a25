//! `.eh_frame`: finding its entries and running their instructions.
//!
//! Source: DWARF 5, section 6.4, and the LSB core specification, "Exception Frames".

use std::collections::HashMap;

use gimli::{
    BaseAddresses, CallFrameInstruction, CallFrameInstructionIter, CommonInformationEntry, EhFrame,
    EhFrameOffset, EndianSlice, FrameDescriptionEntry, LittleEndian, Register, UnwindExpression,
    UnwindSection, X86_64,
};

use super::layout::Layout;
use super::rule::{Cfa, Rules, Saved, UNSUPPORTED, cfa_expression, saved_expression};
use super::{Error, Report};
use crate::elf::{word, xword};

type Reader<'a> = EndianSlice<'a, LittleEndian>;

/// Most nested `DW_CFA_remember_state`.
const MAX_REMEMBERED: usize = 64;
/// CIEs kept parsed at once.
const MAX_CIES: usize = 4096;

/// Bytes that may follow the last entry: its terminator and padding.
const TERMINATOR: usize = 16;

/// Where the code of an FDE lies and the offset of its entry in the section.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fde {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) offset: u32,
}

#[derive(Clone)]
struct Cie<'a> {
    entry: CommonInformationEntry<Reader<'a>>,
    /// The rules after its initial instructions; `None` when these are malformed.
    rules: Option<Rules>,
}

/// A `.eh_frame` section and its parsed CIEs.
pub(super) struct Section<'a> {
    frames: EhFrame<Reader<'a>>,
    bases: BaseAddresses,
    bytes: &'a [u8],
    cies: HashMap<usize, Cie<'a>>,
    /// Bytes of CIEs that may still be looked at: bounds the work on a hostile section.
    budget: usize,
}

impl<'a> Section<'a> {
    /// The section with these bytes at this virtual address.
    pub(super) fn new(bytes: &'a [u8], vaddr: u64) -> Self {
        let mut frames = EhFrame::new(bytes, LittleEndian);
        frames.set_address_size(8);
        Self {
            frames,
            bases: BaseAddresses::default().set_eh_frame(vaddr),
            bytes,
            cies: HashMap::new(),
            budget: bytes.len().saturating_mul(4).saturating_add(1 << 16),
        }
    }

    /// Calls `found` for each FDE, in the section's order; counts malformed entries.
    pub(super) fn for_each_fde(&mut self, report: &mut Report, mut found: impl FnMut(Fde)) {
        let mut offset = 0usize;
        while let Some((end, is_fde)) = self.entry(offset) {
            if is_fde {
                match self.parse(offset) {
                    Some(fde) => {
                        report.fdes += 1;
                        let start = fde.initial_address();
                        found(Fde {
                            start,
                            end: start.saturating_add(fde.len()),
                            offset: offset as u32,
                        });
                    }
                    None => report.bad_fdes += 1,
                }
            }
            offset = end;
        }
        // What follows the last entry is its terminator, and padding at most.
        if self.bytes.len().saturating_sub(offset) > TERMINATOR {
            report.bad_fdes += 1;
        }
    }

    /// The end of the entry at an offset and whether it is an FDE; `None` after the last one.
    fn entry(&self, offset: usize) -> Option<(usize, bool)> {
        let rest = self.bytes.get(offset..)?;
        let (header, length) = match word(rest, 0) {
            0 => return None,
            u32::MAX => (12, usize::try_from(xword(rest, 4)).ok()?),
            length => (4, length as usize),
        };
        let end = offset.checked_add(header)?.checked_add(length)?;
        // The CIE pointer has four bytes in `.eh_frame` even after an extended length.
        (length >= 4 && end <= self.bytes.len()).then_some((end, word(rest, header) != 0))
    }

    fn parse(&mut self, offset: usize) -> Option<FrameDescriptionEntry<Reader<'a>>> {
        let Self {
            frames,
            bases,
            cies,
            bytes,
            budget,
        } = self;
        let fde = frames.fde_from_offset(
            bases,
            EhFrameOffset(offset),
            |section, bases, at: EhFrameOffset| {
                if let Some(cie) = cies.get(&at.0) {
                    return Ok(cie.entry.clone());
                }
                let length = bytes.get(at.0..).map_or(0, |rest| word(rest, 0)) as usize;
                *budget = budget
                    .checked_sub(length)
                    .ok_or(gimli::Error::TooManyIterations)?;
                let entry = section.cie_from_offset(bases, at)?;
                let rules = initial_rules(&entry, section, bases);
                if cies.len() >= MAX_CIES {
                    cies.clear();
                }
                cies.insert(
                    at.0,
                    Cie {
                        entry: entry.clone(),
                        rules,
                    },
                );
                Ok(entry)
            },
        );
        fde.ok()
    }

    /// Adds the rows of an FDE; the table begins at the virtual address `base`.
    pub(super) fn rows(
        &mut self,
        fde: &Fde,
        base: u64,
        layout: &mut Layout,
        report: &mut Report,
    ) -> Result<(), Error> {
        let entry = self.parse(fde.offset as usize);
        let initial = entry.as_ref().and_then(|entry| {
            self.cies
                .get(&entry.cie().offset())
                .and_then(|cie| cie.rules)
        });
        let (Some(entry), Some(initial)) = (entry, initial) else {
            report.bad_fdes += 1;
            return layout.push(relative(fde.start, base), UNSUPPORTED);
        };
        let signal = entry.is_signal_trampoline();
        let mut machine = Machine::new(initial, entry.cie(), &self.frames);
        let mut instructions = entry.instructions(&self.frames, &self.bases);
        let mut address = fde.start;
        while address < fde.end {
            let step = machine.until_advance(&mut instructions, address);
            let row = machine.rules.row(signal, layout);
            report.unsupported_rows += u64::from(row == UNSUPPORTED);
            layout.push(relative(address, base), row)?;
            match step {
                Advance::To(next) => address = next,
                Advance::End => return Ok(()),
                Advance::Malformed => {
                    report.bad_fdes += 1;
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// An address as a number that [`Layout::push`] takes.
pub(super) fn relative(address: u64, base: u64) -> u32 {
    address.saturating_sub(base).try_into().unwrap_or(u32::MAX)
}

/// The rules after a CIE's initial instructions.
fn initial_rules<'a>(
    cie: &CommonInformationEntry<Reader<'a>>,
    section: &EhFrame<Reader<'a>>,
    bases: &BaseAddresses,
) -> Option<Rules> {
    let mut machine = Machine::new(Rules::INITIAL, cie, section);
    match machine.until_advance(&mut cie.instructions(section, bases), 0) {
        Advance::End => Some(machine.rules),
        _ => None,
    }
}

/// What ended a run of instructions that belong to one address.
enum Advance {
    /// The next row begins here.
    To(u64),
    End,
    Malformed,
}

/// Runs call frame instructions.
struct Machine<'s, 'a> {
    rules: Rules,
    initial: Rules,
    remembered: Vec<Rules>,
    code_factor: u64,
    data_factor: i64,
    return_address: Register,
    section: &'s EhFrame<Reader<'a>>,
}

impl<'s, 'a> Machine<'s, 'a> {
    fn new(
        initial: Rules,
        cie: &CommonInformationEntry<Reader<'a>>,
        section: &'s EhFrame<Reader<'a>>,
    ) -> Self {
        Self {
            rules: initial,
            initial,
            remembered: Vec::new(),
            code_factor: cie.code_alignment_factor(),
            data_factor: cie.data_alignment_factor(),
            return_address: cie.return_address_register(),
            section,
        }
    }

    /// Runs up to the next advance of the location.
    fn until_advance(
        &mut self,
        instructions: &mut CallFrameInstructionIter<Reader<'a>>,
        address: u64,
    ) -> Advance {
        loop {
            let next = match instructions.next() {
                Ok(Some(CallFrameInstruction::AdvanceLoc { delta })) => u64::from(delta)
                    .checked_mul(self.code_factor)
                    .and_then(|delta| address.checked_add(delta)),
                Ok(Some(CallFrameInstruction::SetLoc { address: next })) => {
                    Some(next).filter(|&next| next >= address)
                }
                Ok(Some(instruction)) => match self.execute(instruction) {
                    Some(()) => continue,
                    None => None,
                },
                Ok(None) => return Advance::End,
                Err(_) => None,
            };
            match next {
                Some(next) if next == address => {}
                Some(next) => return Advance::To(next),
                None => return Advance::Malformed,
            }
        }
    }

    fn execute(&mut self, instruction: CallFrameInstruction<usize>) -> Option<()> {
        use CallFrameInstruction as I;
        let factored = |offset: i64| offset.checked_mul(self.data_factor);
        match instruction {
            I::DefCfa { register, offset } => {
                self.rules.cfa = Cfa::Register {
                    register: register.0,
                    offset: offset.try_into().ok()?,
                };
            }
            I::DefCfaSf {
                register,
                factored_offset,
            } => {
                self.rules.cfa = Cfa::Register {
                    register: register.0,
                    offset: factored(factored_offset)?,
                };
            }
            I::DefCfaRegister { register } => match &mut self.rules.cfa {
                Cfa::Register { register: old, .. } => *old = register.0,
                _ => return None,
            },
            I::DefCfaOffset { offset } => self.cfa_offset(offset.try_into().ok()?)?,
            I::DefCfaOffsetSf { factored_offset } => self.cfa_offset(factored(factored_offset)?)?,
            I::DefCfaExpression { expression } => {
                self.rules.cfa = cfa_expression(expression.get(self.section).ok()?)
            }
            I::Undefined { register } => self.set(register, Saved::Undefined),
            I::SameValue { register } => self.set(register, Saved::Same),
            I::Offset {
                register,
                factored_offset,
            } => {
                self.set(
                    register,
                    Saved::AtCfa(factored(factored_offset.try_into().ok()?)?),
                );
            }
            I::OffsetExtendedSf {
                register,
                factored_offset,
            } => {
                self.set(register, Saved::AtCfa(factored(factored_offset)?));
            }
            I::Expression {
                register,
                expression,
            } => self.set_expression(register, &expression)?,
            I::Register {
                dest_register,
                src_register,
            } => self.set(dest_register, Saved::In(src_register.0)),
            I::ValOffset { register, .. }
            | I::ValOffsetSf { register, .. }
            | I::ValExpression { register, .. } => self.set(register, Saved::Unsupported),
            I::Restore { register } => match register {
                X86_64::RBP => self.rules.rbp = self.initial.rbp,
                _ if register == self.return_address => {
                    self.rules.return_address = self.initial.return_address
                }
                _ => {}
            },
            I::RememberState if self.remembered.len() < MAX_REMEMBERED => {
                self.remembered.push(self.rules)
            }
            I::RestoreState => self.rules = self.remembered.pop()?,
            I::ArgsSize { .. } | I::Nop => {}
            _ => return None,
        }
        Some(())
    }

    fn cfa_offset(&mut self, new: i64) -> Option<()> {
        match &mut self.rules.cfa {
            Cfa::Register { offset, .. } => {
                *offset = new;
                Some(())
            }
            _ => None,
        }
    }

    fn set(&mut self, register: Register, saved: Saved) {
        if register == X86_64::RBP {
            self.rules.rbp = saved;
        } else if register == self.return_address {
            self.rules.return_address = saved;
        }
    }

    fn set_expression(
        &mut self,
        register: Register,
        expression: &UnwindExpression<usize>,
    ) -> Option<()> {
        if register == X86_64::RBP || register == self.return_address {
            self.set(
                register,
                saved_expression(expression.get(self.section).ok()?),
            );
        }
        Some(())
    }
}
