//! Call paths with weights, in names.

use std::collections::HashMap;

/// More than 2^64 in all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the values are too large to be added up")]
pub struct Overflow;

/// Longest call path: of a longer one the end at the leaf is kept.
const MAX_DEPTH: usize = 4096;
/// What stands for the frames of a longer one.
const CUT: &str = "[truncated: too deep]";

/// Distinct call paths, each with the sum of its weights.
#[derive(Clone, Debug, Default)]
pub struct Stacks {
    ids: HashMap<String, u32>,
    names: Vec<String>,
    weights: HashMap<Vec<u32>, u64>,
    total: u64,
}

impl Stacks {
    /// The number of a function's name.
    pub fn name(&mut self, name: &str) -> u32 {
        if let Some(&id) = self.ids.get(name) {
            return id;
        }
        let id = self.names.len() as u32;
        self.names.push(name.to_owned());
        self.ids.insert(name.to_owned(), id);
        id
    }

    /// Adds a call path, root first. Nothing is added for a weight of 0.
    ///
    /// # Errors
    /// The sum of all weights exceeds a `u64`.
    pub fn add(&mut self, mut frames: Vec<u32>, weight: u64) -> Result<(), Overflow> {
        if weight == 0 {
            return Ok(());
        }
        self.total = self.total.checked_add(weight).ok_or(Overflow)?;
        if frames.len() > MAX_DEPTH {
            frames.drain(..frames.len() - MAX_DEPTH);
            frames.insert(0, self.name(CUT));
        }
        // Part of the total, which fits.
        *self.weights.entry(frames).or_insert(0) += weight;
        Ok(())
    }

    /// The sum of all weights.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The names, by number.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The call paths and their weights, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u32], u64)> {
        self.weights
            .iter()
            .map(|(frames, &weight)| (frames.as_slice(), weight))
    }

    /// The largest number that divides every weight; 0 without weights.
    pub fn common_divisor(&self) -> u64 {
        self.weights.values().fold(0, |divisor, &weight| {
            let (mut a, mut b) = (divisor, weight);
            while b != 0 {
                (a, b) = (b, a % b);
            }
            a
        })
    }
}
