//! `agent serve` from the attached probes to the answers: a run without an end, and what happened in
//! its last seconds. What is kept is bounded; a look does not wait for names.

mod probes;

use std::time::{Duration, Instant};

use agent_ebpf::Counter;

use crate::capture::{self, Capture};
use crate::naming::live::LiveNames;
use crate::output::live::{Totals as Sums, View};
use crate::output::metrics::{self, Metrics};
use crate::preflight::{self, Kernel};
use crate::probe::cpu::Sent;
use crate::probe::syscalls::{Options, target_facts};
use crate::process;
use crate::profile::{Cost, Facts};
use crate::session::target::Targets;
use crate::session::{Attached, Error, Needs};
use crate::syscalls::{Report, recent::Recent, totals::Totals};
use crate::tcp::view::{self, Document, RemoteTotal, Span};
use crate::tcp::{Connections, filter};
use crate::window::Window;
use crate::{calendar, syscalls};

use probes::Probes;

/// Longest window, in seconds.
pub const MAX_WINDOW: u32 = 60;
/// Time between two looks at everything.
const SECOND: Duration = Duration::from_secs(1);
/// Arguments shown of each failing call.
const ARGUMENTS: usize = syscalls::SHOWN_ARGUMENTS;

/// The circumstances that do not change.
#[derive(Clone, Debug)]
struct Fixed {
    frequency: u64,
    started: u64,
    target: view::Target,
}

/// A run under way, or one whose targets have ended.
pub struct Live {
    probes: Probes,
    sent: Sent,
    window: Window,
    names: LiveNames,
    recent: Recent,
    totals: Totals,
    fixed: Fixed,
    /// When the second under way began.
    second: Instant,
    /// CPU seconds of the agent then, and what it took in the last second.
    cpu: (f64, f64),
    ended: Option<(&'static str, Duration)>,
    /// The last report of failing calls: reading the kernel's maps takes a moment.
    report: Option<Report>,
    totals_of_remotes: Vec<RemoteTotal>,
}

fn options() -> Options {
    Options {
        // All that there are: the differences of two moments are formed of them.
        arguments: usize::MAX,
        ..Options::default()
    }
}

impl Live {
    /// Fields of kernel structures that the preflight has to look up.
    pub fn fields() -> Vec<&'static str> {
        probes::fields()
    }

    /// What the session must provide.
    ///
    /// # Errors
    /// When the kernel lacks a field.
    pub fn needs(kernel: &Kernel) -> Result<Needs, preflight::Error> {
        probes::needs(kernel, &options())
    }

