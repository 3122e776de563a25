//! pprof's `profile.proto`, unpacked, of any tool: one type of value of it, each stack in names.
//!
//! Source: `proto/profile.proto` of github.com/google/pprof.

use std::borrow::Cow;
use std::collections::HashMap;

use crate::diff::{Measure, Overflow, Side, Stacks};
use crate::output::escape;
use crate::protobuf::{Fields, Malformed, Value};

/// Most frames of all samples together: inlined functions make them more than the file has bytes.
const MAX_FRAMES: usize = 1 << 26;
/// Most functions, locations or strings: an empty one takes two bytes of the file and many more here.
const MAX_PARTS: usize = 1 << 22;
/// Most types of values: the tools have up to six.
const MAX_TYPES: usize = 64;
/// Most bytes of all names together, each as often as it is made: many functions can have one long
/// name, and many addresses one long file.
const MAX_NAME_BYTES: usize = 1 << 28;
/// A period shorter than this, in nanoseconds, is none of a sampling clock.
const MIN_PERIOD: u64 = 100_000;

/// Why a profile could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Reason {
    #[error("it is no pprof profile, or a damaged one")]
    Malformed(#[from] Malformed),
    #[error("its {0} refers to something that it does not have")]
    Dangling(&'static str),
    #[error("a sample has {found} values where the profile has {expected} types")]
    Values { found: usize, expected: usize },
    #[error("it has no sample types")]
    NoTypes,
    #[error("it has negative values: it is a difference of profiles itself")]
    Negative,
    #[error("it has more than {0} {1}")]
    TooMany(usize, &'static str),
    #[error(transparent)]
    Overflow(#[from] Overflow),
}

/// A profile's parts but its samples, still on the wire.
#[derive(Default)]
struct Parts<'a> {
    types: Vec<(u64, u64)>,
    locations: HashMap<u64, &'a [u8]>,
    functions: HashMap<u64, &'a [u8]>,
    mappings: HashMap<u64, &'a [u8]>,
    strings: Vec<&'a [u8]>,
    duration: u64,
    period_type: (u64, u64),
    period: u64,
    default_type: u64,
}

/// Which value is taken, and what it is.
struct Choice {
    index: usize,
    measure: Measure,
    per_sample: Option<u64>,
    /// The value of CPU time and its unit in seconds, if there is one.
    cpu: Option<(usize, f64)>,
}

/// The stacks of the profile.
pub(super) fn parse(bytes: &[u8], label: &str) -> Result<Side, Reason> {
    let parts = Parts::read(bytes)?;
    let mut choice = parts.choose()?;
    let mut reader = Reader::of(&parts);
    for field in Fields::new(bytes) {
        if let (2, sample) = field? {
            reader.sample(sample.bytes()?, &choice)?;
        }
    }
    if choice.per_sample.is_none() && choice.cpu.is_some() {
        let divisor = reader.stacks.common_divisor();
        choice.per_sample = (divisor >= MIN_PERIOD).then_some(divisor);
    }
    let unit = choice.cpu.map(|(_, unit)| unit);
    Ok(Side {
        label: label.to_owned(),
        measure: choice.measure,
        per_sample: choice.per_sample,
        seconds: (parts.duration > 0).then_some(parts.duration as f64 / 1e9),
        cpu_seconds: unit.map(|unit| reader.cpu * unit),
        processes: Some(reader.processes),
        traffic: None,
        stacks: reader.stacks,
    })
}

impl<'a> Parts<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, Reason> {
        let mut parts = Parts::default();
        for field in Fields::new(bytes) {
            let (number, value) = field?;
            match number {
                1 => parts.types.push(pair(value.bytes()?)?),
                3 => by_id(&mut parts.mappings, value)?,
                4 => by_id(&mut parts.locations, value)?,
                5 => by_id(&mut parts.functions, value)?,
                6 => parts.strings.push(value.bytes()?),
                10 => parts.duration = value.integer()?,
                11 => parts.period_type = pair(value.bytes()?)?,
                12 => parts.period = value.integer()?,
                14 => parts.default_type = value.integer()?,
                _ => {}
            }
            let parts = [
                parts.types.len(),
                parts.mappings.len(),
                parts.locations.len(),
            ]
            .into_iter()
            .chain([parts.functions.len(), parts.strings.len()]);
            if parts.max() > Some(MAX_PARTS) {
                return Err(Reason::TooMany(MAX_PARTS, "parts of one kind"));
            }
        }
        if parts.types.len() > MAX_TYPES {
            return Err(Reason::TooMany(MAX_TYPES, "types of values"));
        }
        if parts.strings.first() != Some(&&b""[..]) {
            return Err(Malformed.into());
        }
        Ok(parts)
    }

    fn text(&self, index: u64) -> Result<&'a [u8], Reason> {
        usize::try_from(index)
            .ok()
            .and_then(|index| self.strings.get(index).copied())
            .ok_or(Reason::Dangling("string"))
    }

    /// Takes samples or CPU time where there are any, else what the file says to show.
    fn choose(&self) -> Result<Choice, Reason> {
        let mut types = Vec::new();
        for &(kind, unit) in &self.types {
            types.push((self.text(kind)?, self.text(unit)?));
        }
        let clock = (
            self.text(self.period_type.0)?,
            self.text(self.period_type.1)?,
        );
        let find = |wanted: &[u8]| types.iter().position(|&(kind, _)| kind == wanted);
        let cpu = find(b"cpu").and_then(|index| Some((index, seconds(types.get(index)?.1)?)));
        let samples = find(b"samples").filter(|&index| {
            let counted = types.get(index).is_some_and(|&(_, unit)| unit == b"count");
            counted && (cpu.is_some() || matches!(clock.0, b"" | b"cpu" | b"cycles"))
        });
        if let Some(index) = samples {
            return Ok(Choice {
                index,
                measure: Measure::Cpu,
                per_sample: Some(1),
                cpu,
            });
        }
        if let Some((index, _)) = cpu {
            let unit = types.get(index).map(|&(_, unit)| unit);
            let same = clock.0 == b"cpu" && Some(clock.1) == unit;
            return Ok(Choice {
                index,
                measure: Measure::Cpu,
                per_sample: Some(self.period).filter(|&period| same && period > 0),
                cpu,
            });
        }
        let default = self.text(self.default_type)?;
        let index = find(default).unwrap_or(types.len().saturating_sub(1));
        let &(kind, unit) = types.get(index).ok_or(Reason::NoTypes)?;
        let (kind, text) = (String::from_utf8_lossy(kind), String::from_utf8_lossy(unit));
        let named = escape::plain(&format!("{kind}/{text}")).into_owned();
        Ok(Choice {
            index,
            measure: Measure::Other(named),
            per_sample: (unit == b"count" && types.len() == 1).then_some(1),
            cpu: None,
        })
    }
}

