//! The kernel matrix: runs the end-to-end tests, or any command, in QEMU on other kernels.
//!
//! A machine is a Debian kernel and an archive of files that becomes its root file system:
//! busybox, the statically linked agent and test suite, and the target programs with their
//! libraries. It needs neither KVM nor a disk nor a network.

mod archive;
mod kernel;
mod qemu;
mod root;

use crate::command::{self, cargo, target};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

const DEFAULT_TIMEOUT: u64 = 3600;
/// Most machines that run at a time; each keeps one CPU busy.
const MAX_JOBS: u8 = 4;
const DEFAULT_MEMORY: u32 = 1536;

/// Modules of the suite that look at what the agent writes, not at what a kernel tells it: the
/// host's run of them is enough.
const SAME_ON_EVERY_KERNEL: [&str; 6] = [
    "browser::",
    "diff::",
    "outputs::",
    "pprof::",
    "report::",
    "tcp::output::",
];

/// Modules that pass there (`cargo xtask vm -- parser::`) but take long under emulation.
const ON_THE_HOST_ONLY: [&str; 3] = ["hostile::", "parser::", "privileges::"];

/// One for each CPU, two at least.
fn default_jobs() -> u8 {
    let cpus = std::thread::available_parallelism().map_or(2, usize::from);
    cpus.clamp(2, MAX_JOBS.into()) as u8
}

/// Arguments of `vm`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Kernels to run on: 5.10, 6.1, 6.12, 7.2 [default: all]
    #[arg(value_name = "KERNEL", value_parser = kernel::Kernel::parse)]
    pub(crate) kernels: Vec<kernel::Kernel>,
    /// Run this shell command in the machine instead of the end-to-end tests
    #[arg(long, value_name = "COMMAND")]
    pub(crate) shell: Option<String>,
    /// With --shell: put this file or directory (and its shared libraries) into /root, where COMMAND runs
    #[arg(long = "file", value_name = "PATH", requires = "shell")]
    pub(crate) files: Vec<PathBuf>,
    /// With --shell: build the agent and put it into the machine as /bin/agent
    #[arg(long, requires = "shell")]
    pub(crate) agent: bool,
    /// With --shell: put the built target programs into /programs
    #[arg(long, requires = "shell")]
    pub(crate) programs: bool,
    /// Seconds after which a machine is stopped
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULT_TIMEOUT)]
    pub(crate) timeout: u64,
    /// Machines that run at a time
    #[arg(long, value_name = "N", default_value_t = default_jobs(), value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_JOBS)))]
    pub(crate) jobs: u8,
    /// Megabytes of memory of a machine
    #[arg(long, value_name = "MB", default_value_t = DEFAULT_MEMORY)]
    pub(crate) memory: u32,
    /// Arguments of the test suite, e.g. a test's name
    #[arg(last = true, conflicts_with = "shell")]
    pub(crate) suite: Vec<String>,
}

impl Args {
    /// The test suite on every kernel, without [`SAME_ON_EVERY_KERNEL`] and [`ON_THE_HOST_ONLY`].
    pub(crate) fn suite() -> Self {
        Self {
            kernels: Vec::new(),
            shell: None,
            files: Vec::new(),
            agent: false,
            programs: false,
            timeout: DEFAULT_TIMEOUT,
            jobs: default_jobs(),
            memory: DEFAULT_MEMORY,
            suite: SAME_ON_EVERY_KERNEL
                .iter()
                .chain(&ON_THE_HOST_ONLY)
                .flat_map(|module| ["--skip".to_owned(), (*module).to_owned()])
                .collect(),
        }
    }
}

/// What a machine ended with.
pub(crate) struct Outcome {
    /// The kernel's label.
    pub(crate) kernel: &'static str,
    /// The exit status of the command; or why there is none.
    pub(crate) status: Result<i32>,
    /// What the command printed.
    pub(crate) output: String,
}

/// Runs the machines and fails if one did.
///
/// # Errors
/// A kernel cannot be fetched, a machine does not come up or does not end in time, or the
/// command in it failed.
pub(crate) fn run(args: &Args) -> Result<()> {
    let outcomes = run_all(args)?;
    let mut failed = Vec::new();
    for outcome in &outcomes {
        match &outcome.status {
            Ok(0) => {}
            Ok(status) => failed.push(format!("{}: exit status {status}", outcome.kernel)),
            Err(error) => failed.push(format!("{}: {error:#}", outcome.kernel)),
        }
    }
    if !failed.is_empty() {
        bail!("{}", failed.join("\n"));
    }
    Ok(())
}

