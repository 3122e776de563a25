//! Every row of real libraries, against gimli's own unwind table evaluated on the same registers
//! and the same made-up memory.

use std::fs::File;

use agent::elf::{self, Headers};
use agent_ebpf::unwind::{Memory, Registers, Step, kind, step};
use gimli::{
    BaseAddresses, CfaRule, EhFrame, EndianSlice, LittleEndian, RegisterRule, UnwindSection, X86_64,
};

use crate::table::{extended, find_row, kind_of};

type Reader<'a> = EndianSlice<'a, LittleEndian>;

const START: Registers = Registers {
    pc: 0,
    sp: 0x10_0000,
    bp: 0x20_0000,
};

/// Memory in which every word is a function of its address, and above every stack pointer.
fn word(address: u64) -> u64 {
    (address.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) | 1 << 45
}

fn general(number: u16) -> u64 {
    match number {
        6 => START.bp,
        7 => START.sp,
        number => 0x30_0000 + u64::from(number) * 0x1000,
    }
}

struct Synthetic<'t>(&'t agent::unwind::Table);

impl Memory for Synthetic<'_> {
    fn word(&self, address: u64) -> Option<u64> {
        Some(word(address))
    }

    fn pair(&self, address: u64) -> Option<[u64; 2]> {
        Some([word(address), word(address.wrapping_add(8))])
    }

    fn register(&self, number: u8) -> Option<u64> {
        Some(general(number.into()))
    }

    fn extended(&self, index: u32) -> Option<agent_ebpf::unwind::Extended> {
        extended(self.0, index)
    }
}

fn evaluate(expression: gimli::Expression<Reader>, pc: u64, initial: Option<u64>) -> Option<u64> {
    let encoding = gimli::Encoding {
        address_size: 8,
        format: gimli::Format::Dwarf32,
        version: 4,
    };
    let mut evaluation = expression.evaluation(encoding);
    if let Some(initial) = initial {
        evaluation.set_initial_value(initial);
    }
    let mut result = evaluation.evaluate().ok()?;
    loop {
        result = match result {
            gimli::EvaluationResult::Complete => break,
            gimli::EvaluationResult::RequiresMemory { address, .. } => evaluation
                .resume_with_memory(gimli::Value::Generic(word(address)))
                .ok()?,
            gimli::EvaluationResult::RequiresRegister { register, .. } => {
                let value = if register == X86_64::RA {
                    pc
                } else {
                    general(register.0)
                };
                evaluation
                    .resume_with_register(gimli::Value::Generic(value))
                    .ok()?
            }
            _ => return None,
        };
    }
    match evaluation.as_result().last()?.location {
        gimli::Location::Address { address } => Some(address),
        _ => None,
    }
}

/// What a register rule gives; the outer `None` for one that has no value in these tests.
fn caller(
    rule: &RegisterRule<usize>,
    cfa: u64,
    current: u64,
    pc: u64,
    section: &EhFrame<Reader>,
) -> Option<Option<u64>> {
    Some(match rule {
        RegisterRule::Undefined => None,
        RegisterRule::SameValue => Some(current),
        RegisterRule::Offset(offset) => Some(word(cfa.wrapping_add(*offset as u64))),
        RegisterRule::Expression(expression) => Some(word(evaluate(
            expression.get(section).ok()?,
            pc,
            Some(cfa),
        )?)),
        RegisterRule::Register(register) => Some(general(register.0)),
        _ => return None,
    })
}

/// What was compared in a file.
#[derive(Debug, Default)]
struct Compared {
    same: u64,
    unsupported: u64,
}

fn compare(path: &str) -> Compared {
    let file = File::open(path).expect(path);
    let table = agent::unwind::build(&file).expect(path);
    let headers = Headers::read(&file).unwrap();
    let section = headers.section(".eh_frame").expect(path);
    let bytes = elf::read_range(&file, section.offset, section.size, ".eh_frame").unwrap();
    let mut frames = EhFrame::new(&bytes, LittleEndian);
    frames.set_address_size(8);
    let bases = BaseAddresses::default().set_eh_frame(section.vaddr);
    let mut compared = Compared::default();
    let mut context = gimli::UnwindContext::new();
    let mut entries = frames.entries(&bases);
    while let Some(entry) = entries.next().unwrap() {
        let gimli::CieOrFde::Fde(partial) = entry else {
            continue;
        };
        let fde = partial.parse(EhFrame::cie_from_offset).unwrap();
        let mut rows = fde.rows(&frames, &bases, &mut context).unwrap();
        while let Some(row) = rows.next_row().unwrap() {
            let (start, end) = (row.start_address(), row.end_address());
            if start == end {
                continue;
            }
            for pc in [start, start + (end - start) / 2, end - 1] {
                compare_at(path, &table, &frames, row, pc, &mut compared);
            }
        }
    }
    compared
}

fn compare_at(
    path: &str,
    table: &agent::unwind::Table,
    frames: &EhFrame<Reader>,
    rules: &gimli::UnwindTableRow<usize>,
    pc: u64,
    compared: &mut Compared,
) {
    let row = find_row(table, pc);
    let cfa = match rules.cfa() {
        CfaRule::RegisterAndOffset { register, offset } => {
            general(register.0).wrapping_add(*offset as u64)
        }
        CfaRule::Expression(expression) => {
            evaluate(expression.get(frames).unwrap(), pc, None).unwrap()
        }
    };
    let return_rule = rules.register(X86_64::RA);
    if kind_of(row) == kind::UNSUPPORTED {
        let ordinary = matches!(
            return_rule,
            RegisterRule::Offset(-8) | RegisterRule::Undefined
        );
        let expression = matches!(rules.cfa(), CfaRule::Expression(_));
        assert!(
            !ordinary || expression,
            "{path}: {pc:#x} could be supported: {rules:?}"
        );
        compared.unsupported += 1;
        return;
    }
    let mut regs = Registers { pc, ..START };
    let outcome = step(row, &mut regs, true, &Synthetic(table));
    let context = || format!("{path}: {pc:#x} row {row:#x} {outcome:?} {rules:x?}");
    let Some(expected_pc) =
        caller(&return_rule, cfa, pc, pc, frames).unwrap_or_else(|| panic!("{}", context()))
    else {
        assert_eq!(outcome, Step::End(agent_ebpf::End::Root), "{}", context());
        compared.same += 1;
        return;
    };
    let bp = match rules.register(X86_64::RBP) {
        RegisterRule::Undefined => START.bp,
        rule => caller(&rule, cfa, START.bp, pc, frames)
            .flatten()
            .unwrap_or_else(|| panic!("{}", context())),
    };
    assert!(
        matches!(outcome, Step::Caller | Step::Interrupted),
        "{}",
        context()
    );
    assert_eq!(
        regs,
        Registers {
            pc: expected_pc,
            sp: cfa,
            bp
        },
        "{}",
        context()
    );
    compared.same += 1;
}

#[test]
fn rows_say_what_gimli_says() {
    let libraries = [
        "libc.so.6",
        "libm.so.6",
        "ld-linux-x86-64.so.2",
        "libcrypto.so.3",
        "libstdc++.so.6",
    ]
    .map(|name| format!("/lib/x86_64-linux-gnu/{name}"));
    let own = std::env::current_exe()
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned();
    for path in libraries
        .iter()
        .chain([&"/usr/bin/python3".to_owned(), &own])
    {
        let compared = compare(path);
        println!("{path}: {compared:?}");
        assert!(compared.same > 1000, "{path}: {compared:?}");
        assert!(
            compared.unsupported * 1000 <= compared.same,
            "{path}: {compared:?}"
        );
    }
}
