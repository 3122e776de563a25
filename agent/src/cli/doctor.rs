//! `agent doctor`: tries what was asked for and tells.

use std::io::{self, IsTerminal};

use super::Exit;
use super::destination::{Destination, Target};
use super::doctor_args::{DoctorArgs, DoctorFormat};
use super::terminal;
use crate::doctor::{Report, State, target, trial};
use crate::output::doctor as output;
use crate::output::table::Style;
use crate::preflight;
use crate::preflight::facts::Facts;

/// Tries, tells; returns the exit code.
///
/// # Errors
/// Standard output cannot be written.
pub async fn run(args: &DoctorArgs) -> anyhow::Result<u8> {
    preflight::prepare();
    let facts = Facts::gather(&[]);
    let wanted = args.probes();
    // One after the other: each has the machine as its command would.
    let mut probes = Vec::new();
    for &probe in &wanted {
        probes.push(trial::examine(probe, &facts).await);
    }
    let target = args.pid.map(|pid| target::examine(pid, &wanted, &facts));
    let report = Report::new(probes, target, facts);
    let bytes = match args.format {
        DoctorFormat::Json => output::json(&report)?,
        DoctorFormat::Text => {
            let is_terminal = io::stdout().is_terminal();
            let (style, _) = terminal::look(is_terminal);
            let style = if is_terminal { style } else { Style::Plain };
            output::text(&report, style).into_bytes()
        }
    };
    Destination::prepare(Target::Stdout)?.write(&bytes)?;
    let code = match report.state {
        State::Works => Exit::Ok,
        State::Blocked => Exit::Failed,
        State::Degraded => Exit::Degraded,
    };
    Ok(code.code())
}
