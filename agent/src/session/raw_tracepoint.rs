//! Raw tracepoints: attached by name, unloaded before the end of a run.

use aya::Ebpf;
use aya::programs::RawTracePoint;

use super::{Error, program_mut};

/// Loads and attaches a raw tracepoint program.
pub fn attach(ebpf: &mut Ebpf, program: &'static str, hook: &str) -> Result<(), Error> {
    let raw: &mut RawTracePoint = program_mut(ebpf, program)?;
    raw.load().map_err(|source| Error::Program {
        program,
        source: Box::new(source),
    })?;
    raw.attach(hook).map(drop).map_err(|source| Error::Attach {
        program,
        hook: format!("the tracepoint {hook}"),
        source: Box::new(source),
    })
}

/// Unloads programs, which detaches them.
pub(super) fn unload(ebpf: &mut Ebpf, programs: impl IntoIterator<Item = &'static str>) {
    for program in programs {
        if let Ok(program) = program_mut::<RawTracePoint>(ebpf, program) {
            let _ = program.unload();
        }
    }
}
