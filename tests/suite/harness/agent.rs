//! One run of the agent, with a limit to its time.

use std::ffi::OsStr;
use std::fs::{File, read_to_string};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::{FREQUENCY, Profile, agent_binary, eventually, patience};

/// The subcommands that watch processes.
const WATCHING: [&str; 5] = ["profile", "tcp", "syscalls", "record", "serve"];

/// A command line of the agent in the making. It runs in an empty directory of its own.
pub(crate) struct Agent {
    command: Command,
    directory: TempDir,
}

impl Agent {
    /// `agent profile` with nothing else.
    pub(crate) fn profile() -> Agent {
        Agent::under(&[], &agent_binary())
    }

    /// `agent tcp` with nothing else.
    pub(crate) fn tcp() -> Agent {
        Agent::subcommand("tcp", &[], &agent_binary())
    }

    /// `agent syscalls` with nothing else.
    pub(crate) fn syscalls() -> Agent {
        let mut agent = Agent::subcommand("syscalls", &[], &agent_binary());
        // Cargo's: the loader of each target would try its directories, and fail.
        agent.command.env_remove("LD_LIBRARY_PATH");
        agent
    }

    /// `WRAPPER… BINARY profile`.
    pub(crate) fn under(wrapper: &[&str], binary: &Path) -> Agent {
        Agent::subcommand("profile", wrapper, binary)
    }

    /// `WRAPPER… BINARY NAME`, with no limit to its cost: on a busy machine, or an emulated one, the
    /// same work costs more.
    pub(crate) fn subcommand(name: &str, wrapper: &[&str], binary: &Path) -> Agent {
        let agent = Agent::limited(name, wrapper, binary);
        match WATCHING.contains(&name) {
            // A later one counts.
            true => agent.args(["--max-overhead", "off"]),
            false => agent,
        }
    }

    /// `WRAPPER… BINARY NAME`, with the limit that a user gets.
    pub(crate) fn limited(name: &str, wrapper: &[&str], binary: &Path) -> Agent {
        let words: Vec<&OsStr> = wrapper
            .iter()
            .map(OsStr::new)
            .chain([binary.as_os_str()])
            .collect();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg(name);
        Agent {
            command,
            directory: TempDir::new().unwrap(),
        }
    }

    /// Three seconds of one process at [`FREQUENCY`] into `profile.json`.
    pub(crate) fn standard(pid: u32) -> Agent {
        Agent::timed(pid, 3.0)
    }

    /// `seconds` of one process at [`FREQUENCY`] into `profile.json`.
    pub(crate) fn timed(pid: u32, seconds: f64) -> Agent {
        let duration = format!("{}ms", (seconds * 1000.0) as u64);
        Agent::profile()
            .args(["--pid", &pid.to_string(), "--duration", &duration])
            .args(["--frequency", &FREQUENCY.to_string(), "-o", "profile.json"])
    }

    pub(crate) fn args<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(
        mut self,
        arguments: I,
    ) -> Agent {
        self.command.args(arguments);
        self
    }

    /// Sets a variable of its environment, and of what it starts.
    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Agent {
        self.command.env(name, value);
        self
    }

    /// Runs it without any privilege, as `nobody`.
    pub(crate) fn without_privilege(mut self) -> Agent {
        let nobody = 65534;
        std::os::unix::fs::chown(self.directory.path(), Some(nobody), Some(nobody)).unwrap();
        self.command.uid(nobody).gid(nobody);
        self
    }

    /// The command line so far, to be changed.
    pub(super) fn command(&mut self) -> &mut Command {
        &mut self.command
    }

    /// The directory it will run in.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Starts it.
    pub(crate) fn start(mut self) -> Running {
        let file = |name: &str| File::create(self.directory.path().join(name)).unwrap();
        self.command
            .current_dir(self.directory.path())
            .stdin(Stdio::null());
        self.command
            .stdout(file(STDOUT))
            .stderr(file(STDERR))
            .process_group(0);
        let spawned = self.command.spawn();
        let child =
            spawned.unwrap_or_else(|error| panic!("cannot start {:?}: {error}", self.command));
        Running {
            child,
            directory: self.directory,
            started: Instant::now(),
        }
    }

    /// Runs it to its end.
    pub(crate) fn run(self) -> Finished {
        self.start().wait()
    }

