//! A run under way, one recorder for each probe: takes in the probe's records and makes the model
//! of a moment from them. `agent profile`, `agent tcp` and `agent syscalls` have one each; a
//! [`Recorder`] has all three, in one session and by one clock.

pub mod cpu;
pub mod guard;
pub mod live;
mod probes;
pub mod rows;
pub mod syscalls;
pub mod tcp;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::calendar::Utc;
use crate::capture::{self, Capture, Meta};
use crate::guard::{Limit, Probe, Step};
use crate::hazards;
use crate::preflight::{self, Kernel};
use crate::probe::{syscalls as syscall_probe, tcp as tcp_probe};
use crate::process::{self, usage::Usage};
use crate::profile::{Accounting, Facts, Profile};
use crate::session::target::Targets;
use crate::session::{Attached, Error, Needs};
use crate::syscalls::{Report, SHOWN_ARGUMENTS};
use crate::tcp::Connections;
use crate::tcp::view::{self, Document};
use probes::Probes;
use rows::Budget;

/// Shortest time at the end of a run that is kept as an interval of its own.
const SHORTEST: Duration = Duration::from_millis(100);

/// What a capture is made with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Samples per second on each CPU.
    pub frequency: u64,
    /// Of the overhead guard.
    pub limit: Option<Limit>,
    syscalls: syscall_probe::Options,
}

impl Options {
    /// Failing calls are counted, not timed; `stacks`: by their stacks, too.
    pub fn new(frequency: u64, stacks: bool, limit: Option<Limit>) -> Self {
        Self {
            frequency,
            limit,
            syscalls: syscall_probe::Options {
                stacks,
                arguments: SHOWN_ARGUMENTS,
                ..syscall_probe::Options::default()
            },
        }
    }

    /// With all arguments of failing calls in the reports.
    pub fn with_all_arguments(mut self) -> Self {
        self.syscalls.arguments = usize::MAX;
        self
    }

    /// Whether the clock may be one of hardware cycles, whose ticks interrupt the kernel anywhere.
    fn may_count_cycles(&self, kernel: &Kernel) -> bool {
        !(self.syscalls.stacks && kernel.has(&hazards::LRU_IN_NMI))
    }

    /// What the session must provide: what each of the probes needs.
    ///
    /// # Errors
    /// When the kernel lacks a field that they need.
    pub fn needs(&self, kernel: &Kernel) -> Result<Needs, preflight::Error> {
        Ok(Needs {
            stacks: true,
            globals: self.syscalls.globals(kernel)?,
            unused_maps: vec![self.syscalls.unused_maps()],
            ..tcp_probe::needs()
        })
    }
}

/// All probes.
pub struct Recorder {
    probes: Probes,
    usage: Usage,
    connections: Vec<Document>,
    reports: Vec<Report>,
    budget: Budget,
    /// Until when intervals are kept, since the begin.
    kept: Duration,
    /// When the next interval is over, since the begin.
    next: Duration,
    /// Zero until the end.
    duration: Duration,
}

