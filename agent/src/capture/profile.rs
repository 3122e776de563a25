//! Reads a profile back from its JSON (`agent.profile/1`, docs/json.md). The text may come from
//! anybody: whatever the outputs rely on is checked here.

use serde::{Deserialize, Deserializer};
use thiserror::Error;

use crate::profile::{
    Accounting, Cost, Facts, Frame, ModuleFacts, Profile, SCHEMA, Space, Stack, Unnamed,
};

/// Frames of one stack: 1,024 of user code, 127 of the kernel, and what was inlined into them.
const MAX_FRAMES: usize = 16_384;

/// Why a text is no profile.
#[derive(Debug, Error)]
pub enum Error {
    /// It is no JSON, or not of this form.
    #[error("it is no profile as JSON")]
    Json(#[from] serde_json::Error),
    /// Another schema.
    #[error("its schema is `{0}`, not `{SCHEMA}`")]
    Schema(String),
    /// A stack names a frame that there is not.
    #[error("stack {stack} names frame {frame} of {frames}")]
    NoFrame {
        /// The stack's place.
        stack: usize,
        /// The frame.
        frame: u32,
        /// How many there are.
        frames: usize,
    },
    /// A stack is deeper than any that the agent writes.
    #[error("stack {stack} has {depth} frames; the most there can be are {MAX_FRAMES}")]
    TooDeep {
        /// The stack's place.
        stack: usize,
        /// Its frames.
        depth: usize,
    },
    /// The sums do not fit into 64 bits.
    #[error("its counts add up to more than 64 bits hold")]
    Overflow,
}

#[derive(Deserialize)]
struct Document {
    schema: String,
    facts: Facts,
    accounting: Accounting,
    cost: Cost,
    #[serde(default)]
    timeline: Vec<u64>,
    #[serde(default)]
    modules: Vec<ModuleFacts>,
    frames: Vec<FrameEntry>,
    stacks: Vec<Stack>,
}

#[derive(Deserialize)]
struct FrameEntry {
    function: Option<String>,
    module: Option<String>,
    file: Option<String>,
    line: Option<u32>,
    inlined: bool,
    space: Space,
    #[serde(deserialize_with = "hexadecimal")]
    address: Option<u64>,
    #[serde(deserialize_with = "hexadecimal")]
    function_start: Option<u64>,
    unnamed: Option<Unnamed>,
}

fn hexadecimal<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else {
        return Ok(None);
    };
    let number = text
        .strip_prefix("0x")
        .and_then(|digits| u64::from_str_radix(digits, 16).ok());
    match number {
        Some(number) => Ok(Some(number)),
        None => Err(serde::de::Error::custom(format_args!(
            "`{text}` is no address of the form `0x12ab`"
        ))),
    }
}

impl From<FrameEntry> for Frame {
    fn from(entry: FrameEntry) -> Self {
        Self {
            space: entry.space,
            module: entry.module,
            function: entry.function,
            file: entry.file,
            line: entry.line,
            inlined: entry.inlined,
            address: entry.address.unwrap_or_default(),
            function_start: entry.function_start,
            unnamed: entry.unnamed,
        }
    }
}

/// The profile that [`crate::output`] wrote as JSON. The kernel's addresses are not in it: they
/// are 0.
///
/// # Errors
/// When it is something else, or contradicts itself; see [`Error`].
pub fn read(json: &[u8]) -> Result<Profile, Error> {
    let document: Document = serde_json::from_slice(json)?;
    if document.schema != SCHEMA {
        return Err(Error::Schema(document.schema));
    }
    let frames = document.frames.len();
    for (stack, Stack { frames: ids, .. }) in document.stacks.iter().enumerate() {
        if ids.len() > MAX_FRAMES {
            let depth = ids.len();
            return Err(Error::TooDeep { stack, depth });
        }
        if let Some(&frame) = ids.iter().find(|&&frame| frame as usize >= frames) {
            return Err(Error::NoFrame {
                stack,
                frame,
                frames,
            });
        }
    }
    check_sums(&document).ok_or(Error::Overflow)?;
    let mut profile = Profile::default();
    profile.facts = document.facts;
    profile.accounting = document.accounting;
    profile.cost = document.cost;
    profile.timeline = document.timeline;
    profile.modules = document.modules;
    profile.frames = document.frames.into_iter().map(Frame::from).collect();
    profile.stacks = document.stacks;
    Ok(profile)
}

