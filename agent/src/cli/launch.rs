//! Starts the program of `-- COMMAND`, held before its first instruction until it is watched.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use thiserror::Error;

use super::{Exit, program};
use crate::output::escape;
use crate::process;

/// How long a program that was asked to end may take.
const GRACE: Duration = Duration::from_secs(2);

/// Exit codes for a program that does not run (POSIX.1-2024, Shell Command Language, 2.8.2).
const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;

/// Why the program does not run.
#[derive(Debug, Error)]
pub enum LaunchError {
    /// No process could be made.
    #[error("cannot start a process")]
    Fork(#[source] io::Error),
    /// No directory of `PATH` has it.
    #[error("cannot start `{program}`: not found in PATH")]
    NotInPath {
        /// The program.
        program: String,
    },
    /// What it is to be run by is not there.
    #[error("cannot start `{program}`: there is no `{interpreter}`, its interpreter")]
    Interpreter {
        /// The program.
        program: String,
        /// The path after `#!`, or of the loader.
        interpreter: String,
    },
    /// It is no file.
    #[error("cannot start `{program}`: it is a directory")]
    Directory {
        /// The program.
        program: String,
    },
    /// It lacks the permission.
    #[error("cannot start `{program}`: it is not executable (`chmod +x` makes it so)")]
    NotExecutable {
        /// The program.
        program: String,
    },
    /// The program could not be executed.
    #[error("cannot start `{program}`")]
    Exec {
        /// The program.
        program: String,
        /// What the system said.
        source: io::Error,
    },
}

impl LaunchError {
    /// The exit code that shells, env(1) and nohup(1) give: 127 for a program that is not there, 126
    /// for one that cannot be executed; 1 where no process could be made.
    pub fn exit_code(&self) -> u8 {
        match self {
            LaunchError::Fork(_) => Exit::Failed.code(),
            LaunchError::NotInPath { .. } | LaunchError::Interpreter { .. } => NOT_FOUND,
            LaunchError::Directory { .. } | LaunchError::NotExecutable { .. } => NOT_EXECUTABLE,
            LaunchError::Exec { source, .. } => match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => NOT_FOUND,
                _ => NOT_EXECUTABLE,
            },
        }
    }
}

/// A process that waits for [`Held::release`] before it executes its program. If the agent ends
/// first, so does it.
#[derive(Debug)]
pub struct Held {
    pid: u32,
    program: String,
    go: File,
    spawn: JoinHandle<io::Result<Child>>,
}

/// The program, running.
#[derive(Debug)]
pub struct Running {
    child: Child,
    program: String,
}

