//! The report of a capture: Markdown to paste into a ticket, HTML to open.
//!
//! The answer first, then what it rests on. Both forms are written from one [`document`], which
//! [`content`] makes of the findings.

mod content;
mod cpu;
pub mod diff;
mod document;
mod html;
mod markdown;
mod reproduce;
mod seconds;
mod sections;
mod summary;
mod words;

use crate::capture::Capture;
use crate::report::Report;

/// The report as GitHub-flavoured Markdown; at most 60 KB.
pub fn markdown(capture: &Capture) -> String {
    markdown::render(&content::document(&Report::new(capture)))
}

/// The report as one HTML page, which asks for nothing from anywhere.
///
/// # Errors
/// The data of the flame graph cannot be serialized, which is a bug.
pub fn html(capture: &Capture) -> serde_json::Result<String> {
    let document = content::document(&Report::new(capture));
    html::render(&document, Some(&capture.profile))
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        reason = "a failed unwrap is a failed test"
    )]
    use super::*;
    use crate::output::html::tests::{elements, insides};
    use crate::output::{escape, fixture};

    #[test]
    fn golden() {
        let text = markdown(&fixture::capture::capture());
        fixture::check_golden("report.md", text.as_bytes());
    }

    #[test]
    fn counts_are_divided_by_the_time_they_were_counted_in() {
        let mut capture = fixture::capture::capture();
        let says = |capture: &Capture, rates: [&str; 4]| {
            let text = markdown(capture);
            let line = |word: &str| text.lines().find(|line| line.contains(word)).unwrap();
            let words = ["requests/s**", "failures/s that", "`openat`", "`read`"];
            let of_table = |word: &str| match word.starts_with('`') {
                true => text
                    .lines()
                    .find(|line| line.starts_with(&format!("| {word}"))),
                false => Some(line(word)),
            };
            for (word, rate) in words.into_iter().zip(rates) {
                let line = of_table(word).unwrap();
                assert!(line.contains(rate), "no {rate:?} in: {line}");
            }
        };
        says(
            &capture,
            ["1,000 requests/s", " 14.1 failures/s", " 13.7/s", " 500/s"],
        );
        // The guard has detached the hooks after three seconds.
        for document in capture
            .connections
            .iter_mut()
            .filter(|document| document.last)
        {
            document.elapsed_s = 3.0;
        }
        for report in capture.syscalls.iter_mut().filter(|report| report.last) {
            report.elapsed_s = 3.0;
        }
        says(
            &capture,
            ["10,000 requests/s", " 141 failures/s", " 137/s", " 5,000/s"],
        );
        // A window of thirty seconds, of an hour; written with the time that its counts are of, and
        // without.
        capture.connections.retain(|document| document.last);
        capture.syscalls.retain(|report| report.last);
        (
            capture.connections[0].elapsed_s,
            capture.syscalls[0].elapsed_s,
        ) = (3600.0, 3600.0);
        says(
            &capture,
            ["1,000 requests/s", " 14.1 failures/s", " 13.7/s", " 500/s"],
        );
        (capture.connections[0].span_s, capture.syscalls[0].span_s) = (Some(32.0), Some(34.0));
        says(
            &capture,
            ["938 requests/s", " 12.5 failures/s", " 12.1/s", " 441/s"],
        );
        // What the agent took is that since the start.
        capture.meta.cost.cpu_seconds = 36.0;
        assert!(
            markdown(&capture).contains("36.00 s CPU (1.0 % of one)"),
            "{}",
            markdown(&capture)
        );
    }

    #[test]
    fn hostile_names_are_code_and_nothing_else() {
        let text = markdown(&fixture::capture::hostile());
        assert!(text.len() < 60_000, "{}", text.len());
        assert!(!text.chars().any(|c| c != '\n' && escape::is_unsafe(c)));
        fixture::check_golden("hostile_report.md", text.as_bytes());
        let words = outside_code(&text);
        for acting in ["script", "onerror", "http", "@", "![", "pwned", "nimda"] {
            assert!(!words.contains(acting), "{acting}: {words}");
        }
    }

    /// The text without its code spans and blocks: each run of backticks ends at the next run of
    /// the same length (CommonMark 6.1).
    fn outside_code(text: &str) -> String {
        let run = |text: &str| text.len() - text.trim_start_matches('`').len();
        let (mut words, mut rest) = (String::new(), text);
        while let Some(at) = rest.find('`') {
            let length = run(&rest[at..]);
            words += &rest[..at];
            rest = &rest[at + length..];
            let mut inside = rest;
            while run(inside) != length {
                inside = &inside[run(inside)..];
                inside = &inside[inside.find('`').expect("a code span that does not end")..];
            }
            rest = &inside[length..];
        }
        words + rest
    }

    #[test]
    fn pages_are_well_formed_whatever_the_names() {
        let known = elements(&html(&fixture::capture::capture()).unwrap());
        for capture in [fixture::capture::hostile(), Capture::default()] {
            let page = html(&capture).unwrap();
            for (name, attributes) in elements(&page) {
                let alike = known
                    .iter()
                    .any(|(other, others)| *other == name && *others == attributes);
                assert!(alike, "{name} {attributes:?}");
            }
            assert!(!page.chars().any(|c| c != '\n' && escape::is_unsafe(c)));
        }
    }

    #[test]
    fn a_page_has_every_section_of_the_markdown() {
        let capture = fixture::capture::capture();
        let page = html(&capture).unwrap();
        for line in markdown(&capture).lines() {
            if let Some(title) = line.strip_prefix("## ") {
                assert!(page.contains(&format!("<h2>{title}</h2>")), "{title}");
            }
        }
        let names = elements(&page);
        let count = |wanted: &str| names.iter().filter(|(name, _)| name == wanted).count();
        assert_eq!(count("figure"), 6);
        assert!(insides(&page, "script").len() == 2 && count("table") >= 8);
    }

    #[test]
    fn a_capture_of_nothing_says_so() {
        let text = markdown(&Capture::default());
        assert!(text.contains("No sample was taken"), "{text}");
        assert!(text.contains("It had no TCP connection"), "{text}");
    }
}