/// `None` if a sum that the outputs make would overflow.
fn check_sums(document: &Document) -> Option<()> {
    let accounting = &document.accounting;
    let ticks = [accounting.idle, accounting.other, accounting.emitted];
    sum(ticks.into_iter().chain(accounting.lost.values().copied()))?;
    sum(accounting.notes.values().copied())?;
    sum(document.timeline.iter().copied())?;
    sum(document.stacks.iter().map(|stack| stack.count))?;
    Some(())
}

fn sum(mut counts: impl Iterator<Item = u64>) -> Option<u64> {
    counts.try_fold(0u64, u64::checked_add)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;
    use crate::output::{Format, fixture, render};

    fn json(profile: &Profile) -> Vec<u8> {
        render(Format::Json, profile).unwrap()
    }

    /// The JSON of a profile after a change of its text.
    fn changed(from: &str, to: &str) -> Result<Profile, Error> {
        let text = String::from_utf8(json(&fixture::profile())).unwrap();
        assert!(text.contains(from), "{from}");
        read(text.replacen(from, to, 1).as_bytes())
    }

    #[test]
    fn every_format_comes_out_the_same_again() {
        for profile in [fixture::profile(), fixture::hostile(), fixture::empty()] {
            let again = read(&json(&profile)).unwrap();
            assert_eq!(again.stacks, profile.stacks);
            assert_eq!(again.facts, profile.facts);
            assert_eq!(again.accounting, profile.accounting);
            assert_eq!(again.timeline, profile.timeline);
            assert_eq!(again.modules, profile.modules);
            for format in Format::ALL {
                let (before, after) = (render(format, &profile), render(format, &again));
                assert_eq!(before.unwrap(), after.unwrap(), "{}", format.name());
            }
        }
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        assert!(changed("\"ticks\":", "\"ticks\":1").is_ok());
        let refused = [
            ("agent.profile/1", "agent.profile/2", "agent.profile/2"),
            ("\"frames\":[0,1,2]", "\"frames\":[0,1,99]", "frame 99"),
            ("\"count\":60", "\"count\":18446744073709551600", "64 bits"),
            ("[48,52]", "[18446744073709551615,1]", "64 bits"),
            ("\"idle\":200", "\"idle\":18446744073709551615", "64 bits"),
        ];
        for (from, to, why) in refused {
            let error = changed(from, to).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        for (from, to) in [
            ("\"end\":\"root\"", "\"end\":\"rooted\""),
            ("\"0x1040\"", "\"1040\""),
            ("\"0x1040\"", "\"0x11112222333344445\""),
            ("\"space\":\"user\"", "\"space\":\"guest\""),
            ("\"count\":60", "\"count\":-1"),
            ("\"schema\"", "\"scheme\""),
        ] {
            assert!(matches!(changed(from, to), Err(Error::Json(_))), "{to}");
        }
    }

    #[test]
    fn a_stack_without_bottom_is_refused() {
        let mut profile = fixture::profile();
        profile.stacks[0].frames = vec![0; MAX_FRAMES];
        assert!(read(&json(&profile)).is_ok());
        profile.stacks[0].frames.push(0);
        assert!(matches!(
            read(&json(&profile)),
            Err(Error::TooDeep { stack: 0, .. })
        ));
    }

    #[test]
    fn a_truncated_text_is_refused_wherever_it_ends() {
        let whole = json(&fixture::profile());
        for end in 0..whole.len() - 3 {
            assert!(read(&whole[..end]).is_err(), "{end}");
        }
        assert!(read(&[b'['; 100_000]).is_err());
    }
}