    /// Attaches all probes. `started`: now, in seconds since the epoch.
    ///
    /// # Errors
    /// When the kernel refuses a program.
    pub fn attach(
        session: &mut Attached,
        frequency: u64,
        started: u64,
        target: view::Target,
    ) -> Result<Self, Error> {
        let sent = Sent::of(session)?;
        let probes = Probes::attach(session, Connections::endless(), &options(), frequency)?;
        Ok(Self {
            second: probes.begin,
            probes,
            sent,
            window: Window::new(MAX_WINDOW),
            names: LiveNames::default(),
            recent: Recent::default(),
            totals: Totals::default(),
            fixed: Fixed {
                frequency,
                started,
                target,
            },
            cpu: (process::own_usage().0, 0.0),
            ended: None,
            report: None,
            totals_of_remotes: Vec::new(),
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

    /// Ends the second if it is over; to be called several times in each.
    ///
    /// # Errors
    /// When the kernel's iterator cannot be run.
    pub fn tick(&mut self, session: &mut Attached) -> Result<(), Error> {
        if self.second.elapsed() < SECOND {
            return Ok(());
        }
        self.probes.look(session)?;
        self.turn(session);
        Ok(())
    }

    /// The second is over, whatever its length.
    fn turn(&mut self, session: &mut Attached) {
        let length = self.second.elapsed().as_secs_f64();
        self.second = Instant::now();
        self.probes.connections.end_interval();
        self.totals_of_remotes = self.probes.connections.totals();
        let gone = self.window.turn(&mut self.probes.samples, length);
        self.sent.forget(&gone);
        self.report = None;
        if self
            .recent
            .is_due(self.probes.begin.elapsed().as_secs_f64())
        {
            let report = self.report(session);
            self.recent.keep(&report);
        }
        let cpu = process::own_usage().0;
        self.cpu = (cpu, (cpu - self.cpu.0) / length.max(1e-3));
    }

    /// The targets have ended, or the user wants no more: takes the programs away and the last
    /// records in. Questions can still be answered.
    ///
    /// # Errors
    /// When the bytecode does not hold a program.
    pub async fn end(&mut self, session: &mut Attached, why: &'static str) -> Result<(), Error> {
        self.probes.detach(session).await?;
        self.turn(session);
        // Reads the kernel's maps a last time.
        let _ = self.report(session);
        self.ended = Some((why, self.probes.begin.elapsed()));
        Ok(())
    }

    fn elapsed(&self) -> Duration {
        match self.ended {
            Some((_, elapsed)) => elapsed,
            None => self.probes.begin.elapsed(),
        }
    }

    /// Failing calls since the start, at most a second old.
    fn report(&mut self, session: &Attached) -> Report {
        if let Some(report) = &self.report {
            return report.clone();
        }
        let report = self
            .probes
            .failures
            .report(session, false, &mut |_| Vec::new());
        self.totals.take(&report.errors);
        self.report = Some(report.clone());
        report
    }

    /// What happened in the last so many seconds, to the last whole one.
    pub fn view(&mut self, session: &Attached, seconds: u32) -> View {
        let seconds = seconds.clamp(1, MAX_WINDOW);
        let (counts, window_s) = self.window.last(seconds);
        let targets = session.targets();
        let (mut profile, pending_names) =
            self.names.profile(counts, &self.probes.samples, targets);
        profile.facts = self.facts(session);
        profile.accounting = self.probes.accounting(session, &profile.facts);
        profile.cost = cost(session);
        let report = self.report(session);
        let (syscalls, syscalls_s) = self.recent.of(&report, f64::from(seconds), ARGUMENTS);
        let connections = self.connections(session, seconds);
        View {
            window_s,
            losses: self
                .probes
                .losses(&profile.accounting, &connections.losses, &report.losses),
            profile,
            pending_names,
            connections,
            syscalls,
            syscalls_s,
            agent_cpu: self.cpu.1,
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

    fn facts(&self, session: &Attached) -> Facts {
        Facts {
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: session.kernel().name.clone(),
            event: self.probes.clock.name().to_owned(),
            frequency: self.fixed.frequency,
            cpus: session.kernel().cpus.len() as u32,
            started: self.fixed.started,
            duration_seconds: self.elapsed().as_secs_f64(),
            targets: session.targets().list().iter().map(target_facts).collect(),
            ended: self.ended.map_or("running", |(why, _)| why).to_owned(),
            ..Facts::default()
        }
    }

    fn connections(&self, session: &Attached, seconds: u32) -> Document {
        let connections = &self.probes.connections;
        let (slice, intervals) = connections.slice_before(seconds);
        let span = Span::Recent(slice, intervals as f64);
        let now = process::monotonic_ns();
        let mut rows = connections.rows(span, now);
        filter::sort(&mut rows, filter::Column::P99);
        let mut remotes = connections.remotes(span, now, |_| true);
        filter::sort_remotes(&mut remotes, filter::Column::P99);
        let first = session.targets().list().first();
        let target = &self.fixed.target;
        Document {
            last: self.ended.is_some(),
            elapsed_s: view::to_millis(self.elapsed().as_secs_f64()),
            target: view::Target {
                pid: target.pid,
                comm: first.map_or(&target.comm, |first| &first.comm).clone(),
            },
            connections: Some(rows),
            remotes: Some(remotes),
            not_shown: 0,
            sums: connections.sums(span),
            failed_connects: connections.failed(),
            losses: self.probes.tcp_losses(session),
        }
    }

    /// The metrics since the start, in Prometheus' text format.
    pub fn metrics(&mut self, session: &Attached) -> String {
        let report = self.report(session);
        let facts = self.facts(session);
        let accounting = self.probes.accounting(session, &facts);
        let tcp = self.probes.tcp_losses(session);
        metrics::render(&Metrics {
            version: &facts.agent_version,
            kernel: &facts.kernel,
            accounting: &accounting,
            remotes: &self.totals_of_remotes,
            failures: &self.totals.rows(),
            losses: &self.probes.losses(&accounting, &tcp, &report.losses),
            cpu_seconds: process::own_usage().0,
            resident_bytes: process::own_resident_bytes(),
            bpf_map_bytes: session.map_bytes(),
        })
    }

    /// The capture of the last so many seconds.
    pub fn capture(&mut self, session: &Attached, seconds: u32) -> Capture {
        let view = self.view(session, seconds);
        let mut profile = view.profile;
        profile.facts.duration_seconds = view.window_s;
        let facts = &profile.facts;
        let modules = profile.modules.iter();
        let first = facts.targets.first().cloned().unwrap_or_default();
        let meta = capture::Meta {
            schema: capture::SCHEMA.to_owned(),
            agent_version: facts.agent_version.clone(),
            kernel: facts.kernel.clone(),
            started: facts.started,
            started_at: calendar::Utc::at(facts.started).to_string(),
            duration_seconds: view.window_s,
            ended: facts.ended.clone(),
            target: capture::Target {
                pid: self.fixed.target.pid,
                comm: first.comm,
                exe: first.exe,
                processes: facts.targets.len(),
                ..capture::Target::default()
            },
            modules: modules
                .filter_map(|module| Some((module.name.clone(), module.build_id.clone()?)))
                .collect(),
            hooks: self.probes.tcp.hooks.clone(),
            not_seen: self
                .probes
                .tcp
                .missing
                .iter()
                .map(|&text| text.to_owned())
                .collect(),
            cost: profile.cost.clone(),
            losses: view.losses,
            ..capture::Meta::default()
        };
        Capture {
            meta,
            profile,
            connections: vec![Document {
                last: true,
                ..view.connections
            }],
            syscalls: vec![Report {
                last: true,
                ..view.syscalls
            }],
        }
    }
}

/// What the agent has taken so far.
fn cost(session: &Attached) -> Cost {
    let (cpu_seconds, peak_rss_bytes) = process::own_usage();
    Cost {
        cpu_seconds,
        peak_rss_bytes,
        bpf_map_bytes: Some(session.map_bytes()),
        ..Cost::default()
    }
}