/// A `ValueType`: the strings of its type and unit.
fn pair(bytes: &[u8]) -> Result<(u64, u64), Malformed> {
    Ok((integer(bytes, 1)?, integer(bytes, 2)?))
}

/// The last integer field of this number; 0 without one.
fn integer(bytes: &[u8], wanted: u64) -> Result<u64, Malformed> {
    let mut found = 0;
    for field in Fields::new(bytes) {
        let (number, value) = field?;
        if number == wanted {
            found = value.integer()?;
        }
    }
    Ok(found)
}

fn by_id<'a>(map: &mut HashMap<u64, &'a [u8]>, value: Value<'a>) -> Result<(), Malformed> {
    let bytes = value.bytes()?;
    map.insert(integer(bytes, 1)?, bytes);
    Ok(())
}

/// How many seconds the unit is.
fn seconds(unit: &[u8]) -> Option<f64> {
    match unit {
        b"nanoseconds" => Some(1e-9),
        b"microseconds" => Some(1e-6),
        b"milliseconds" => Some(1e-3),
        b"seconds" => Some(1.0),
        _ => None,
    }
}

/// Turns samples into named stacks. Every name is made once for each part of the profile that has it.
struct Reader<'a> {
    parts: &'a Parts<'a>,
    stacks: Stacks,
    /// The functions of each location, innermost first.
    names: HashMap<u64, Vec<u32>>,
    /// The name of each function.
    functions: HashMap<u64, u32>,
    files: HashMap<u64, MappedFile>,
    /// The names of processes, by their strings.
    process_names: HashMap<u64, u32>,
    /// Bytes of the names that were made.
    name_bytes: usize,
    frames: usize,
    processes: bool,
    cpu: f64,
}

/// The file of a mapping.
struct MappedFile {
    name: String,
    /// From an address to the place in the file.
    bias: u64,
}

