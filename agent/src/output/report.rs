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
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;
    use crate::output::html::tests::{elements, insides};
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