/// Runs the machines and returns what each ended with, in the order of the kernels.
///
/// # Errors
/// What goes into the machines could not be built.
pub(crate) fn run_all(args: &Args) -> Result<Vec<Outcome>> {
    let kernels = match args.kernels.as_slice() {
        [] => kernel::Kernel::ALL.to_vec(),
        chosen => chosen.to_vec(),
    };
    let (files, script) = contents(args)?;
    let mut outcomes = Vec::new();
    for group in kernels.chunks(usize::from(args.jobs)) {
        std::thread::scope(|scope| {
            let running: Vec<_> = group
                .iter()
                .map(|kernel| scope.spawn(|| boot(args, *kernel, &files, &script)))
                .collect();
            outcomes.extend(running.into_iter().zip(group).map(|(thread, kernel)| {
                thread.join().unwrap_or_else(|_| Outcome {
                    kernel: kernel.label(),
                    status: Err(anyhow::anyhow!("the runner panicked")),
                    output: String::new(),
                })
            }));
        });
    }
    Ok(outcomes)
}

/// The files that every machine of this run holds, and the command that it runs.
fn contents(args: &Args) -> Result<(root::Tree, String)> {
    let mut tree = root::Tree::base()?;
    let programs = target().join("programs");
    if args.agent || args.shell.is_none() {
        tree.add_program("bin/agent", &build_agent()?)?;
    }
    if args.programs || args.shell.is_none() {
        if !programs.is_dir() {
            bail!(
                "no {}; build them with `cargo xtask programs`",
                programs.display()
            );
        }
        tree.add_directory("programs", &programs)?;
    }
    for file in &args.files {
        let name = file
            .file_name()
            .with_context(|| format!("{}: no name", file.display()))?;
        let place = format!("root/{}", name.to_string_lossy());
        if file.is_dir() {
            tree.add_directory(&place, file)?;
        } else {
            tree.add_program(&place, file)?;
        }
    }
    let Some(shell) = &args.shell else {
        tree.add_program("bin/suite", &build_suite()?)?;
        tree.add_targets()?;
        let arguments = args
            .suite
            .iter()
            .map(|text| quote(text))
            .collect::<Vec<_>>();
        return Ok((tree, format!("suite {}", arguments.join(" "))));
    };
    Ok((tree, shell.clone()))
}

fn boot(args: &Args, kernel: kernel::Kernel, tree: &root::Tree, script: &str) -> Outcome {
    let mut output = String::new();
    let status = kernel::fetch(kernel).and_then(|files| {
        let archive = root::write_archive(kernel.label(), &files, tree, script)?;
        let machine = qemu::Machine {
            label: kernel.label(),
            kernel: &files.image,
            archive: &archive,
            memory: args.memory,
            timeout: Duration::from_secs(args.timeout),
        };
        machine.run(&mut output)
    });
    Outcome {
        kernel: kernel.label(),
        status,
        output,
    }
}

/// Quotes an argument for the shell.
fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

const STATIC: &str = "x86_64-unknown-linux-gnu";

/// Builds the statically linked agent and returns its path.
///
/// # Errors
/// It does not compile.
fn build_agent() -> Result<PathBuf> {
    let mut build = cargo();
    build.args([
        "build",
        "--quiet",
        "--release",
        "--package",
        "agent",
        "--target",
        STATIC,
    ]);
    build.env("RUSTFLAGS", "-C target-feature=+crt-static");
    command::run(&mut build)?;
    Ok(target().join(STATIC).join("release/agent"))
}

/// Builds the statically linked test suite and returns its path.
///
/// # Errors
/// It does not compile.
fn build_suite() -> Result<PathBuf> {
    let mut build = cargo();
    build.args([
        "test",
        "--package",
        "agent-tests",
        "--test",
        "suite",
        "--no-run",
    ]);
    build.args([
        "--target",
        STATIC,
        "--message-format=json-render-diagnostics",
        "--quiet",
    ]);
    build.env("RUSTFLAGS", "-C target-feature=+crt-static");
    build.stderr(std::process::Stdio::inherit());
    let messages = command::output(&mut build)?;
    let path = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == "suite")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .context("cargo did not say where the test suite is")?;
    fs::metadata(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_survive_the_shell() {
        assert_eq!(quote("a b"), "'a b'");
        assert_eq!(quote("it's"), "'it'\\''s'");
    }
}
