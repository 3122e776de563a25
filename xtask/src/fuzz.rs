//! Runs the fuzz targets with libFuzzer, on the stable toolchain: the layout is cargo-fuzz's, the coverage
//! instrumentation is LLVM's own pass, switched on by flags of the compiler.

mod corpus;

use crate::command::{self, cargo, root, target};
use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Only this platform's programs are instrumented, not the compiler's helpers.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// What `cargo fuzz --sanitizer none` passes to the compiler, and checks of arithmetic.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Cdebug-assertions -Coverflow-checks -Ccodegen-units=16";
/// Longest input, in bytes.
const MAX_LENGTH: u32 = 8 << 10;
/// Longest input of targets whose time grows with it most, and of one whose documents are long.
const LENGTHS: [(&str, u32); 4] = [
    ("bundle", 16 << 10),
    ("demangle", 1 << 10),
    ("sweep", 1 << 10),
    ("cfi", 2 << 10),
];
/// An input that takes longer is a finding, in seconds. Naming a module may take three by itself.
const MAX_SECONDS: u32 = 25;
/// A run that takes more memory is a finding, in MiB.
const MAX_MIB: u32 = 2048;

/// Arguments of `fuzz`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The targets; all without any
    targets: Vec<String>,
    /// How long each runs, in seconds
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Only build the programs
    #[arg(long, conflicts_with_all = ["targets", "keep"])]
    build: bool,
    /// Keep the smallest inputs that together reach everything, in fuzz/corpus
    #[arg(long)]
    keep: bool,
}

/// What a run did.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    executions: u64,
    coverage: u64,
    /// The input that it stopped at.
    finding: Option<PathBuf>,
}

/// Builds the programs and runs each for its time.
///
/// # Errors
/// No such target, the build failed, or a target found something: the error says where the input is.
pub(crate) fn run(args: &Args) -> Result<()> {
    let all = targets()?;
    if let Some(unknown) = args.targets.iter().find(|name| !all.contains(name)) {
        bail!("no target `{unknown}`; there are {}", all.join(", "));
    }
    build()?;
    if args.build {
        return Ok(());
    }
    corpus::seed(&seeds())?;
    let mut findings = Vec::new();
    for name in all
        .iter()
        .filter(|name| args.targets.is_empty() || args.targets.contains(name))
    {
        let outcome = fuzz(name, args.seconds)?;
        println!(
            "{name:<13} {:>10} executions {:>6} edges  {}",
            outcome.executions,
            outcome.coverage,
            match &outcome.finding {
                None => "nothing found".to_owned(),
                Some(path) => format!("FOUND {}", path.display()),
            }
        );
        findings.extend(outcome.finding);
        if args.keep {
            corpus::keep(
                &program(name),
                &[found(name), seeds().join(name)],
                &kept(name),
            )?;
        }
    }
    match findings.len() {
        0 => Ok(()),
        count => bail!("{count} targets found an input that is not survived; see above"),
    }
}

/// The names of the targets, in order.
fn targets() -> Result<Vec<String>> {
    let directory = root().join("fuzz/fuzz_targets");
    let mut files = Vec::new();
    command::list_files(&directory, &mut files)?;
    let mut names: Vec<String> = files
        .iter()
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .collect();
    names.sort();
    Ok(names)
}

/// Inputs that are committed.
fn kept(name: &str) -> PathBuf {
    root().join("fuzz/corpus").join(name)
}

/// Inputs made of files of this machine.
fn seeds() -> PathBuf {
    target().join("fuzz/seeds")
}

/// Inputs that runs here have found to reach something new.
fn found(name: &str) -> PathBuf {
    target().join("fuzz/corpus").join(name)
}

fn program(name: &str) -> PathBuf {
    target()
        .join("fuzz")
        .join(TRIPLE)
        .join("release")
        .join(name)
}

fn build() -> Result<()> {
    let mut command = cargo();
    command
        .args(["build", "--release", "--package", "agent-fuzz"])
        .args(["--features", "libfuzzer", "--target", TRIPLE])
        .arg("--target-dir")
        .arg(target().join("fuzz"))
        .env("RUSTFLAGS", FLAGS)
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    command::run(&mut command)
}

fn max_length(name: &str) -> u32 {
    let own = LENGTHS.iter().find(|(other, _)| *other == name);
    own.map_or(MAX_LENGTH, |&(_, length)| length)
}

/// Runs a target until its time is over or it has found something.
fn fuzz(name: &str, seconds: u32) -> Result<Outcome> {
    let artifacts = target().join("fuzz/artifacts").join(name);
    let directories = [found(name), seeds().join(name), kept(name)];
    for directory in directories.iter().chain([&artifacts]) {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
    }
    let log = artifacts.join("log");
    let status = Command::new(program(name))
        .args(&directories)
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={}", max_length(name)))
        .arg(format!("-timeout={MAX_SECONDS}"))
        .arg(format!("-rss_limit_mb={MAX_MIB}"))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .args(["-print_final_stats=1", "-use_value_profile=1"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&log).context("cannot write the log")?)
        .status()
        .with_context(|| format!("cannot start {}", program(name).display()))?;
    let text = fs::read(&log).unwrap_or_default();
    let mut outcome = read_log(&String::from_utf8_lossy(&text));
    if !status.success() && outcome.finding.is_none() {
        outcome.finding = Some(log);
    }
    Ok(outcome)
}

/// Reads libFuzzer's log.
fn read_log(log: &str) -> Outcome {
    let mut outcome = Outcome::default();
    for line in log.lines() {
        if let Some(path) = line.split("Test unit written to ").nth(1) {
            outcome.finding = Some(Path::new(path.trim()).to_owned());
        }
        let number = |text: &str| text.split_whitespace().next()?.parse().ok();
        if let Some(rest) = line.strip_prefix("stat::number_of_executed_units:") {
            outcome.executions = number(rest).unwrap_or(0);
        }
        if let Some(rest) = line.split(" cov: ").nth(1) {
            outcome.coverage = number(rest).unwrap_or(outcome.coverage);
        }
    }
    outcome
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;

    #[test]
    fn the_log_tells_what_was_done_and_found() {
        let log = "#1024\tpulse  cov: 411 ft: 700 corp: 20/1Kb\n\
            #9000\tDONE   cov: 512 ft: 900 corp: 30/1Kb\nstat::number_of_executed_units: 9000\n";
        let quiet = read_log(log);
        assert_eq!((quiet.executions, quiet.coverage), (9000, 512));
        assert_eq!(quiet.finding, None);
        let found = read_log(&format!(
            "{log}artifact_prefix='a/'; Test unit written to a/crash-1\n"
        ));
        assert_eq!(found.finding.as_deref(), Some(Path::new("a/crash-1")));
    }

    #[test]
    fn the_parsers_of_outside_input_are_targets() {
        let targets = targets().unwrap();
        for wanted in [
            "cfi",
            "unwind_step",
            "perf_map",
            "records",
            "folded",
            "pprof",
            "bundle",
            "btf",
        ] {
            assert!(targets.iter().any(|name| name == wanted), "{wanted}");
        }
    }
}
