//! All probes of one run, by one clock and under one guard.

use std::time::{Duration, Instant};

use agent_ebpf::record;

use super::Options;
use super::cpu::Cpu;
use super::guard::Watch;
use super::syscalls::Syscalls;
use super::tcp::Tcp;
use crate::guard::{Decision, Probe, Step};
use crate::process;
use crate::session::target::Targets;
use crate::session::{Attached, Error};
use crate::tcp::Connections;
use crate::tcp::view::Target;

/// The probes, attached.
pub(super) struct Probes {
    pub(super) cpu: Cpu,
    pub(super) tcp: Tcp,
    pub(super) syscalls: Syscalls,
    pub(super) guard: Watch,
}

impl Probes {
    /// Attaches all probes, the clock last: the run begins with it. `first` is the first process;
    /// `connections`: none yet.
    ///
    /// # Errors
    /// When the kernel refuses one.
    pub(super) async fn attach(
        session: &mut Attached,
        options: &Options,
        first: Target,
        connections: Connections,
    ) -> Result<Self, Error> {
        let mut syscalls = Syscalls::attach(session, &options.syscalls)?;
        session.tables_ready().await;
        // What comes between a probe and the clock is counted too: the busiest probe comes late.
        let mut tcp = Tcp::attach(session, first, connections)?;
        let cycles = options.may_count_cycles(session.kernel());
        let cpu = Cpu::attach(session, options.frequency, cycles)?;
        let guard = Watch::begin(
            session,
            options.limit,
            &Probe::ALL,
            options.frequency,
            false,
        )?;
        syscalls.begin_at(process::monotonic_ns());
        tcp.begin_at(cpu.begin());
        Ok(Self {
            cpu,
            tcp,
            syscalls,
            guard,
        })
    }

    /// When the run began.
    pub(super) fn begin(&self) -> Instant {
        self.cpu.begin()
    }

    /// Takes in one record of the ring buffer: each goes to its own probe.
    pub(super) fn take(&mut self, bytes: &[u8], targets: &Targets) {
        match bytes.first_chunk().map(|kind| u32::from_ne_bytes(*kind)) {
            Some(record::TCP | record::TCP_REQUESTS) => self.tcp.take(bytes, targets),
            Some(record::SYSCALL | record::SYSCALL_STACK) => self.syscalls.take(bytes, targets),
            _ => self.cpu.take(bytes, targets),
        }
    }

    /// To be called several times a second: holds the cost against its limit. Gives what was done
    /// about it.
    ///
    /// # Errors
    /// When a probe could not be taken away.
    pub(super) fn watch(&mut self, session: &mut Attached) -> Result<Option<Step>, Error> {
        let Some(decision) = self.guard.tick(session) else {
            return Ok(None);
        };
        match decision {
            // A clock that cannot be slowed is stopped: it costs too much as it is.
            Decision::Slow(doublings) if self.cpu.slow(session, doublings).is_ok() => {}
            Decision::Slow(_) | Decision::Detach(Probe::Profile) => {
                self.cpu.detach(session)?;
            }
            Decision::Detach(Probe::Tcp) => self.tcp.detach(session)?,
            Decision::Detach(Probe::Syscalls) => self.syscalls.detach(session)?,
        }
        Ok(self.guard.last_step())
    }

    /// Takes the probes away, the clock first: the run ends with it. Gives how long it was.
    ///
    /// # Errors
    /// When the bytecode does not hold a program.
    pub(super) fn detach(&mut self, session: &mut Attached) -> Result<Duration, Error> {
        self.cpu.detach(session)?;
        let duration = self.begin().elapsed();
        self.cpu.keep_symbols();
        self.tcp.detach(session)?;
        self.syscalls.detach(session)?;
        Ok(duration)
    }
}
