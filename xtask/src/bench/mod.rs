//! `cargo xtask bench`: what the agent costs and how much it sees, beside its peers, in pairs.
//!
//! One file per section. `tool` runs a program beside the measured one, `chain` compares the
//! speed with and without it, `peers` knows the command lines.

mod chain;
mod completeness;
mod cost;
mod latency;
mod machine;
mod peers;
mod record;
mod redis;
mod report;
mod sample_cost;
mod syscalls;
mod tables;
mod target;
mod tcp;
mod tool;

use crate::command::{self, cargo, root, target as build_directory};
use crate::programs;
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use report::Report;
use std::fs;
use std::path::PathBuf;

/// Arguments of `bench`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to measure [default: everything]
    #[arg(value_enum)]
    sections: Vec<Section>,
    /// A short run with few rounds, to see that it works; nothing is kept
    #[arg(long)]
    quick: bool,
}

/// A group of figures; docs/benchmarks.md has them in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Section {
    /// Nanoseconds of the kernel program for each sample
    BpfNs,
    /// Throughput of redis while it is profiled
    Redis,
    /// CPU time and memory of the profilers themselves
    AgentCost,
    /// From the start to the first sample, from the end to the flame graph
    Latency,
    /// Speed at which unwind tables are built
    Tables,
    /// Share of complete stacks
    Completeness,
    /// Throughput of redis under the TCP latency tables
    Tcp,
    /// Speed of a process under the system call tracers
    Syscalls,
    /// Throughput of redis while all probes look at it
    Record,
}

impl Section {
    fn run(self, bench: &Bench) -> Result<Report> {
        match self {
            Section::BpfNs => sample_cost::run(bench),
            Section::Redis => redis::run(bench),
            Section::AgentCost => cost::run(bench),
            Section::Latency => latency::run(bench),
            Section::Tables => tables::run(bench),
            Section::Completeness => completeness::run(bench),
            Section::Tcp => tcp::run(bench),
            Section::Syscalls => syscalls::run(bench),
            Section::Record => record::run(bench),
        }
    }

    /// As it is typed.
    fn name(self) -> String {
        self.to_possible_value()
            .map(|value| value.get_name().to_owned())
            .unwrap_or_default()
    }
}

/// What every section needs.
pub(crate) struct Bench {
    /// Whether this is a smoke run.
    pub(crate) quick: bool,
    /// Where files go that nobody needs afterwards.
    pub(crate) scratch: machine::Scratch,
    /// The agent, as a path.
    pub(crate) agent: String,
}

impl Bench {
    /// One of two numbers: for a full or for a smoke run.
    pub(crate) fn choose<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }
}

/// Runs the sections, prints their tables, and unless `--quick` is given keeps them: docs/benchmarks.md
/// is made of the last run of each.
///
/// # Errors
/// Something cannot be built or written, or a section failed; the others are run and kept all the same.
pub(crate) fn run(args: &Args) -> Result<()> {
    programs::build()?;
    command::run(cargo().args(["build", "--release", "--quiet", "--package", "agent"]))?;
    let bench = Bench {
        quick: args.quick,
        scratch: machine::Scratch::new()?,
        agent: build_directory()
            .join("release/agent")
            .display()
            .to_string(),
    };
    let wanted = if args.sections.is_empty() {
        Section::value_variants()
    } else {
        &args.sections
    };
    let mut failed = Vec::new();
    for section in wanted {
        let name = section.name();
        eprintln!("bench: {name}");
        let occasion = machine::occasion();
        match section.run(&bench) {
            Ok(mut report) => {
                report.paragraph(&format!("_{occasion}_"));
                println!("{}", report.text());
                if !args.quick {
                    keep(&name, report.text())?;
                }
            }
            Err(error) => failed.push(format!("{name}: {error:#}")),
        }
    }
    if !args.quick {
        write_document()?;
    }
    if !failed.is_empty() {
        bail!("{} sections failed\n{}", failed.len(), failed.join("\n"));
    }
    Ok(())
}

fn kept(name: &str) -> PathBuf {
    build_directory().join("bench").join(format!("{name}.md"))
}

fn keep(name: &str, text: &str) -> Result<()> {
    let file = kept(name);
    if let Some(directory) = file.parent() {
        fs::create_dir_all(directory)?;
    }
    fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))
}

/// Puts the kept sections together.
fn write_document() -> Result<()> {
    let mut text = format!(
        "# Benchmarks\n\nWritten by `cargo xtask bench`: figures of the agent beside those of its peers, measured on one machine; \
         the last line of each section says when, and at which revision. Ratios are taken in pairs (without, with, without, …) and quoted as the median with the extremes in \
         brackets; 1 means not slowed down. Absolute numbers belong to this machine.\n\n- {}\n- {}\n",
        machine::describe(),
        peers::versions().join(", ")
    );
    for section in Section::value_variants() {
        if let Ok(section) = fs::read_to_string(kept(&section.name())) {
            text.push('\n');
            text.push_str(&section);
        }
    }
    let file = root().join("docs/benchmarks.md");
    fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    eprintln!("wrote {}", file.display());
    Ok(())
}