impl<'a> Reader<'a> {
    fn of(parts: &'a Parts<'a>) -> Self {
        Self {
            parts,
            stacks: Stacks::default(),
            names: HashMap::new(),
            functions: HashMap::new(),
            files: HashMap::new(),
            process_names: HashMap::new(),
            name_bytes: 0,
            frames: 0,
            processes: false,
            cpu: 0.0,
        }
    }

    /// Counts the bytes of a name that is about to be made.
    fn count_bytes(&mut self, bytes: usize) -> Result<(), Reason> {
        self.name_bytes += bytes;
        match self.name_bytes > MAX_NAME_BYTES {
            true => Err(Reason::TooMany(MAX_NAME_BYTES, "bytes of names")),
            false => Ok(()),
        }
    }

    /// A text that becomes a name.
    fn text(&mut self, index: u64) -> Result<Cow<'a, str>, Reason> {
        let bytes = self.parts.text(index)?;
        self.count_bytes(bytes.len())?;
        Ok(String::from_utf8_lossy(bytes))
    }

    fn sample(&mut self, bytes: &[u8], choice: &Choice) -> Result<(), Reason> {
        let (mut locations, mut values, mut process) = (Vec::new(), Vec::new(), None);
        for field in Fields::new(bytes) {
            let (number, value) = field?;
            match number {
                1 => value.each_integer(|id| locations.push(id))?,
                2 => value.each_integer(|number| values.push(number))?,
                3 => process = self.process(value.bytes()?)?.or(process),
                _ => {}
            }
        }
        let expected = self.parts.types.len();
        let value = |index: usize| match i64::try_from(*values.get(index).unwrap_or(&0)) {
            Ok(value) => Ok(value.unsigned_abs()),
            Err(_) => Err(Reason::Negative),
        };
        if values.len() != expected {
            return Err(Reason::Values {
                found: values.len(),
                expected,
            });
        }
        let weight = value(choice.index)?;
        if let Some((index, _)) = choice.cpu {
            self.cpu += value(index)? as f64;
        }
        let mut frames = Vec::new();
        for id in locations {
            self.location(id)?;
            let names = self.names.get(&id).map_or(&[][..], Vec::as_slice);
            self.frames += names.len();
            if self.frames > MAX_FRAMES {
                return Err(Reason::TooMany(MAX_FRAMES, "frames in all samples"));
            }
            frames.extend_from_slice(names);
        }
        if let Some(process) = process {
            self.processes = true;
            frames.push(process);
        }
        frames.reverse();
        Ok(self.stacks.add(frames, weight)?)
    }

    /// The name of the process that a label holds, if it is this agent's `process`.
    fn process(&mut self, label: &[u8]) -> Result<Option<u32>, Reason> {
        if self.parts.text(integer(label, 1)?)? != b"process" {
            return Ok(None);
        }
        let index = integer(label, 2)?;
        if let Some(&name) = self.process_names.get(&index) {
            return Ok(Some(name));
        }
        let text = self.text(index)?;
        let name = self.stacks.name(super::process_name(&text));
        self.process_names.insert(index, name);
        Ok(Some(name))
    }

    /// Makes the functions of a location known.
    fn location(&mut self, id: u64) -> Result<(), Reason> {
        if self.names.contains_key(&id) {
            return Ok(());
        }
        let parts = self.parts;
        let bytes = parts.locations.get(&id);
        let bytes = bytes.ok_or(Reason::Dangling("sample"))?;
        let (mut names, mut mapping, mut address) = (Vec::new(), 0, 0);
        for field in Fields::new(bytes) {
            let (number, value) = field?;
            match number {
                2 => mapping = value.integer()?,
                3 => address = value.integer()?,
                4 => {
                    names.push(self.function(integer(value.bytes()?, 1)?)?);
                }
                _ => {}
            }
        }
        if names.is_empty() {
            let name = self.unnamed(mapping, address)?;
            names.push(self.stacks.name(&name));
        }
        self.names.insert(id, names);
        Ok(())
    }

    fn function(&mut self, id: u64) -> Result<u32, Reason> {
        if let Some(&name) = self.functions.get(&id) {
            return Ok(name);
        }
        let bytes = self.parts.functions.get(&id);
        let bytes = bytes.ok_or(Reason::Dangling("location"))?;
        let mut text = self.text(integer(bytes, 2)?)?;
        if text.is_empty() {
            text = self.text(integer(bytes, 3)?)?;
        }
        let name = self.stacks.name(&escape::frame(&text));
        self.functions.insert(id, name);
        Ok(name)
    }

    /// `[libz.so.1+0x1234]`, as in this agent's own outputs, of a location without lines.
    fn unnamed(&mut self, mapping: u64, address: u64) -> Result<String, Reason> {
        let Some(bytes) = self.parts.mappings.get(&mapping) else {
            return Ok("[unknown]".to_owned());
        };
        if !self.files.contains_key(&mapping) {
            let path = self.text(integer(bytes, 5)?)?;
            let file = MappedFile {
                name: escape::frame(path.rsplit('/').next().unwrap_or_default()),
                bias: integer(bytes, 4)?.wrapping_sub(integer(bytes, 2)?),
            };
            self.files.insert(mapping, file);
        }
        let length = self.files.get(&mapping).map_or(0, |file| file.name.len());
        self.count_bytes(length)?;
        let Some(MappedFile { name, bias }) = self.files.get(&mapping) else {
            return Ok("[unknown]".to_owned());
        };
        Ok(format!("[{name}+{:#x}]", address.wrapping_add(*bias)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;
    use crate::protobuf::Message;

    /// A profile of one sample, whose location has a line of each function; the functions have one
    /// name.
    fn functions(name: &[u8], ids: impl Iterator<Item = u64>) -> Vec<u8> {
        let mut location = Message::default();
        location.integer(1, 1);
        let mut message = Message::default();
        for id in ids {
            let (mut line, mut function) = (Message::default(), Message::default());
            location.message(4, line.integer(1, id));
            message.message(5, function.integer(1, id).integer(2, 1));
        }
        message.message(4, &location);
        with_strings(message, &[1], &[b"", name])
    }

    /// A profile of one sample with these locations.
    fn with_strings(mut message: Message, locations: &[u64], strings: &[&[u8]]) -> Vec<u8> {
        let (mut kind, mut sample) = (Message::default(), Message::default());
        message.message(1, kind.integer(1, 0).integer(2, 0));
        sample.integers(1, locations.iter().copied());
        message.message(2, sample.integers(2, [1]));
        for text in strings {
            message.bytes(6, text);
        }
        message.into_bytes()
    }

    /// The bytes of names that are made for the profile's sample, which may be so many.
    fn name_bytes(bytes: &[u8], most: usize) -> Result<usize, Reason> {
        let parts = Parts::read(bytes)?;
        let mut reader = Reader::of(&parts);
        let before = MAX_NAME_BYTES - most;
        reader.name_bytes = before;
        let choice = parts.choose()?;
        for field in Fields::new(bytes) {
            if let (2, sample) = field? {
                reader.sample(sample.bytes()?, &choice)?;
            }
        }
        Ok(reader.name_bytes - before)
    }

    const NAME: &[u8] = &[b'n'; 1 << 16];

    #[test]
    fn a_long_name_is_made_once_however_many_lines_have_it() {
        let lines = functions(NAME, std::iter::repeat_n(7, 10_000));
        assert_eq!(name_bytes(&lines, NAME.len()).unwrap(), NAME.len());
    }

    #[test]
    fn many_functions_of_one_long_name_are_refused() {
        let profile = functions(NAME, 1..=4);
        let made = 4 * NAME.len();
        assert_eq!(name_bytes(&profile, made).unwrap(), made);
        let refused = name_bytes(&profile, made - 1).unwrap_err().to_string();
        assert!(refused.contains("bytes of names"), "{refused}");
    }

    #[test]
    fn many_addresses_of_one_long_file_are_refused() {
        let (mut message, mut mapping) = (Message::default(), Message::default());
        message.message(3, mapping.integer(1, 1).integer(5, 1));
        for id in 1..=3 {
            let mut location = Message::default();
            message.message(4, location.integer(1, id).integer(2, 1).integer(3, id));
        }
        let profile = with_strings(message, &[1, 2, 3], &[b"", NAME]);
        let made = 4 * NAME.len();
        assert_eq!(name_bytes(&profile, made).unwrap(), made);
        let refused = name_bytes(&profile, made - 1).unwrap_err().to_string();
        assert!(refused.contains("bytes of names"), "{refused}");
    }

    #[test]
    fn more_types_than_any_tool_has_are_refused() {
        let mut message = Message::default();
        for _ in 0..=MAX_TYPES {
            message.message(1, Message::default().integer(1, 0));
        }
        let refused = parse(&with_strings(message, &[], &[b""]), "x").unwrap_err();
        assert!(refused.to_string().contains("types of values"), "{refused}");
    }
}
