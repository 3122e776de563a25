//! A run without an end: what happened in its last seconds, for the live page, and what since its
//! start, for metrics. What is kept is bounded; a look does not wait for names.

use std::time::{Duration, Instant};

use agent_ebpf::Counter;

use super::cpu::facts;
use super::probes::Probes;
use super::tcp::Listing;
use super::{Options, losses, meta};
use crate::capture::{self, Capture, Meta};
use crate::guard::Step;
use crate::naming::live::LiveNames;
use crate::output::live::{Totals as Sums, View};
use crate::output::metrics::{self, Metrics};
use crate::probe::cpu::Sent;
use crate::process;
use crate::profile::{Facts, Profile};
use crate::session::target::Targets;
use crate::session::{Attached, Error};
use crate::syscalls::{Report, SHOWN_ARGUMENTS, recent::Recent, totals::Totals};
use crate::tcp::view::{self, Document, RemoteTotal, Span};
use crate::tcp::{Connections, filter};
use crate::window::Window;

/// Longest window, in seconds.
pub const MAX_WINDOW: u32 = 60;
/// Time between two looks at everything.
const SECOND: Duration = Duration::from_secs(1);

/// A run under way, or one whose targets have ended.
pub struct Live {
    probes: Probes,
    sent: Sent,
    window: Window,
    names: LiveNames,
    recent: Recent,
    totals: Totals,
    totals_of_remotes: Vec<RemoteTotal>,
    /// Seconds since the epoch.
    started: u64,
    /// What is known of the first process beside its id, name and program.
    target: capture::Target,
    /// When the second under way began.
    second: Instant,
    /// CPU seconds of the agent then, and its share of a CPU in the last second.
    own: (f64, f64),
    ended: Option<(&'static str, Duration)>,
    /// The last report of failing calls: reading the kernel's maps takes a moment.
    report: Option<Report>,
}

impl Live {
    /// Attaches all probes, the clock last. `started`: now, in seconds since the epoch; `target`:
    /// what is known of the first process, `first`, beside its id, name and program.
    ///
    /// # Errors
    /// When the kernel refuses a program.
    pub async fn attach(
        session: &mut Attached,
        options: &Options,
        started: u64,
        first: view::Target,
        target: capture::Target,
    ) -> Result<Self, Error> {
        let sent = Sent::of(session)?;
        let probes = Probes::attach(session, options, first, Connections::endless()).await?;
        Ok(Self {
            second: probes.begin(),
            probes,
            sent,
            window: Window::new(MAX_WINDOW),
            names: LiveNames::default(),
            recent: Recent::default(),
            totals: Totals::default(),
            totals_of_remotes: Vec::new(),
            started,
            target,
            own: (process::own_usage().0, 0.0),
            ended: None,
            report: None,
        })
    }

    /// The number of the second under way: what is shown changes with it.
    pub fn second(&self) -> u64 {
        self.window.seconds()
    }

    /// Takes in one record of the ring buffer.
    pub fn take(&mut self, bytes: &[u8], targets: &Targets) {
        self.probes.take(bytes, targets);
    }

    /// As [`super::Recorder::watch`].
    ///
    /// # Errors
    /// When a probe could not be taken away.
    pub fn watch(&mut self, session: &mut Attached) -> Result<Option<Step>, Error> {
        self.probes.watch(session)
    }

    /// Ends the second if it is over; to be called several times in each.
    ///
    /// # Errors
    /// When the kernel's iterator cannot be run.
    pub fn tick(&mut self, session: &mut Attached) -> Result<(), Error> {
        if self.second.elapsed() < SECOND {
            return Ok(());
        }
        self.probes.tcp.look(session)?;
        session.drain(&mut |bytes, targets| self.take(bytes, targets));
        self.turn(session);
        Ok(())
    }

    /// The second is over, whatever its length.
    fn turn(&mut self, session: &Attached) {
        let length = self.second.elapsed().as_secs_f64();
        self.second = Instant::now();
        self.probes.tcp.pass_interval(session);
        self.totals_of_remotes = self.probes.tcp.totals();
        let gone = self.window.turn(self.probes.cpu.samples_mut(), length);
        self.sent.forget(&gone);
        self.report = None;
        if self.recent.is_due(self.elapsed().as_secs_f64()) {
            let report = self.report(session);
            self.recent.keep(&report);
        }
        let own = process::own_usage().0;
        self.own = (own, (own - self.own.0) / length.max(1e-3));
    }

    /// The targets have ended, or the user wants no more: takes the programs away and the last
    /// records in. Questions can still be answered.
    ///
    /// # Errors
    /// When the kernel's iterator cannot be run.
    pub async fn end(&mut self, session: &mut Attached, why: &'static str) -> Result<(), Error> {
        let length = self.probes.detach(session)?;
        session
            .finish(&mut |bytes, targets| self.take(bytes, targets))
            .await;
        self.probes.tcp.last_look(session)?;
        // What is missing in two reports is lost: one before those that are shown.
        self.report = None;
        self.report(session);
        self.turn(session);
        self.ended = Some((why, length));
        Ok(())
    }

