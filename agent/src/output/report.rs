//! The report of a capture: Markdown to paste into a ticket, HTML to open.
//!
//! The answer first, then what it rests on. Both forms are written from one [`document`], which
//! [`content`] makes of the findings.

mod content;
pub mod diff;
mod document;
mod markdown;
mod sections;
mod summary;
mod words;

use crate::capture::Capture;
use crate::report::Report;

/// The report as GitHub-flavoured Markdown; at most 60 KB.
pub fn markdown(capture: &Capture) -> String {
    markdown::render(&content::document(&Report::new(capture)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{escape, fixture};

    #[test]
    fn golden() {
        let text = markdown(&fixture::capture::capture());
        fixture::check_golden("report.md", text.as_bytes());
    }

    #[test]
    fn hostile_names_are_code_and_nothing_else() {
        let text = markdown(&fixture::capture::hostile());
        assert!(text.len() < 60_000, "{}", text.len());
        assert!(!text.chars().any(|c| c != '\n' && escape::is_unsafe(c)));
        fixture::check_golden("hostile_report.md", text.as_bytes());
    }

    #[test]
    fn a_capture_of_nothing_says_so() {
        let text = markdown(&Capture::default());
        assert!(text.contains("No sample was taken"), "{text}");
        assert!(text.contains("It had no TCP connection"), "{text}");
    }
}
