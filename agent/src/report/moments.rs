//! Seconds that stand out of a row of seconds.
//!
//! By the median and the median absolute deviation (MAD), which a burst cannot move as it would
//! move mean and standard deviation: a value stands out when it is further from the median than
//! five scaled MADs, a third of the median, and what counting alone makes likely.

/// Seconds that a row must have: of fewer nobody can say what is usual.
const ENOUGH: usize = 5;
/// Scaled MADs from the median; of normally distributed values one in two million is beyond.
const DEVIATIONS: f64 = 5.0;
/// The MAD of normally distributed values times this is their standard deviation.
const SCALE: f64 = 1.4826;
/// Share of the median below which a difference does not matter to anybody.
const SHARE: f64 = 1.0 / 3.0;

/// What the values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Numbers of events: a difference within four times the root of the median (and four
    /// events) is chance.
    Counts,
    /// Anything measured.
    Measures,
}

/// A second that stands out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Moment {
    /// Its number, from 0.
    pub second: usize,
    /// Its value.
    pub value: f64,
    /// The median of all.
    pub median: f64,
}

impl Moment {
    /// How far it is out: the larger of value and median by the smaller, where that is not 0.
    pub fn weight(&self) -> f64 {
        let (low, high) = (self.value.min(self.median), self.value.max(self.median));
        if low > 0.0 { high / low } else { f64::MAX }
    }
}

/// The seconds whose value stands out, in order. `None` is "no value", which never does.
pub fn standing_out(values: &[Option<f64>], kind: Kind) -> Vec<Moment> {
    let known: Vec<f64> = values.iter().flatten().copied().collect();
    if known.len() < ENOUGH {
        return Vec::new();
    }
    let median = median(known.clone());
    let deviation = self::median(known.iter().map(|value| (value - median).abs()).collect());
    let chance = match kind {
        Kind::Counts => 4.0 * median.max(1.0).sqrt(),
        Kind::Measures => 0.0,
    };
    let limit = (DEVIATIONS * SCALE * deviation)
        .max(SHARE * median)
        .max(chance);
    (0..)
        .zip(values)
        .filter_map(|(second, value)| {
            let value = (*value)?;
            ((value - median).abs() > limit).then_some(Moment {
                second,
                value,
                median,
            })
        })
        .collect()
}

/// The median; 0 of nothing.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let at = |index: usize| values.get(index).copied().unwrap_or(0.0);
    if values.len().is_multiple_of(2) {
        (at(middle.saturating_sub(1)) + at(middle)) / 2.0
    } else {
        at(middle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(values: &[f64], kind: Kind) -> Vec<usize> {
        let values: Vec<Option<f64>> = values.iter().map(|&value| Some(value)).collect();
        standing_out(&values, kind)
            .iter()
            .map(|moment| moment.second)
            .collect()
    }

    #[test]
    fn a_burst_and_a_gap_stand_out() {
        let row = [100.0, 104.0, 98.0, 101.0, 900.0, 99.0, 0.0, 103.0];
        assert_eq!(seconds(&row, Kind::Counts), [4, 6]);
        assert_eq!(seconds(&row, Kind::Measures), [4, 6]);
    }

    #[test]
    fn noise_does_not() {
        assert!(seconds(&[3.0, 5.0, 1.0, 4.0, 7.0, 2.0], Kind::Counts).is_empty());
        assert!(seconds(&[100.0; 30], Kind::Measures).is_empty());
        assert!(seconds(&[0.0, 0.0, 0.0, 0.0, 2.0, 0.0], Kind::Counts).is_empty());
        assert_eq!(seconds(&[0.0, 0.0, 0.0, 0.0, 9.0, 0.0], Kind::Counts), [4]);
    }

    #[test]
    fn steady_values_must_differ_enough_to_matter() {
        let mut row = [50.0; 30];
        row[7] = 60.0;
        assert!(seconds(&row, Kind::Measures).is_empty());
        row[7] = 70.0;
        assert_eq!(seconds(&row, Kind::Measures), [7]);
    }

    #[test]
    fn what_has_no_value_does_not_stand_out() {
        let mut row = vec![Some(10.0); 9];
        row.insert(3, None);
        assert_eq!(standing_out(&row, Kind::Measures), []);
        assert!(seconds(&[1.0, 900.0, 1.0, 1.0], Kind::Counts).is_empty());
        assert_eq!(standing_out(&[], Kind::Counts), []);
    }
}
