//! Speed with and without a tool, one after the other: bare, tool, bare, next tool, bare, …

use super::machine::Scratch;
use super::report::{median, megabytes, spread};
use super::tool::Tool;
use anyhow::Result;
use std::thread::sleep;
use std::time::Duration;

/// How long a tool may take to end.
const END: Duration = Duration::from_secs(60);
/// Rest after a tool's end.
const REST: Duration = Duration::from_millis(200);

/// What a tool did to the speed.
#[derive(Debug)]
pub(crate) struct Row {
    name: String,
    /// Speeds under it.
    rates: Vec<f64>,
    /// Its speeds divided by the mean of the bare ones before and after.
    pub(crate) ratios: Vec<f64>,
    /// Peak resident set of its process, in bytes.
    memory: Vec<f64>,
    /// Why it was given up.
    failure: Option<String>,
}

/// Speeds of all tools.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Speeds without any tool.
    pub(crate) bare: Vec<f64>,
    rows: Vec<Row>,
}

/// Measures the speed `rounds` times under each tool, each between two measurements without; under
/// one that takes more than half of the speed, three times. A tool that fails is given up, with its
/// reason in the table.
///
/// # Errors
/// The speed cannot be measured.
pub(crate) fn run(
    tools: &[Tool],
    rounds: usize,
    scratch: &Scratch,
    measure: &mut dyn FnMut() -> Result<f64>,
) -> Result<Outcome> {
    let mut rows: Vec<Row> = tools.iter().map(Row::new).collect();
    let mut before = measure()?;
    let mut bare = vec![before];
    for _ in 0..rounds {
        for (tool, row) in tools.iter().zip(&mut rows) {
            if row.failure.is_some() || row.is_clear() {
                continue;
            }
            let (rate, memory) = match under(tool, scratch, measure) {
                Ok(found) => found,
                Err(error) => {
                    row.failure = Some(format!("{error:#}"));
                    continue;
                }
            };
            sleep(REST);
            let after = measure()?;
            row.rates.push(rate);
            row.memory.push(memory);
            row.ratios.push(rate / ((before + after) / 2.0));
            bare.push(after);
            before = after;
        }
    }
    Ok(Outcome { bare, rows })
}

/// The speed, and the tool's peak resident set in bytes.
fn under(
    tool: &Tool,
    scratch: &Scratch,
    measure: &mut dyn FnMut() -> Result<f64>,
) -> Result<(f64, f64)> {
    let running = tool.start(scratch)?;
    let rate = measure()?;
    let usage = running.stop(END)?;
    Ok((rate, usage.peak_rss as f64))
}

impl Row {
    fn new(tool: &Tool) -> Self {
        Self {
            name: tool.name.clone(),
            rates: Vec::new(),
            ratios: Vec::new(),
            memory: Vec::new(),
            failure: tool.missing(),
        }
    }

    /// Whether it is so far off that more rounds would say no more.
    fn is_clear(&self) -> bool {
        self.ratios.len() >= 3 && self.ratios.iter().all(|&ratio| ratio < 0.5)
    }
}

impl Outcome {
    /// Rows of a table: name, median speed, ratio.
    pub(crate) fn rows(&self) -> Vec<Vec<String>> {
        let speed =
            |rates: &[f64]| median(rates).map_or("-".to_owned(), |rate| format!("{rate:.0}"));
        let mut rows = vec![vec!["none".to_owned(), speed(&self.bare), "1".to_owned()]];
        for row in &self.rows {
            rows.push(match &row.failure {
                Some(reason) => vec![
                    row.name.clone(),
                    "-".to_owned(),
                    format!("not available: {reason}"),
                ],
                None => vec![row.name.clone(), speed(&row.rates), spread(&row.ratios, 3)],
            });
        }
        rows
    }

    /// The same, with the tool's peak memory.
    pub(crate) fn rows_with_memory(&self) -> Vec<Vec<String>> {
        let mut rows = self.rows();
        let mut memory = vec!["-".to_owned()];
        memory.extend(self.rows.iter().map(|row| {
            median(&row.memory).map_or("-".to_owned(), |bytes| megabytes(bytes as u64))
        }));
        for (row, memory) in rows.iter_mut().zip(memory) {
            row.push(memory);
        }
        rows
    }
}
