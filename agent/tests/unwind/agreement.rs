//! Whole stacks of running programs: our rows and step against framehop's, frame for frame.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use agent::elf::{self, Headers};
use agent::unwind::Table;
use agent_ebpf::End;
use agent_ebpf::unwind::{Extended, Memory, Registers, Step, cfa, kind, step};
use framehop::x86_64::{CacheX86_64, UnwindRegsX86_64, UnwinderX86_64};
use framehop::{ExplicitModuleSectionInfo, FrameAddress, Module, Unwinder};
use gimli::{BaseAddresses, EhFrame, LittleEndian, UnwindSection};

use crate::process::{Mapping, Pages, Process};
use crate::table::{extended, find_row, kind_of};

/// More frames than any test program has.
const MAX_FRAMES: usize = 10_000;

/// A mapped file as both unwinders see it.
struct Loaded {
    start: u64,
    end: u64,
    bias: u64,
    table: Table,
    /// Sorted code ranges of its FDEs.
    covered: Vec<(u64, u64)>,
}

/// What the stacks of a program came to.
#[derive(Debug, Default)]
struct Outcome {
    stacks: u64,
    complete: u64,
    frames: u64,
    agreed: u64,
    /// Frames that framehop has no means for: code without FDE, loads in CFA expressions,
    /// signal frames, registers other than rsp and rbp.
    beyond_framehop: u64,
    signals: u64,
    deepest: usize,
    ends: HashMap<&'static str, u64>,
    disagreements: Vec<String>,
}

impl Outcome {
    fn check(&self, least_frames: u64) {
        self.check_agreement(least_frames);
        self.check_complete(0.995);
    }

    fn check_agreement(&self, least_frames: u64) {
        println!("{self:?}");
        assert!(self.frames >= least_frames, "too few frames: {self:?}");
        assert!(
            self.agreed as f64 >= 0.999 * self.frames as f64,
            "disagreements: {self:?}"
        );
    }

    fn check_complete(&self, share: f64) {
        assert!(
            self.complete as f64 >= share * self.stacks as f64,
            "incomplete: {self:?}"
        );
    }
}

struct Unwinders {
    loaded: Vec<Loaded>,
    framehop: Framehop,
}

struct Leaf<'p> {
    pages: &'p Pages,
    general: Option<[u64; 16]>,
    table: Option<&'p Table>,
}

impl Memory for Leaf<'_> {
    fn word(&self, address: u64) -> Option<u64> {
        self.pages.word(address)
    }

    fn pair(&self, address: u64) -> Option<[u64; 2]> {
        Some([self.pages.word(address)?, self.pages.word(address + 8)?])
    }

    fn register(&self, number: u8) -> Option<u64> {
        Some(self.general?[usize::from(number)])
    }

    fn extended(&self, index: u32) -> Option<Extended> {
        extended(self.table?, index)
    }
}

impl Unwinders {
    fn new(process: &Process) -> Self {
        let mut unwinders = Self {
            loaded: Vec::new(),
            framehop: (UnwinderX86_64::new(), CacheX86_64::new()),
        };
        let pages = process.memory();
        for mapping in process.mappings() {
            if mapping.path == "[vdso]" {
                let image = pages
                    .read(mapping.start, (mapping.end - mapping.start) as usize)
                    .unwrap();
                unwinders.add(&mapping, image.as_slice());
            } else {
                unwinders.add(&mapping, &File::open(&mapping.path).expect(&mapping.path));
            }
        }
        unwinders
    }

    fn add<F: elf::ReadAt + ?Sized>(&mut self, mapping: &Mapping, file: &F) {
        let headers = Headers::read(file).expect(&mapping.path);
        let bias =
            elf::bias(mapping.start, mapping.offset, &headers.segments).expect(&mapping.path);
        let lowest = headers
            .segments
            .iter()
            .map(|segment| segment.vaddr & !4095)
            .min()
            .unwrap();
        assert_eq!(
            bias,
            mapping.lowest.wrapping_sub(lowest),
            "{mapping:?} {:?}",
            headers.segments
        );
        let table = match agent::unwind::build(file) {
            Ok(table) => table,
            Err(error) => panic!("{}: {error}", mapping.path),
        };
        assert_eq!(table.report.bad_fdes, 0, "{}", mapping.path);
        let mut covered = Vec::new();
        if let Some(section) = headers.section(".eh_frame") {
            let bytes = elf::read_range(file, section.offset, section.size, "").unwrap();
            covered = fde_ranges(&bytes, section.vaddr);
            let info = ExplicitModuleSectionInfo {
                base_svma: lowest,
                eh_frame_svma: Some(section.vaddr..section.vaddr + section.size),
                eh_frame: Some(bytes),
                ..Default::default()
            };
            let range = mapping.start..mapping.end;
            self.framehop.0.add_module(Module::new(
                mapping.path.clone(),
                range,
                mapping.lowest,
                info,
            ));
        }
        self.loaded.push(Loaded {
            start: mapping.start,
            end: mapping.end,
            bias,
            table,
            covered,
        });
    }

