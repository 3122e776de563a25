//! Speed at which unwind tables are built.

use super::Bench;
use super::report::{Report, megabytes};
use crate::command::{self, cargo, target as build_directory};
use anyhow::{Context, Result};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// Builds the tables of the C library, node and rustc's driver.
///
/// # Errors
/// The measuring program cannot be built or fails.
pub(crate) fn run(bench: &Bench) -> Result<Report> {
    command::run(cargo().args([
        "build",
        "--release",
        "--quiet",
        "--package",
        "agent",
        "--example",
        "tables",
    ]))?;
    let program = build_directory().join("release/examples/tables");
    let mut command = Command::new(&program);
    command.args(["--repeat", &bench.choose(3, 1).to_string()]);
    command.args(files());
    let text = command::output(&mut command)?;
    let rows: Vec<Vec<String>> = text.lines().filter_map(row).collect();
    let mut report = Report::new(
        "Building unwind tables",
        "One thread, from an open file in the page cache to the blocks that the kernel gets; the agent uses two threads. Medians.",
    );
    report.table(
        &[
            "file",
            "`.eh_frame`",
            "time",
            "MB of `.eh_frame` per second",
            "rows",
            "table",
        ],
        &rows,
    );
    report.commands(&["cargo run --release --example tables -- --repeat 3 FILE…".to_owned()]);
    Ok(report)
}

fn row(line: &str) -> Option<Vec<String>> {
    let mut fields = line.split('\t');
    let (path, bytes, milliseconds) = (fields.next()?, fields.next()?, fields.next()?);
    let (rows, table) = (fields.next()?, fields.next()?);
    let bytes: u64 = bytes.parse().ok()?;
    let time: f64 = milliseconds.parse().ok()?;
    Some(vec![
        path.rsplit('/').next()?.to_owned(),
        megabytes(bytes),
        format!("{time:.1} ms"),
        format!("{:.0}", bytes as f64 / 1e3 / time),
        rows.to_owned(),
        megabytes(table.parse().ok()?),
    ])
}

/// Those of the files that are on this machine.
fn files() -> Vec<PathBuf> {
    [libc(), command::find("node"), rustc_driver().ok()]
        .into_iter()
        .flatten()
        .collect()
}

/// The C library that this program uses.
fn libc() -> Option<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    let line = maps.lines().find(|line| line.contains("/libc.so"))?;
    line.split_whitespace().next_back().map(PathBuf::from)
}

/// The library that is the Rust compiler.
pub(crate) fn rustc_driver() -> Result<PathBuf> {
    let directory = sysroot()?.join("lib");
    let mut entries = fs::read_dir(&directory)?
        .flatten()
        .map(|entry| entry.path());
    entries
        .find(|path| path.to_string_lossy().contains("librustc_driver"))
        .with_context(|| format!("no librustc_driver in {}", directory.display()))
}

/// The directory of the Rust toolchain.
pub(crate) fn sysroot() -> Result<PathBuf> {
    let text = command::output(Command::new("rustc").args(["--print", "sysroot"]))?;
    Ok(PathBuf::from(text.trim()))
}
