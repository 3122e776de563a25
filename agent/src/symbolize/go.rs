//! Functions, inlined functions and lines of Go programs from `.gopclntab`, which is there in
//! stripped ones too.
//!
//! Source: that of [`crate::gopclntab`], and `runtime/symtabinl.go` for the inlined functions,
//! which are known of Go 1.18 and later.

use super::demangle::{self, MAX_NAME};
use super::dwarf::Site;
use crate::elf::{self, Headers, ReadAt, word, xword};
use crate::gopclntab::{self, Header, Location, Steps, Version, locate, pointer};

/// Inlining deeper than this is cut at the outer end.
const MAX_INLINED: usize = 256;
/// Tables per pc of a function: the one that says which inlined function a pc belongs to.
const INLINED_INDEX: usize = 2;
/// Data of a function: the one with its inlined functions.
const INLINED_TREE: usize = 3;
/// Bytes of a function's record that are read.
const RECORD: u64 = 256;
/// Sections in which the runtime may keep `moduledata`, which knows where the tables are.
const MODULE_DATA: [&str; 3] = [".go.module", ".noptrdata", ".data"];

/// The table of a Go program.
pub(super) struct Table<'a, F: ?Sized> {
    file: &'a F,
    headers: Headers,
    location: Location,
    header: Header,
    /// Virtual address that the inlined functions' data counts from; found when first needed.
    data: std::cell::OnceCell<Option<u64>>,
}

/// A function and its record.
struct Function {
    start: u64,
    record: Vec<u8>,
}

/// A table of values per pc, read as far as was needed.
struct Values {
    bytes: Vec<u8>,
}

impl<'a, F: ReadAt + ?Sized> Table<'a, F> {
    /// Opens the table; `None` if the file has none of a known version.
    pub(super) fn open(file: &'a F) -> Option<Self> {
        let headers = Headers::read(file).ok()?;
        let location = locate(file, &headers)?;
        let header = Header::read(file, &headers, location)?;
        Some(Table {
            file,
            headers,
            location,
            header,
            data: std::cell::OnceCell::new(),
        })
    }

    /// The functions at an ELF virtual address, innermost first, the physical function last.
    pub(super) fn sites(&self, address: u64) -> Option<Vec<Site>> {
        let function = self.function(address)?;
        let name = self.name(word(&function.record, self.header.function.name))?;
        let (files, lines) = (self.values(&function, 1), self.values(&function, 2));
        let site = |name, pc: u64| Site {
            function: Some(name),
            file: files
                .value(function.start, pc)
                .and_then(|file| self.path(&function, file)),
            line: lines.value(function.start, pc).filter(|&line| line != 0),
            bare: false,
        };
        let mut sites = Vec::new();
        let mut pc = address;
        if let Some((tree, indices)) = self.inlined(&function) {
            while sites.len() < MAX_INLINED
                && let Some(index) = indices.value(function.start, pc)
                && let Some((name, call)) = self.inlined_function(tree, index)
            {
                sites.push(site(name, pc));
                pc = function.start.saturating_add(call.into());
            }
        }
        sites.push(site(name, pc));
        Some(sites)
    }