    /// Follows one stack with our rows; at each frame framehop starts from the same registers.
    fn compare(&mut self, process: &Process, outcome: &mut Outcome) {
        let regs = process.registers();
        let general = [
            regs.rax, regs.rdx, regs.rcx, regs.rbx, regs.rsi, regs.rdi, regs.rbp, regs.rsp,
            regs.r8, regs.r9, regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
        ];
        let pages = process.memory();
        let mut at = Registers {
            pc: regs.rip,
            sp: regs.rsp,
            bp: regs.rbp,
        };
        let mut memory = Leaf {
            pages: &pages,
            general: Some(general),
            table: None,
        };
        let mut leaf = true;
        outcome.stacks += 1;
        let mut end = End::DepthLimit;
        for depth in 0..MAX_FRAMES {
            outcome.deepest = outcome.deepest.max(depth + 1);
            let pc = at.pc - u64::from(!leaf);
            let Some(module) = self
                .loaded
                .iter()
                .find(|module| (module.start..module.end).contains(&pc))
            else {
                end = End::NoMapping;
                break;
            };
            let address = pc.wrapping_sub(module.bias);
            let row = find_row(&module.table, address);
            memory.table = Some(&module.table);
            let before = at;
            let result = step(row, &mut at, leaf, &memory);
            if framehop_can(module, row, address, leaf) {
                let theirs = framehop_step(&mut self.framehop, before, leaf, &pages);
                let ours = if let Step::End(end) = result {
                    Err(end)
                } else {
                    Ok(at)
                };
                outcome.frames += 1;
                let agree = match (&ours, &theirs) {
                    (Ok(ours), Ok(Some(theirs))) => ours == theirs,
                    (Err(End::Root), Ok(None)) => true,
                    (Err(End::ImplausibleCfa | End::ReadFault), Err(_)) => true,
                    _ => false,
                };
                outcome.agreed += u64::from(agree);
                if !agree && outcome.disagreements.len() < 5 {
                    let text = format!("{address:#x} {row:#x} {before:x?}: {ours:x?} {theirs:x?}");
                    outcome.disagreements.push(text);
                }
            } else {
                outcome.beyond_framehop += 1;
            }
            match result {
                Step::Caller => leaf = false,
                Step::Interrupted => {
                    outcome.signals += 1;
                    leaf = true;
                }
                Step::End(reason) => {
                    end = reason;
                    break;
                }
            }
            memory.general = None;
        }
        outcome.complete += u64::from(end.is_complete());
        *outcome.ends.entry(end.name()).or_default() += 1;
    }
}

fn framehop_can(module: &Loaded, row: u32, address: u64, leaf: bool) -> bool {
    let index = module
        .covered
        .partition_point(|&(start, _)| start <= address);
    let covered = index > 0 && address < module.covered[index - 1].1;
    let plain = match kind_of(row) {
        kind::EXTENDED => {
            let rule = extended(&module.table, row & 0x1f_ffff).unwrap();
            rule.cfa_kind == cfa::REGISTER && matches!(rule.cfa_register, 6 | 7)
        }
        kind::SIGNAL => false,
        // A return address in a register: neither can follow it.
        kind::UNSUPPORTED => !leaf,
        _ => true,
    };
    covered && plain
}

type Framehop = (UnwinderX86_64<Vec<u8>>, CacheX86_64);

/// `None` at a root.
fn framehop_step(
    (unwinder, cache): &mut Framehop,
    at: Registers,
    leaf: bool,
    pages: &Pages,
) -> Result<Option<Registers>, framehop::Error> {
    let address = if leaf {
        FrameAddress::from_instruction_pointer(at.pc)
    } else {
        FrameAddress::from_return_address(at.pc).unwrap()
    };
    let mut regs = UnwindRegsX86_64::new(at.pc, at.sp, at.bp);
    let mut read = |address| pages.word(address).ok_or(());
    let pc = unwinder.unwind_frame(address, &mut regs, cache, &mut read)?;
    Ok(pc.map(|pc| Registers {
        pc,
        sp: regs.sp(),
        bp: regs.bp(),
    }))
}

fn fde_ranges(bytes: &[u8], vaddr: u64) -> Vec<(u64, u64)> {
    let mut frames = EhFrame::new(bytes, LittleEndian);
    frames.set_address_size(8);
    let bases = BaseAddresses::default().set_eh_frame(vaddr);
    let mut ranges = Vec::new();
    let mut entries = frames.entries(&bases);
    while let Some(entry) = entries.next().unwrap() {
        if let gimli::CieOrFde::Fde(partial) = entry {
            let fde = partial.parse(EhFrame::cie_from_offset).unwrap();
            ranges.push((fde.initial_address(), fde.end_address()));
        }
    }
    ranges.sort_unstable();
    ranges
}

