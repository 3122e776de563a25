//! Log-linear histograms of times: each octave has 64 buckets of equal width, so that a bucket's
//! middle is at most 0.8 % from what was measured. Only buckets in use take memory, four bytes each:
//! there may be ten thousand connections.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// log2 of the buckets per octave.
const BITS: u32 = 6;

/// Lower bits of an entry: the count. The upper twelve are the bucket's number.
const COUNT_BITS: u32 = 20;
const COUNT_MASK: u32 = (1 << COUNT_BITS) - 1;

/// Values that wait to be sorted in: a search for each of 100,000 requests a second would be most
/// of what the agent does.
const WAITING: usize = 64;

/// Times in nanoseconds.
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    /// Buckets in ascending order of their numbers, see [`COUNT_BITS`].
    buckets: Vec<u32>,
    /// Numbers of the buckets of values that are not counted there yet, at most [`WAITING`].
    waiting: Vec<u16>,
    /// What does not fit in the counts there, in units of `1 << COUNT_BITS`.
    carried: BTreeMap<u16, u64>,
    count: u64,
    sum: u64,
    max: u64,
}

/// What a histogram says, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Quantiles {
    /// Median (nearest rank).
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Largest, exact.
    pub max: f64,
    /// Mean, exact.
    pub mean: f64,
}

/// The number of a value's bucket.
fn bucket(value: u64) -> u16 {
    let octave = value.max(1).ilog2().saturating_sub(BITS);
    // At most 58 octaves of 64 buckets, and the value's upper bits below 128.
    (u64::from(octave) << BITS).wrapping_add(value >> octave) as u16
}

fn number_of(entry: u32) -> u16 {
    (entry >> COUNT_BITS) as u16
}

/// The middle of a bucket.
fn middle(bucket: u16) -> u64 {
    let bucket = u64::from(bucket);
    let octave = (bucket >> BITS).saturating_sub(1);
    let low = (bucket - (octave << BITS)) << octave;
    low + (1 << octave) / 2
}

/// Nanoseconds as microseconds, to a tenth.
pub fn micros(nanoseconds: u64) -> f64 {
    (nanoseconds as f64 / 100.0).round() / 10.0
}

impl Histogram {
    /// Adds a value in nanoseconds.
    pub fn add(&mut self, value: u64) {
        if self.waiting.len() == WAITING {
            self.settle();
        }
        self.waiting.push(bucket(value));
        self.count += 1;
        self.sum = self.sum.saturating_add(value);
        self.max = self.max.max(value);
    }

    /// Whether such a value was added, as far as the buckets tell.
    pub fn holds(&self, value: u64) -> bool {
        let number = bucket(value);
        self.waiting.contains(&number) || self.position(number).is_ok()
    }

    /// Takes back a value that was added, for a larger one to come in its place; says whether it
    /// was there.
    pub fn remove(&mut self, value: u64) -> bool {
        self.settle();
        let number = bucket(value);
        let Ok(at) = self.position(number) else {
            return false;
        };
        match self.count_at(at).saturating_sub(1) {
            0 => {
                self.buckets.remove(at);
            }
            left => self.set(at, number, left),
        }
        self.count -= 1;
        self.sum = self.sum.saturating_sub(value);
        true
    }

    /// Adds all values of another.
    pub fn merge(&mut self, other: &Self) {
        self.settle();
        let other = other.settled();
        let counts = (0..other.buckets.len()).map(|at| other.entry(at));
        self.absorb(counts);
        self.count += other.count;
        self.sum = self.sum.saturating_add(other.sum);
        self.max = self.max.max(other.max);
    }

    fn position(&self, number: u16) -> Result<usize, usize> {
        self.buckets
            .binary_search_by_key(&number, |&entry| number_of(entry))
    }

    /// Counts the values that wait.
    fn settle(&mut self) {
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.sort_unstable();
        self.absorb(waiting.drain(..).map(|number| (number, 1)));
        self.waiting = waiting;
    }

