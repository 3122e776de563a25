//! What every subcommand that watches processes shares: the targets, the loop, the end.

use std::collections::HashSet;
use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use super::launch::{Held, LaunchError, Running, shell_code};
use super::signals::Signals;
use super::spec::{GroupSpec, Scope, TargetSpec};
use super::{Exit, args::Verbosity};
use crate::guard::Step;
use crate::output;
use crate::parser;
use crate::process::Process;
use crate::process::cgroup::{self, Group};
use crate::session::target::Targets;
use crate::session::{self, Attached};

/// Shortest time between two looks at a control group.
const LOOK: Duration = Duration::from_millis(100);

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The time was over.
    Duration,
    /// Ctrl-C, SIGTERM or SIGHUP.
    Interrupted,
    /// All processes in scope have ended.
    TargetExited,
    /// Nobody reads the output any more.
    ReaderGone,
    /// The overhead guard took the last probe away.
    Overhead,
}

impl Ended {
    /// As it stands in the outputs.
    pub const fn name(self) -> &'static str {
        match self {
            Ended::Duration => "duration",
            Ended::Interrupted => "interrupted",
            Ended::TargetExited => "target_exited",
            Ended::ReaderGone => "reader_gone",
            Ended::Overhead => "overhead",
        }
    }
}

/// The processes to look at, taken hold of, or a program that waits to be started.
pub struct Subjects {
    /// Those in scope from the start.
    pub processes: Vec<Process>,
    group: Option<Members>,
    held: Option<Held>,
    running: Option<Running>,
    status: Option<ExitStatus>,
}

impl Subjects {
    /// Takes hold of them.
    ///
    /// # Errors
    /// No such process, one that cannot be looked at, or a program that cannot be started.
    pub fn take(spec: &TargetSpec) -> anyhow::Result<Self> {
        let (mut group, mut held) = (None, None);
        let processes = match &spec.scope {
            Scope::Processes(pids) => {
                let mut processes = Vec::new();
                for &pid in pids {
                    processes.push(Process::open(pid)?);
                }
                if spec.children {
                    add_descendants(&mut processes);
                }
                processes
            }
            Scope::Command(command) => {
                let new = Held::start(command)?;
                let process = Process::open(new.pid())?;
                held = Some(new);
                vec![process]
            }
            Scope::Group(spec) => {
                let members = Members::find(spec)?;
                let processes = members.group.processes()?;
                group = Some(members);
                processes
            }
        };
        Ok(Self {
            processes,
            group,
            held,
            running: None,
            status: None,
        })
    }

    /// The name and id of the first, for titles and file names. A program that waits to be
    /// started has the name of its file.
    pub fn first(&self, spec: &TargetSpec) -> (String, u32) {
        let pid = self.processes.first().map_or(0, Process::pid);
        let comm = match &spec.scope {
            Scope::Command(command) => command
                .first()
                .map(std::path::Path::new)
                .and_then(|path| path.file_name())
                .map(|name| name.to_string_lossy().into_owned()),
            Scope::Processes(_) | Scope::Group(_) => None,
        };
        let stat = || {
            self.processes
                .first()
                .and_then(|process| process.stat().ok())
        };
        (
            comm.or_else(|| stat().map(|stat| stat.comm))
                .unwrap_or_default(),
            pid,
        )
    }

    /// Starts the program that waits, if there is one.
    ///
    /// # Errors
    /// When it cannot be executed.
    pub fn release(&mut self) -> Result<(), LaunchError> {
        if let Some(held) = self.held.take() {
            self.running = Some(held.release()?);
        }
        Ok(())
    }

    /// Whether nobody is left to look at.
    fn all_ended(&mut self, session: &mut Attached) -> bool {
        if let Some(members) = &mut self.group {
            members.look(session, false);
            if session.targets().all_ended() {
                members.look(session, true);
            }
        }
        session.targets().all_ended()
    }

    fn command_ended(&mut self) -> bool {
        if let Some(running) = &mut self.running
            && self.status.is_none()
        {
            self.status = running.try_wait();
        }
        self.status.is_some()
    }

    /// Ends the program that we started, if it still runs, and gives its exit code; one that we
    /// ended ourselves gives none.
    pub fn finish(mut self, ended: Ended) -> Option<u8> {
        if self.running.is_some() && !self.command_ended() {
            if let Some(running) = &mut self.running {
                self.status = running.end();
            }
            if matches!(ended, Ended::Duration | Ended::ReaderGone) {
                return None;
            }
        }
        self.status.map(shell_code)
    }
}

/// A control group whose processes are in scope, also those that join it later: what is started in a
/// container from outside (`docker exec`) is nobody's child there.
struct Members {
    group: Group,
    /// When they are to be looked at again.
    due: Instant,
    /// Those that could not be taken into scope.
    refused: HashSet<u32>,
}

impl Members {
    fn find(spec: &GroupSpec) -> Result<Self, cgroup::Error> {
        let group = match spec {
            GroupSpec::Container(id) => Group::of_container(id)?,
            GroupSpec::Path(path) => Group::at(path)?,
        };
        Ok(Self {
            group,
            due: Instant::now(),
            refused: HashSet::new(),
        })
    }

    /// Takes those into scope that have joined, if it is time or `now`: a look may take 1 % of a CPU.
    fn look(&mut self, session: &mut Attached, now: bool) {
        let begin = Instant::now();
        if begin < self.due && !now {
            return;
        }
        let known = |pid| session.targets().has(pid) || self.refused.contains(&pid);
        let new = self.group.new_processes(known);
        if !new.is_empty() {
            self.refused.extend(session.join(new));
        }
        self.due = Instant::now() + LOOK.max(begin.elapsed() * 100);
    }
}