/// Stops a program again and again, and follows some single steps each time: prologues,
/// epilogues and PLT entries are too short to be met by chance.
fn watch(command: &mut Command, stops: usize, steps: usize) -> Outcome {
    let mut process = Process::start(command);
    let mut outcome = Outcome::default();
    let deadline = Instant::now() + Duration::from_secs(60);
    // Functions are bound at their first calls; the dynamic linker's way there (a CFA in rbx) is
    // not followed.
    std::thread::sleep(Duration::from_millis(50));
    process.interrupt();
    let mut unwinders = Unwinders::new(&process);
    for _ in 0..stops {
        process.resume();
        std::thread::sleep(Duration::from_micros(500));
        process.interrupt();
        unwinders.compare(&process, &mut outcome);
        for _ in 0..steps {
            process.single_step();
            unwinders.compare(&process, &mut outcome);
        }
        if Instant::now() > deadline {
            break;
        }
    }
    outcome
}

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/unwind/programs")
        .join(name)
}

/// Compiles a program and watches it.
fn compiled(compiler: &str, flags: &[&str], name: &str, stops: usize, steps: usize) -> Outcome {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("program");
    let status = Command::new(compiler)
        .args(flags)
        .arg("-o")
        .arg(&program)
        .arg(source(name))
        .status();
    assert!(
        status
            .unwrap_or_else(|error| panic!("{compiler}: {error}"))
            .success(),
        "{compiler} {name}"
    );
    watch(&mut Command::new(&program), stops, steps)
}

const OPTIMISED: [&str; 2] = ["-O2", "-fomit-frame-pointer"];

fn gcc(flags: &[&str], name: &str, stops: usize, steps: usize) -> Outcome {
    compiled("gcc", &[&OPTIMISED, flags].concat(), name, stops, steps)
}

#[test]
fn c_with_lazy_plt() {
    gcc(&["-Wl,-z,lazy"], "mixed.c", 60, 100).check(20_000);
}

#[test]
fn c_not_optimised() {
    compiled("gcc", &["-O0"], "mixed.c", 40, 60).check(10_000);
}

#[test]
fn c_fixed_address() {
    gcc(&["-no-pie"], "mixed.c", 40, 60).check(10_000);
}

#[test]
fn c_static_pie() {
    gcc(&["-static-pie"], "mixed.c", 40, 60).check(10_000);
}

#[test]
fn c_linked_by_lld() {
    gcc(&["-fuse-ld=lld"], "mixed.c", 40, 60).check(10_000);
}

#[test]
fn c_stripped() {
    gcc(&["-s"], "mixed.c", 20, 20).check(2_000);
}

/// While libgcc installs a handler's context it overwrites the return addresses of the frames that
/// it leaves; a run of single steps may fall there.
fn check_unwinding(outcome: &Outcome) {
    outcome.check_complete(0.95);
}

#[test]
fn cxx_exceptions() {
    let outcome = compiled("g++", &OPTIMISED, "exceptions.cpp", 60, 100);
    outcome.check_agreement(20_000);
    check_unwinding(&outcome);
}

#[test]
fn deep_recursion() {
    let outcome = gcc(&["-fno-optimize-sibling-calls"], "recursion.c", 10, 3);
    outcome.check(30_000);
    assert!(outcome.deepest > 2000, "{outcome:?}");
}

#[test]
fn signal_handlers_on_their_own_stack() {
    let outcome = gcc(&[], "signals.c", 150, 20);
    outcome.check(5_000);
    assert!(outcome.signals > 20, "{outcome:?}");
}

#[test]
fn rust_program() {
    let outcome = compiled("rustc", &["-O"], "mixed.rs", 60, 60);
    outcome.check_agreement(10_000);
    check_unwinding(&outcome);
}

/// Code without `.eh_frame` is beyond framehop: such stacks have to reach a root.
fn check_without_framehop(outcome: &Outcome) {
    println!("{outcome:?}");
    outcome.check_agreement(0);
    outcome.check_complete(0.995);
    assert!(outcome.beyond_framehop > 10_000, "{outcome:?}");
}

#[test]
fn go_program() {
    check_without_framehop(&compiled("go", &["build"], "mixed.go", 60, 60));
}

#[test]
fn musl_static() {
    check_without_framehop(&compiled(
        "musl-gcc",
        &["-O2", "-static"],
        "mixed.c",
        60,
        60,
    ));
}

#[test]
fn musl_static_stripped() {
    check_without_framehop(&compiled(
        "musl-gcc",
        &["-O2", "-static", "-s"],
        "mixed.c",
        60,
        60,
    ));
}

#[test]
fn musl_signal_handlers() {
    let outcome = compiled("musl-gcc", &["-O2", "-static"], "signals.c", 100, 20);
    check_without_framehop(&outcome);
    assert!(outcome.signals > 20, "{outcome:?}");
}

#[test]
fn python() {
    let script = "import json, re\nprint('ready', flush=True)\nd = {str(i): [i, {'k': (i,) * 3}] for i in range(50)}\n\
                  while True:\n  x = json.loads(json.dumps(d))\n  sorted(x, key=lambda k: re.sub('1', '2', k))\n";
    watch(Command::new("python3").args(["-S", "-c", script]), 60, 60).check(30_000);
}