    /// The same with no value waiting.
    fn settled(&self) -> Cow<'_, Self> {
        if self.waiting.is_empty() {
            return Cow::Borrowed(self);
        }
        let mut settled = self.clone();
        settled.settle();
        Cow::Owned(settled)
    }

    /// Adds to the buckets' counts; the numbers ascend.
    fn absorb(&mut self, counts: impl Iterator<Item = (u16, u64)>) {
        let mut at = 0;
        for (number, by) in counts {
            let rest = self.buckets.get(at..).unwrap_or_default();
            at += rest
                .iter()
                .take_while(|&&entry| number_of(entry) < number)
                .count();
            match self.buckets.get(at) {
                Some(&entry) if number_of(entry) == number => {
                    self.set(at, number, self.count_at(at) + by);
                }
                _ => {
                    self.buckets.insert(at, 0);
                    self.set(at, number, by);
                }
            }
        }
    }

    /// A bucket's number and count.
    fn entry(&self, at: usize) -> (u16, u64) {
        (number_of(self.buckets[at]), self.count_at(at))
    }

    fn count_at(&self, at: usize) -> u64 {
        let entry = self.buckets[at];
        let carried = self.carried.get(&number_of(entry));
        u64::from(entry & COUNT_MASK) + (carried.copied().unwrap_or_default() << COUNT_BITS)
    }

    fn set(&mut self, at: usize, number: u16, count: u64) {
        self.buckets[at] = u32::from(number) << COUNT_BITS | count as u32 & COUNT_MASK;
        let above = count >> COUNT_BITS;
        if above > 0 || !self.carried.is_empty() {
            self.carried.insert(number, above);
        }
    }

    /// Forgets all values.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// How many values there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The sum of all values, in nanoseconds.
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// The middles of the buckets, in nanoseconds and ascending order, each with how many values lie
    /// there.
    pub fn counts(&self) -> impl Iterator<Item = (u64, u64)> {
        let settled = self.settled();
        (0..settled.buckets.len()).map(move |at| {
            let (number, count) = settled.entry(at);
            (middle(number), count)
        })
    }

    /// The value at a rank, by the middle of its bucket; `share` from 0 to 1. No value waits.
    fn quantile(&self, share: f64) -> u64 {
        let rank = ((self.count as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        for at in 0..self.buckets.len() {
            let (number, count) = self.entry(at);
            seen += count;
            if seen >= rank {
                return middle(number).min(self.max);
            }
        }
        self.max
    }

    /// What there is to say; `None` without values.
    pub fn quantiles(&self) -> Option<Quantiles> {
        let settled = self.settled();
        (self.count > 0).then(|| Quantiles {
            p50: micros(settled.quantile(0.5)),
            p90: micros(settled.quantile(0.9)),
            p99: micros(settled.quantile(0.99)),
            max: micros(self.max),
            mean: micros(self.sum / self.count),
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_fine_and_in_order() {
        let mut last = 0;
        for exponent in 0..640 {
            let value = 2f64.powf(f64::from(exponent) / 10.0) as u64;
            let number = bucket(value);
            assert!(number >= last, "{value}");
            last = number;
            let error = middle(number).abs_diff(value) as f64 / value as f64;
            assert!(error <= 0.008, "{value}: {} {error}", middle(number));
        }
        assert!(middle(bucket(u64::MAX)) > u64::MAX / 100 * 99);
        assert_eq!((bucket(0), middle(bucket(0))), (0, 0));
    }

    #[test]
    fn quantiles_are_those_of_the_sorted_values() {
        let mut values: Vec<u64> = (0..10_007u64)
            .map(|n| n * n * 7919 % 50_000_017 + 900)
            .collect();
        let mut histogram = Histogram::default();
        values.iter().for_each(|&value| histogram.add(value));
        values.sort_unstable();
        let quantiles = histogram.quantiles().unwrap();
        for (share, found) in [
            (0.5, quantiles.p50),
            (0.9, quantiles.p90),
            (0.99, quantiles.p99),
        ] {
            let rank = (values.len() as f64 * share).ceil() as usize - 1;
            let exact = values[rank] as f64 / 1000.0;
            assert!(
                (found - exact).abs() <= exact * 0.01,
                "{share}: {found} {exact}"
            );
        }
        assert_eq!(quantiles.max, micros(values[values.len() - 1]));
        let mean = values.iter().sum::<u64>() as f64 / values.len() as f64 / 1000.0;
        assert!((quantiles.mean - mean).abs() < 0.2);
    }

    #[test]
    fn counts_grow_beyond_their_entry() {
        let mut histogram = Histogram::default();
        histogram.add(1000);
        histogram.add(5_000_000);
        for _ in 0..22 {
            histogram.merge(&histogram.clone());
        }
        histogram.settle();
        assert_eq!(histogram.count(), 2 << 22);
        assert_eq!(
            (histogram.count_at(0), histogram.count_at(1)),
            (1 << 22, 1 << 22)
        );
        assert_eq!(histogram.quantile(0.5), middle(bucket(1000)));
        assert_eq!(
            histogram.quantile(0.51),
            middle(bucket(5_000_000)).min(5_000_000)
        );
        assert!(histogram.remove(1000));
        assert_eq!(histogram.count_at(0), (1 << 22) - 1);
    }

    #[test]
    fn what_is_taken_back_is_gone() {
        let mut histogram = Histogram::default();
        for value in [5, 1000, 70_000] {
            histogram.add(value);
        }
        let before = histogram.clone();
        histogram.add(60_000);
        histogram.remove(60_000);
        assert_eq!(histogram.quantiles(), before.quantiles());
        let mut sum = before.clone();
        sum.merge(&before);
        assert_eq!(sum.count(), 6);
        assert_eq!(sum.quantiles(), before.quantiles());
        sum.clear();
        assert_eq!(sum.quantiles(), None);
    }

    #[test]
    fn values_that_wait_are_values() {
        let (mut few, mut many) = (Histogram::default(), Histogram::default());
        for value in 1..=WAITING as u64 * 5 / 2 {
            few.add(value * 1000);
            many.add(value * 1000);
            many.settle();
        }
        assert!(!few.waiting.is_empty());
        assert_eq!(few.quantiles(), many.quantiles());
        assert!(few.holds(1000) && few.holds(160_000) && !few.holds(1_000_000));
        assert!(few.remove(160_000) && !few.remove(1_000_000));
        let mut sum = many.clone();
        sum.merge(&few);
        assert_eq!(sum.count(), many.count() + few.count());
    }
}
