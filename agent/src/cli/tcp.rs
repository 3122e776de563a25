//! `agent tcp`: runs what the specification says.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use agent_ebpf::Counter;
use anyhow::Context;

use super::args::Verbosity;
use super::destination::{Destination, Target};
use super::run::{self, Signals, Subjects};
use super::tcp_args::{By, TcpFormat, TcpSpec};
use super::terminal;
use crate::output::table::{Live, Style};
use crate::output::tcp::{self as output, Rows, View};
use crate::preflight::Kernel;
use crate::probe::tcp::{self as probe, Probe};
use crate::session::{Attached, Loaded};
use crate::tcp::view::Span;
use crate::tcp::{Connections, filter};

/// Counters of the kernel programs that mean a loss here.
const LOSSES: [Counter; 5] = [
    Counter::LostConnection,
    Counter::LostRequest,
    Counter::LostConnectionRecord,
    Counter::LostChild,
    Counter::LostProcessRecord,
];

/// Watches the connections, shows them each interval and at the end; returns the exit code.
///
/// # Errors
/// Whatever keeps the run from starting, or its output from being written.
pub async fn run(spec: TcpSpec, verbosity: Verbosity) -> anyhow::Result<u8> {
    let mut signals = Signals::catch().context("cannot catch signals")?;
    let kernel = Kernel::probe_with(&probe::fields())?;
    let mut subjects = Subjects::take(&spec.target)?;
    let (comm, pid) = subjects.first(&spec.target);
    let mut show = Show::new(&spec, Destination::prepare(spec.output.clone())?, verbosity);
    let loaded = Loaded::load(kernel, &probe::needs())?;
    let processes = std::mem::take(&mut subjects.processes);
    let mut session = loaded.follow(processes, spec.target.follow())?;
    let mut connections = Connections::default();
    let probe = probe::attach(&mut session)?;
    probe.look(&mut session, &mut connections)?;
    show.say_hooks(&probe);
    let mut watch = Watch {
        spec: &spec,
        probe,
        pid,
        comm,
        begin: Instant::now(),
        shown: Duration::ZERO,
    };
    subjects.release()?;
    let connections = std::cell::RefCell::new(connections);
    let mut failure = None;
    let ended = run::until_end(
        &mut session,
        &mut subjects,
        &mut signals,
        spec.target.duration,
        &mut |bytes, targets| probe::take_in(bytes, targets, &mut connections.borrow_mut()),
        |session, elapsed| {
            if elapsed - watch.shown >= spec.interval && failure.is_none() {
                failure = watch
                    .interval(session, &mut connections.borrow_mut(), &mut show, elapsed)
                    .err();
            }
        },
    )
    .await;
    if let Some(error) = failure {
        return Err(error);
    }
    let mut connections = connections.into_inner();
    let seen = watch.end(&mut session, &mut connections, &mut show)?;
    let command = subjects.finish(ended);
    show.finish()?;
    Ok(run::exit_code(command, seen))
}

/// A run under way.
struct Watch<'a> {
    spec: &'a TcpSpec,
    probe: Probe,
    pid: u32,
    comm: String,
    begin: Instant,
    /// When the last interval was shown, since the begin.
    shown: Duration,
}

impl Watch<'_> {
    fn interval(
        &mut self,
        session: &mut Attached,
        connections: &mut Connections,
        show: &mut Show,
        elapsed: Duration,
    ) -> anyhow::Result<()> {
        self.probe.look(session, connections)?;
        session.drain(&mut |bytes, targets| probe::take_in(bytes, targets, connections));
        connections.take_waiting();
        let span = Span::Interval((elapsed - self.shown).as_secs_f64());
        if show.wants_intervals() {
            show.put(&self.view(session, connections, span))?;
        }
        connections.end_interval();
        self.shown = elapsed;
        Ok(())
    }

    /// The last view, since the attach; says whether any connection was seen.
    fn end(
        &mut self,
        session: &mut Attached,
        connections: &mut Connections,
        show: &mut Show,
    ) -> anyhow::Result<bool> {
        probe::detach(session)?;
        session.drain(&mut |bytes, targets| probe::take_in(bytes, targets, connections));
        self.probe.last_look(session, connections)?;
        connections.take_waiting();
        let span = Span::Run(self.begin.elapsed().as_secs_f64());
        let view = self.view(session, connections, span);
        show.put(&view)?;
        Ok(view.sums.connections > 0 || view.sums.failed > 0)
    }

    fn view(&self, session: &Attached, connections: &Connections, span: Span) -> View {
        let (rows, left_out) = match self.spec.by {
            By::Connection => {
                let mut rows = connections.rows(span, now());
                let all = rows.len();
                rows.retain(|row| self.spec.filter.holds(row));
                filter::sort(&mut rows, self.spec.sort);
                rows.truncate(self.spec.top);
                let shown = rows.len();
                (Rows::Connections(rows), all - shown)
            }
            By::Remote => {
                let mut rows = connections.remotes(span, now(), |row| self.spec.filter.holds(row));
                filter::sort_remotes(&mut rows, self.spec.sort);
                let all = rows.len();
                rows.truncate(self.spec.top);
                let shown = rows.len();
                (Rows::Remotes(rows), all - shown)
            }
        };
        // The name may have come only with the exec.
        let comm = session
            .targets()
            .list()
            .first()
            .map_or(&self.comm, |tracked| &tracked.comm);
        View {
            last: matches!(span, Span::Run(_)),
            elapsed_s: self.begin.elapsed().as_secs_f64(),
            pid: self.pid,
            comm: comm.clone(),
            rows,
            left_out,
            sums: connections.sums(span),
            failed: connections.failed(),
            losses: losses(session, connections),
        }
    }
}