/// Adds the living descendants of the processes, each once.
fn add_descendants(processes: &mut Vec<Process>) {
    let mut next = 0;
    while let Some(process) = processes.get(next) {
        let known = |pid| processes.iter().any(|process| process.pid() == pid);
        let children = process.new_children(known);
        processes.extend(children);
        next += 1;
    }
}

/// Makes the tables of a program ready that is about to be started.
///
/// # Errors
/// When no slot is left.
pub fn make_ready(session: &mut Attached, target: &TargetSpec) -> Result<(), session::Error> {
    match &target.scope {
        Scope::Command(command) => command
            .first()
            .map_or(Ok(()), |program| session.make_ready(Path::new(program))),
        Scope::Processes(_) | Scope::Group(_) => Ok(()),
    }
}

/// Runs until the time is over, the targets have ended or the user has seen enough; from then on
/// another signal ends the agent itself. `record` takes each record of the probes; `tick` is called
/// after each look, several times a second, and may break off.
pub async fn until_end(
    session: &mut Attached,
    subjects: &mut Subjects,
    signals: &mut Signals,
    duration: Option<Duration>,
    record: &mut impl FnMut(&[u8], &Targets),
    tick: impl FnMut(&mut Attached, Duration) -> ControlFlow<Ended>,
) -> Ended {
    let ended = watch(session, subjects, signals, duration, record, tick).await;
    signals.release();
    ended
}

/// As [`until_end`], but signals stay caught.
pub async fn watch(
    session: &mut Attached,
    subjects: &mut Subjects,
    signals: &mut Signals,
    duration: Option<Duration>,
    record: &mut impl FnMut(&[u8], &Targets),
    mut tick: impl FnMut(&mut Attached, Duration) -> ControlFlow<Ended>,
) -> Ended {
    for warning in parser::warnings() {
        let _ = writeln!(io::stderr(), "agent: warning: {warning}");
    }
    let started = Instant::now();
    let deadline = duration.map(|duration| started + duration);
    loop {
        let time_left = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                None => std::future::pending().await,
            }
        };
        let ended = tokio::select! {
            () = session.pump(record) => None,
            () = signals.wait() => Some(Ended::Interrupted),
            () = time_left => Some(Ended::Duration),
        };
        if let Some(ended) = ended {
            break ended;
        }
        if let ControlFlow::Break(ended) = tick(session, started.elapsed()) {
            break ended;
        }
        // The program's children may outlive it: with --children they keep the run going.
        let command_ended = subjects.command_ended();
        if subjects.all_ended(session) || command_ended && session.targets().list().len() == 1 {
            break Ended::TargetExited;
        }
    }
}

/// How it goes on when the last probe was detached: a program that we started runs to its end.
pub fn without_probes(target: &TargetSpec) -> ControlFlow<Ended> {
    match target.scope {
        Scope::Processes(_) | Scope::Group(_) => ControlFlow::Break(Ended::Overhead),
        Scope::Command(_) => ControlFlow::Continue(()),
    }
}

/// Says what the overhead guard did, as it does it.
pub fn say_step(step: Option<&Step>, verbosity: Verbosity) {
    if let Some(step) = step
        && !verbosity.quiet
    {
        let _ = writeln!(io::stderr(), "agent: {}", output::guard::line(step));
    }
}

/// A line on the terminal that is written over while the run goes on.
pub struct Progress {
    shown: bool,
    enabled: bool,
    last: Option<Instant>,
}

impl Progress {
    /// Only on a terminal, and not with `--quiet`.
    pub fn new(verbosity: Verbosity) -> Self {
        Self {
            shown: false,
            enabled: !verbosity.quiet && io::stderr().is_terminal(),
            last: None,
        }
    }

    /// Shows the line, a few times a second at most.
    pub fn show(&mut self, line: impl FnOnce() -> String) {
        let due = self
            .last
            .is_none_or(|last| last.elapsed() >= Duration::from_millis(200));
        if self.enabled && due {
            self.last = Some(Instant::now());
            self.shown = true;
            let _ = write!(io::stderr(), "\r\x1b[K{}", line());
        }
    }

    /// Takes the line away.
    pub fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

/// `sampling: 1.2 of 30 s, 17 samples; …`.
pub fn progress_line(doing: &str, elapsed: Duration, target: &TargetSpec, seen: &str) -> String {
    let of = target.duration.map_or(String::new(), |duration| {
        format!(" of {:.0}", duration.as_secs_f64())
    });
    let end = match target.scope {
        Scope::Processes(_) | Scope::Group(_) => "Ctrl-C ends early and keeps what was seen",
        Scope::Command(_) => "until the command exits",
    };
    format!("{doing}: {:.1}{of} s, {seen}; {end}", elapsed.as_secs_f64())
}

/// Refuses 32-bit programs: their system calls have other numbers.
///
/// # Errors
/// One of the processes runs such a program.
pub fn check_bits(subjects: &Subjects) -> anyhow::Result<()> {
    for process in &subjects.processes {
        anyhow::ensure!(
            !process.is_32_bit(),
            "process {} is a 32-bit program: its system calls have other numbers and arguments, which are not \
             supported; `strace -f -p {}` can follow it",
            process.pid(),
            process.pid()
        );
    }
    Ok(())
}

/// The exit code: the started program's own if it ran to its end, else whether anything was seen.
pub fn exit_code(command: Option<u8>, seen: bool) -> u8 {
    match command {
        Some(code) => code,
        None if seen => Exit::Ok.code(),
        None => Exit::NothingSeen.code(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_is_the_commands_own() {
        assert_eq!(exit_code(Some(0), false), 0);
        assert_eq!(exit_code(Some(7), true), 7);
        assert_eq!(exit_code(None, true), 0);
        assert_eq!(exit_code(None, false), 3);
    }
}
