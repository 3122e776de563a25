//! `agent profile`: runs what the specification says.

use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;
use std::time::Instant;

use anyhow::Context;

use super::args::Verbosity;
use super::destination::{Destination, Target};
use super::privileges::{self, Privileges};
use super::profile_args::ProfileSpec;
use super::run::{self, Ended, Progress, Subjects, progress_line};
use super::signals::Signals;
use super::spec::{OutputSpec, TargetSpec, default_name};
use super::terminal;
use crate::calendar;
use crate::output::{self, Format, summary};
use crate::preflight::checks::Probe;
use crate::preflight::{self, Kernel};
use crate::probe::cpu::{self as cpu_probe, Clock};
use crate::profile::{Facts, Profile};
use crate::recorder::cpu::{Cpu, facts};
use crate::session::{Attached, Loaded};

/// Functions that the summary lists.
const FUNCTIONS: usize = 10;

/// Samples, names, writes the outputs and the summary; returns the exit code.
///
/// # Errors
/// Whatever keeps the run from starting, or its outputs from being written.
pub async fn run(spec: ProfileSpec, verbosity: Verbosity) -> anyhow::Result<u8> {
    let entered = Instant::now();
    let mut signals = Signals::catch().context("cannot catch signals")?;
    preflight::check_frequency(spec.frequency.get())?;
    privileges::check(Probe::Profile, &spec.target, true)?;
    let kernel = Kernel::probe()?;
    let started = calendar::now();
    let mut subjects = Subjects::take(&spec.target)?;
    let (comm, pid) = subjects.first(&spec.target);
    let outputs = prepare(&spec.output, &comm, pid, started)?;
    let loaded = Loaded::load(kernel, &cpu_probe::needs())?;
    let processes = std::mem::take(&mut subjects.processes);
    let mut session = loaded.follow(processes, spec.target.follow())?;
    run::make_ready(&mut session, &spec.target)?;
    session.tables_ready().await;
    let mut cpu = Cpu::attach(&mut session, spec.frequency.get())?;
    let start_ms = cpu.begin().duration_since(entered).as_secs_f64() * 1e3;
    if verbosity.verbose > 0 {
        say_start(&session, cpu.clock, start_ms);
    }
    let privileges = Privileges::of(
        Probe::Profile,
        true,
        &spec.target,
        session.kernel(),
        outputs.iter().map(|(destination, _)| destination),
        verbosity,
    );
    privileges.settle();
    subjects.release()?;
    let ended = sample(
        &mut session,
        &mut subjects,
        &mut signals,
        &spec.target,
        verbosity,
        &mut cpu,
    )
    .await;
    let duration = cpu.detach(&mut session)?;
    session
        .finish(&mut |bytes, targets| cpu.take(bytes, targets))
        .await;
    let command = subjects.finish(ended);
    privileges.finish();
    let facts = Facts {
        start_ms,
        ..facts(&session, started, duration, ended.name())
    };
    let profile = model(&session, &cpu, facts, verbosity);
    let (files, written) = write(outputs, &profile);
    if !verbosity.quiet {
        say_summary(&profile, &files);
    }
    written?;
    Ok(run::exit_code(command, profile.samples() > 0))
}

/// Makes sure that every output can be written, before time is spent.
fn prepare(
    spec: &OutputSpec,
    comm: &str,
    pid: u32,
    started: u64,
) -> anyhow::Result<Vec<(Destination, Format)>> {
    let wanted = match spec {
        OutputSpec::Named(format) => {
            vec![(
                Target::File(default_name(
                    "profile",
                    comm,
                    pid,
                    started,
                    format.extension(),
                )),
                *format,
            )]
        }
        OutputSpec::Given(given) => given.clone(),
    };
    wanted
        .into_iter()
        .map(|(target, format)| Ok((Destination::prepare(target)?, format)))
        .collect()
}

async fn sample(
    session: &mut Attached,
    subjects: &mut Subjects,
    signals: &mut Signals,
    target: &TargetSpec,
    verbosity: Verbosity,
    cpu: &mut Cpu,
) -> Ended {
    let mut progress = Progress::new(verbosity);
    let taken = std::cell::Cell::new(0u64);
    let ended = run::until_end(
        session,
        subjects,
        signals,
        target.duration,
        &mut |bytes, targets| {
            cpu.take(bytes, targets);
            taken.set(taken.get() + 1);
        },
        |_, elapsed| {
            progress.show(|| {
                progress_line(
                    "sampling",
                    elapsed,
                    target,
                    &format!("{} samples", taken.get()),
                )
            });
            ControlFlow::Continue(())
        },
    )
    .await;
    progress.clear();
    ended
}

/// What `--verbose` tells when the clock has started, `start_ms` milliseconds after the call.
fn say_start(session: &Attached, clock: Clock, start_ms: f64) {
    let _ = writeln!(
        io::stderr(),
        "{}: sampling by {} on {} CPUs, {start_ms:.0} ms after the call; \
         processes: {}, mapped files: {}, BPF maps: {:.1} MB",
        session.kernel().name,
        clock.name(),
        session.kernel().cpus.len(),
        session.targets().list().len(),
        session.targets().modules().len(),
        session.map_bytes() as f64 / 1e6,
    );
}

/// The profile, and with `--verbose` how long its names took.
fn model(session: &Attached, cpu: &Cpu, facts: Facts, verbosity: Verbosity) -> Profile {
    let begin = Instant::now();
    let profile = cpu.profile(session, facts);
    if verbosity.verbose > 0 {
        let _ = writeln!(
            io::stderr(),
            "{} frames of {} stacks named in {:.0} ms",
            profile.frames.len(),
            profile.stacks.len(),
            begin.elapsed().as_secs_f64() * 1e3,
        );
    }
    profile
}

/// Writes every output that can be written; the names of the files, and the first error.
fn write(
    outputs: Vec<(Destination, Format)>,
    profile: &Profile,
) -> (Vec<String>, anyhow::Result<()>) {
    let mut files = Vec::new();
    let mut first = Ok(());
    for (destination, format) in outputs {
        let path = destination.path().map(|path| path.display().to_string());
        let written = output::render(format, profile)
            .map_err(anyhow::Error::from)
            .and_then(|bytes| Ok(destination.write(&bytes)?));
        match written {
            Ok(()) => files.extend(path),
            Err(error) => first = first.and(Err(error)),
        }
    }
    (files, first)
}

fn say_summary(profile: &Profile, files: &[String]) {
    let mut stderr = io::stderr();
    let is_terminal = stderr.is_terminal();
    let (style, width) = terminal::look(is_terminal);
    let text = summary::render(
        profile,
        summary::Options {
            style,
            width,
            notes: if is_terminal { width } else { usize::MAX },
            functions: FUNCTIONS,
            findings: &[],
            files,
        },
    );
    let _ = stderr.write_all(text.as_bytes());
}
