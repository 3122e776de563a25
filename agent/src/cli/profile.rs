//! `agent profile`: runs what the specification says.

use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use agent_ebpf::Counter;
use anyhow::Context;

use super::args::Verbosity;
use super::destination::{Destination, Target};
use super::profile_args::ProfileSpec;
use super::run::{self, Ended, Progress, Subjects};
use super::signals::Signals;
use super::spec::{OutputSpec, Scope, TargetSpec, default_name};
use super::terminal;
use crate::naming;
use crate::output::{self, Format, summary};
use crate::preflight::{self, Kernel};
use crate::probe::cpu::{self, Clock, Samples};
use crate::probe::{syscalls, tcp};
use crate::process;
use crate::profile::{Accounting, Cost, Facts, Profile, TargetFacts};
use crate::session::{Attached, Loaded, Needs};

/// Samples, names, writes the outputs and the summary; returns the exit code.
///
/// # Errors
/// Whatever keeps the run from starting, or its outputs from being written.
pub async fn run(spec: ProfileSpec, verbosity: Verbosity) -> anyhow::Result<u8> {
    let entered = Instant::now();
    let mut signals = Signals::catch().context("cannot catch signals")?;
    preflight::check_frequency(spec.frequency.get())?;
    let kernel = Kernel::probe()?;
    let started = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs());
    let mut subjects = Subjects::take(&spec.target)?;
    let (comm, pid) = subjects.first(&spec.target);
    let outputs = prepare(&spec.output, &comm, pid, started)?;
    let loaded = Loaded::load(
        kernel,
        &Needs {
            stacks: true,
            unused_maps: vec![tcp::MAPS, syscalls::MAPS],
            ..Needs::default()
        },
    )?;
    let processes = std::mem::take(&mut subjects.processes);
    let mut session = loaded.follow(processes, spec.target.follow())?;
    if let Scope::Command(command) = &spec.target.scope
        && let Some(program) = command.first()
    {
        session.make_ready(Path::new(program))?;
    }
    session.tables_ready().await;
    let clock = cpu::attach(&mut session, spec.frequency.get())?;
    let begin = Instant::now();
    let start_ms = begin.duration_since(entered).as_secs_f64() * 1e3;
    if verbosity.verbose > 0 {
        say_start(&session, clock, start_ms);
    }
    subjects.release()?;
    let mut samples = Samples::since(begin);
    let ended = sample(
        &mut session,
        &mut subjects,
        &mut signals,
        &spec.target,
        verbosity,
        &mut samples,
    )
    .await;
    let skipped = cpu::detach(&mut session)?;
    let duration = begin.elapsed();
    session
        .finish(&mut |bytes, targets| samples.take(bytes, targets))
        .await;
    let command = subjects.finish(ended);
    let facts = Facts {
        start_ms,
        ..facts(&session, &spec, clock, started, duration, ended)
    };
    let mut profile = model(&session, &samples, facts, verbosity);
    profile.accounting.recursion_misses = skipped;
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
                Target::File(default_name("profile", comm, pid, started, *format)),
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
    samples: &mut Samples,
) -> Ended {
    let mut progress = Progress::new(verbosity);
    let taken = std::cell::Cell::new(0u64);
    let ended = run::until_end(
        session,
        subjects,
        signals,
        target.duration,
        &mut |bytes, targets| {
            samples.take(bytes, targets);
            taken.set(taken.get() + 1);
        },
        |_, elapsed| {
            progress.show(|| progress_line(elapsed, target, taken.get()));
            ControlFlow::Continue(())
        },
    )
    .await;
    progress.clear();
    ended
}

fn progress_line(elapsed: Duration, target: &TargetSpec, samples: u64) -> String {
    let of = target.duration.map_or(String::new(), |duration| {
        format!(" of {:.0}", duration.as_secs_f64())
    });
    let end = match target.scope {
        Scope::Processes(_) => "Ctrl-C ends early and keeps what was seen",
        Scope::Command(_) => "until the command exits",
    };
    format!(
        "sampling: {:.1}{of} s, {samples} samples; {end}",
        elapsed.as_secs_f64()
    )
}

