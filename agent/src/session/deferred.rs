//! Deferred samples: walks that came to code whose mapping or table the kernel programs did not
//! have yet. They wait here until it is known, and are then finished on the copy of the stack that
//! came with them, by the same step as in the kernel.

use agent_ebpf::unwind::{
    BLOCK_WORDS, BUCKET_BITS, Block, EXTENDED_WORDS, Extended, Mapping, Memory, Module, Registers,
    Step, kind, register, row, search, step,
};
use agent_ebpf::{
    DEFERRED_FRAMES, DeferredRecord, End, MAX_USER_FRAMES, SampleRecord, StackRecord, frame, record,
};

/// Rules in one block.
const RULES_PER_BLOCK: u32 = (BLOCK_WORDS / EXTENDED_WORDS) as u32;

/// What a walk needs to know of the process and its modules.
pub trait Code {
    /// The executable mapping around an address.
    fn mapping(&self, address: u64) -> Option<Mapping>;
    /// A block of a module's table.
    fn block(&self, table: u32, index: u32) -> Option<Block>;
}

/// A sample that waits.
#[derive(Clone, Debug)]
pub struct Deferred {
    /// The process.
    pub tgid: u32,
    tid: u32,
    /// First word of the record.
    first: u32,
    finished: u32,
    hash: u64,
    thread: [u8; 16],
    kernel: Vec<u64>,
    user: Vec<u64>,
    end: End,
    regs: Registers,
    leaf: u32,
    general: [u64; register::COUNT],
    base: u64,
    stack: Vec<u8>,
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

impl Deferred {
    /// Reads a record of the kind [`record::DEFERRED`]; `None` for anything else.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let first = u32_at(bytes, 0)?;
        if record::kind(first) != record::DEFERRED {
            return None;
        }
        let counts = size_of::<SampleRecord>() + 4;
        let counts = u32_at(bytes, counts)?;
        let (kernel, user) = ((counts & 0xffff) as usize, (counts >> 16) as usize);
        if kernel + user > DEFERRED_FRAMES {
            return None;
        }
        let regs = size_of::<StackRecord>();
        let general_at = regs + size_of::<Registers>() + 8;
        let frames_at = general_at + 8 * register::COUNT;
        let words = |at: usize, count: usize| -> Option<Vec<u64>> {
            (0..count)
                .map(|index| u64_at(bytes, at + 8 * index))
                .collect()
        };
        let registers = Registers {
            pc: u64_at(bytes, regs)?,
            sp: u64_at(bytes, regs + 8)?,
            bp: u64_at(bytes, regs + 16)?,
        };
        let stack_bytes = u32_at(bytes, general_at - 4)? as usize;
        let stack = bytes
            .get(size_of::<DeferredRecord>()..)?
            .get(..stack_bytes)?;
        Some(Self {
            tgid: u32_at(bytes, 4)?,
            tid: u32_at(bytes, 8)?,
            first,
            finished: u32_at(bytes, 12)?,
            hash: u64_at(bytes, 16)?,
            thread: bytes.get(24..size_of::<SampleRecord>())?.try_into().ok()?,
            kernel: words(frames_at, kernel)?,
            user: words(frames_at + 8 * kernel, user)?,
            end: End::from_number(u32_at(bytes, size_of::<SampleRecord>())?)?,
            regs: registers,
            leaf: u32_at(bytes, general_at - 8)?,
            general: words(general_at, register::COUNT)?.try_into().ok()?,
            base: registers.sp,
            stack: stack.to_vec(),
        })
    }

    /// Walks on as far as the code is known now. True once the walk has come to an end that more
    /// knowledge would not change.
    pub fn walk(&mut self, code: &impl Code) -> bool {
        while self.user.len() < MAX_USER_FRAMES {
            match self.frame(code) {
                Ok(()) => {}
                Err(end @ (End::TablePending | End::NoMapping)) => {
                    self.end = end;
                    return false;
                }
                Err(end) => {
                    self.end = if end == End::ReadFault {
                        self.cut()
                    } else {
                        end
                    };
                    return true;
                }
            }
        }
        self.end = End::DepthLimit;
        true
    }

    /// A word that could not be read: if the copy of the stack was cut short there, what kept the
    /// kernel from walking is the reason.
    fn cut(&self) -> End {
        match self.end {
            end @ (End::TablePending | End::NoMapping) => end,
            _ => End::ReadFault,
        }
    }

