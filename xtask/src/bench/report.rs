//! What a section found, as Markdown.

/// The text of one section.
#[derive(Debug, Default)]
pub(crate) struct Report {
    text: String,
}

impl Report {
    /// A section with its heading and what it measures.
    pub(crate) fn new(title: &str, about: &str) -> Self {
        Self {
            text: format!("## {title}\n\n{about}\n"),
        }
    }

    /// Adds a paragraph.
    pub(crate) fn paragraph(&mut self, text: &str) {
        self.text.push_str(&format!("\n{text}\n"));
    }

    /// Adds a table; a `|` in a cell is escaped.
    pub(crate) fn table(&mut self, heads: &[&str], rows: &[Vec<String>]) {
        let row = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        self.text.push('\n');
        self.text
            .push_str(&row(heads.iter().map(|&head| head.to_owned()).collect()));
        self.text
            .push_str(&format!("|{}\n", "-|".repeat(heads.len())));
        for cells in rows {
            let cells = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
            self.text.push_str(&row(cells));
        }
    }

    /// Adds the commands that were run, without the directories of this machine.
    pub(crate) fn commands(&mut self, lines: &[String]) {
        self.text.push_str("\n```\n");
        let directories = [
            crate::command::target().join("release/"),
            crate::command::target().join("programs/"),
            super::machine::scratch_directory().join(""),
        ];
        for line in lines {
            let mut line = line.clone();
            for directory in &directories {
                line = line.replace(&directory.display().to_string(), "");
            }
            self.text.push_str(&line);
            self.text.push('\n');
        }
        self.text.push_str("```\n");
    }

    /// The Markdown.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }
}

/// The median; `None` of nothing.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let upper = sorted.get(middle).copied()?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    let lower = sorted.get(middle.checked_sub(1)?).copied()?;
    Some((lower + upper) / 2.0)
}

/// The median and, in brackets, the extremes; a dash of nothing.
pub(crate) fn spread(values: &[f64], digits: usize) -> String {
    let Some(middle) = median(values) else {
        return "-".to_owned();
    };
    let lowest = values.iter().copied().fold(f64::INFINITY, f64::min);
    let highest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    format!("{middle:.digits$} ({lowest:.digits$} to {highest:.digits$})")
}

/// Bytes in megabytes.
pub(crate) fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(spread(&[1.0, 3.0], 1), "2.0 (1.0 to 3.0)");
    }

    #[test]
    fn a_table_has_its_rule_and_escaped_cells() {
        let mut report = Report::new("T", "About.");
        report.table(&["a", "b"], &[vec!["1|2".into(), "3".into()]]);
        let expected = "## T\n\nAbout.\n\n| a | b |\n|-|-|\n| 1\\|2 | 3 |\n";
        assert_eq!(report.text(), expected);
    }
}
