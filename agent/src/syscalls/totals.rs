//! Failing calls since the start as counters that never fall, however the view on what is benign
//! changes. Pure.

use std::collections::BTreeMap;

use super::Failure;

/// (System call, errno) pairs that are told apart, the first that come; they stay for the run.
pub const MAX_ROWS: usize = 256;
/// The name of all further ones.
pub const OTHER: &str = "other";

/// One (system call, errno) pair.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Total {
    /// Name of the system call.
    pub syscall: String,
    /// Name of the error.
    pub errno: String,
    /// Failures that are not to be expected.
    pub count: u64,
    /// Failures that are.
    pub benign: u64,
}

/// What was counted so far.
#[derive(Debug, Default)]
pub struct Totals {
    counted: BTreeMap<(String, String), u64>,
    rows: BTreeMap<(String, String), Total>,
}

impl Totals {
    /// Takes in the rows of a report, whose counts are since the start.
    pub fn take(&mut self, rows: &[Failure]) {
        for row in rows {
            let own = (row.syscall.clone(), row.errno.clone());
            let before = self.counted.insert(own.clone(), row.count).unwrap_or(0);
            let new = row.count.saturating_sub(before);
            let known = self.rows.contains_key(&own);
            let key = if known || self.rows.len() < MAX_ROWS {
                own
            } else {
                (OTHER.to_owned(), OTHER.to_owned())
            };
            let total = self.rows.entry(key).or_insert_with_key(|key| Total {
                syscall: key.0.clone(),
                errno: key.1.clone(),
                ..Total::default()
            });
            let all_benign = match row.benign {
                Some(_) => row.count,
                None => row.benign_count,
            };
            let benign = all_benign.saturating_sub(total.benign).min(new);
            total.benign += benign;
            total.count += new - benign;
        }
    }

    /// The rows, by name.
    pub fn rows(&self) -> Vec<Total> {
        self.rows.values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(syscall: &str, count: u64, benign: Option<u64>) -> Failure {
        Failure {
            syscall: syscall.to_owned(),
            errno: "ENOENT".to_owned(),
            count,
            benign_count: benign.unwrap_or(0),
            benign: benign.is_none().then(|| "why".to_owned()),
            ..Failure::default()
        }
    }

    #[test]
    fn what_was_counted_as_benign_stays_so() {
        let mut totals = Totals::default();
        let mut seen = Vec::new();
        for row in [
            row("openat", 10, None),
            row("openat", 12, Some(9)),
            row("openat", 15, Some(14)),
            row("openat", 15, Some(0)),
        ] {
            totals.take(&[row]);
            let total = totals.rows().remove(0);
            seen.push((total.count, total.benign));
        }
        assert_eq!(seen, [(0, 10), (2, 10), (2, 13), (2, 13)]);
    }

    #[test]
    fn rows_are_bounded() {
        let mut totals = Totals::default();
        let rows: Vec<Failure> = (0..2 * MAX_ROWS)
            .map(|number| row(&number.to_string(), 2, Some(1)))
            .collect();
        totals.take(&rows);
        totals.take(&rows);
        let rows = totals.rows();
        assert_eq!(rows.len(), MAX_ROWS + 1);
        let other = rows.iter().find(|row| row.syscall == OTHER);
        assert_eq!(
            other.map(|row| row.count + row.benign),
            Some(2 * MAX_ROWS as u64)
        );
    }
}
