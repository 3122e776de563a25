//! Every check of the project, in the order from the quickest to the slowest.

use crate::command::{self, cargo, root, target};
use crate::{ci, ebpf, programs, setup, vm};
use anyhow::{Context, Result};
use std::io::{BufRead, BufReader};
use std::ops::AddAssign;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// Arguments of `test`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run only this step; may repeat
    #[arg(long, value_name = "STEP")]
    only: Vec<Step>,
    /// Leave the other kernels out
    #[arg(long)]
    skip_vm: bool,
}

/// A step; the summary lists them under these names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Step {
    /// Install what is missing
    Setup,
    /// The sources are formatted
    Format,
    /// No warnings from clippy
    Clippy,
    /// Unit tests
    Unit,
    /// The invariants of the sources
    Invariants,
    /// Licences and sources of the dependencies
    Dependencies,
    /// The committed bytecode is what its sources give
    Bytecode,
    /// The target programs of the end-to-end tests build
    Programs,
    /// End-to-end tests on this kernel
    EndToEnd,
    /// End-to-end tests on the other kernels
    Vm,
}

/// Tests by how they ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: u32,
    failed: u32,
    ignored: u32,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }
}

/// Runs the steps, all of them even if one fails, and prints a summary that ends with the line
/// `N passed, N failed`. A step without tests of its own counts as one.
///
/// The exit code says whether all passed.
pub(crate) fn run(args: &Args) -> ExitCode {
    let mut total = Tally::default();
    let mut summary = Vec::new();
    for step in steps(args) {
        println!("==> {}", step.name());
        let started = Instant::now();
        let tally = step.run().unwrap_or_else(|error| {
            eprintln!("error: {error:#}");
            Tally {
                failed: 1,
                ..Tally::default()
            }
        });
        let line = summary_line(step.name(), tally, started.elapsed());
        println!("<== {line}");
        summary.push(line);
        total += tally;
    }
    println!("\n{}\n", summary.join("\n"));
    println!("{} passed, {} failed", total.passed, total.failed);
    if total.failed > 0 {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn steps(args: &Args) -> Vec<Step> {
    <Step as clap::ValueEnum>::value_variants()
        .iter()
        .copied()
        .filter(|step| args.only.is_empty() || args.only.contains(step))
        .filter(|step| !(args.skip_vm && *step == Step::Vm))
        .collect()
}

fn summary_line(name: &str, tally: Tally, time: Duration) -> String {
    let word = if tally.failed > 0 { "FAILED" } else { "ok" };
    let ignored = match tally.ignored {
        0 => String::new(),
        count => format!(", {count} ignored"),
    };
    format!(
        "{name:<12} {word:<6} {:>4} passed, {} failed{ignored} ({:.1} s)",
        tally.passed,
        tally.failed,
        time.as_secs_f64()
    )
}

impl Step {
    fn name(self) -> &'static str {
        match self {
            Step::Setup => "setup",
            Step::Format => "format",
            Step::Clippy => "clippy",
            Step::Unit => "unit",
            Step::Invariants => "invariants",
            Step::Dependencies => "dependencies",
            Step::Bytecode => "bytecode",
            Step::Programs => "programs",
            Step::EndToEnd => "end-to-end",
            Step::Vm => "vm",
        }
    }

    fn run(self) -> Result<Tally> {
        let check = |result: Result<()>| {
            result.map(|()| Tally {
                passed: 1,
                ..Tally::default()
            })
        };
        match self {
            Step::Setup => check(setup::run()),
            Step::Format => check(command::run(cargo().args(["fmt", "--all", "--check"]))),
            Step::Clippy => check(command::run(cargo().args([
                "clippy",
                "--quiet",
                "--workspace",
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ]))),
            Step::Unit => run_tests(cargo().args([
                "test",
                "--no-fail-fast",
                "--workspace",
                "--exclude",
                "agent-tests",
            ])),
            Step::Invariants => check(ci::run()),
            // The database of advisories is not among what a build may fetch: `cargo deny check`
            // asks it, too.
            Step::Dependencies => check(command::run(cargo().args([
                "deny",
                "--locked",
                "--log-level",
                "error",
                "check",
                "licenses",
                "bans",
                "sources",
            ]))),
            Step::Bytecode => check(ebpf::run(&ebpf::Args { check: true })),
            Step::Programs => check(programs::build().map(|_| ())),
            Step::EndToEnd => end_to_end(),
            Step::Vm => other_kernels(),
        }
    }
}

/// The end-to-end tests on this kernel.
fn end_to_end() -> Result<Tally> {
    command::run(cargo().args(["build", "--quiet", "--release", "--package", "agent"]))?;
    let mut suite = cargo();
    suite
        .args(["test", "--package", "agent-tests", "--test", "suite"])
        .env("AGENT_BIN", target().join("release/agent"))
        .env("AGENT_PROGRAMS", target().join("programs"))
        .env_remove("AGENT_KERNEL");
    if !setup::is_root()? {
        suite.env(
            "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER",
            "sudo --preserve-env",
        );
    }
    run_tests(&mut suite)
}

/// The end-to-end tests on every kernel of the matrix.
fn other_kernels() -> Result<Tally> {
    let mut total = Tally::default();
    for outcome in vm::run_all(&vm::Args::suite())? {
        let mut tally = count(&outcome.output);
        match outcome.status {
            Ok(0) if tally.passed == 0 => {
                eprintln!("error: {}: no test ran", outcome.kernel);
                tally.failed += 1;
            }
            Ok(0) => {}
            Ok(status) => {
                eprintln!("error: {}: exit status {status}", outcome.kernel);
                tally.failed = tally.failed.max(1);
            }
            Err(error) => {
                eprintln!("error: {}: {error:#}", outcome.kernel);
                tally.failed = tally.failed.max(1);
            }
        }
        println!(
            "{} on {}",
            summary_line("vm", tally, Duration::ZERO),
            outcome.kernel
        );
        total += tally;
    }
    Ok(total)
}

/// Runs a `cargo test` and counts its tests.
fn run_tests(command: &mut Command) -> Result<Tally> {
    let mut child = command
        .current_dir(root())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start cargo")?;
    let mut tally = Tally::default();
    let stdout = child.stdout.take().context("no output of cargo")?;
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        println!("{line}");
        tally += count(&line);
    }
    if !child.wait()?.success() {
        tally.failed = tally.failed.max(1);
    }
    Ok(tally)
}

