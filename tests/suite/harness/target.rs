//! A program under observation, killed when its guard goes.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver};

use super::{LIFE, patience, program};

/// A running target. Dropping it kills it and all that it started.
pub(crate) struct Target {
    child: Child,
    lines: Receiver<String>,
}

impl Target {
    /// Starts a program of `tests/programs` that lives for [`LIFE`], and waits until it is warm.
    pub(crate) fn spawn(name: &str, arguments: &[&str]) -> Target {
        Target::run(Command::new(program(name)).arg(LIFE).args(arguments))
    }

    /// Starts a command of any kind and waits until it says `ready`.
    pub(crate) fn run(command: &mut Command) -> Target {
        let target = Target::run_unready(command);
        target.await_word("ready");
        target
    }

    /// Starts a command that says nothing. It leads a process group, so that its children go with it.
    pub(crate) fn run_unready(command: &mut Command) -> Target {
        Target::run_with_input(command, Stdio::null())
    }

    /// As [`Target::run_unready`], with something on its standard input.
    pub(crate) fn run_with_input(command: &mut Command, input: Stdio) -> Target {
        use std::os::unix::process::CommandExt;
        let spawned = command
            .process_group(0)
            .stdin(input)
            .stdout(Stdio::piped())
            .spawn();
        let mut child = spawned.unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let lines = lines_of(child.stdout.take().unwrap());
        Target { child, lines }
    }

    /// Waits for the line `word` on the target's standard output.
    pub(crate) fn await_word(&self, word: &str) {
        self.await_line(|line| (line == word).then_some(()));
    }

    /// Waits for a line that `wanted` accepts, and returns what it made of it.
    pub(crate) fn await_line<T>(&self, wanted: impl Fn(&str) -> Option<T>) -> T {
        while let Ok(line) = self.lines.recv_timeout(patience(20.0)) {
            if let Some(value) = wanted(&line) {
                return value;
            }
        }
        panic!("the target never said what was awaited");
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// CPU time that the process took so far, in seconds (utime and stime of proc(5) `stat`).
    pub(crate) fn cpu_seconds(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        let fields: Vec<&str> = stat
            .rsplit(')')
            .next()
            .unwrap()
            .split_whitespace()
            .collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        // SAFETY: sysconf has no preconditions.
        ticks as f64 / unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64
    }

    /// Whether the process still runs.
    pub(crate) fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // SAFETY: kill has no memory effects; the group is the child's own, and the child is not reaped yet.
        unsafe { libc::kill(-(self.child.id() as i32), libc::SIGKILL) };
        let _ = self.child.wait();
    }
}

/// The lines of a pipe, read by a thread so that waiting for one can have a limit.
fn lines_of(pipe: ChildStdout) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    receiver
}

/// Copies an executable, so that a test may change or delete it.
pub(crate) fn copy_executable(from: &Path, to: &Path) {
    // In a process of its own: a descriptor open for writing here could be inherited by a child
    // that another test forks at this moment, and exec would answer ETXTBSY.
    let status = Command::new("cp").arg(from).arg(to).status().unwrap();
    assert!(
        status.success(),
        "cannot copy {} to {}",
        from.display(),
        to.display()
    );
    drop(File::open(to).unwrap());
}
