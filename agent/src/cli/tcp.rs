//! `agent tcp`: runs what the specification says.

use std::cell::RefCell;
use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

use super::args::Verbosity;
use super::destination::{Destination, OutputError, Sink, Target};
use super::privileges::{self, Privileges};
use super::run::{self, Ended, Subjects};
use super::signals::Signals;
use super::tcp_args::{By, TcpFormat, TcpSpec};
use super::terminal;
use crate::guard::{Probe as Watched, Report};
use crate::output::escape;
use crate::output::table::{Live, Style};
use crate::output::tcp as output;
use crate::preflight::Kernel;
use crate::preflight::checks::Probe;
use crate::probe::tcp as probe;
use crate::recorder::guard::Watch;
use crate::recorder::tcp::{Listing, Tcp};
use crate::session::{Attached, Loaded};
use crate::tcp::view::{self, Document, Span};
use crate::tcp::{Connections, filter};

/// Watches the connections, shows them each interval and at the end; returns the exit code.
///
/// # Errors
/// Whatever keeps the run from starting, or its output from being written.
pub async fn run(spec: TcpSpec, verbosity: Verbosity) -> anyhow::Result<u8> {
    let mut signals = Signals::catch().context("cannot catch signals")?;
    privileges::check(Probe::Tcp, &spec.target, false)?;
    let kernel = Kernel::probe_with(&probe::fields())?;
    let mut subjects = Subjects::take(&spec.target)?;
    let (comm, pid) = subjects.first(&spec.target);
    let destination = Destination::prepare(spec.output.clone())?;
    let writing = destination.clone();
    let mut show = Show::new(&spec, destination, verbosity)?;
    let loaded = Loaded::load(kernel, &probe::needs())?;
    let processes = std::mem::take(&mut subjects.processes);
    let mut session = loaded.follow(processes, spec.target.follow())?;
    let tcp = Tcp::attach(
        &mut session,
        view::Target::new(pid, comm),
        Connections::default(),
    )?;
    let mut guard = Watch::begin(&mut session, spec.limit, &[Watched::Tcp], 0, false)?;
    show.say_hooks(&tcp.probe);
    let privileges = Privileges::of(
        Probe::Tcp,
        false,
        &spec.target,
        session.kernel(),
        [&writing],
        verbosity,
    );
    privileges.settle();
    subjects.release()?;
    let tcp = RefCell::new(tcp);
    let mut shown = Duration::ZERO;
    let mut failure = None;
    let ended = run::until_end(
        &mut session,
        &mut subjects,
        &mut signals,
        spec.target.duration,
        &mut |bytes, targets| tcp.borrow_mut().take(bytes, targets),
        |session, elapsed| {
            if elapsed - shown >= spec.interval && failure.is_none() {
                failure = interval(session, &mut tcp.borrow_mut(), &spec, &mut show).err();
                shown = elapsed;
            }
            if show.has_ended() || failure.is_some() {
                ControlFlow::Break(Ended::ReaderGone)
            } else if guard.tick(session).is_some() {
                failure = tcp.borrow_mut().detach(session).err().map(Into::into);
                run::without_probes(&spec.target)
            } else {
                ControlFlow::Continue(())
            }
        },
    )
    .await;
    let seen = end(
        &mut session,
        &mut tcp.into_inner(),
        &spec,
        &mut show,
        guard.report(),
    )
    .await;
    let command = subjects.finish(ended);
    privileges.finish();
    let shown = show.finish(verbosity);
    if spec.format != TcpFormat::Table || spec.output != Target::Stdout {
        run::say_step(guard.last_step().as_ref(), verbosity);
    }
    failure.map_or(Ok(()), Err)?;
    let seen = seen?;
    shown?;
    Ok(run::exit_code(command, seen))
}

fn interval(
    session: &mut Attached,
    tcp: &mut Tcp,
    spec: &TcpSpec,
    show: &mut Show,
) -> anyhow::Result<()> {
    tcp.look(session)?;
    session.drain(&mut |bytes, targets| tcp.take(bytes, targets));
    let wanted = show.wants_intervals();
    let document = tcp.interval(session, |connections, span, now| match wanted {
        true => list(spec, connections, span, now),
        false => Listing::default(),
    });
    if wanted {
        show.put(&document)?;
    }
    tcp.end_interval();
    Ok(())
}

/// The last document, since the attach; says whether any connection was seen.
async fn end(
    session: &mut Attached,
    tcp: &mut Tcp,
    spec: &TcpSpec,
    show: &mut Show,
    guard: Option<&Report>,
) -> anyhow::Result<bool> {
    tcp.detach(session)?;
    session
        .finish(&mut |bytes, targets| tcp.take(bytes, targets))
        .await;
    let (document, looked) = tcp.last(session, |connections, span, now| {
        list(spec, connections, span, now)
    });
    let document = Document {
        guard: guard.cloned(),
        ..document
    };
    show.put(&document)?;
    looked?;
    Ok(document.sums.connections > 0 || document.sums.failed > 0)
}

/// The rows that were asked for.
fn list(spec: &TcpSpec, connections: &Connections, span: Span, now: u64) -> Listing {
    match spec.by {
        By::Connection => {
            let mut rows = connections.rows(span, now);
            let all = rows.len();
            rows.retain(|row| spec.filter.holds(row));
            filter::sort(&mut rows, spec.sort);
            rows.truncate(spec.top);
            Listing {
                not_shown: all - rows.len(),
                connections: Some(rows),
                remotes: None,
            }
        }
        By::Remote => {
            let (mut rows, hidden) = connections.remotes_where(
                span,
                now,
                |row| spec.filter.holds(row),
                |role, remote| spec.filter.holds_remote(role, remote),
            );
            filter::sort_remotes(&mut rows, spec.sort);
            let all = hidden + rows.len();
            rows.truncate(spec.top);
            Listing {
                not_shown: all - rows.len(),
                remotes: Some(rows),
                connections: None,
            }
        }
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

    fn say_hooks(&mut self, probe: &probe::Probe) {
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
