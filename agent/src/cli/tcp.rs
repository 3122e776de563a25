//! `agent tcp`: runs what the specification says.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use agent_ebpf::Counter;
use anyhow::Context;

use super::args::Verbosity;
use super::destination::{Destination, OutputError, Sink, Target};
use super::run::{self, Subjects};
use super::signals::Signals;
use super::tcp_args::{By, TcpFormat, TcpSpec};
use super::terminal;
use crate::output::escape;
use crate::output::table::{Live, Style};
use crate::output::tcp as output;
use crate::preflight::Kernel;
use crate::probe::tcp::{self as probe, Probe};
use crate::process;
use crate::session::{Attached, Loaded};
use crate::tcp::view::{self, Document, Span};
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
    let mut show = Show::new(&spec, Destination::prepare(spec.output.clone())?, verbosity)?;
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
        skipped: 0,
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
            if show.has_ended() || failure.is_some() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        },
    )
    .await;
    let mut connections = connections.into_inner();
    let seen = watch.end(&mut session, &mut connections, &mut show);
    let command = subjects.finish(ended);
    let shown = show.finish(verbosity);
    failure.map_or(Ok(()), Err)?;
    let seen = seen?;
    shown?;
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
    /// Runs of the programs that the kernel skipped, which it forgets with them.
    skipped: u64,
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
        self.skipped = session.recursion_misses();
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
        connections.end(process::monotonic_ns());
        self.skipped = session.recursion_misses();
        probe::detach(session)?;
        session.drain(&mut |bytes, targets| probe::take_in(bytes, targets, connections));
        self.probe.last_look(session, connections)?;
        connections.take_waiting();
        let span = Span::Run(self.begin.elapsed().as_secs_f64());
        let view = self.view(session, connections, span);
        show.put(&view)?;
        Ok(view.sums.connections > 0 || view.sums.failed > 0)
    }

    fn view(&self, session: &Attached, connections: &Connections, span: Span) -> Document {
        let (listed, remotes, not_shown) = match self.spec.by {
            By::Connection => {
                let mut rows = connections.rows(span, process::monotonic_ns());
                let all = rows.len();
                rows.retain(|row| self.spec.filter.holds(row));
                filter::sort(&mut rows, self.spec.sort);
                rows.truncate(self.spec.top);
                let shown = rows.len();
                (Some(rows), None, all - shown)
            }
            By::Remote => {
                let mut rows = connections.remotes(span, process::monotonic_ns(), |row| {
                    self.spec.filter.holds(row)
                });
                filter::sort_remotes(&mut rows, self.spec.sort);
                let all = rows.len();
                rows.truncate(self.spec.top);
                let shown = rows.len();
                (None, Some(rows), all - shown)
            }
        };
        // The name may have come only with the exec.
        let comm = session
            .targets()
            .list()
            .first()
            .map_or(&self.comm, |tracked| &tracked.comm);
        Document {
            last: matches!(span, Span::Run(_)),
            elapsed_s: view::to_millis(self.begin.elapsed().as_secs_f64()),
            target: view::Target {
                pid: self.pid,
                comm: comm.clone(),
            },
            connections: listed,
            remotes,
            not_shown,
            sums: connections.sums(span),
            failed_connects: connections.failed(),
            losses: self.losses(session, connections),
        }
    }

    fn losses(
        &self,
        session: &Attached,
        connections: &Connections,
    ) -> BTreeMap<Cow<'static, str>, u64> {
        let counters = session.counters();
        let kernel = LOSSES.map(|counter| (counter.name(), counters.get(counter)));
        let mut losses: BTreeMap<Cow<'static, str>, u64> = kernel
            .into_iter()
            .chain(connections.losses())
            .map(|(cause, count)| (Cow::Borrowed(cause), count))
            .collect();
        *losses
            .entry(Cow::Borrowed(Counter::LostConnection.name()))
            .or_default() += connections.not_followed;
        losses.insert(Cow::Borrowed("programs_skipped"), self.skipped);
        losses
    }
}

/// Where the views go, and in what form.
struct Show {
    format: TcpFormat,
    /// Each view goes out at once: a long run is not to be kept in memory.
    sink: Sink,
    /// The file that the views go to.
    path: Option<PathBuf>,
    /// The table that is redrawn in place.
    live: Option<Live>,
    hooks: String,
    verbosity: Verbosity,
    begun: bool,
}

impl Show {
    fn new(
        spec: &TcpSpec,
        destination: Destination,
        verbosity: Verbosity,
    ) -> Result<Self, OutputError> {
        let stdout = spec.output == Target::Stdout;
        let live = stdout && spec.format == TcpFormat::Table && io::stdout().is_terminal();
        Ok(Self {
            format: spec.format,
            path: destination.path().map(Path::to_owned),
            sink: destination.begin()?,
            live: live.then(Live::default),
            hooks: String::new(),
            verbosity,
            begun: false,
        })
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

    fn put(&mut self, view: &Document) -> Result<(), OutputError> {
        let heading = !std::mem::replace(&mut self.begun, true);
        match self.format {
            TcpFormat::Json => self.sink.put(|mut out| output::json(view, &mut out)),
            TcpFormat::Csv => self
                .sink
                .put(|mut out| output::csv(view, heading, &mut out)),
            TcpFormat::Table => {
                let table = self.table(view);
                self.sink.put(|out| out.write_all(table.as_bytes()))
            }
        }
    }

    /// Whether nobody sees any more what is shown.
    fn has_ended(&self) -> bool {
        self.sink.has_ended()
    }

    fn table(&mut self, view: &Document) -> String {
        let (style, width) = terminal::look(self.live.is_some());
        let style = if self.path.is_none() {
            style
        } else {
            Style::Plain
        };
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

    fn finish(self, verbosity: Verbosity) -> Result<(), OutputError> {
        self.sink.finish()?;
        if let Some(path) = self.path
            && !verbosity.quiet
        {
            let path = path.to_string_lossy();
            let _ = writeln!(io::stderr(), "wrote {}", escape::plain(&path));
        }
        Ok(())
    }
}

/// Columns of a table that goes to no terminal: all there is.
const PLAIN_WIDTH: usize = 400;
