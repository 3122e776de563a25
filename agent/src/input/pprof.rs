//! pprof's `profile.proto`, unpacked, of any tool: one type of value of it, each stack in names.
//!
//! Source: `proto/profile.proto` of github.com/google/pprof.

use std::collections::HashMap;

use crate::diff::{Measure, Overflow, Side, Stacks};
use crate::output::escape;
use crate::protobuf::{Fields, Malformed, Value};

/// Most frames of all samples together: inlined functions make them more than the file has bytes.
const MAX_FRAMES: usize = 1 << 26;
/// Most functions, locations or strings: an empty one takes two bytes of the file and many more here.
const MAX_PARTS: usize = 1 << 22;
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
    let mut reader = Reader {
        parts: &parts,
        stacks: Stacks::default(),
        names: HashMap::new(),
        frames: 0,
        processes: false,
        cpu: 0.0,
    };
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
        if parts.strings.first() != Some(&&b""[..]) {
            return Err(Malformed.into());
        }
        Ok(parts)
    }

    fn text(&self, index: u64) -> Result<String, Reason> {
        usize::try_from(index)
            .ok()
            .and_then(|index| self.strings.get(index))
            .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
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
        let find = |wanted: &str| types.iter().position(|(kind, _)| kind == wanted);
        let cpu = find("cpu").and_then(|index| Some((index, seconds(&types.get(index)?.1)?)));
        let samples = find("samples").filter(|&index| {
            let counted = types.get(index).is_some_and(|(_, unit)| unit == "count");
            counted && (cpu.is_some() || ["", "cpu", "cycles"].contains(&clock.0.as_str()))
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
            let unit = types.get(index).map(|(_, unit)| unit.as_str());
            let same = clock.0 == "cpu" && Some(clock.1.as_str()) == unit;
            return Ok(Choice {
                index,
                measure: Measure::Cpu,
                per_sample: Some(self.period).filter(|&period| same && period > 0),
                cpu,
            });
        }
        let default = self.text(self.default_type)?;
        let index = find(&default).unwrap_or(types.len().saturating_sub(1));
        let (kind, unit) = types.get(index).ok_or(Reason::NoTypes)?;
        let named = escape::plain(&format!("{kind}/{unit}")).into_owned();
        Ok(Choice {
            index,
            measure: Measure::Other(named),
            per_sample: (unit == "count" && types.len() == 1).then_some(1),
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
fn seconds(unit: &str) -> Option<f64> {
    match unit {
        "nanoseconds" => Some(1e-9),
        "microseconds" => Some(1e-6),
        "milliseconds" => Some(1e-3),
        "seconds" => Some(1.0),
        _ => None,
    }
}

/// Turns samples into named stacks.
struct Reader<'a> {
    parts: &'a Parts<'a>,
    stacks: Stacks,
    /// The functions of each location, innermost first.
    names: HashMap<u64, Vec<u32>>,
    frames: usize,
    processes: bool,
    cpu: f64,
}

impl Reader<'_> {
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
            frames.push(self.stacks.name(super::process_name(&process)));
        }
        frames.reverse();
        Ok(self.stacks.add(frames, weight)?)
    }

    /// The value of a label, if it is this agent's `process`.
    fn process(&self, label: &[u8]) -> Result<Option<String>, Reason> {
        match self.parts.text(integer(label, 1)?)?.as_str() {
            "process" => self.parts.text(integer(label, 2)?).map(Some),
            _ => Ok(None),
        }
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
                    let function = integer(value.bytes()?, 1)?;
                    let function = parts.functions.get(&function);
                    let function = function.ok_or(Reason::Dangling("location"))?;
                    names.push(self.function(function)?);
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

    fn function(&mut self, bytes: &[u8]) -> Result<u32, Reason> {
        let name = self.parts.text(integer(bytes, 2)?)?;
        let name = match name.is_empty() {
            true => self.parts.text(integer(bytes, 3)?)?,
            false => name,
        };
        Ok(self.stacks.name(&escape::frame(&name)))
    }

    /// `[libz.so.1+0x1234]`, as in this agent's own outputs, of a location without lines.
    fn unnamed(&self, mapping: u64, address: u64) -> Result<String, Reason> {
        let Some(mapping) = self.parts.mappings.get(&mapping) else {
            return Ok("[unknown]".to_owned());
        };
        let start = integer(mapping, 2)?;
        let offset = integer(mapping, 4)?;
        let path = self.parts.text(integer(mapping, 5)?)?;
        let file = escape::frame(path.rsplit('/').next().unwrap_or_default());
        let inside = address.wrapping_sub(start).wrapping_add(offset);
        Ok(format!("[{file}+{inside:#x}]"))
    }
}