fn facts(
    session: &Attached,
    spec: &ProfileSpec,
    clock: Clock,
    started: u64,
    duration: Duration,
    ended: Ended,
) -> Facts {
    let target = |tracked: &crate::session::target::Tracked| TargetFacts {
        pid: tracked.pid,
        comm: tracked.comm.clone(),
        exe: tracked.exe.clone(),
    };
    Facts {
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        command_line: std::env::args_os()
            .map(|word| word.to_string_lossy().into_owned())
            .collect(),
        kernel: session.kernel().name.clone(),
        event: clock.name().to_owned(),
        frequency: spec.frequency.get(),
        cpus: session.kernel().cpus.len() as u32,
        started,
        start_ms: 0.0,
        duration_seconds: duration.as_secs_f64(),
        targets: session.targets().list().iter().map(target).collect(),
        ended: ended.name().to_owned(),
    }
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

/// The samples with their names, the account of the ticks and the cost.
fn model(session: &Attached, samples: &Samples, facts: Facts, verbosity: Verbosity) -> Profile {
    let begin = Instant::now();
    let mut profile = Profile::default();
    profile.facts = facts;
    naming::name(&mut profile, samples, session.targets());
    if verbosity.verbose > 0 {
        let _ = writeln!(
            io::stderr(),
            "{} frames of {} stacks named in {:.0} ms",
            profile.frames.len(),
            profile.stacks.len(),
            begin.elapsed().as_secs_f64() * 1e3,
        );
    }
    profile.accounting = accounting(session, samples, &profile.facts);
    profile.cost = cost(session, &profile.accounting);
    profile.timeline = samples.timeline(profile.facts.duration_seconds);
    profile
}

/// Where every tick went. Samples that reached us but could not be read are a loss like any other.
fn accounting(session: &Attached, samples: &Samples, facts: &Facts) -> Accounting {
    let counters = session.counters();
    let mut accounting = Accounting {
        ticks: counters.get(Counter::Ticks),
        idle: counters.get(Counter::Idle),
        other: counters.get(Counter::Other),
        emitted: counters.get(Counter::Emitted)
            - samples.undecoded.min(counters.get(Counter::Emitted)),
        expected_ticks: (facts.duration_seconds * facts.frequency as f64).round() as u64
            * u64::from(facts.cpus),
        frame_pointer_frames: counters.get(Counter::FramePointerFallback),
        ..Accounting::default()
    };
    for counter in [Counter::LostRingFull, Counter::LostScratchBusy] {
        accounting
            .lost
            .insert(counter.name().into(), counters.get(counter));
    }
    accounting
        .lost
        .insert("undecoded".into(), samples.undecoded);
    for counter in [Counter::LostChild, Counter::LostProcessRecord] {
        if counters.get(counter) > 0 {
            accounting
                .notes
                .insert(counter.name().replace('_', " "), counters.get(counter));
        }
    }
    accounting.notes.extend(session.targets().notes());
    accounting
}

fn cost(session: &Attached, accounting: &Accounting) -> Cost {
    let (cpu_seconds, peak_rss_bytes) = process::own_usage();
    let counters = session.counters();
    let per_sample =
        |total: u64| (accounting.emitted > 0).then(|| total as f64 / accounting.emitted as f64);
    Cost {
        cpu_seconds,
        peak_rss_bytes,
        bpf_map_bytes: Some(session.map_bytes()),
        bpf_ns_per_sample: per_sample(counters.get(Counter::Nanoseconds)),
        bytes_per_sample: per_sample(session.bytes()),
    }
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
            files,
        },
    );
    let _ = stderr.write_all(text.as_bytes());
}
