//! Connections: the look at them each interval, and the document of a moment.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use agent_ebpf::Counter;

use crate::probe::tcp::{self as probe, Probe};
use crate::process;
use crate::session::target::Targets;
use crate::session::{Attached, Error};
use crate::tcp::Connections;
use crate::tcp::view::{self, Document, RemoteRow, RemoteTotal, Row, Span, Target};

/// Counters of the kernel programs that mean a loss here.
const LOSSES: [Counter; 5] = [
    Counter::LostConnection,
    Counter::LostRequest,
    Counter::LostConnectionRecord,
    Counter::LostChild,
    Counter::LostProcessRecord,
];

/// The rows of a document.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// Connections, if asked for.
    pub connections: Option<Vec<Row>>,
    /// Remotes, if asked for.
    pub remotes: Option<Vec<RemoteRow>>,
    /// Rows left out.
    pub not_shown: usize,
}

/// The connections of a run.
pub struct Tcp {
    /// The hooks.
    pub probe: Probe,
    connections: Connections,
    target: Target,
    begin: Instant,
    /// End of the last interval, since the begin.
    shown: Duration,
    /// When the hooks were taken away, since the begin.
    ended: Option<Duration>,
    /// Runs of the programs that the kernel skipped, which it forgets with them.
    skipped: u64,
}

impl Tcp {
    /// Attaches the hooks and looks at the connections that there are. `target` is the first process;
    /// `connections`: none yet.
    ///
    /// # Errors
    /// When the kernel has no hook of a kind that cannot be done without.
    pub fn attach(
        session: &mut Attached,
        target: Target,
        mut connections: Connections,
    ) -> Result<Self, Error> {
        let probe = probe::attach(session)?;
        probe.look(session, &mut connections)?;
        Ok(Self {
            probe,
            connections,
            target,
            begin: Instant::now(),
            shown: Duration::ZERO,
            ended: None,
            skipped: 0,
        })
    }

    /// Times count from this moment on.
    pub fn begin_at(&mut self, begin: Instant) {
        self.begin = begin;
    }

    /// Takes in one record of the ring buffer.
    pub fn take(&mut self, bytes: &[u8], targets: &Targets) {
        probe::take_in(bytes, targets, &mut self.connections);
    }

    /// Looks at all connections. Afterwards the ring buffer is to be drained.
    ///
    /// # Errors
    /// When the kernel's iterator cannot be run.
    pub fn look(&mut self, session: &mut Attached) -> Result<(), Error> {
        self.probe.look(session, &mut self.connections)
    }

    /// The document of the interval that is over: after a look and a drained ring buffer. `list`
    /// makes its rows.
    pub fn interval(&mut self, session: &Attached, list: impl List) -> Document {
        self.connections.take_waiting();
        if self.ended.is_none() {
            self.skipped = probe::skipped(session);
        }
        let elapsed = self.elapsed();
        let span = Span::Interval(elapsed.saturating_sub(self.shown).as_secs_f64());
        let document = self.document(session, span, list);
        self.shown = elapsed;
        document
    }

    /// Forgets the interval's times, once its document has been made.
    pub fn end_interval(&mut self) {
        self.connections.end_interval();
    }

    /// The interval is over, and nobody wants its document: after a look and a drained ring buffer.
    pub fn pass_interval(&mut self, session: &Attached) {
        self.connections.take_waiting();
        if self.ended.is_none() {
            self.skipped = probe::skipped(session);
        }
        self.shown = self.elapsed();
        self.connections.end_interval();
    }

    /// In a run without an end: the document of the last so many intervals or up to a slice more,
    /// when one has just ended.
    pub fn recent(&self, session: &Attached, intervals: u32, list: impl List) -> Document {
        let (slice, length) = self.connections.slice_before(intervals);
        let document = self.document(session, Span::Recent(slice, length as f64), list);
        Document {
            last: self.ended.is_some(),
            ..document
        }
    }

    /// In a run without an end: the sums since the attach, by remote.
    pub fn totals(&self) -> Vec<RemoteTotal> {
        self.connections.totals()
    }

    /// Looks at all connections a last time, after [`Tcp::detach`].
    ///
    /// # Errors
    /// When the kernel's iterator cannot be run.
    pub fn last_look(&mut self, session: &mut Attached) -> Result<(), Error> {
        self.probe.last_look(session, &mut self.connections)
    }

    /// Whether the hooks were taken away.
    pub fn has_ended(&self) -> bool {
        self.ended.is_some()
    }

    /// Takes the hooks away, if that was not done. Afterwards the ring buffer is to be drained.
    ///
    /// # Errors
    /// When the bytecode does not hold a program.
    pub fn detach(&mut self, session: &mut Attached) -> Result<(), Error> {
        if self.ended.is_some() {
            return Ok(());
        }
        self.connections.end(process::monotonic_ns());
        self.ended = Some(self.begin.elapsed());
        self.skipped = probe::skipped(session);
        probe::detach(session)
    }

    /// The document of the whole run, after [`Attached::finish`], and whether the kernel's iterator
    /// could be run for it. `list` makes its rows.
    pub fn last(
        &mut self,
        session: &mut Attached,
        list: impl List,
    ) -> (Document, Result<(), Error>) {
        let looked = self.last_look(session);
        self.connections.take_waiting();
        let span = Span::Run(self.elapsed().as_secs_f64());
        (self.document(session, span, list), looked)
    }

    /// Time watched.
    fn elapsed(&self) -> Duration {
        self.ended.unwrap_or_else(|| self.begin.elapsed())
    }

    fn document(&self, session: &Attached, span: Span, list: impl List) -> Document {
        let listing = list(&self.connections, span, process::monotonic_ns());
        // The name may have come only with the exec.
        let tracked = session.targets().list().first();
        Document {
            last: matches!(span, Span::Run(_)),
            elapsed_s: view::to_millis(self.elapsed().as_secs_f64()),
            span_s: span.apart(),
            target: Target {
                pid: self.target.pid,
                comm: tracked
                    .map_or(&self.target.comm, |first| &first.comm)
                    .clone(),
                container: tracked.and_then(|first| first.place.container.clone()),
                cgroup: tracked.and_then(|first| first.place.cgroup.clone()),
            },
            connections: listing.connections,
            remotes: listing.remotes,
            not_shown: listing.not_shown,
            sums: self.connections.sums(span),
            failed_connects: self.connections.failed(),
            losses: self.losses(session),
            guard: None,
        }
    }

    /// What was lost since the attach, by cause; all causes.
    pub fn losses(&self, session: &Attached) -> BTreeMap<Cow<'static, str>, u64> {
        let counters = session.counters();
        let kernel = LOSSES.map(|counter| (counter.name(), counters.get(counter)));
        let mut losses: BTreeMap<Cow<'static, str>, u64> = kernel
            .into_iter()
            .chain(self.connections.losses())
            .map(|(cause, count)| (cause.into(), count))
            .collect();
        *losses
            .entry(Counter::LostConnection.name().into())
            .or_default() += self.connections.not_followed;
        losses.insert("programs_skipped".into(), self.skipped);
        losses
    }
}

/// Makes the rows of a document from the connections at a time (nanoseconds of `CLOCK_MONOTONIC`).
pub trait List: FnOnce(&Connections, Span, u64) -> Listing {}
impl<F: FnOnce(&Connections, Span, u64) -> Listing> List for F {}
