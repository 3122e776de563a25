//! The programs that are measured.

use super::machine::Scratch;
use super::tool::Running;
use crate::command::target as build_directory;
use anyhow::Result;
use std::path::PathBuf;
use std::process::Command;

/// How long a target of `tests/programs` lives at most, in seconds.
const LIFE: &str = "900";

/// A program of `tests/programs`, built.
pub(crate) fn program(name: &str) -> PathBuf {
    build_directory().join("programs").join(name)
}

/// Starts a program of `tests/programs` and waits until it is warm.
///
/// # Errors
/// It cannot be started, or is not ready in time.
pub(crate) fn start(name: &str, arguments: &[&str], scratch: &Scratch) -> Result<Running> {
    start_command(
        Command::new(program(name)).arg(LIFE).args(arguments),
        scratch,
    )
}

/// The same on one CPU.
///
/// # Errors
/// As [`start`].
pub(crate) fn start_on(
    cpu: usize,
    name: &str,
    arguments: &[&str],
    scratch: &Scratch,
) -> Result<Running> {
    let mut command = Command::new("taskset");
    command.args(["-c", &cpu.to_string()]);
    start_command(
        command.arg(program(name)).arg(LIFE).args(arguments),
        scratch,
    )
}

/// Starts a script of `tests/programs` and waits until it is warm.
///
/// # Errors
/// As [`start`].
pub(crate) fn start_script(words: &[&str], script: &str, scratch: &Scratch) -> Result<Running> {
    let (interpreter, options) = words.split_first().unwrap_or((&"false", &[]));
    start_command(
        Command::new(interpreter)
            .args(options)
            .arg(program(script))
            .arg(LIFE),
        scratch,
    )
}

fn start_command(command: &mut Command, scratch: &Scratch) -> Result<Running> {
    let mut running = Running::start(command, scratch)?;
    running.ready("ready")?;
    Ok(running)
}
