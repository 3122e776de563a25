//! `agent syscalls`: runs what the specification says.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;

use super::args::Verbosity;
use super::destination::{Destination, Target};
use super::run::{self, Ended, Subjects};
use super::signals::Signals;
use super::stdout::Stdout;
use super::syscalls_args::{FileFormat, Stream, SyscallsSpec};
use super::terminal;
use crate::output::{self, table::Live};
use crate::preflight::Kernel;
use crate::probe::syscalls::{self, Failures, Options};
use crate::probe::tcp;
use crate::profile::{Accounting, Facts, Frame, FrameId, Profile, Space, Stack};
use crate::session::{Attached, Loaded, Needs};
use crate::syscalls::{Report, name};
use crate::{naming, output::text};

/// Counts, prints and writes; returns the exit code.
///
/// # Errors
/// Whatever keeps the run from starting, or its outputs from being written.
pub async fn run(spec: SyscallsSpec, verbosity: Verbosity) -> anyhow::Result<u8> {
    let mut signals = Signals::catch().context("cannot catch signals")?;
    let kernel = Kernel::probe_with(syscalls::FIELDS)?;
    let started = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs());
    let files = prepare(&spec)?;
    let mut subjects = Subjects::take(&spec.target)?;
    check_bits(&subjects)?;
    let options = Options {
        stacks: spec.stacks,
        latency: spec.latency,
        syscalls: spec.syscalls.clone(),
        errnos: spec.errnos.clone(),
        arguments: spec.arguments,
    };
    let needs = Needs {
        stacks: spec.stacks,
        // Thousands of arguments may be new at once; stacks of code not known yet come with their
        // memory.
        ring_bytes: 4 << 20,
        globals: options.globals(&kernel)?,
        unused_maps: vec![options.unused_maps(), tcp::MAPS],
        ..Needs::default()
    };
    let processes = std::mem::take(&mut subjects.processes);
    let mut session = Loaded::load(kernel, &needs)?.follow(processes, spec.target.follow())?;
    if spec.stacks {
        session.tables_ready().await;
    }
    let failures = syscalls::attach(&mut session, &options)?;
    subjects.release()?;
    let mut view = View::new(failures, &spec, verbosity);
    let ended = watch(&mut session, &mut subjects, &mut signals, &spec, &mut view).await;
    syscalls::detach(&mut session, &mut view.failures)?;
    session
        .finish(&mut |bytes, targets| view.failures.take(bytes, targets))
        .await;
    let command = subjects.finish(ended);
    let report = view.report(&session, true);
    let shown = view.finish(&report);
    let profile = view.profile(&session, &report, started, ended);
    let mut written = Ok(());
    for (destination, format) in files {
        let result =
            render(format, &report, &profile).and_then(|bytes| Ok(destination.write(&bytes)?));
        written = written.and(result);
    }
    shown.and(written)?;
    Ok(run::exit_code(command, !report.errors.is_empty()))
}

