//! Which program a process runs.

use super::Targets;
use crate::process::Process;

/// The path of its program, as it sees it.
pub(super) fn shown_program(process: &Process) -> Option<String> {
    let path = process.exe()?;
    Some(path.to_string_lossy().into_owned())
}

impl Targets {
    /// Looks whether a process runs another program than was known, which is then known; false also
    /// where that cannot be seen.
    pub(super) fn look_at_program(&mut self, index: usize) -> bool {
        let Some(tracked) = self.list.get_mut(index) else {
            return false;
        };
        let Some(process) = &tracked.process else {
            return false;
        };
        let program = process.program();
        if program.is_none() || program == tracked.program {
            return false;
        }
        tracked.program = program;
        tracked.exe = shown_program(process);
        true
    }

    /// Looks at the programs of the living for the last time: the record of an exec may be lost.
    pub fn check_programs(&mut self) {
        let all = 0..self.list.len();
        let changed = all.filter(|&index| self.look_at_program(index)).count() as u64;
        if changed > 0 {
            let note = "programs executed that no record told of".to_owned();
            *self.notes.entry(note).or_default() += changed;
        }
    }
}