    /// Finds the function that covers an address: the last one that starts at it or before, if
    /// another entry of the table follows.
    fn function(&self, address: u64) -> Option<Function> {
        let (mut low, mut high) = (0, self.header.functions);
        if address < self.entry(low)? || address >= self.entry(high)? {
            return None;
        }
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            match self.entry(middle)? <= address {
                true => low = middle,
                false => high = middle,
            }
        }
        let field = self.header.field() as u64;
        let entry = low.checked_mul(2 * field)?.checked_add(field)?;
        let offset = self.number(self.header.functab.checked_add(entry)?)?;
        Some(Function {
            start: self.entry(low)?,
            record: self.read(self.header.functab.checked_add(offset)?, RECORD)?,
        })
    }

    /// Where the function of this index starts.
    fn entry(&self, index: u64) -> Option<u64> {
        let offset = index.checked_mul(2 * self.header.field() as u64)?;
        let number = self.number(self.header.functab.checked_add(offset)?)?;
        self.header.text.checked_add(number)
    }

    /// A field of the function table.
    fn number(&self, offset: u64) -> Option<u64> {
        let bytes = self.read(offset, 8)?;
        Some(match self.header.field() {
            8 => xword(&bytes, 0),
            _ => word(&bytes, 0).into(),
        })
    }

    /// At most `length` bytes of the table, fewer at its end.
    fn read(&self, offset: u64, length: u64) -> Option<Vec<u8>> {
        let left = self.location.size.checked_sub(offset)?;
        let offset = self.location.offset.checked_add(offset)?;
        elf::read_range(self.file, offset, left.min(length), ".gopclntab").ok()
    }

    fn text(&self, offset: u64) -> Option<String> {
        // Most are short: a second read for the rest is rare.
        for length in [128, MAX_NAME as u64 + 1] {
            let bytes = self.read(offset, length)?;
            let end = bytes.iter().position(|&byte| byte == 0);
            if end.is_some() || length > 128 {
                let text = bytes.get(..end.unwrap_or(bytes.len()))?;
                let text = String::from_utf8_lossy(text).into_owned();
                return (!text.is_empty()).then(|| demangle::shorten(text));
            }
        }
        None
    }

    fn name(&self, offset: u32) -> Option<String> {
        self.text(self.header.names.checked_add(offset.into())?)
    }

    /// The path of the file of this index in the function's compilation unit.
    fn path(&self, function: &Function, file: u32) -> Option<String> {
        let unit = word(&function.record, self.header.function.pcsp + 16);
        let index = u64::from(unit) + u64::from(file);
        let bytes = self.read(self.header.units.checked_add(4 * index)?, 4)?;
        match word(&bytes, 0) {
            u32::MAX => None,
            offset => self.text(self.header.files.checked_add(offset.into())?),
        }
    }

    /// The first tables of a function: stack depths, files, lines.
    fn values(&self, function: &Function, table: usize) -> Values {
        self.values_at(word(
            &function.record,
            self.header.function.pcsp + 4 * table,
        ))
    }

    fn values_at(&self, offset: u32) -> Values {
        /// No function is as long.
        const MAX_VALUES: u64 = 1 << 20;
        let start = self.header.pctab.checked_add(offset.into());
        let bytes = match offset {
            0 => None,
            _ => start.and_then(|start| self.read_values(start, MAX_VALUES)),
        };
        Values {
            bytes: bytes.unwrap_or_default(),
        }
    }

    /// Reads until the zero that ends a table, at most `most` bytes.
    fn read_values(&self, start: u64, most: u64) -> Option<Vec<u8>> {
        let mut length = 1 << 10;
        loop {
            let bytes = self.read(start, length)?;
            // Of all numbers in a table only the first may be zero too.
            let ended = bytes.iter().skip(1).any(|&byte| byte == 0);
            if ended || length >= most || (bytes.len() as u64) < length {
                return Some(bytes);
            }
            length *= 16;
        }
    }

    /// Virtual address of the function's inlined functions, and which of them each pc is of.
    fn inlined(&self, function: &Function) -> Option<(u64, Values)> {
        if self.header.version < Version::Go118 {
            return None;
        }
        let record = &function.record;
        let tables = word(record, self.header.function.pcsp + 12) as usize;
        let data = usize::from(*record.get(self.header.function.flag + 2)?);
        if tables <= INLINED_INDEX || data <= INLINED_TREE {
            return None;
        }
        let first = self.header.function.flag + 3;
        let indices = word(record, first + 4 * INLINED_INDEX);
        let tree = first.checked_add(tables.checked_add(INLINED_TREE)?.checked_mul(4)?)?;
        let tree = word(record.get(tree..)?, 0);
        if tree == u32::MAX {
            return None;
        }
        let base = (*self.data.get_or_init(|| self.find_data()))?;
        Some((base.checked_add(tree.into())?, self.values_at(indices)))
    }

    /// Name of the inlined function of this index, and the place of the call as an offset from
    /// the physical function's start.
    fn inlined_function(&self, tree: u64, index: u32) -> Option<(String, u32)> {
        let (size, name, call) = match self.header.version {
            Version::Go120 => (16, 4, 8),
            _ => (20, 12, 16),
        };
        let at = tree.checked_add(u64::from(index) * size)?;
        let entry = self.headers.read_vaddr(self.file, at, size).ok()?;
        if entry.len() as u64 != size {
            return None;
        }
        Some((self.name(word(&entry, name))?, word(&entry, call)))
    }

    /// The field of `moduledata` that tells where the functions' data begins.
    fn find_data(&self) -> Option<u64> {
        let (text, data) = match self.header.version {
            Version::Go120 => (22, 40),
            _ => (22, 38),
        };
        let at = |module: u64, field: u64| {
            pointer(self.file, &self.headers, module.checked_add(8 * field)?)
        };
        self.module_data()
            .into_iter()
            .filter(|&module| at(module, text) == Some(self.header.text))
            .find_map(|module| at(module, data))
    }

    /// Where `moduledata` may be: it starts with the table's address.
    fn module_data(&self) -> Vec<u64> {
        const MOST: usize = 16;
        let sections = MODULE_DATA
            .iter()
            .filter_map(|name| self.headers.section(name));
        let mut found = Vec::new();
        for section in sections {
            let Some(bytes) = gopclntab::data(self.file, section) else {
                continue;
            };
            let pointers = bytes.chunks_exact(8).zip(0_u64..);
            let equal = pointers.filter(|(bytes, _)| xword(bytes, 0) == self.location.vaddr);
            found.extend(
                equal
                    .map(|(_, index)| section.vaddr.saturating_add(8 * index))
                    .take(MOST),
            );
        }
        if found.is_empty() {
            let relocations = gopclntab::relocations(self.file, &self.headers).unwrap_or_default();
            let equal = gopclntab::relative(&relocations)
                .filter(|&(_, value)| value == self.location.vaddr);
            found.extend(equal.map(|(place, _)| place).take(MOST));
        }
        found
    }
}

impl Values {
    /// The value at a pc of the function that starts at `start`; `None` if there is none there,
    /// or a negative one, which stands for none.
    fn value(&self, start: u64, pc: u64) -> Option<u32> {
        let mut end = start;
        for (value, length) in Steps::new(&self.bytes) {
            end = end.checked_add(length)?;
            if pc < end {
                return u32::try_from(value).ok();
            }
        }
        None
    }
}
