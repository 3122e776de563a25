//! `agent syscalls`: runs what the specification says.

use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::args::Verbosity;
use super::destination::{Destination, Target};
use super::privileges::{self, Privileges};
use super::run::{self, Ended, Subjects};
use super::signals::Signals;
use super::stdout::Stdout;
use super::syscalls_args::{FileFormat, Stream, SyscallsSpec};
use super::terminal;
use crate::calendar;
use crate::output::{self, table::Live};
use crate::preflight::Kernel;
use crate::preflight::checks::Probe;
use crate::probe::syscalls::{self, Options};
use crate::profile::Profile;
use crate::recorder::cpu::facts;
use crate::recorder::syscalls::Syscalls;
use crate::session::{Attached, Loaded};
use crate::syscalls::Report;

/// Counts, prints and writes; returns the exit code.
///
/// # Errors
/// Whatever keeps the run from starting, or its outputs from being written.
pub async fn run(spec: SyscallsSpec, verbosity: Verbosity) -> anyhow::Result<u8> {
    let mut signals = Signals::catch().context("cannot catch signals")?;
    let probe = match spec.latency {
        true => Probe::SyscallsLatency,
        false => Probe::Syscalls,
    };
    privileges::check(probe, &spec.target, spec.stacks)?;
    let kernel = Kernel::probe_with(syscalls::FIELDS)?;
    let started = calendar::now();
    let files = prepare(&spec)?;
    let mut subjects = Subjects::take(&spec.target)?;
    run::check_bits(&subjects)?;
    let options = Options {
        stacks: spec.stacks,
        latency: spec.latency,
        syscalls: spec.syscalls.clone(),
        errnos: spec.errnos.clone(),
        arguments: spec.arguments,
    };
    let needs = options.needs(&kernel)?;
    let processes = std::mem::take(&mut subjects.processes);
    let mut session = Loaded::load(kernel, &needs)?.follow(processes, spec.target.follow())?;
    if spec.stacks {
        session.tables_ready().await;
    }
    let failures = Syscalls::attach(&mut session, &options)?;
    let privileges = Privileges::of(
        probe,
        spec.stacks,
        &spec.target,
        session.kernel(),
        files.iter().map(|(destination, _)| destination),
        verbosity,
    );
    privileges.settle();
    subjects.release()?;
    let begin = Instant::now();
    let mut view = View::new(failures, &spec, verbosity);
    let ended = watch(&mut session, &mut subjects, &mut signals, &spec, &mut view).await;
    view.failures.detach(&mut session)?;
    session
        .finish(&mut |bytes, targets| view.failures.take(bytes, targets))
        .await;
    let command = subjects.finish(ended);
    privileges.finish();
    let report = view.report(&session, true);
    let shown = view.finish(&report);
    let facts = facts(&session, started, begin.elapsed(), ended.name());
    let profile = view.failures.profile(&session, &report, facts);
    let mut written = Ok(());
    for (destination, format) in files {
        let result =
            render(format, &report, &profile).and_then(|bytes| Ok(destination.write(&bytes)?));
        written = written.and(result);
    }
    shown.and(written)?;
    Ok(run::exit_code(command, !report.errors.is_empty()))
}

/// Makes sure that every file can be written, before time is spent.
fn prepare(spec: &SyscallsSpec) -> anyhow::Result<Vec<(Destination, FileFormat)>> {
    let prepare = |(target, format): &(Target, FileFormat)| {
        Ok((Destination::prepare(target.clone())?, *format))
    };
    if spec.files.is_empty() {
        Destination::prepare(Target::Stdout)?;
    }
    spec.files.iter().map(prepare).collect()
}

async fn watch(
    session: &mut Attached,
    subjects: &mut Subjects,
    signals: &mut Signals,
    spec: &SyscallsSpec,
    view: &mut View,
) -> Ended {
    let shared = std::cell::RefCell::new(view);
    let mut next = spec.interval;
    run::until_end(
        session,
        subjects,
        signals,
        spec.target.duration,
        &mut |bytes, targets| shared.borrow_mut().failures.take(bytes, targets),
        |session, elapsed| {
            if elapsed >= next {
                next = elapsed + spec.interval
                    - Duration::from_nanos((elapsed.as_nanos() % spec.interval.as_nanos()) as u64);
                // What cannot be rendered now cannot be at the end, where it is an error.
                let _ = shared.borrow_mut().interval(session);
            }
            ControlFlow::Continue(())
        },
    )
    .await
}

fn render(format: FileFormat, report: &Report, profile: &Profile) -> anyhow::Result<Vec<u8>> {
    Ok(match format {
        FileFormat::Stacks(format) => output::render(format, profile)?,
        FileFormat::Report(Stream::Json) => output::syscalls::json(report)?,
        FileFormat::Report(Stream::Csv) => output::syscalls::csv(report).into_bytes(),
        FileFormat::Report(Stream::Table) => plain(report).into_bytes(),
    })
}

fn plain(report: &Report) -> String {
    let mut text = output::syscalls::lines(report, usize::MAX, Default::default()).join("\n");
    text.push('\n');
    text
}

/// What is shown, and where.
struct View {
    failures: Syscalls,
    stream: Stream,
    hide_benign: bool,
    quiet: bool,
    stdout: Stdout,
    live: Option<Live>,
}

impl View {
    fn new(failures: Syscalls, spec: &SyscallsSpec, verbosity: Verbosity) -> Self {
        let live = spec.stream == Stream::Table && io::stdout().is_terminal() && !verbosity.quiet;
        Self {
            failures,
            stream: spec.stream,
            hide_benign: spec.hide_benign,
            quiet: verbosity.quiet,
            stdout: Stdout::default(),
            live: live.then(Live::default),
        }
    }

    /// The counts as they are now, with the stacks in names.
    fn report(&mut self, session: &Attached, last: bool) -> Report {
        let mut report = self.failures.report(session, last);
        if self.hide_benign {
            report.hide_benign();
        }
        report
    }

    /// An interval is over. A reader that has gone away does not end the run: the files are still
    /// to be written.
    fn interval(&mut self, session: &Attached) -> anyhow::Result<()> {
        if (self.stream == Stream::Json || self.live.is_some()) && !self.stdout.has_ended() {
            let report = self.report(session, false);
            self.show(&report)?;
        }
        Ok(())
    }

    fn show(&mut self, report: &Report) -> anyhow::Result<()> {
        let bytes = match self.stream {
            Stream::Json => output::syscalls::json(report)?,
            Stream::Csv => output::syscalls::csv(report).into_bytes(),
            Stream::Table => self.table(report).into_bytes(),
        };
        self.stdout.put(&bytes);
        Ok(())
    }

    fn table(&mut self, report: &Report) -> String {
        let is_terminal = io::stdout().is_terminal();
        let (style, columns) = terminal::look(is_terminal);
        let width = if is_terminal { columns } else { usize::MAX };
        let lines = output::syscalls::lines(report, width, style);
        let rows = match terminal::size() {
            Some((_, rows)) if !report.last => rows,
            _ => usize::MAX,
        };
        match &mut self.live {
            Some(live) => live.redraw(&lines, rows),
            None => lines.join("\n") + "\n",
        }
    }

    /// The last report, and what was lost.
    fn finish(&mut self, report: &Report) -> anyhow::Result<()> {
        let shown = self.show(report);
        if let Some(losses) = output::syscalls::losses(report)
            && !self.quiet
        {
            let _ = writeln!(io::stderr(), "{losses}");
        }
        shown?;
        Ok(std::mem::take(&mut self.stdout).finish()?)
    }
}
