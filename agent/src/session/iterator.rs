//! `iter/task`: finds the ids of the targets in the initial PID namespace.

use std::io;

use aya::Ebpf;
use aya::programs::Iter;

use super::{Error, program_mut};

/// Runs the program that sees every task, to its end.
pub(super) fn run_over_tasks(ebpf: &mut Ebpf) -> Result<(), Error> {
    let program = "iter_task";
    let refused = |source| Error::Program {
        program,
        source: Box::new(source),
    };
    let btf = aya::Btf::from_sys_fs().map_err(|error| refused(error.into()))?;
    let iterator: &mut Iter = program_mut(ebpf, program)?;
    iterator.load("task", &btf).map_err(refused)?;
    let link = iterator
        .attach()
        .and_then(|link| iterator.take_link(link))
        .map_err(refused)?;
    let read = |source| Error::Io {
        what: "cannot run the task iterator",
        source,
    };
    let mut file = link
        .into_file()
        .map_err(|error| read(io::Error::other(error)))?;
    io::copy(&mut file, &mut io::sink()).map(drop).map_err(read)
}