fn losses(session: &Attached, connections: &Connections) -> BTreeMap<&'static str, u64> {
    let counters = session.counters();
    let kernel = LOSSES.map(|counter| (counter.name(), counters.get(counter)));
    kernel.into_iter().chain(connections.losses()).collect()
}

/// Nanoseconds of `CLOCK_MONOTONIC`, the clock of the kernel programs.
fn now() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the structure is ours; the clock exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Where the views go, and in what form.
struct Show {
    format: TcpFormat,
    destination: Destination,
    /// What a file is to hold; standard output gets it at once.
    kept: Vec<u8>,
    stdout: bool,
    /// The table that is redrawn in place.
    live: Option<Live>,
    hooks: String,
    verbosity: Verbosity,
    begun: bool,
}

impl Show {
    fn new(spec: &TcpSpec, destination: Destination, verbosity: Verbosity) -> Self {
        let stdout = spec.output == Target::Stdout;
        let live = stdout && spec.format == TcpFormat::Table && io::stdout().is_terminal();
        Self {
            format: spec.format,
            destination,
            kept: Vec::new(),
            stdout,
            live: live.then(Live::default),
            hooks: String::new(),
            verbosity,
            begun: false,
        }
    }

    fn say_hooks(&mut self, probe: &Probe) {
        self.hooks = format!("hooks: {}", probe.hooks.join(", "));
        if self.verbosity.verbose > 0 {
            let _ = writeln!(io::stderr(), "agent: {}", self.hooks);
            for missing in &probe.missing {
                let _ = writeln!(io::stderr(), "agent: not seen on this kernel: {missing}");
            }
        }
    }

    /// A table is shown only as it stands, unless there is a terminal to redraw it on.
    fn wants_intervals(&self) -> bool {
        self.format != TcpFormat::Table || self.live.is_some()
    }

    fn put(&mut self, view: &View) -> anyhow::Result<()> {
        let bytes = match self.format {
            TcpFormat::Json => output::json(view)?,
            TcpFormat::Csv => output::csv(view, !self.begun)?.into_bytes(),
            TcpFormat::Table => self.table(view).into_bytes(),
        };
        self.begun = true;
        if !self.stdout {
            self.kept.extend(bytes);
            return Ok(());
        }
        let mut stdout = io::stdout().lock();
        match stdout.write_all(&bytes).and_then(|()| stdout.flush()) {
            // The reader has seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
            done => done.context("cannot write to standard output"),
        }
    }

    fn table(&mut self, view: &View) -> String {
        let (style, width) = terminal::look(self.live.is_some());
        let style = if self.stdout { style } else { Style::Plain };
        let width = if self.live.is_some() {
            width
        } else {
            PLAIN_WIDTH
        };
        let lines = output::lines(view, &self.hooks, width, style);
        match &mut self.live {
            Some(live) if !view.last => {
                live.redraw(&lines, terminal::size().map_or(24, |(_, rows)| rows))
            }
            Some(live) => live.redraw(&lines, usize::MAX),
            None => lines.join("\n") + "\n",
        }
    }

    fn finish(self) -> anyhow::Result<()> {
        if !self.stdout {
            self.destination.write(&self.kept)?;
        }
        Ok(())
    }
}

/// Columns of a table that goes to no terminal: all there is.
const PLAIN_WIDTH: usize = 400;
