//! A bundle of `agent record`: its profile, and its connections and failing calls.

use super::process_name;
use crate::bundle;
use crate::capture::Capture;
use crate::diff::{Measure, Overflow, Side, Stacks, Traffic};
use crate::output::text::Paths;

/// Why a bundle could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Reason {
    #[error(transparent)]
    Bundle(#[from] bundle::Error),
    #[error(transparent)]
    Overflow(#[from] Overflow),
}

/// The capture of the bundle.
pub(super) fn parse(bytes: &[u8], label: &str) -> Result<Side, Reason> {
    Ok(side(&bundle::read(bytes)?, label)?)
}

fn side(capture: &Capture, label: &str) -> Result<Side, Overflow> {
    let profile = &capture.profile;
    let mut stacks = Stacks::default();
    for (path, count) in Paths::new(profile).iter() {
        let names = path.enumerate().map(|(depth, (name, _))| match depth {
            0 => stacks.name(process_name(name)),
            _ => stacks.name(name),
        });
        let frames = names.collect();
        stacks.add(frames, count)?;
    }
    Ok(Side {
        label: label.to_owned(),
        measure: Measure::Cpu,
        per_sample: Some(1),
        seconds: Some(profile.facts.duration_seconds),
        cpu_seconds: capture
            .seconds_per_sample()
            .map(|each| stacks.total() as f64 * each),
        processes: Some(true),
        traffic: Some(Traffic::of(capture)),
        stacks,
    })
}
