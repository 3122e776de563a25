//! A program that runs beside the measured one: started, ended by Ctrl-C, and accounted for.

use super::machine::Scratch;
use crate::command::line;
use anyhow::{Context, Result, anyhow, bail};
use std::fs::{self, File};
use std::mem::MaybeUninit;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How often a running tool is looked at.
const POLL: Duration = Duration::from_millis(1);
/// How long a tool may take to say that it is ready.
const READY: Duration = Duration::from_secs(30);

/// What a tool took until it ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// CPU time of it and of the children that it waited for, in seconds.
    pub(crate) cpu_seconds: f64,
    /// Peak resident set, in bytes.
    pub(crate) peak_rss: u64,
    /// Time from the request to end, or from the call of [`Running::wait`], to the end.
    pub(crate) ending: Duration,
}

/// A command line, and how one knows that it works.
#[derive(Clone, Debug)]
pub(crate) struct Tool {
    /// How the tables call it.
    pub(crate) name: String,
    /// Program and arguments.
    pub(crate) words: Vec<String>,
    /// What it writes when it is ready.
    ready: Option<&'static str>,
    /// How long it takes after that, or without it after its start, until it does its work.
    settle: Duration,
    /// Whether it needs tracefs: it gets a mount namespace of its own with one.
    tracefs: bool,
    /// Why it cannot run here, if that is known.
    absent: Option<String>,
}

impl Tool {
    /// A tool that works half a second after its start.
    pub(crate) fn new(name: &str, words: &[&str]) -> Self {
        Self {
            name: name.to_owned(),
            words: words.iter().map(|&word| word.to_owned()).collect(),
            ready: None,
            settle: Duration::from_millis(500),
            tracefs: false,
            absent: None,
        }
    }

    /// The same with tracefs mounted, for it alone.
    pub(crate) fn with_tracefs(mut self) -> Self {
        self.tracefs = true;
        self
    }

    /// The same, which takes longer until it does its work.
    pub(crate) fn slow(mut self, settle: Duration) -> Self {
        self.settle = settle;
        self
    }

    /// The same, ready once it has written `word`.
    pub(crate) fn ready_at(mut self, word: &'static str) -> Self {
        self.ready = Some(word);
        self
    }

    /// The same, or only its name with the reason why it cannot run here.
    pub(crate) fn unless(mut self, absent: bool, reason: &str) -> Self {
        self.absent = absent.then(|| reason.to_owned());
        self
    }

    /// The command line, as a person would type it.
    pub(crate) fn line(&self) -> String {
        self.words.join(" ")
    }