    /// One frame: takes the place of the one that the walk stopped at, and adds its caller's.
    fn frame(&mut self, code: &impl Code) -> Result<(), End> {
        let leaf = self.leaf != 0;
        let pc = self.regs.pc.wrapping_sub(u64::from(!leaf));
        let mapping = code.mapping(pc).ok_or(End::NoMapping)?;
        let module = mapping.module;
        let here = match module.table {
            0 => frame::pack(0, pc),
            table => frame::pack(table as u16, pc.wrapping_sub(mapping.bias)),
        };
        if let Some(last) = self.user.last_mut() {
            *last = here;
        }
        if module.table != 0 && module.buckets == 0 {
            return Err(End::TablePending);
        }
        let row = find_row(code, &module, pc.wrapping_sub(mapping.bias));
        let mut regs = self.regs;
        match step(
            row,
            &mut regs,
            leaf,
            &Copied {
                sample: self,
                code,
                module,
            },
        ) {
            Step::End(end) => return Err(end),
            Step::Caller => self.leaf = 0,
            Step::Interrupted => self.leaf = 2,
        }
        self.regs = regs;
        self.user.push(frame::pack(
            0,
            regs.pc.wrapping_sub(u64::from(self.leaf == 0)),
        ));
        Ok(())
    }

    /// The sample as a record of the kind [`record::STACK`], or of the one that was asked for, as the
    /// kernel would have sent it.
    pub fn record(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(
            size_of::<StackRecord>() + 8 * (self.kernel.len() + self.user.len()),
        );
        let (kind, hash) = match self.finished {
            0 => (record::of_kind(self.first, record::STACK), self.hash()),
            kind => (kind, self.hash),
        };
        for word in [kind, self.tgid, self.tid, 0] {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        bytes.extend_from_slice(&hash.to_ne_bytes());
        bytes.extend_from_slice(&self.thread);
        bytes.extend_from_slice(&(self.end as u32).to_ne_bytes());
        bytes.extend_from_slice(&(self.kernel.len() as u16).to_ne_bytes());
        bytes.extend_from_slice(&(self.user.len() as u16).to_ne_bytes());
        for frame in self.kernel.iter().chain(&self.user) {
            bytes.extend_from_slice(&frame.to_ne_bytes());
        }
        bytes
    }

    /// As unlikely to meet another stack's as the kernel's hash.
    fn hash(&self) -> u64 {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut hasher = DefaultHasher::new();
        (&self.kernel, &self.user, self.end).hash(&mut hasher);
        hasher.finish()
    }
}

/// The copy of the stack, as the memory that a step reads.
struct Copied<'a, C> {
    sample: &'a Deferred,
    code: &'a C,
    module: Module,
}

impl<C: Code> Memory for Copied<'_, C> {
    fn word(&self, address: u64) -> Option<u64> {
        let at = usize::try_from(address.checked_sub(self.sample.base)?).ok()?;
        at.checked_add(8)?;
        u64_at(&self.sample.stack, at)
    }

    fn pair(&self, address: u64) -> Option<[u64; 2]> {
        Some([self.word(address)?, self.word(address.checked_add(8)?)?])
    }

    fn register(&self, number: u8) -> Option<u64> {
        let known = self.sample.leaf == 1;
        self.sample
            .general
            .get(usize::from(number))
            .copied()
            .filter(|_| known)
    }

    fn extended(&self, index: u32) -> Option<Extended> {
        let number = self.module.extended.checked_add(index / RULES_PER_BLOCK)?;
        let block = self.code.block(self.module.table, number)?;
        let at = (index % RULES_PER_BLOCK) as usize * EXTENDED_WORDS;
        let &[a, b, c, d] = block.get(at..at + EXTENDED_WORDS)? else {
            return None;
        };
        let [cfa_kind, cfa_register, rbp_kind, return_register] = a.to_ne_bytes();
        Some(Extended {
            cfa_kind,
            cfa_register,
            rbp_kind,
            return_register,
            cfa_offset: b as i32,
            cfa_offset2: c as i32,
            rbp_offset: d as i32,
        })
    }
}

