//! Whether a difference of two shares is more than chance.
//!
//! A two-proportion z-test with continuity correction on the numbers of samples, with two allowances:
//!
//! - samples of one capture are not independent (a function that is running at one tick is more likely to run
//!   at the next), so their variance counts [`DESIGN_EFFECT`] times;
//! - the speed of the same code differs from run to run, by the layout of its memory and by what else the
//!   machine does: by [`DRIFT`] (standard deviation), which no number of samples makes smaller.
//!
//! The probabilities are corrected for the number of tests by Holm's method: below [`LEVEL`] in all, chance
//! makes not one significant difference in 19 of 20 pairs of captures.

/// The probability that a difference is called significant that is none, of all tests together.
pub(super) const LEVEL: f64 = 0.05;
/// How many times the variance of independent samples a capture's has.
const DESIGN_EFFECT: f64 = 2.0;
/// How much the speed of the same function differs from run to run, as a part of it.
const DRIFT: f64 = 0.02;
/// Fewest samples of both sides together that are tested: of fewer, no normal distribution is one.
const MIN_SAMPLES: f64 = 5.0;
/// Terms of the continued fraction: enough from [`MIN_Z`] on.
const TERMS: u32 = 200;
/// Below this, chance is likely anyway.
const MIN_Z: f64 = 0.5;

/// A function's shares and the numbers of all samples, before and after.
pub(super) struct Counts {
    pub(super) shares: (f64, f64),
    pub(super) all: (f64, f64),
}

impl Counts {
    /// The probability that chance alone makes a difference of at least this size, of one test; `None` where there
    /// are too few samples for one.
    pub(super) fn p(&self) -> Option<f64> {
        let ((before, after), (all_before, all_after)) = (self.shares, self.all);
        let samples = before * all_before + after * all_after;
        if samples < MIN_SAMPLES {
            return None;
        }
        let pooled = samples / (all_before + all_after);
        let spread = pooled * (1.0 - pooled).max(0.0);
        let inverse = 1.0 / all_before + 1.0 / all_after;
        let difference = ((after - before).abs() - inverse / 2.0).max(0.0);
        let variance = DESIGN_EFFECT * spread * inverse + 2.0 * (DRIFT * spread).powi(2);
        match difference > 0.0 && variance > 0.0 {
            true => Some((2.0 * upper_tail(difference / variance.sqrt())).min(1.0)),
            false => Some(1.0),
        }
    }
}

/// The probability that a standard normal variable exceeds `z`: Laplace's continued fraction. From
/// [`MIN_Z`] on; 1/2 below.
fn upper_tail(z: f64) -> f64 {
    if z < MIN_Z {
        return 0.5;
    }
    let mut fraction = z;
    for term in (1..=TERMS).rev() {
        fraction = z + f64::from(term) / fraction;
    }
    let density = (-z * z / 2.0).exp() / std::f64::consts::TAU.sqrt();
    density / fraction
}

/// Holm's correction: each probability as that of a difference anywhere among them, in the given order.
pub(super) fn holm(single: &[f64]) -> Vec<f64> {
    let mut order: Vec<(usize, f64)> = single.iter().copied().enumerate().collect();
    order.sort_by(|a, b| a.1.total_cmp(&b.1));
    let mut corrected = vec![1.0; single.len()];
    let mut worst: f64 = 0.0;
    for (rank, (place, p)) in order.into_iter().enumerate() {
        worst = worst.max(p * (single.len() - rank) as f64).min(1.0);
        if let Some(value) = corrected.get_mut(place) {
            *value = worst;
        }
    }
    corrected
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;

    #[test]
    fn tail_of_the_normal_distribution() {
        // Tables of the normal distribution.
        for (z, expected) in [
            (0.5, 0.308_537_5),
            (1.0, 0.158_655_3),
            (1.959_964, 0.025),
            (3.0, 1.349_898e-3),
            (6.0, 9.865_876e-10),
        ] {
            let relative = upper_tail(z) / expected - 1.0;
            assert!(relative.abs() < 1e-5, "{z}: {relative}");
        }
        assert_eq!(upper_tail(f64::INFINITY), 0.0);
    }

    #[test]
    fn holm_is_stepwise() {
        let close = |a: Vec<f64>, b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12);
        assert!(close(holm(&[0.04, 0.01, 0.03]), &[0.06, 0.03, 0.06]));
        assert!(close(holm(&[0.9, 0.8]), &[1.0, 1.0]));
        assert!(holm(&[]).is_empty());
    }

    fn p(shares: (f64, f64), all: f64) -> Option<f64> {
        Counts {
            shares,
            all: (all, all),
        }
        .p()
    }

    #[test]
    fn few_samples_prove_little() {
        assert_eq!(p((0.001, 0.0), 1000.0), None);
        assert!(p((0.10, 0.13), 300.0).unwrap() > 0.05);
        assert!(p((0.10, 0.20), 3000.0).unwrap() < 1e-6);
        assert_eq!(p((1.0, 1.0), 3000.0), Some(1.0));
        assert!(p((0.0, 0.05), 1000.0).unwrap() < 1e-4);
    }

    #[test]
    fn no_number_of_samples_proves_a_drift() {
        assert!(p((0.50, 0.505), 1e9).unwrap() > 0.05);
        assert!(p((0.50, 0.55), 1e9).unwrap() < 1e-3);
    }
}
