//! Log-linear histograms of times: each octave has 64 buckets of equal width, so that a bucket's
//! middle is at most 0.8 % from what was measured. Only buckets in use take memory.

use serde::Serialize;

/// log2 of the buckets per octave.
const BITS: u32 = 6;

/// Times in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// Bucket numbers in ascending order, each with its count.
    buckets: Vec<(u16, u32)>,
    count: u64,
    sum: u128,
    max: u64,
}

/// What a histogram says, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
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
        let number = bucket(value);
        match self.buckets.binary_search_by_key(&number, |entry| entry.0) {
            Ok(at) => self.buckets[at].1 += 1,
            Err(at) => self.buckets.insert(at, (number, 1)),
        }
        self.count += 1;
        self.sum += u128::from(value);
        self.max = self.max.max(value);
    }

    /// Takes back a value that was added, for a larger one to come in its place; says whether it
    /// was there.
    pub fn remove(&mut self, value: u64) -> bool {
        let number = bucket(value);
        let Ok(at) = self.buckets.binary_search_by_key(&number, |entry| entry.0) else {
            return false;
        };
        self.buckets[at].1 -= 1;
        if self.buckets[at].1 == 0 {
            self.buckets.remove(at);
        }
        self.count -= 1;
        self.sum -= u128::from(value).min(self.sum);
        true
    }

    /// Adds all values of another.
    pub fn merge(&mut self, other: &Self) {
        for &(number, count) in &other.buckets {
            match self.buckets.binary_search_by_key(&number, |entry| entry.0) {
                Ok(at) => self.buckets[at].1 += count,
                Err(at) => self.buckets.insert(at, (number, count)),
            }
        }
        self.count += other.count;
        self.sum += other.sum;
        self.max = self.max.max(other.max);
    }

    /// Forgets all values.
    pub fn clear(&mut self) {
        self.buckets.clear();
        (self.count, self.sum, self.max) = (0, 0, 0);
    }

    /// How many values there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The value at a rank, by the middle of its bucket; `share` from 0 to 1.
    fn quantile(&self, share: f64) -> u64 {
        let rank = ((self.count as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        for &(number, count) in &self.buckets {
            seen += u64::from(count);
            if seen >= rank {
                return middle(number).min(self.max);
            }
        }
        self.max
    }

    /// What there is to say; `None` without values.
    pub fn quantiles(&self) -> Option<Quantiles> {
        (self.count > 0).then(|| Quantiles {
            p50: micros(self.quantile(0.5)),
            p90: micros(self.quantile(0.9)),
            p99: micros(self.quantile(0.99)),
            max: micros(self.max),
            mean: micros((self.sum / u128::from(self.count)) as u64),
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
    fn what_is_taken_back_is_gone() {
        let mut histogram = Histogram::default();
        for value in [5, 1000, 70_000] {
            histogram.add(value);
        }
        let before = histogram.clone();
        histogram.add(60_000);
        histogram.remove(60_000);
        assert_eq!(histogram, before);
        let mut sum = before.clone();
        sum.merge(&before);
        assert_eq!(sum.count(), 6);
        assert_eq!(sum.quantiles(), before.quantiles());
        sum.clear();
        assert_eq!(sum.quantiles(), None);
    }
}