impl Held {
    /// Makes the process.
    ///
    /// # Errors
    /// When there is no such program, or no pipe or process can be made.
    pub fn start(command: &[OsString]) -> Result<Self, LaunchError> {
        let (program, arguments) = command
            .split_first()
            .map_or((OsString::new(), Vec::new()), |(program, rest)| {
                (program.clone(), rest.to_vec())
            });
        let file = program::find(&program)?;
        let (mut told, tell) = pipe().map_err(LaunchError::Fork)?;
        let (wait, go) = pipe().map_err(LaunchError::Fork)?;
        let shown = program.to_string_lossy().into_owned();
        let (tell_fd, wait_fd, go_fd) = (tell.as_raw_fd(), wait.as_raw_fd(), go.as_raw_fd());
        let mut child = Command::new(file);
        child.arg0(program).args(arguments);
        // SAFETY: between fork and exec only async-signal-safe calls are made, on descriptors that
        // stay open in the parent until `spawn` has returned.
        unsafe { child.pre_exec(move || hold(tell_fd, wait_fd, go_fd)) };
        // `spawn` returns only after the exec: it has a thread to itself.
        let spawn = std::thread::spawn(move || {
            let child = child.spawn();
            drop((tell, wait));
            child
        });
        let mut pid = [0; 4];
        if told.read_exact(&mut pid).is_err() {
            let error = match spawn.join() {
                Ok(Err(error)) => error,
                _ => io::ErrorKind::Other.into(),
            };
            return Err(LaunchError::Fork(error));
        }
        Ok(Self {
            pid: u32::from_ne_bytes(pid),
            program: shown,
            go,
            spawn,
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Lets it execute its program.
    ///
    /// # Errors
    /// When there is no such program or it cannot be executed.
    pub fn release(mut self) -> Result<Running, LaunchError> {
        let failed = |source| LaunchError::Exec {
            program: self.program.clone(),
            source,
        };
        self.go.write_all(&[1]).map_err(failed)?;
        match self.spawn.join() {
            Ok(Ok(child)) => Ok(Running {
                child,
                program: self.program,
            }),
            Ok(Err(source)) => Err(LaunchError::Exec {
                program: self.program,
                source,
            }),
            Err(_) => Err(LaunchError::Exec {
                program: self.program,
                source: io::ErrorKind::Other.into(),
            }),
        }
    }
}

impl Running {
    /// Its exit status, if it has ended.
    pub fn try_wait(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Asks it to end, and kills it if it takes too long; says so on standard error.
    pub fn end(&mut self) -> Option<ExitStatus> {
        // SAFETY: sends a signal to our own child, which has not been reaped.
        unsafe { libc::kill(self.child.id() as libc::pid_t, libc::SIGTERM) };
        let deadline = Instant::now() + GRACE;
        while Instant::now() < deadline {
            if let Some(status) = self.try_wait() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let (program, seconds) = (escape::plain(&self.program), GRACE.as_secs());
        let _ = writeln!(
            io::stderr(),
            "agent: `{program}` did not end within {seconds} s of SIGTERM: killed"
        );
        let _ = self.child.kill();
        self.child.wait().ok()
    }
}

impl Drop for Running {
    /// An error of the agent does not leave it behind.
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.end();
        }
    }
}

/// The exit code that a shell would give: the program's own, or 128 + the signal's number.
pub fn shell_code(status: ExitStatus) -> u8 {
    match (status.code(), status.signal()) {
        (Some(code), _) => code as u8,
        (None, Some(signal)) => 128u8.wrapping_add(signal as u8),
        (None, None) => 1,
    }
}

/// In the new process: tells its id and waits for one byte.
fn hold(tell: i32, wait: i32, go: i32) -> io::Result<()> {
    // SAFETY: plain system calls on open descriptors and a local buffer.
    unsafe {
        // Our own copy of the other end would keep `read` waiting after the agent's end.
        libc::close(go);
        process::restore_limits();
        let pid = libc::getpid().to_ne_bytes();
        if libc::write(tell, pid.as_ptr().cast(), pid.len()) != 4 {
            return Err(io::Error::last_os_error());
        }
        let mut byte = [0u8];
        match libc::read(wait, byte.as_mut_ptr().cast(), 1) {
            1 => Ok(()),
            // The agent is gone: nobody is left to report an error to.
            _ => libc::_exit(i32::from(NOT_FOUND)),
        }
    }
}

fn pipe() -> io::Result<(File, File)> {
    let mut ends = [0; 2];
    // SAFETY: the array has room for both descriptors.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given these descriptors to us alone.
    Ok(unsafe { (File::from_raw_fd(ends[0]), File::from_raw_fd(ends[1])) })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn command(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).collect()
    }

    fn wait(running: &mut Running) -> ExitStatus {
        loop {
            if let Some(status) = running.try_wait() {
                return status;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_held_program_runs_when_released_and_passes_its_exit_on() {
        let held = Held::start(&command(&["sh", "-c", "exit 7"])).unwrap();
        assert!(std::path::Path::new(&format!("/proc/{}", held.pid())).exists());
        let mut running = held.release().unwrap();
        assert_eq!(shell_code(wait(&mut running)), 7);
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = Held::start(&command(&["/nonexistent/program"])).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/program"));
        assert_eq!(error.exit_code(), 127);
    }

    #[test]
    fn a_program_that_the_kernel_refuses_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("busy");
        std::fs::copy("/bin/true", &path).unwrap();
        // ETXTBSY: somebody writes into it.
        let _writer = File::options().append(true).open(&path).unwrap();
        let held = Held::start(&[path.into()]).unwrap();
        let error = held.release().unwrap_err();
        assert!(error.to_string().contains("busy"), "{error}");
        assert_eq!(error.exit_code(), 126);
    }

    #[test]
    fn a_process_that_is_never_released_ends() {
        let held = Held::start(&command(&["sleep", "1000"])).unwrap();
        let stat = format!("/proc/{}/stat", held.pid());
        drop(held);
        let ended = (0..400).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            std::fs::read_to_string(&stat).is_ok_and(|text| text.contains(") Z "))
                || !std::path::Path::new(&stat).exists()
        });
        assert!(ended);
    }

    #[test]
    fn a_program_can_be_ended() {
        let mut running = Held::start(&command(&["sleep", "1000"]))
            .unwrap()
            .release()
            .unwrap();
        assert_eq!(shell_code(running.end().unwrap()), 128 + 15);
    }
}
