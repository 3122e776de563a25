//! `agent record`: runs what the specification says.

use std::cell::RefCell;
use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;
use std::time::Instant;

use anyhow::Context;

use super::args::Verbosity;
use super::destination::{Destination, Target};
use super::privileges::{self, Privileges};
use super::record_args::RecordSpec;
use super::run::{self, Ended, Progress, Subjects, progress_line};
use super::signals::Signals;
use super::spec::{Scope, TargetSpec, default_name};
use super::terminal;
use crate::capture::{self, Capture, redact};
use crate::output::summary;
use crate::preflight::checks::Probe;
use crate::preflight::{self, Kernel};
use crate::profile::Facts;
use crate::recorder::cpu::facts;
use crate::recorder::{Options, Recorder};
use crate::session::{Attached, Error, Loaded};
use crate::tcp::view;
use crate::{bundle, calendar};

/// Functions that the summary lists.
const FUNCTIONS: usize = 5;

/// Records, writes the bundle and the summary; returns the exit code.
///
/// # Errors
/// Whatever keeps the run from starting, or the bundle from being written.
pub async fn run(spec: RecordSpec, verbosity: Verbosity) -> anyhow::Result<u8> {
    let entered = Instant::now();
    let mut signals = Signals::catch().context("cannot catch signals")?;
    preflight::check_frequency(spec.frequency.get())?;
    privileges::check(Probe::Record, &spec.target, true)?;
    let kernel = Kernel::probe_with(&Recorder::fields())?;
    let started = calendar::now();
    let mut subjects = Subjects::take(&spec.target)?;
    run::check_bits(&subjects)?;
    let (comm, pid) = subjects.first(&spec.target);
    let destination = prepare(&spec, &comm, pid, started)?;
    let target = target(&spec.target, &subjects);
    let options = Options::new(spec.frequency.get(), spec.stacks, spec.limit);
    let needs = options.needs(&kernel)?;
    let processes = std::mem::take(&mut subjects.processes);
    let mut session = Loaded::load(kernel, &needs)?.follow(processes, spec.target.follow())?;
    run::make_ready(&mut session, &spec.target)?;
    let first = view::Target::new(pid, comm);
    let mut recorder = Recorder::attach(&mut session, &options, first).await?;
    let start_ms = recorder.begin().duration_since(entered).as_secs_f64() * 1e3;
    if verbosity.verbose > 0 {
        say_start(&session, &recorder, start_ms);
    }
    let privileges = Privileges::of(
        Probe::Record,
        true,
        &spec.target,
        session.kernel(),
        [&destination],
        verbosity,
    );
    privileges.settle();
    subjects.release()?;
    let (ended, watched) = watch(
        &mut session,
        &mut subjects,
        &mut signals,
        &spec,
        verbosity,
        &mut recorder,
    )
    .await;
    let finished = recorder.finish(&mut session).await;
    let command = subjects.finish(ended);
    privileges.finish();
    let facts = Facts {
        start_ms,
        ..facts(&session, started, recorder.duration(), ended.name())
    };
    let capture = recorder.capture(&session, facts, target);
    let path = destination.path().map(|path| path.display().to_string());
    destination.write(&bundle::write(&capture)?)?;
    if !verbosity.quiet {
        say_summary(&capture, path.as_slice());
    }
    // What was seen until then is written.
    watched.and(finished)?;
    Ok(run::exit_code(command, capture.has_anything()))
}

/// Makes sure that the bundle can be written, before time is spent.
fn prepare(spec: &RecordSpec, comm: &str, pid: u32, started: u64) -> anyhow::Result<Destination> {
    let default = || Target::File(default_name("incident", comm, pid, started, "zip"));
    let target = spec.output.clone().unwrap_or_else(default);
    Ok(Destination::prepare(target)?)
}

/// What can be known of the first process only while it lives.
pub(super) fn target(spec: &TargetSpec, subjects: &Subjects) -> capture::Target {
    let first = subjects.processes.first();
    let words = match &spec.scope {
        Scope::Command(command) => Some(
            command
                .iter()
                .map(|word| word.to_string_lossy().into_owned())
                .collect(),
        ),
        Scope::Processes(_) | Scope::Group(_) => first.and_then(|process| process.command_line()),
    };
    capture::Target {
        command_line: words.map(|words: Vec<String>| redact::command_line(&words)),
        ..capture::Target::default()
    }
}

async fn watch(
    session: &mut Attached,
    subjects: &mut Subjects,
    signals: &mut Signals,
    spec: &RecordSpec,
    verbosity: Verbosity,
    recorder: &mut Recorder,
) -> (Ended, Result<(), Error>) {
    let mut progress = Progress::new(verbosity);
    let recorder = RefCell::new(recorder);
    let mut watched = Ok(());
    let ended = run::until_end(
        session,
        subjects,
        signals,
        spec.target.duration,
        &mut |bytes, targets| recorder.borrow_mut().take(bytes, targets),
        |session, elapsed| {
            let mut recorder = recorder.borrow_mut();
            progress.show(|| {
                let seen = format!("{} samples", recorder.samples());
                progress_line("recording", elapsed, &spec.target, &seen)
            });
            match recorder
                .tick(session)
                .and_then(|()| recorder.watch(session))
            {
                Err(error) => {
                    watched = Err(error);
                    return ControlFlow::Break(Ended::ReaderGone);
                }
                Ok(Some(step)) => {
                    progress.clear();
                    run::say_step(Some(&step), verbosity);
                }
                Ok(None) => {}
            }
            match recorder.has_ended() {
                true => run::without_probes(&spec.target),
                false => ControlFlow::Continue(()),
            }
        },
    )
    .await;
    progress.clear();
    (ended, watched)
}

/// What `--verbose` tells when the run has begun, `start_ms` milliseconds after the call.
fn say_start(session: &Attached, recorder: &Recorder, start_ms: f64) {
    let probe = recorder.probe();
    let _ = writeln!(
        io::stderr(),
        "{}: recording, with samples by {} on {} CPUs, {start_ms:.0} ms after the call; hooks: {}; \
         BPF maps: {:.1} MB",
        session.kernel().name,
        recorder.clock().name(),
        session.kernel().cpus.len(),
        probe.hooks.join(", "),
        session.map_bytes() as f64 / 1e6,
    );
    for missing in &probe.missing {
        let _ = writeln!(io::stderr(), "not seen on this kernel: {missing}");
    }
}

fn say_summary(capture: &Capture, files: &[String]) {
    let mut stderr = io::stderr();
    let is_terminal = stderr.is_terminal();
    let (style, width) = terminal::look(is_terminal);
    let text = summary::render(
        &capture.profile,
        summary::Options {
            style,
            width,
            notes: if is_terminal { width } else { usize::MAX },
            functions: FUNCTIONS,
            findings: &crate::output::findings::lines(capture),
            files,
        },
    );
    let _ = stderr.write_all(text.as_bytes());
}