    fn elapsed(&self) -> Duration {
        match self.ended {
            Some((_, elapsed)) => elapsed,
            None => self.probes.begin().elapsed(),
        }
    }

    fn facts(&self, session: &Attached) -> Facts {
        let ended = self.ended.map_or("running", |(why, _)| why);
        Facts {
            guard: self.probes.guard.report().cloned(),
            ..facts(session, self.started, self.elapsed(), ended)
        }
    }

    /// Failing calls since the start, at most a second old.
    fn report(&mut self, session: &Attached) -> Report {
        if let Some(report) = &self.report {
            return report.clone();
        }
        let report = self.probes.syscalls.report(session, false);
        self.totals.take(&report.errors);
        self.report = Some(report.clone());
        report
    }

    /// What happened in the last so many seconds, to the last whole one.
    pub fn view(&mut self, session: &Attached, seconds: u32) -> View {
        let seconds = seconds.clamp(1, MAX_WINDOW);
        let (counts, window_s) = self.window.last(seconds);
        let (mut profile, pending_names) =
            self.names
                .profile(counts, self.probes.cpu.samples_mut(), session.targets());
        self.probes
            .cpu
            .describe(&mut profile, session, self.facts(session));
        let report = self.report(session);
        let (syscalls, syscalls_s) = self.recent.of(&report, f64::from(seconds), SHOWN_ARGUMENTS);
        let connections = self.probes.tcp.recent(session, seconds, list);
        View {
            window_s,
            losses: losses(
                &profile.accounting,
                Some(&connections.losses),
                Some(&report.losses),
            ),
            profile,
            pending_names,
            connections,
            syscalls,
            syscalls_s,
            agent_cpu: self.own.1,
            agent_bytes: process::own_resident_bytes(),
            ended: self.ended.map(|(why, _)| why.to_owned()),
            totals: self.sums(session),
        }
    }

    fn sums(&self, session: &Attached) -> Sums {
        let requests = self.totals_of_remotes.iter();
        let failures = self.totals.rows();
        Sums {
            samples: session.counters().get(Counter::Emitted),
            requests: requests.map(|remote| remote.requests.count).sum(),
            failures: failures.iter().map(|row| row.count).sum(),
        }
    }

    /// The metrics since the start, in Prometheus' text format.
    pub fn metrics(&mut self, session: &Attached) -> String {
        let report = self.report(session);
        let mut profile = Profile::default();
        self.probes
            .cpu
            .describe(&mut profile, session, self.facts(session));
        let tcp = self.probes.tcp.losses(session);
        metrics::render(&Metrics {
            version: &profile.facts.agent_version,
            kernel: &profile.facts.kernel,
            accounting: &profile.accounting,
            remotes: &self.totals_of_remotes,
            failures: &self.totals.rows(),
            losses: &losses(&profile.accounting, Some(&tcp), Some(&report.losses)),
            cpu_seconds: profile.cost.cpu_seconds,
            resident_bytes: process::own_resident_bytes(),
            bpf_map_bytes: session.map_bytes(),
        })
    }

    /// The capture of the last so many seconds. Accounts, losses and cost are those of the whole
    /// run; it has no intervals.
    pub fn capture(&mut self, session: &Attached, seconds: u32) -> Capture {
        let view = self.view(session, seconds);
        let mut profile = view.profile;
        let before = self.elapsed().as_secs_f64() - view.window_s;
        profile.facts.started += before.max(0.0) as u64;
        profile.facts.duration_seconds = (view.window_s - self.unsampled()).max(0.0);
        let cpu = capture::Cpu {
            cpus: profile.facts.cpus,
            ..capture::Cpu::default()
        };
        let mut capture = Capture {
            meta: Meta::default(),
            profile,
            connections: vec![Document {
                last: true,
                ..view.connections
            }],
            syscalls: vec![Report {
                last: true,
                ..view.syscalls
            }],
        };
        capture.meta = Meta {
            duration_seconds: view.window_s,
            ..meta(&capture, self.target.clone(), cpu, &self.probes.tcp.probe)
        };
        capture
    }

    /// Seconds without a clock, to the end of the last whole second.
    fn unsampled(&self) -> f64 {
        let turned = self.second.duration_since(self.probes.begin());
        turned.saturating_sub(self.probes.cpu.ran()).as_secs_f64()
    }
}

/// All rows, the slowest first.
fn list(connections: &Connections, span: Span, now: u64) -> Listing {
    let mut rows = connections.rows(span, now);
    filter::sort(&mut rows, filter::Column::P99);
    let mut remotes = connections.remotes(span, now);
    filter::sort_remotes(&mut remotes, filter::Column::P99);
    Listing {
        connections: Some(rows),
        remotes: Some(remotes),
        not_shown: 0,
    }
}
