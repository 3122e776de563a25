//! Tries a probe: loads its programs, attaches them, and lets them go. The agent itself is the target.

use crate::preflight::Kernel;
use crate::preflight::checks::{Effect, Probe, Problem, look};
use crate::preflight::facts::Facts;
use crate::preflight::refusal::explain;
use crate::probe::cpu as cpu_probe;
use crate::probe::syscalls::{self as syscall_probe, Options as SyscallOptions};
use crate::probe::tcp as tcp_probe;
use crate::process::{self, Process};
use crate::recorder::cpu::Cpu;
use crate::recorder::syscalls::Syscalls;
use crate::recorder::tcp::Tcp;
use crate::recorder::{Options, Recorder};
use crate::session::{self, Attached, Follow, Loaded, Needs};
use crate::tcp::Connections;
use crate::tcp::view::Target;

use super::{Finding, State};

/// Samples per second, on each CPU, for the moment of the trial.
const FREQUENCY: i64 = 99;

/// What was seen, and what the kernel does not allow.
type Seen = (String, Vec<Problem>);

/// Looks at what is in the way of a probe; where nothing is, tries it.
pub async fn examine(probe: Probe, facts: &Facts) -> Finding {
    let mut problems = look(facts, probe);
    let (mut detail, mut error) = (String::new(), None);
    if State::of(&problems) != State::Blocked {
        match attempt(probe, facts, &problems).await {
            Ok((seen, missing)) => {
                detail = seen;
                problems.extend(missing);
            }
            Err(refused) => {
                problems = why(&refused, probe, facts);
                error = Some(chain(&refused));
            }
        }
    }
    Finding {
        probe,
        state: State::of(&problems),
        detail,
        problems,
        error,
    }
}

/// Why a trial failed.
fn why(error: &session::Error, probe: Probe, facts: &Facts) -> Vec<Problem> {
    match error.refusal() {
        Some(refusal) => explain(facts, probe, refusal),
        None => vec![Problem {
            check: "kernel_config",
            effect: Effect::Blocks,
            reason: chain(error),
            fix: None,
        }],
    }
}

/// The error and its sources, as one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    // A verifier's log has many lines.
    text.lines().next().unwrap_or_default().to_owned()
}

/// Tries a probe that `problems` degrade at most.
async fn attempt(
    probe: Probe,
    facts: &Facts,
    problems: &[Problem],
) -> Result<Seen, session::Error> {
    match probe {
        Probe::Profile => profile(facts),
        Probe::KernelNames => {
            let seen = if problems.is_empty() {
                "shows"
            } else {
                "hides"
            };
            Ok((format!("/proc/kallsyms {seen} addresses"), Vec::new()))
        }
        Probe::Tcp => tcp(),
        Probe::Syscalls => syscalls(false),
        Probe::SyscallsLatency => syscalls(true),
        Probe::Record => record(facts).await,
    }
}

/// The session of a command, with the agent itself as the target.
fn session(kernel: Kernel, needs: &Needs) -> Result<Attached, session::Error> {
    let own = Process::open(std::process::id()).map_err(session::target::Error::from)?;
    Loaded::load(kernel, needs)?.follow(vec![own], Follow::default())
}

fn frequency(facts: &Facts) -> u64 {
    let limit = facts.perf_event_max_sample_rate.unwrap_or(FREQUENCY);
    limit.clamp(1, FREQUENCY).unsigned_abs()
}

fn profile(facts: &Facts) -> Result<Seen, session::Error> {
    let mut session = session(Kernel::probe()?, &cpu_probe::needs())?;
    let mut cpu = Cpu::attach(&mut session, frequency(facts), true)?;
    let seen = format!(
        "samples by {} on {} CPUs, kernel and user stacks",
        cpu.clock().name(),
        session.kernel().cpus.len()
    );
    cpu.detach(&mut session)?;
    Ok((seen, Vec::new()))
}

fn tcp() -> Result<Seen, session::Error> {
    let kernel = Kernel::probe_with(&tcp_probe::fields())?;
    let mut session = session(kernel, &tcp_probe::needs())?;
    let tcp = Tcp::attach(&mut session, own_target(), Connections::default())?;
    Ok(hooks(&tcp.probe))
}

fn own_target() -> Target {
    Target {
        pid: std::process::id(),
        comm: "agent".to_owned(),
        ..Target::default()
    }
}

fn hooks(probe: &tcp_probe::Probe) -> Seen {
    let missing = probe.missing.iter().map(|missing| Problem {
        check: "kernel_config",
        effect: Effect::Degrades,
        reason: format!("not seen on this kernel: {missing}"),
        fix: None,
    });
    (probe.hooks.join(", "), missing.collect())
}

fn syscalls(latency: bool) -> Result<Seen, session::Error> {
    let options = SyscallOptions {
        latency,
        ..SyscallOptions::default()
    };
    let kernel = Kernel::probe_with(syscall_probe::FIELDS)?;
    let needs = options.needs(&kernel)?;
    let mut session = session(kernel, &needs)?;
    Syscalls::attach(&mut session, &options)?;
    let seen = match latency {
        true => "failing calls at sys_exit, their times from sys_enter",
        false => "failing calls at sys_exit",
    };
    Ok((seen.to_owned(), Vec::new()))
}

async fn record(facts: &Facts) -> Result<Seen, session::Error> {
    let options = Options::new(frequency(facts), true, None);
    let kernel = Kernel::probe_with(&Recorder::fields())?;
    let needs = options.needs(&kernel)?;
    let mut session = session(kernel, &needs)?;
    let recorder = Recorder::attach(&mut session, &options, own_target()).await?;
    let (_, missing) = hooks(recorder.probe());
    let seen = format!(
        "all of them in one session, {:.0} MB of BPF maps",
        process::bpf_map_bytes() as f64 / 1e6
    );
    Ok((seen, missing))
}
