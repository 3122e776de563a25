//! Builds the unwind tables of files, and says how fast: `cargo run --release --example tables -- FILE…`.
//!
//! One line for each file: path, bytes of `.eh_frame`, milliseconds, rows, bytes of the table, with tabs
//! between them. `--repeat SECONDS` goes on for so long; the times are the medians.

use std::fs::File;
use std::process::ExitCode;
use std::time::{Duration, Instant};

fn main() -> ExitCode {
    let mut words: Vec<String> = std::env::args().skip(1).collect();
    let mut repeat = Duration::ZERO;
    if words.first().is_some_and(|word| word == "--repeat") && words.len() > 1 {
        let value = words
            .drain(..2)
            .next_back()
            .and_then(|word| word.parse().ok());
        repeat = Duration::from_secs(value.unwrap_or(1));
    }
    if words.is_empty() {
        eprintln!("usage: tables [--repeat SECONDS] FILE…");
        return ExitCode::from(2);
    }
    for path in words {
        match build(&path, repeat) {
            Ok(line) => println!("{line}"),
            Err(error) => {
                eprintln!("tables: {path}: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

/// Builds the tables of one file, again and again.
fn build(path: &str, repeat: Duration) -> Result<String, Box<dyn std::error::Error>> {
    let file = File::open(path)?;
    let begun = Instant::now();
    let mut times = Vec::new();
    loop {
        let started = Instant::now();
        let table = agent::unwind::build(&file)?;
        times.push(started.elapsed());
        if begun.elapsed() >= repeat {
            times.sort_unstable();
            let median = times.get(times.len() / 2).copied().unwrap_or_default();
            return Ok(format!(
                "{path}\t{}\t{:.3}\t{}\t{}",
                table.report.eh_frame_bytes,
                median.as_secs_f64() * 1e3,
                table.report.rows,
                size_of_val(table.blocks.as_slice())
            ));
        }
    }
}
