//! `agent diff`: reads two captures, compares them, writes what is asked for.

use std::io::{self, IsTerminal, Write};

use super::args::Verbosity;
use super::destination::{Destination, Target};
use super::diff_args::DiffSpec;
use super::terminal;
use crate::diff::Diff;
use crate::input;
use crate::output::diff as output;
use crate::output::escape;
use crate::output::table::Style;

/// Compares, writes the outputs; returns the exit code.
///
/// # Errors
/// A capture cannot be read, the two cannot be compared, or an output cannot be written. Nothing is
/// written then but the outputs before the one that failed.
pub fn run(spec: &DiffSpec, verbosity: Verbosity) -> anyhow::Result<u8> {
    let destinations = spec
        .outputs
        .iter()
        .map(|(target, format)| Ok((Destination::prepare(target.clone())?, *format)))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let diff = Diff::new(input::read(&spec.before)?, input::read(&spec.after)?)?;
    if destinations.is_empty() {
        let is_terminal = io::stdout().is_terminal();
        let (style, width) = terminal::look(is_terminal);
        let style = if is_terminal { style } else { Style::Plain };
        let text = output::text(&diff, style, width);
        Destination::prepare(Target::Stdout)?.write(text.as_bytes())?;
    }
    let rendered = destinations
        .into_iter()
        .map(|(destination, format)| Ok((destination, output::render(format, &diff)?)))
        .collect::<anyhow::Result<Vec<_>>>()?;
    for (destination, bytes) in rendered {
        let path = destination.path().map(|path| path.display().to_string());
        destination.write(&bytes)?;
        if let (Some(path), false) = (path, verbosity.quiet) {
            let _ = writeln!(io::stderr(), "wrote {}", escape::plain(&path));
        }
    }
    Ok(super::Exit::Ok.code())
}