impl Recorder {
    /// Fields that the preflight has to look up.
    pub fn fields() -> Vec<&'static str> {
        let mut fields = tcp_probe::fields();
        fields.extend(syscall_probe::FIELDS);
        fields
    }

    /// Attaches all probes, the clock last: the run begins with it. `first` is the first process.
    ///
    /// # Errors
    /// When the kernel refuses one.
    pub async fn attach(
        session: &mut Attached,
        options: &Options,
        first: view::Target,
    ) -> Result<Self, Error> {
        let probes = Probes::attach(session, options, first, Connections::default()).await?;
        let mut usage = Usage::default();
        usage.look(processes(session));
        Ok(Self {
            probes,
            usage,
            connections: Vec::new(),
            reports: Vec::new(),
            budget: Budget::default(),
            kept: Duration::ZERO,
            next: rows::interval(Duration::ZERO),
            duration: Duration::ZERO,
        })
    }

    /// When the run began.
    pub fn begin(&self) -> Instant {
        self.probes.begin()
    }

    /// The sampling clock.
    pub fn clock(&self) -> crate::probe::cpu::Clock {
        self.probes.cpu.clock()
    }

    /// The hooks that the connections are seen by.
    pub fn probe(&self) -> &tcp_probe::Probe {
        &self.probes.tcp.probe
    }

    /// How long the run was, once it is finished.
    pub fn duration(&self) -> Duration {
        self.duration
    }

    /// Samples of the targets so far.
    pub fn samples(&self) -> u64 {
        self.probes.cpu.samples()
    }

    /// Takes in one record of the ring buffer: each goes to its own probe.
    pub fn take(&mut self, bytes: &[u8], targets: &Targets) {
        self.probes.take(bytes, targets);
    }

    /// To be called several times a second: keeps an interval that is over.
    ///
    /// # Errors
    /// When the kernel's iterator cannot be run.
    pub fn tick(&mut self, session: &mut Attached) -> Result<(), Error> {
        let elapsed = self.begin().elapsed();
        if elapsed < self.next {
            return Ok(());
        }
        self.next = elapsed.max(self.next + rows::interval(elapsed));
        self.interval(session)
    }

    /// To be called several times a second: holds the cost against its limit. Gives what was done
    /// about it.
    ///
    /// # Errors
    /// When a probe could not be taken away.
    pub fn watch(&mut self, session: &mut Attached) -> Result<Option<Step>, Error> {
        self.probes.watch(session)
    }

    /// Whether the guard has taken all probes away.
    pub fn has_ended(&self) -> bool {
        self.probes.guard.has_ended()
    }

    fn interval(&mut self, session: &mut Attached) -> Result<(), Error> {
        self.kept = self.begin().elapsed();
        if self.duration.is_zero() {
            self.usage.look(processes(session));
        }
        // An interval in which a probe was not attached would look like one without events.
        if self.probes.guard.is_attached(Probe::Tcp) {
            self.probes.tcp.look(session)?;
            session.drain(&mut |bytes, targets| self.take(bytes, targets));
            let budget = &mut self.budget;
            let mut document = self.probes.tcp.interval(session, |connections, span, now| {
                budget.list(connections, span, now)
            });
            self.probes.tcp.end_interval();
            self.budget.cut_document(&mut document);
            self.connections.push(document);
        }
        if self.probes.guard.is_attached(Probe::Syscalls) {
            let mut report = self.probes.syscalls.report(session, false);
            self.budget.cut_report(&mut report);
            self.reports.push(report);
        }
        Ok(())
    }

    /// Takes the probes away and takes in what is left.
    ///
    /// # Errors
    /// When the kernel's iterator cannot be run; what was seen is there all the same.
    pub async fn finish(&mut self, session: &mut Attached) -> Result<(), Error> {
        self.usage.look(processes(session));
        self.duration = self.probes.detach(session)?;
        let interval = match self.duration >= self.kept + SHORTEST {
            true => self.interval(session),
            false => Ok(()),
        };
        session
            .finish(&mut |bytes, targets| self.take(bytes, targets))
            .await;
        let (document, looked) = self.probes.tcp.last(session, rows::all);
        self.connections.push(document);
        self.reports
            .push(self.probes.syscalls.report(session, true));
        interval.and(looked)
    }

    /// All that was seen, named. `target` has what is known of the first process beside its id, name
    /// and program.
    pub fn capture(self, session: &Attached, facts: Facts, target: capture::Target) -> Capture {
        let duration_seconds = facts.duration_seconds;
        // The guard may have stopped the clock before the end.
        let facts = Facts {
            guard: self.probes.guard.report().cloned(),
            duration_seconds: self.probes.cpu.ran().as_secs_f64(),
            ..facts
        };
        let profile = self.probes.cpu.profile(session, facts);
        let mut capture = Capture {
            meta: Meta::default(),
            profile,
            connections: self.connections,
            syscalls: self.reports,
        };
        let cpu = capture::Cpu {
            cpus: capture.profile.facts.cpus,
            used_seconds: self.usage.used_seconds(),
            waited_seconds: self.usage.waited_seconds(),
        };
        capture.meta = Meta {
            duration_seconds,
            ..meta(&capture, target, cpu, &self.probes.tcp.probe)
        };
        capture
    }
}

/// The circumstances of a capture; see [`Recorder::capture`].
pub(crate) fn meta(
    capture: &Capture,
    target: capture::Target,
    cpu: capture::Cpu,
    probe: &tcp_probe::Probe,
) -> Meta {
    let profile = &capture.profile;
    let facts = &profile.facts;
    let first = facts.targets.first().cloned().unwrap_or_default();
    let losses = losses(
        &profile.accounting,
        capture.all_connections().map(|document| &document.losses),
        capture.all_syscalls().map(|report| &report.losses),
    );
    Meta {
        schema: capture::SCHEMA.to_owned(),
        agent_version: facts.agent_version.clone(),
        command_line: facts.command_line.clone(),
        host: process::host_name(),
        kernel: facts.kernel.clone(),
        started: facts.started,
        started_at: Utc::at(facts.started).to_string(),
        duration_seconds: facts.duration_seconds,
        ended: facts.ended.clone(),
        guard: facts.guard.clone(),
        target: capture::Target {
            pid: first.pid,
            comm: first.comm,
            exe: first.exe,
            container: first.container,
            cgroup: first.cgroup,
            processes: facts.targets.len(),
            ..target
        },
        modules: modules(profile),
        cpu,
        hooks: probe.hooks.clone(),
        not_seen: probe.missing.iter().map(|&text| text.to_owned()).collect(),
        cost: profile.cost.clone(),
        losses,
    }
}

fn processes(session: &Attached) -> impl Iterator<Item = &process::Process> {
    let list = session.targets().list();
    list.iter().filter_map(|tracked| tracked.process.as_ref())
}

fn modules(profile: &Profile) -> BTreeMap<String, String> {
    let known = |module: &crate::profile::ModuleFacts| {
        Some((module.name.clone(), module.build_id.clone()?))
    };
    profile.modules.iter().filter_map(known).collect()
}

/// All losses, by probe.
pub(crate) fn losses(
    accounting: &Accounting,
    tcp: Option<&BTreeMap<Cow<'static, str>, u64>>,
    syscalls: Option<&BTreeMap<String, u64>>,
) -> BTreeMap<String, BTreeMap<String, u64>> {
    let owned = |losses: &BTreeMap<Cow<'static, str>, u64>| -> BTreeMap<String, u64> {
        let losses = losses.iter();
        losses
            .map(|(cause, &count)| (cause.clone().into_owned(), count))
            .collect()
    };
    let mut profile = owned(&accounting.lost);
    profile.insert("programs_skipped".to_owned(), accounting.recursion_misses);
    BTreeMap::from([
        ("profile".to_owned(), profile),
        ("tcp".to_owned(), tcp.map(owned).unwrap_or_default()),
        ("syscalls".to_owned(), syscalls.cloned().unwrap_or_default()),
    ])
}
