//! All three probes in one session: one load of the bytecode, one ring buffer, one clock.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Instant;

use agent_ebpf::{Counter, record};

use crate::preflight::{self, Kernel};
use crate::probe::cpu::{self, Clock, Samples};
use crate::probe::syscalls::{self, Failures, Options};
use crate::probe::tcp::{self, Probe};
use crate::process;
use crate::profile::{Accounting, Facts};
use crate::session::target::Targets;
use crate::session::{Attached, Error, Needs};
use crate::tcp::Connections;

/// Bytes of the ring buffer that all share: what connections need at most, and the usual again.
const RING_BYTES: u32 = 1 << 23;

/// Counters of the kernel programs that mean a loss of connections or requests.
const TCP_LOSSES: [Counter; 5] = [
    Counter::LostConnection,
    Counter::LostRequest,
    Counter::LostConnectionRecord,
    Counter::LostChild,
    Counter::LostProcessRecord,
];

/// Losses by cause.
pub(super) type Losses = BTreeMap<String, u64>;

/// Fields of kernel structures that the preflight has to look up.
pub(super) fn fields() -> Vec<&'static str> {
    let mut fields = tcp::fields();
    fields.extend(
        syscalls::FIELDS
            .iter()
            .filter(|field| !tcp::fields().contains(field)),
    );
    fields
}

/// What the session must provide.
///
/// # Errors
/// When the kernel lacks a field.
pub(super) fn needs(kernel: &Kernel, options: &Options) -> Result<Needs, preflight::Error> {
    let offsets = tcp::needs().offsets;
    let mut globals = options.globals(kernel)?;
    globals.retain(|(name, _)| offsets.iter().all(|(other, ..)| name != other));
    Ok(Needs {
        stacks: true,
        ring_bytes: RING_BYTES,
        offsets,
        globals,
        unused_maps: vec![options.unused_maps()],
    })
}

/// The probes at work, and what they have seen.
pub(super) struct Probes {
    /// Sampled stacks.
    pub(super) samples: Samples,
    /// Connections.
    pub(super) connections: Connections,
    /// Failing calls.
    pub(super) failures: Failures,
    /// The hooks of connections.
    pub(super) tcp: Probe,
    /// What drives the sampling.
    pub(super) clock: Clock,
    /// When sampling began.
    pub(super) begin: Instant,
    /// Runs of the programs that the kernel skipped.
    skipped: u64,
    undecoded: u64,
}

impl Probes {
    /// Attaches all, the clock last.
    ///
    /// # Errors
    /// When the kernel refuses a program.
    pub(super) fn attach(
        session: &mut Attached,
        mut connections: Connections,
        options: &Options,
        frequency: u64,
    ) -> Result<Self, Error> {
        let tcp = tcp::attach(session)?;
        tcp.look(session, &mut connections)?;
        let failures = syscalls::attach(session, options)?;
        let clock = cpu::attach(session, frequency)?;
        let begin = Instant::now();
        Ok(Self {
            samples: Samples::since(begin),
            connections,
            failures,
            tcp,
            clock,
            begin,
            skipped: 0,
            undecoded: 0,
        })
    }

    /// Takes in one record of the ring buffer, whichever probe sent it.
    pub(super) fn take(&mut self, bytes: &[u8], targets: &Targets) {
        match bytes.first_chunk().map(|kind| u32::from_ne_bytes(*kind)) {
            Some(record::STACK | record::SAMPLE) => self.samples.take(bytes, targets),
            Some(record::TCP | record::TCP_REQUESTS) => {
                tcp::take_in(bytes, targets, &mut self.connections);
            }
            Some(record::SYSCALL | record::SYSCALL_STACK) => self.failures.take(bytes, targets),
            _ => self.undecoded += 1,
        }
    }

    /// Looks at all connections and takes in what has come of every kind.
    ///
    /// # Errors
    /// When the kernel's iterator cannot be run.
    pub(super) fn look(&mut self, session: &mut Attached) -> Result<(), Error> {
        self.tcp.look(session, &mut self.connections)?;
        session.drain(&mut |bytes, targets| self.take(bytes, targets));
        self.connections.take_waiting();
        self.skipped = self.skipped.max(session.recursion_misses());
        Ok(())
    }

    /// Takes all programs away and takes in what is still on its way.
    ///
    /// # Errors
    /// When the bytecode does not hold a program.
    pub(super) async fn detach(&mut self, session: &mut Attached) -> Result<(), Error> {
        self.connections.end(process::monotonic_ns());
        self.skipped = self.skipped.max(cpu::detach(session)?);
        syscalls::detach(session, &mut self.failures)?;
        tcp::detach(session)?;
        session
            .finish(&mut |bytes, targets| self.take(bytes, targets))
            .await;
        self.tcp.last_look(session, &mut self.connections)?;
        self.connections.take_waiting();
        Ok(())
    }

    /// Where every tick went since the begin.
    pub(super) fn accounting(&self, session: &Attached, facts: &Facts) -> Accounting {
        let counters = session.counters();
        let emitted = counters.get(Counter::Emitted);
        let mut accounting = Accounting {
            ticks: counters.get(Counter::Ticks),
            idle: counters.get(Counter::Idle),
            other: counters.get(Counter::Other),
            emitted: emitted - self.samples.undecoded.min(emitted),
            expected_ticks: (facts.duration_seconds * facts.frequency as f64).round() as u64
                * u64::from(facts.cpus),
            recursion_misses: self.skipped,
            frame_pointer_frames: counters.get(Counter::FramePointerFallback),
            ..Accounting::default()
        };
        for counter in [Counter::LostRingFull, Counter::LostScratchBusy] {
            let count = counters.get(counter);
            accounting.lost.insert(counter.name().into(), count);
        }
        let undecoded = self.samples.undecoded;
        accounting.lost.insert("undecoded".into(), undecoded);
        accounting.notes.extend(session.targets().notes());
        accounting
    }

    /// What was lost by connections since the attach, all causes.
    pub(super) fn tcp_losses(&self, session: &Attached) -> BTreeMap<Cow<'static, str>, u64> {
        let counters = session.counters();
        let kernel = TCP_LOSSES.map(|counter| (counter.name(), counters.get(counter)));
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

    /// What was lost since the begin, by probe and cause; all causes. `failures`: those of the last
    /// [`Failures::report`].
    pub(super) fn losses(
        &self,
        accounting: &Accounting,
        tcp: &BTreeMap<Cow<'static, str>, u64>,
        failures: &Losses,
    ) -> BTreeMap<String, Losses> {
        let owned = |losses: &BTreeMap<Cow<'static, str>, u64>| -> Losses {
            let owned = losses
                .iter()
                .map(|(cause, count)| (cause.to_string(), *count));
            owned.collect()
        };
        let mut profile = owned(&accounting.lost);
        profile.insert("unknown_records".to_owned(), self.undecoded);
        BTreeMap::from([
            ("profile".to_owned(), profile),
            ("tcp".to_owned(), owned(tcp)),
            ("syscalls".to_owned(), failures.clone()),
        ])
    }
}
