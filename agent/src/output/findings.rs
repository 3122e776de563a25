//! What a capture found beside its profile, in a few lines for the terminal.

use super::escape;
use super::tcp::time;
use crate::capture::Capture;
use crate::tcp::view::RemoteRow;

/// Remotes, and failing calls, that are named.
const NAMED: usize = 3;

/// The slowest remotes, the most frequent failing calls, and what their probes lost. Each line is
/// safe to show.
pub fn lines(capture: &Capture) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(document) = capture.all_connections() {
        let sums = &document.sums;
        lines.push(format!(
            "connections {}, requests {} ({:.1}/s), failed connects {}",
            sums.connections, sums.requests, sums.rate, sums.failed
        ));
        let remotes = document.remotes.iter().flatten();
        let slowest: Vec<String> = remotes.filter_map(remote).take(NAMED).collect();
        if !slowest.is_empty() {
            lines.push(format!("slowest remotes: {}", slowest.join("; ")));
        }
    }
    if let Some(report) = capture.all_syscalls() {
        let failing: Vec<String> = report
            .errors
            .iter()
            .filter(|row| row.benign.is_none())
            .take(NAMED)
            .map(|row| {
                let argument = row.args.first().map(|arg| format!(" {}", arg.value));
                let count = row.count - row.benign_count.min(row.count);
                format!(
                    "{} {} {count}×{}",
                    row.syscall,
                    row.errno,
                    argument.unwrap_or_default()
                )
            })
            .collect();
        lines.push(match failing.is_empty() {
            true => "failing calls: none but ordinary ones".to_owned(),
            false => format!("failing calls: {}", failing.join("; ")),
        });
    }
    let lost: Vec<String> = capture
        .meta
        .losses
        .iter()
        // Those of the profile are in its own lines.
        .filter(|(probe, _)| *probe != "profile")
        .flat_map(|(probe, causes)| {
            causes
                .iter()
                .map(move |(cause, count)| (probe, cause, count))
        })
        .filter(|(.., count)| **count > 0)
        .map(|(probe, cause, count)| format!("{count} {} ({probe})", cause.replace('_', " ")))
        .collect();
    if !lost.is_empty() {
        lines.push(format!("lost: {}", lost.join(", ")));
    }
    lines
        .iter()
        .map(|line| escape::plain(line).into_owned())
        .collect()
}

/// `10.0.0.1:80 p50 1.2 ms, p99 45 ms of 511`.
fn remote(row: &RemoteRow) -> Option<String> {
    let times = row.latency_us?;
    Some(format!(
        "{} ({}) p50 {}, p99 {} of {} requests",
        row.remote,
        row.role.name(),
        time(Some(times.p50)),
        time(Some(times.p99)),
        row.requests
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::fixture;

    #[test]
    fn the_worst_of_each_is_named() {
        let capture = fixture::capture::capture();
        let lines = lines(&capture);
        assert!(lines[0].starts_with("connections "), "{lines:?}");
        assert!(lines[1].starts_with("slowest remotes: "), "{lines:?}");
        assert!(lines[1].matches(" p99 ").count() <= NAMED, "{lines:?}");
        assert!(lines[2].starts_with("failing calls: "), "{lines:?}");
        assert!(lines[2].contains('×'), "{lines:?}");
    }

    #[test]
    fn losses_are_named_with_their_probe() {
        let mut capture = Capture::default();
        assert!(lines(&capture).is_empty());
        for probe in ["profile", "tcp"] {
            let causes = [("request_times_lost".to_owned(), 3), ("none".to_owned(), 0)];
            let losses = &mut capture.meta.losses;
            losses.insert(probe.to_owned(), causes.into());
        }
        assert_eq!(lines(&capture), ["lost: 3 request times lost (tcp)"]);
    }

    #[test]
    fn hostile_names_are_inert() {
        let capture = fixture::capture::hostile();
        for line in lines(&capture) {
            assert!(!line.chars().any(escape::is_unsafe), "{line}");
        }
    }
}
