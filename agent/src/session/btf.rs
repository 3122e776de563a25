//! Offsets of kernel structure fields from the kernel's own BTF (`Documentation/bpf/btf.rst`, 6.18).
//!
//! Reads one pass for the names that are asked for; nothing else is kept.

use std::collections::HashMap;

/// Why an offset is not known.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not BTF, or cut short.
    #[error("the kernel's BTF is malformed")]
    Malformed,
    /// No such structure or field.
    #[error("the kernel's BTF has no field {0}")]
    NoField(String),
}

/// Parsed type information: for each structure asked for, its members.
#[derive(Debug, Default)]
pub struct Offsets {
    fields: HashMap<String, u32>,
}

const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
/// Depth of anonymous members followed.
const MAX_NESTING: u32 = 4;

struct Reader<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Offset of each type in `types`; number 1 is the first.
    starts: Vec<u32>,
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(
        bytes.get(at..at.checked_add(4)?)?.try_into().ok()?,
    ))
}

impl<'a> Reader<'a> {
    fn new(btf: &'a [u8]) -> Option<Self> {
        if btf.get(..2)? != [0x9f, 0xeb] {
            return None;
        }
        let header = word(btf, 4)? as usize;
        let part = |offset: usize, length: usize| {
            let start = header.checked_add(word(btf, offset)? as usize)?;
            btf.get(start..start.checked_add(word(btf, length)? as usize)?)
        };
        let (types, strings) = (part(8, 12)?, part(16, 20)?);
        let mut starts = vec![0];
        let mut at = 0;
        while at < types.len() {
            starts.push(at as u32);
            let info = word(types, at + 4)?;
            at = at.checked_add(12 + trailer(info)?)?;
        }
        Some(Self {
            types,
            strings,
            starts,
        })
    }

    fn name(&self, offset: u32) -> &'a [u8] {
        let rest = self.strings.get(offset as usize..).unwrap_or_default();
        rest.split(|&byte| byte == 0).next().unwrap_or_default()
    }

    /// Name, info and first byte of the members of a type.
    fn type_at(&self, id: u32) -> Option<(&'a [u8], u32, usize)> {
        let at = *self.starts.get(id as usize)? as usize;
        Some((
            self.name(word(self.types, at)?),
            word(self.types, at + 4)?,
            at + 12,
        ))
    }

    /// Bit offset of a member, looking into anonymous structures.
    fn member(&self, id: u32, wanted: &[u8], nesting: u32) -> Option<u32> {
        let (_, info, first) = self.type_at(id)?;
        if !matches!(info >> 24 & 31, KIND_STRUCT | KIND_UNION) || nesting > MAX_NESTING {
            return None;
        }
        let bitfields = info >> 31 != 0;
        (0..(info & 0xffff) as usize).find_map(|index| {
            let at = first + 12 * index;
            let name = self.name(word(self.types, at)?);
            let offset = word(self.types, at + 8)?;
            let offset = if bitfields {
                offset & 0xff_ffff
            } else {
                offset
            };
            if name == wanted {
                return Some(offset);
            }
            let inner = name
                .is_empty()
                .then(|| self.member(word(self.types, at + 4)?, wanted, nesting + 1));
            Some(offset + inner.flatten()?)
        })
    }
}

/// Bytes that follow the 12 of a type's head.
fn trailer(info: u32) -> Option<usize> {
    let count = (info & 0xffff) as usize;
    Some(match info >> 24 & 31 {
        1 | 14 | 17 => 4, // INT, VAR, DECL_TAG
        3 => 12,          // ARRAY
        KIND_STRUCT | KIND_UNION => 12 * count,
        6 | 13 => 8 * count,       // ENUM, FUNC_PROTO
        15 | 19 => 12 * count,     // DATASEC, ENUM64
        2 | 7..=12 | 16 | 18 => 0, // PTR, FWD, TYPEDEF … FUNC, FLOAT, TYPE_TAG
        _ => return None,
    })
}

impl Offsets {
    /// Looks up `structure.field` for each of `wanted`; what is not there is left out.
    ///
    /// # Errors
    /// When the bytes are not BTF.
    pub fn read(btf: &[u8], wanted: &[&str]) -> Result<Self, Error> {
        let reader = Reader::new(btf).ok_or(Error::Malformed)?;
        let mut by_structure: HashMap<&[u8], Vec<&str>> = HashMap::new();
        for path in wanted {
            let structure = path.split('.').next().unwrap_or_default();
            by_structure
                .entry(structure.as_bytes())
                .or_default()
                .push(path);
        }
        let mut fields = HashMap::new();
        for id in 1..reader.starts.len() as u32 {
            let Some((name, info, _)) = reader.type_at(id) else {
                continue;
            };
            if info >> 24 & 31 != KIND_STRUCT || info & 0xffff == 0 {
                continue;
            }
            for path in by_structure.remove(name).unwrap_or_default() {
                let member = path.split('.').nth(1).unwrap_or_default();
                if let Some(bits) = reader.member(id, member.as_bytes(), 0) {
                    fields.insert(path.to_owned(), bits / 8);
                }
            }
        }
        Ok(Self { fields })
    }

    /// Offset in bytes of `structure.field`.
    ///
    /// # Errors
    /// When this kernel has no such field.
    pub fn of(&self, path: &str) -> Result<u32, Error> {
        self.fields
            .get(path)
            .copied()
            .ok_or_else(|| Error::NoField(path.to_owned()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn the_running_kernel_has_the_fields_we_need() {
        let btf = std::fs::read("/sys/kernel/btf/vmlinux").unwrap();
        let offsets = Offsets::read(
            &btf,
            &[
                "task_struct.tgid",
                "task_struct.pid",
                "upid.ns",
                "pid.numbers",
            ],
        )
        .unwrap();
        assert_eq!(offsets.of("upid.ns").unwrap(), 8);
        assert_eq!(
            offsets.of("task_struct.tgid").unwrap(),
            offsets.of("task_struct.pid").unwrap() + 4
        );
        assert!(offsets.of("task_struct.nonsense").is_err());
    }

    #[test]
    fn cut_and_wrong_bytes_are_refused() {
        let btf = std::fs::read("/sys/kernel/btf/vmlinux").unwrap();
        for length in [0, 1, 8, 20, 24, 1000] {
            assert!(Offsets::read(&btf[..length], &["pid.level"]).is_err());
        }
        let mut wrong = btf[..4096].to_vec();
        wrong[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(Offsets::read(&wrong, &["pid.level"]).is_err());
    }
}