    /// Why the tool cannot run here: for a known reason, or its program is not installed.
    pub(crate) fn missing(&self) -> Option<String> {
        if self.absent.is_some() {
            return self.absent.clone();
        }
        let program = self.words.first()?;
        let found = program.contains('/') || crate::command::find(program).is_some();
        (!found).then(|| format!("{program} is not installed"))
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// It cannot be started, or ends at once: the error holds its last line.
    pub(crate) fn start(&self, scratch: &Scratch) -> Result<Running> {
        let mut running = self.launch(scratch)?;
        if let Some(word) = self.ready {
            running.ready(word)?;
        }
        running.ready_at = Instant::now();
        running.rest(self.settle)?;
        Ok(running)
    }

    /// Starts it and does not wait.
    ///
    /// # Errors
    /// It cannot be started.
    pub(crate) fn launch(&self, scratch: &Scratch) -> Result<Running> {
        if let Some(reason) = self.missing() {
            bail!("{reason}");
        }
        let mut words = Vec::new();
        if self.tracefs {
            let script = "mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null; exec \"$@\"";
            words.extend(["unshare", "--mount", "sh", "-c", script, "sh"]);
        }
        words.extend(self.words.iter().map(String::as_str));
        let (program, arguments) = words.split_first().context("an empty command line")?;
        Running::start(Command::new(program).args(arguments), scratch)
    }
}

/// A running tool; dropping it kills it.
pub(crate) struct Running {
    child: Child,
    log: PathBuf,
    line: String,
    reaped: bool,
    /// When it was started.
    pub(crate) started: Instant,
    /// When it said that it was ready.
    pub(crate) ready_at: Instant,
}

impl Running {
    /// Starts a command whose output goes into a file.
    ///
    /// # Errors
    /// It cannot be started.
    pub(crate) fn start(command: &mut Command, scratch: &Scratch) -> Result<Self> {
        let log = scratch.file("log");
        let file = File::create(&log)?;
        let line = line(command);
        command
            .current_dir(scratch.path())
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        let started = Instant::now();
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {line}"))?;
        Ok(Self {
            child,
            log,
            line,
            reaped: false,
            started,
            ready_at: started,
        })
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote so far.
    pub(crate) fn said(&self) -> String {
        fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Waits until it wrote `word`.
    ///
    /// # Errors
    /// It ended, or did not write it in time.
    pub(crate) fn ready(&mut self, word: &str) -> Result<()> {
        while self.started.elapsed() < READY {
            if self.reap()?.is_some() {
                return Err(self.failed("ended at once"));
            }
            if self.said().contains(word) {
                return Ok(());
            }
            sleep(POLL);
        }
        Err(self.failed(&format!("did not say `{word}`")))
    }

    /// Lets it run for a while.
    ///
    /// # Errors
    /// It ended.
    fn rest(&mut self, time: Duration) -> Result<()> {
        sleep(time);
        if self.reap()?.is_some() {
            return Err(self.failed("ended at once"));
        }
        Ok(())
    }

    /// Asks it to end, as Ctrl-C does, and waits for its end.
    ///
    /// # Errors
    /// It does not end within `limit`.
    pub(crate) fn stop(mut self, limit: Duration) -> Result<Usage> {
        if self.reap()?.is_some() {
            return Err(self.failed("had ended before its time"));
        }
        self.signal(libc::SIGINT);
        self.finish(limit)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It does not end within `limit`.
    pub(crate) fn wait(mut self, limit: Duration) -> Result<Usage> {
        self.finish(limit)
    }

    fn finish(&mut self, limit: Duration) -> Result<Usage> {
        let asked = Instant::now();
        loop {
            if let Some(mut usage) = self.reap()? {
                usage.ending = asked.elapsed();
                return Ok(usage);
            }
            if asked.elapsed() > limit {
                return Err(self.failed(&format!("did not end within {} s", limit.as_secs())));
            }
            sleep(POLL);
        }
    }

    fn signal(&self, signal: i32) {
        // SAFETY: kill has no memory effects; the child is not reaped yet, so the id is its own.
        unsafe { libc::kill(self.child.id() as i32, signal) };
    }

    fn reap(&mut self) -> Result<Option<Usage>> {
        if self.reaped {
            bail!("{} had ended already", self.line);
        }
        let mut usage = MaybeUninit::<libc::rusage>::zeroed();
        // SAFETY: the status may be null, the structure is ours.
        let pid = unsafe {
            libc::wait4(
                self.child.id() as i32,
                std::ptr::null_mut(),
                libc::WNOHANG,
                usage.as_mut_ptr(),
            )
        };
        if pid <= 0 {
            return Ok(None);
        }
        self.reaped = true;
        // SAFETY: all-zero is a valid value of this plain structure, and wait4 has filled it.
        let usage = unsafe { usage.assume_init() };
        let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
        Ok(Some(Usage {
            cpu_seconds: seconds(usage.ru_utime) + seconds(usage.ru_stime),
            peak_rss: usage.ru_maxrss as u64 * 1024,
            ending: Duration::ZERO,
        }))
    }

    fn failed(&self, what: &str) -> anyhow::Error {
        let said = self.said();
        let last = said.lines().rfind(|line| !line.trim().is_empty());
        anyhow!("{what}: {}", last.unwrap_or("it said nothing").trim())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.reaped {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
