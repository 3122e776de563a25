//! Seconds since the epoch as a date and a time in UTC.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since the epoch, now.
pub fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs())
}

/// A moment of the Gregorian calendar, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Utc {
    /// From 1970; 9999 at most.
    pub year: u64,
    /// From 1.
    pub month: u64,
    /// From 1.
    pub day: u64,
    /// 0 to 23.
    pub hour: u64,
    /// 0 to 59.
    pub minute: u64,
    /// 0 to 59.
    pub second: u64,
}

impl Utc {
    /// The moment so many seconds after the epoch.
    pub fn at(seconds: u64) -> Self {
        let (mut days, second) = (seconds / 86_400, seconds % 86_400);
        let leap = |year: u64| {
            year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
        };
        let mut year = 1970;
        while year < 9999 && days >= 365 + u64::from(leap(year)) {
            days -= 365 + u64::from(leap(year));
            year += 1;
        }
        let february = 28 + u64::from(leap(year));
        let mut month = 1;
        for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
            if days < length {
                break;
            }
            days -= length;
            month += 1;
        }
        Self {
            year,
            month,
            day: days.saturating_add(1),
            hour: second / 3600,
            minute: second / 60 % 60,
            second: second % 60,
        }
    }

    /// `20261121-104500`, for file names.
    pub fn compact(&self) -> String {
        let date = format!("{:04}{:02}{:02}", self.year, self.month, self.day);
        format!(
            "{date}-{:02}{:02}{:02}",
            self.hour, self.minute, self.second
        )
    }
}

/// As RFC 3339 has it: `2026-11-21T10:45:00Z`.
impl fmt::Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            year,
            month,
            day,
            hour,
            minute,
            second,
        } = self;
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_calendar_is_known() {
        let compact = |seconds| Utc::at(seconds).compact();
        assert_eq!(compact(951_782_400), "20000229-000000");
        assert_eq!(compact(1_709_251_199), "20240229-235959");
        assert_eq!(compact(1_735_689_599), "20241231-235959");
        assert_eq!(compact(4_107_542_400), "21000301-000000");
        assert!(!compact(u64::MAX).is_empty());
        assert_eq!(Utc::at(1_795_257_900).to_string(), "2026-11-21T10:45:00Z");
    }
}