/// Refuses 32-bit programs: their system calls have other numbers.
pub(super) fn check_bits(subjects: &Subjects) -> anyhow::Result<()> {
    for process in &subjects.processes {
        anyhow::ensure!(
            !process.is_32_bit(),
            "process {} is a 32-bit program: its system calls have other numbers and arguments, which are not \
             supported; `strace -f -p {}` can follow it",
            process.pid(),
            process.pid()
        );
    }
    Ok(())
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

/// What is shown, and the names of the stacks seen so far.
struct View {
    failures: Failures,
    stream: Stream,
    hide_benign: bool,
    quiet: bool,
    stdout: Stdout,
    live: Option<Live>,
    named: Profile,
    stacks: HashMap<u64, Vec<FrameId>>,
}

impl View {
    fn new(failures: Failures, spec: &SyscallsSpec, verbosity: Verbosity) -> Self {
        let live = spec.stream == Stream::Table && io::stdout().is_terminal() && !verbosity.quiet;
        Self {
            failures,
            stream: spec.stream,
            hide_benign: spec.hide_benign,
            quiet: verbosity.quiet,
            stdout: Stdout::default(),
            live: live.then(Live::default),
            named: Profile::default(),
            stacks: HashMap::new(),
        }
    }

    /// The counts as they are now, with the stacks in names.
    fn report(&mut self, session: &Attached, last: bool) -> Report {
        self.name_stacks(session);
        let (named, stacks) = (&self.named, &self.stacks);
        let mut report = self
            .failures
            .report(session, last, &mut |hash| names(named, stacks.get(&hash)));
        if self.hide_benign {
            report.hide_benign();
        }
        report
    }

    fn name_stacks(&mut self, session: &Attached) {
        let new: Vec<_> = self
            .failures
            .stacks()
            .filter(|(hash, ..)| !self.stacks.contains_key(hash))
            .collect();
        let raw: Vec<_> = new
            .iter()
            .map(|(_, process, stack)| (*process, *stack))
            .collect();
        let frames = naming::frames(&mut self.named, &raw, session.targets());
        let hashes: Vec<u64> = new.iter().map(|(hash, ..)| *hash).collect();
        self.stacks.extend(hashes.into_iter().zip(frames));
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

    /// The stacks of the report's rows, each with the failure as its leaf, as a profile of failures.
    fn profile(
        &mut self,
        session: &Attached,
        report: &Report,
        started: u64,
        ended: Ended,
    ) -> Profile {
        let mut profile = std::mem::take(&mut self.named);
        let shown: HashSet<String> = report
            .errors
            .iter()
            .map(|row| format!("{}:{}", row.syscall, row.errno))
            .collect();
        let list = session.targets().list();
        for (row, hash, count) in self.failures.stack_counts() {
            let (Some((process, end)), Some(frames)) =
                (self.failures.stack_end(hash), self.stacks.get(&hash))
            else {
                continue;
            };
            let Some(tracked) = list.get(process) else {
                continue;
            };
            if !shown.contains(&failure_name(row)) {
                continue;
            }
            let leaf = profile.intern(leaf(row));
            profile.stacks.push(Stack {
                pid: tracked.pid,
                tid: tracked.pid,
                comm: tracked.comm.clone(),
                thread: tracked.comm.clone(),
                frames: frames.iter().copied().chain([leaf]).collect(),
                end,
                count,
            });
        }
        let emitted = profile.samples();
        let without = report.failures().saturating_sub(emitted);
        profile.accounting = Accounting {
            ticks: emitted + without,
            emitted,
            lost: BTreeMap::from([("stack_not_kept".into(), without)]),
            ..Accounting::default()
        };
        profile.facts = Facts {
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            command_line: std::env::args_os()
                .map(|word| word.to_string_lossy().into_owned())
                .collect(),
            kernel: session.kernel().name.clone(),
            event: "failed system calls".to_owned(),
            cpus: session.kernel().cpus.len() as u32,
            started,
            duration_seconds: self.failures.elapsed(),
            targets: list.iter().map(syscalls::target_facts).collect(),
            ended: ended.name().to_owned(),
            ..Facts::default()
        };
        profile
    }
}

/// The names of a stack's functions, root first.
fn names(named: &Profile, frames: Option<&Vec<FrameId>>) -> Vec<String> {
    let Some(frames) = frames else {
        return vec!["[stack not received]".to_owned()];
    };
    frames
        .iter()
        .filter_map(|id| named.frames.get(*id as usize))
        .map(text::frame_name)
        .collect()
}

/// `openat:ENOENT`.
fn failure_name(row: u64) -> String {
    let (number, errno) = (
        agent_ebpf::failure::row::number(row),
        agent_ebpf::failure::row::errno(row),
    );
    format!("{}:{}", name::of_syscall(number), name::of_errno(errno))
}

/// The failure as a frame.
fn leaf(row: u64) -> Frame {
    Frame {
        space: Space::User,
        module: Some("[syscall]".to_owned()),
        function: Some(failure_name(row)),
        file: None,
        line: None,
        inlined: false,
        address: row,
        function_start: None,
        unnamed: None,
    }
}