/// Adds up the lines `test result: ok. 5 passed; 0 failed; 1 ignored; …` of libtest.
fn count(output: &str) -> Tally {
    let mut total = Tally::default();
    for line in output
        .lines()
        .filter_map(|line| line.split_once("test result: "))
    {
        let number = |name: &str| {
            let parts = line.1.split([';', '.']).map(str::trim);
            let part = parts.filter_map(|part| part.strip_suffix(name)).next();
            part.and_then(|part| part.trim().parse().ok()).unwrap_or(0)
        };
        total += Tally {
            passed: number("passed"),
            failed: number("failed"),
            ignored: number("ignored"),
        };
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_added_up() {
        let output = "running 2 tests\ntest result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.1s\n\ntest result: FAILED. 12 passed; 2 failed; 0 ignored; 0 measured\n";
        assert_eq!(
            count(output),
            Tally {
                passed: 17,
                failed: 2,
                ignored: 1
            }
        );
        assert_eq!(count("error: could not compile"), Tally::default());
    }

    #[test]
    fn steps_are_chosen_by_name() {
        let args = |only: &[Step], skip_vm| Args {
            only: only.to_vec(),
            skip_vm,
        };
        assert_eq!(steps(&args(&[], false)).len(), 10);
        assert!(!steps(&args(&[], true)).contains(&Step::Vm));
        assert_eq!(
            steps(&args(&[Step::Unit, Step::Format], false)),
            [Step::Format, Step::Unit]
        );
    }

    #[test]
    fn a_failure_is_visible_in_the_summary() {
        let tally = Tally {
            passed: 3,
            failed: 1,
            ignored: 0,
        };
        let line = summary_line("unit", tally, Duration::from_millis(1500));
        assert_eq!(line, "unit         FAILED    3 passed, 1 failed (1.5 s)");
    }
}
