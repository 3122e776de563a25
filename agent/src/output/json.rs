//! The whole model as one JSON document, `agent.profile/1`; docs/json.md describes it.
//!
//! One frame or stack a line, so that line tools can work on it too.

use std::io;

use serde::Serialize;

use super::escape;
use crate::profile::{Frame, Profile, SCHEMA, Space, Unnamed};

/// Figures that follow from the rest, for readers who want no more.
#[derive(Serialize)]
struct Totals {
    samples: u64,
    complete_samples: u64,
    lost: u64,
    balances: bool,
}

/// A frame as the document shows it.
#[derive(Serialize)]
struct FrameEntry<'a> {
    function: Option<&'a str>,
    module: Option<&'a str>,
    file: Option<&'a str>,
    line: Option<u32>,
    inlined: bool,
    space: Space,
    /// A string: a JSON number is exact up to 2^53 only. None for the kernel's: it would give
    /// away where the kernel was loaded.
    address: Option<String>,
    function_start: Option<String>,
    unnamed: Option<Unnamed>,
}

impl<'a> From<&'a Frame> for FrameEntry<'a> {
    fn from(frame: &'a Frame) -> Self {
        Self {
            function: frame.function.as_deref(),
            module: frame.module.as_deref(),
            file: frame.file.as_deref(),
            line: frame.line,
            inlined: frame.inlined,
            space: frame.space,
            address: (frame.space == Space::User).then(|| format!("{:#x}", frame.address)),
            function_start: frame.function_start.map(|start| format!("{start:#x}")),
            unnamed: frame.unnamed,
        }
    }
}

/// The profile as JSON.
pub(super) fn render(profile: &Profile) -> io::Result<Vec<u8>> {
    let totals = Totals {
        samples: profile.samples(),
        complete_samples: profile.complete_samples(),
        lost: profile.accounting.lost_total(),
        balances: profile.accounting.balances(),
    };
    let mut out = Vec::new();
    field(&mut out, "{", "schema", SCHEMA)?;
    field(&mut out, ",", "facts", &profile.facts)?;
    field(&mut out, ",", "totals", &totals)?;
    field(&mut out, ",", "accounting", &profile.accounting)?;
    field(&mut out, ",", "cost", &profile.cost)?;
    field(&mut out, ",", "timeline", &profile.timeline)?;
    lines(&mut out, "modules", profile.modules.iter())?;
    lines(
        &mut out,
        "frames",
        profile.frames.iter().map(FrameEntry::from),
    )?;
    lines(&mut out, "stacks", profile.stacks.iter())?;
    out.extend_from_slice(b"\n}\n");
    Ok(out)
}

fn field<T: Serialize + ?Sized>(
    out: &mut Vec<u8>,
    before: &str,
    name: &str,
    value: &T,
) -> io::Result<()> {
    out.extend_from_slice(format!("{before}\n\"{name}\":").as_bytes());
    out.extend_from_slice(&escape::json(value)?);
    Ok(())
}

fn lines<T: Serialize>(
    out: &mut Vec<u8>,
    name: &str,
    items: impl Iterator<Item = T>,
) -> io::Result<()> {
    out.extend_from_slice(format!(",\n\"{name}\":[").as_bytes());
    for (index, item) in items.enumerate() {
        out.extend_from_slice(if index == 0 { b"\n" } else { b",\n" });
        out.extend_from_slice(&escape::json(&item)?);
    }
    out.extend_from_slice(b"\n]");
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;
    use crate::output::fixture;
    use serde_json::Value;

    #[test]
    fn golden() {
        fixture::check_golden("profile.json", &render(&fixture::profile()).unwrap());
    }

    #[test]
    fn names_keep_their_value() {
        let profile = fixture::hostile();
        let bytes = render(&profile).unwrap();
        let text = String::from_utf8(bytes.clone()).unwrap();
        assert!(!text.chars().any(|c| c != '\n' && escape::is_unsafe(c)));
        let value: Value = serde_json::from_slice(&bytes).unwrap();
        for (index, frame) in profile.frames.iter().enumerate() {
            assert_eq!(
                value["frames"][index]["function"].as_str(),
                frame.function.as_deref()
            );
        }
    }

    #[test]
    fn empty_profile_is_a_document() {
        let value: Value = serde_json::from_slice(&render(&fixture::empty()).unwrap()).unwrap();
        assert_eq!(value["schema"], SCHEMA);
        assert_eq!(value["stacks"], Value::Array(Vec::new()));
        assert_eq!(value["totals"]["balances"], true);
    }

    #[test]
    fn kernel_addresses_are_kept_back() {
        let value: Value = serde_json::from_slice(&render(&fixture::profile()).unwrap()).unwrap();
        for frame in value["frames"].as_array().unwrap() {
            assert_eq!(frame["address"].is_null(), frame["space"] == "kernel");
        }
    }
}