/// The row that holds at an address, as the kernel's `find_row` does it.
fn find_row(code: &impl Code, module: &Module, address: u64) -> u32 {
    let none = row(0, kind::NONE, 0, 0);
    let find = || {
        let bucket = address.checked_sub(module.base)? >> BUCKET_BITS;
        let bucket = u32::try_from(bucket)
            .ok()
            .filter(|&bucket| bucket < module.buckets)?;
        let directory = code.block(module.table, bucket / BLOCK_WORDS as u32)?;
        let entry = *directory.get(bucket as usize % BLOCK_WORDS)?;
        let (first, count) = (entry >> 8, entry & 0xff);
        let before = first.checked_sub(1)?;
        let rows = code.block(
            module.table,
            module.rows.checked_add(before / BLOCK_WORDS as u32)?,
        )?;
        let word = |index: u32| {
            rows.get(index as usize % BLOCK_WORDS)
                .copied()
                .unwrap_or(none)
        };
        Some(word(search(first, count, address as u8, word)))
    };
    find().unwrap_or(none)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    /// One module at 0x1000 with one row for all of it, or not ready yet.
    struct OneModule {
        row: u32,
        ready: bool,
    }

    impl Code for OneModule {
        fn mapping(&self, address: u64) -> Option<Mapping> {
            let buckets = u32::from(self.ready);
            let module = Module {
                base: 0,
                buckets,
                rows: 1,
                extended: 2,
                table: 7,
            };
            (0x1000..0x1100).contains(&address).then_some(Mapping {
                start: 0x1000,
                end: 0x1100,
                bias: 0x1000,
                module,
                ..Mapping::default()
            })
        }

        fn block(&self, _: u32, index: u32) -> Option<Block> {
            let mut block = [0; BLOCK_WORDS];
            block[0] = if index == 0 { 1 << 8 } else { self.row };
            Some(block)
        }
    }

    fn sample(stack: &[u64]) -> Deferred {
        Deferred {
            first: record::sample(record::DEFERRED, 3),
            finished: 0,
            hash: 0,
            thread: [0; 16],
            tgid: 1,
            tid: 2,
            kernel: vec![],
            user: vec![frame::pack(0, 0x1010)],
            end: End::NoMapping,
            regs: Registers {
                pc: 0x1010,
                sp: 0x8000,
                bp: 0,
            },
            leaf: 1,
            general: [0; register::COUNT],
            base: 0x8000,
            stack: stack.iter().flat_map(|word| word.to_ne_bytes()).collect(),
        }
    }

    #[test]
    fn a_walk_waits_for_the_table_and_goes_on_when_it_is_there() {
        // Return address at rsp; the next frame's lies in no mapping.
        let mut sample = sample(&[0x1050, 0x9999]);
        let row = row(0, kind::RSP, 0, 1);
        assert!(!sample.walk(&OneModule { row, ready: false }));
        assert_eq!(sample.end, End::TablePending);
        assert_eq!(sample.user, [frame::pack(7, 0x10)]);
        assert!(!sample.walk(&OneModule { row, ready: true }));
        assert_eq!(sample.end, End::NoMapping);
        assert_eq!(
            sample.user,
            [
                frame::pack(7, 0x10),
                frame::pack(7, 0x4f),
                frame::pack(0, 0x9998)
            ]
        );
    }

    #[test]
    fn a_walk_ends_at_the_root() {
        let mut sample = sample(&[]);
        assert!(sample.walk(&OneModule {
            row: row(0, kind::ROOT, 0, 0),
            ready: true
        }));
        assert_eq!(sample.end, End::Root);
        let record = sample.record();
        assert_eq!(record.len(), size_of::<StackRecord>() + 8);
        let first = u32_at(&record, 0).unwrap();
        assert_eq!(
            (record::kind(first), record::weight(first)),
            (record::STACK, 8)
        );
    }

    #[test]
    fn a_stack_that_was_copied_only_in_part_keeps_the_reason_of_the_wait() {
        let mut sample = sample(&[]);
        assert!(sample.walk(&OneModule {
            row: row(0, kind::RSP, 0, 1),
            ready: true
        }));
        assert_eq!(sample.end, End::NoMapping);
    }

    #[test]
    fn records_cut_short_are_refused() {
        assert!(Deferred::decode(&[]).is_none());
        let mut bytes = vec![0; size_of::<DeferredRecord>()];
        bytes[0] = record::DEFERRED as u8;
        assert!(Deferred::decode(&bytes).is_some());
        assert!(Deferred::decode(&bytes[..2000]).is_none());
        let counts = size_of::<SampleRecord>() + 4;
        bytes[counts..counts + 2].copy_from_slice(&[0xff, 0xff]);
        assert!(Deferred::decode(&bytes).is_none());
    }
}