    /// Runs it to its end, which must be a success with a profile in `profile.json`.
    pub(crate) fn run_to_profile(self) -> Profile {
        let finished = self.run();
        assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
        finished.profile()
    }
}

const STDOUT: &str = ".stdout";
const STDERR: &str = ".stderr";

/// An agent at work, killed if it is dropped.
pub(crate) struct Running {
    child: Child,
    directory: TempDir,
    started: Instant,
}

impl Running {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has said on its standard output so far.
    pub(crate) fn stdout(&self) -> String {
        read_to_string(self.directory.path().join(STDOUT)).unwrap_or_default()
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, number: i32) {
        // SAFETY: kill has no memory effects; the child is not reaped yet.
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, number) }, 0);
    }

    fn stderr(&self) -> String {
        read_to_string(self.directory.path().join(STDERR)).unwrap_or_default()
    }

    /// Whether it has said this on standard error.
    pub(crate) fn has_said(&self, text: &str) -> bool {
        self.stderr().contains(text)
    }

    /// Waits until it has said this on standard error.
    pub(crate) fn await_said(&self, text: &str) {
        let heard = eventually(patience(30.0), || self.has_said(text));
        assert!(heard, "the agent never said {text:?}: {}", self.stderr());
    }

    /// Whether it has ended; it is not waited for yet.
    pub(crate) fn has_ended(&self) -> bool {
        // SAFETY: all-zero is a valid value of this plain structure.
        let mut found: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        // SAFETY: writes into our own structure; the child stays as it is.
        let asked = unsafe { libc::waitid(libc::P_PID, self.child.id(), &raw mut found, flags) };
        // SAFETY: `waitid` fills in the part of a child's state, or leaves zeros.
        asked == 0 && unsafe { found.si_pid() } != 0
    }

    /// Waits for its end; one that takes longer than a minute fails.
    pub(crate) fn wait(mut self) -> Finished {
        let mut status = None;
        eventually(patience(60.0), || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        let took = self.started.elapsed();
        let said = read_to_string(self.directory.path().join(STDERR)).unwrap_or_default();
        let status = status.unwrap_or_else(|| panic!("the agent does not end: {said}"));
        let kept = std::mem::replace(&mut self.directory, TempDir::new().unwrap());
        Finished {
            status,
            directory: kept,
            took,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            // SAFETY: kill has no memory effects; the group is the child's own, and the child is not reaped yet.
            unsafe { libc::kill(-(self.child.id() as i32), libc::SIGKILL) };
            let _ = self.child.wait();
        }
    }
}

/// What a run left behind.
pub(crate) struct Finished {
    pub(crate) status: ExitStatus,
    pub(crate) took: Duration,
    directory: TempDir,
}

impl Finished {
    /// Its exit code; `None` if a signal killed it.
    pub(crate) fn code(&self) -> Option<i32> {
        assert_ne!(
            self.status.signal(),
            Some(libc::SIGSEGV),
            "{}",
            self.stderr()
        );
        assert!(!self.stderr().contains("panicked at"), "{}", self.stderr());
        self.status.code()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn stdout(&self) -> String {
        self.text(STDOUT)
    }

    pub(crate) fn stderr(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.path(STDERR)).unwrap()).into_owned()
    }

    /// An output file as text.
    pub(crate) fn text(&self, name: &str) -> String {
        read_to_string(self.path(name))
            .unwrap_or_else(|error| panic!("{name}: {error}\n{}", self.stderr()))
    }

    /// The JSON output `profile.json`.
    pub(crate) fn profile(&self) -> Profile {
        let text = self.text("profile.json");
        serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("profile.json: {error}\n{text:.500}"))
    }

    /// Names of the files in the working directory, without the streams.
    pub(crate) fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.directory.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| !name.starts_with('.')).collect()
    }

    /// Asserts a refusal: `code`, and every one of `words` on standard error (in whatever case).
    pub(crate) fn assert_refused(&self, code: i32, words: &[&str]) {
        let said = self.stderr();
        assert_eq!(self.code(), Some(code), "{said}");
        for word in words {
            assert!(
                said.to_lowercase().contains(&word.to_lowercase()),
                "no {word:?} in: {said}"
            );
        }
        assert!(
            self.took < patience(5.0),
            "the refusal came only after {:?}",
            self.took
        );
    }
}
