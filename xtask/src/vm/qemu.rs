//! Boots a machine and follows its serial console.

use super::root::{EXIT_MARK, START_MARK};
use anyhow::{Context, Result, anyhow, bail};
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

/// One thread plays both CPUs in turn. With a thread for each, a CPU may still run the breakpoint by
/// which the kernel replaces an instruction when the other has long taken it away: a tracepoint
/// that is attached to under load then crashed a machine on 7.2 (`Oops: int3` in
/// `trace_syscall_exit`), which real CPUs exclude.
const ACCELERATOR: &str = "tcg,thread=single";

/// All that QEMU can do but `cmpxchg16b`. Seen with QEMU 7.2 on 6.12: an interrupt right after it, in
/// the kernel's allocator, saved garbage in the upper flags, and the return from it was a double
/// fault. Without it the kernels use other code.
const CPU: &str = "max,-cx16";

/// A machine to boot.
pub(super) struct Machine<'a> {
    /// Prefix of what it prints.
    pub(super) label: &'a str,
    /// The kernel's image.
    pub(super) kernel: &'a Path,
    /// The archive of its root file system.
    pub(super) archive: &'a Path,
    /// Megabytes of memory.
    pub(super) memory: u32,
    /// How long it may run.
    pub(super) timeout: Duration,
}

/// Ends QEMU whichever way we leave.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Machine<'_> {
    /// Boots, prints what the machine's command prints, and returns the command's status.
    /// `output` gets a copy.
    ///
    /// # Errors
    /// QEMU cannot be started, the machine stops before its command ended, or takes too long.
    pub(super) fn run(&self, output: &mut String) -> Result<i32> {
        let started = Instant::now();
        let mut guard = Guard(self.command().spawn().context(
            "cannot start qemu-system-x86_64 under setpriv; `cargo xtask setup` installs it",
        )?);
        let console = guard.0.stdout.take().context("no console")?;
        let (sender, lines) = mpsc::channel();
        // Ends with QEMU, which the guard ends.
        std::thread::spawn(move || {
            read_lines(console, |line| sender.send(line).is_ok());
        });
        let mut boot = Vec::new();
        let mut running = false;
        let mut blank = 0;
        loop {
            let left = self.timeout.saturating_sub(started.elapsed());
            let line = match lines.recv_timeout(left) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => {
                    let what = if running {
                        "its command did not end"
                    } else {
                        "it did not boot"
                    };
                    bail!(
                        "stopped after {} s: {what}{}",
                        self.timeout.as_secs(),
                        tail(&boot)
                    );
                }
                Err(RecvTimeoutError::Disconnected) => {
                    bail!(
                        "the machine stopped before its command ended{}",
                        tail(&boot)
                    );
                }
            };
            if let Some(status) = line.strip_prefix(EXIT_MARK) {
                eprintln!("[{}] done in {:.0?}", self.label, started.elapsed());
                return status
                    .trim()
                    .parse()
                    .map_err(|_| anyhow!("unreadable status: {line}"));
            }
            if !running && line.starts_with(START_MARK) {
                running = true;
                boot.clear();
            } else if running && line.is_empty() {
                // Held back: the last one only makes sure that the mark starts a line.
                blank += 1;
            } else if running {
                for text in std::iter::repeat_n("", blank).chain([line.as_str()]) {
                    println!("[{}] {text}", self.label);
                    output.push_str(text);
                    output.push('\n');
                }
                blank = 0;
            } else {
                boot.push(line);
            }
        }
    }

    /// QEMU, which the kernel kills should we die.
    fn command(&self) -> Command {
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
            .args(["-M", "q35", "-cpu", CPU, "-accel", ACCELERATOR, "-smp", "2"])
            .args(["-m", &self.memory.to_string(), "-no-reboot", "-nodefaults"])
            .args(["-display", "none", "-serial", "stdio", "-monitor", "none"])
            .args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off"])
            .arg("-kernel")
            .arg(self.kernel)
            .arg("-initrd")
            .arg(self.archive)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        command
    }
}

/// The end of what the console said, for an error.
fn tail(lines: &[String]) -> String {
    let start = lines.len().saturating_sub(20);
    lines
        .iter()
        .skip(start)
        .map(|line| format!("\n    {line}"))
        .collect()
}

/// Hands over each line without its carriage return, until the end or until `line` says stop.
fn read_lines(from: impl Read, mut line: impl FnMut(String) -> bool) {
    let mut reader = BufReader::new(from);
    let mut bytes = Vec::new();
    while reader
        .read_until(b'\n', &mut bytes)
        .is_ok_and(|count| count > 0)
    {
        let text = String::from_utf8_lossy(&bytes);
        if !line(text.trim_end_matches(['\r', '\n']).to_owned()) {
            return;
        }
        bytes.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_lose_their_carriage_return_and_the_last_one_counts() {
        let mut lines = Vec::new();
        read_lines(&b"a\r\nb\xff\nc"[..], |line| {
            lines.push(line);
            true
        });
        assert_eq!(lines, ["a", "b\u{fffd}", "c"]);
    }
}
