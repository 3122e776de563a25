//! The privileges of a run: checked before it, given up when the probes are attached, and again when
//! they are detached.

use std::io::{self, Write};

use super::args::Verbosity;
use super::destination::Destination;
use super::spec::{Scope, TargetSpec};
use crate::preflight::checks::Probe;
use crate::preflight::privileges::Run;
use crate::preflight::{self, Kernel};
use crate::process;
use crate::process::privilege::{self, Cap};

/// What a run keeps, and until when.
pub struct Privileges {
    run: Run,
    verbosity: Verbosity,
}

/// Checks that nothing is in the way of a probe. With `stacks` the targets' mappings are read.
///
/// # Errors
/// With all that is in the way.
pub fn check(probe: Probe, target: &TargetSpec, stacks: bool) -> Result<(), preflight::Error> {
    match &target.scope {
        Scope::Processes(pids) if stacks => preflight::check(probe, pids),
        _ => preflight::check(probe, &[]),
    }
}

impl Privileges {
    /// Those of a run that has attached this and will write these.
    pub fn of<'a>(
        probe: Probe,
        stacks: bool,
        target: &TargetSpec,
        kernel: &Kernel,
        outputs: impl IntoIterator<Item = &'a Destination>,
        verbosity: Verbosity,
    ) -> Self {
        let writing = outputs.into_iter().flat_map(Destination::capabilities);
        Self {
            run: Run {
                probe,
                stacks,
                command: matches!(target.scope, Scope::Command(_)),
                version: kernel.version,
                writing: writing.collect(),
            },
            verbosity,
        }
    }

    /// Gives up what only attaching took. To be called before a program that waits is let go: it
    /// keeps the user's own privileges, since it was made before.
    pub fn settle(&self) {
        process::hold_kallsyms();
        self.keep(&self.run.during());
        if self.verbosity.verbose > 0 {
            let held = privilege::effective();
            let held = Cap::ALL.into_iter().filter(|&cap| held.contains(cap));
            let names: Vec<String> = held.map(|cap| cap.to_string()).collect();
            let _ = writeln!(io::stderr(), "privileges kept: {}", names.join(", "));
        }
    }

    /// Gives up what only the run took, before names are looked for in the target's files.
    pub fn finish(&self) {
        self.keep(&self.run.after());
    }

    fn keep(&self, wanted: &[Cap]) {
        if let Err(error) = privilege::drop_to(wanted) {
            let _ = writeln!(
                io::stderr(),
                "agent: warning: privileges that are not needed any more cannot be given up: {error}"
            );
        }
    }
}
