//! Figures as the report writes them.

use crate::output::syscalls::grouped;
use crate::output::table::Tone;
use crate::output::{tcp, text};
use crate::report::Part;
use crate::report::timeline::Subject;
use crate::tcp::view::Parts;

/// A time in microseconds: `812 ms`.
pub(super) fn time(micros: f64) -> String {
    tcp::time(Some(micros))
}

/// A number of events: `1,234`.
pub(super) fn count(number: u64) -> String {
    grouped(number)
}

/// `1 request`, `2 requests`.
pub(super) fn counted(number: u64, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {what}{plural}", count(number))
}

/// Events per second: `12,345`, `12.3`, `0.03`.
pub(super) fn rate(per_second: f64) -> String {
    match per_second {
        value if value >= 99.95 => grouped(value.round() as u64),
        value if value >= 0.95 || value == 0.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

/// A number of CPUs: `0.93`.
pub(super) fn cpus(value: f64) -> String {
    format!("{value:.2}")
}

/// A share from 0 to 1: `41 %`, `3.2 %`.
pub(super) fn share(share: f64) -> String {
    match share * 100.0 {
        percent if percent >= 9.95 => format!("{percent:.0} %"),
        percent if percent >= 0.05 || percent == 0.0 => format!("{percent:.1} %"),
        _ => "< 0.1 %".to_owned(),
    }
}

/// Of a whole.
pub(super) fn part_of(part: u64, whole: u64) -> f64 {
    text::percent(part, whole).unwrap_or(0.0) / 100.0
}

/// What a part of a request is called.
pub(super) fn part(part: Part) -> &'static str {
    match part {
        Part::Send => "sending",
        Part::Peer => "waiting for the peer",
        Part::Service => "between reading and answering",
        Part::ReadDelay => "unread in the socket",
    }
}

/// Where the time goes: `peer 96 % · send 4 %`; the largest first, without what is next to nothing.
pub(super) fn shares(parts: &Parts) -> String {
    let mut shares = crate::report::shares(parts);
    shares.retain(|(_, share)| *share >= 0.005);
    shares.sort_by(|a, b| b.1.total_cmp(&a.1));
    let shares: Vec<String> = shares
        .iter()
        .map(|(part, share)| {
            let name = match part {
                Part::Send => "send",
                Part::Peer => "peer",
                Part::Service => "service",
                Part::ReadDelay => "read delay",
            };
            format!("{name} {:.0} %", share * 100.0)
        })
        .collect();
    shares.join(" · ")
}

/// How long people wait without noticing: up to 100 ms; without giving up: up to a second.
pub(super) fn latency_tone(micros: f64) -> Tone {
    match micros {
        value if value >= 1e6 => Tone::Bad,
        value if value >= 1e5 => Tone::Warn,
        _ => Tone::Normal,
    }
}

/// What a row of the timeline is called.
pub(super) fn subject(subject: Subject) -> &'static str {
    match subject {
        Subject::Cpus => "CPUs in use",
        Subject::Served => "requests served",
        Subject::ServedP99 => "p99 served",
        Subject::Asked => "requests to upstreams",
        Subject::AskedP99 => "p99 upstream",
        Subject::Failures => "failing calls",
    }
}

/// A value of that row.
pub(super) fn subject_value(subject: Subject) -> fn(f64) -> String {
    match subject {
        Subject::Cpus => cpus,
        Subject::Served | Subject::Asked | Subject::Failures => {
            |value| format!("{}/s", rate(value))
        }
        Subject::ServedP99 | Subject::AskedP99 => time,
    }
}

/// A word as a shell reads it, quoted where it must be.
pub(super) fn shell(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

/// A length of time in seconds: `30 s`, `1.5 s`.
pub(super) fn seconds(seconds: f64) -> String {
    if (seconds - seconds.round()).abs() < 0.05 {
        format!("{seconds:.0} s")
    } else {
        format!("{seconds:.1} s")
    }
}

/// Bytes: `21 MB`.
pub(super) fn megabytes(bytes: u64) -> String {
    format!("{:.0} MB", bytes as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_as_many_digits_as_they_need() {
        assert_eq!(rate(12_345.6), "12,346");
        assert_eq!(rate(12.34), "12.3");
        assert_eq!(rate(0.034), "0.03");
        assert_eq!(rate(0.0), "0.0");
        assert_eq!(share(0.414), "41 %");
        assert_eq!(share(0.0321), "3.2 %");
        assert_eq!(share(0.0001), "< 0.1 %");
        assert_eq!(seconds(29.98), "30 s");
        assert_eq!(seconds(1.5), "1.5 s");
    }

    #[test]
    fn words_survive_the_shell() {
        assert_eq!(shell("--pid"), "--pid");
        assert_eq!(shell("a b"), "'a b'");
        assert_eq!(shell("$(x)'"), "'$(x)'\\'''");
        assert_eq!(shell(""), "''");
    }
}
