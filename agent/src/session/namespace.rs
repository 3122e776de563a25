//! The ids of processes in the initial PID namespace, which the kernel programs know them by.

use std::io;

use aya::Ebpf;
use aya::maps::{HashMap as BpfMap, MapData};
use aya::programs::Iter;

use super::{Error, program_mut};
use crate::preflight::Kernel;
use crate::process::Process;

/// The thread-group ids of processes in the initial PID namespace; `None` where there is no such
/// process any more.
pub(super) fn initial_ids(
    ebpf: &mut Ebpf,
    kernel: &Kernel,
    processes: &[Process],
) -> Result<Vec<Option<u32>>, Error> {
    if kernel.ns_level == 0 {
        return Ok(processes
            .iter()
            .map(|process| Some(process.pid()))
            .collect());
    }
    let map = "WANTED";
    let mut wanted: BpfMap<&mut MapData, u32, u32> = map_mut(ebpf, map)?;
    for process in processes {
        wanted
            .insert(process.pid(), 0, 0)
            .map_err(|_| Error::Map(map))?;
    }
    run_task_iterator(ebpf)?;
    let mut wanted: BpfMap<&mut MapData, u32, u32> = map_mut(ebpf, map)?;
    let ids = processes.iter().map(|process| {
        let id = wanted.get(&process.pid(), 0).ok().filter(|&id| id != 0);
        let _ = wanted.remove(&process.pid());
        id
    });
    Ok(ids.collect())
}

/// A map of the bytecode by its name and kind, which stays where it is.
fn map_mut<'a, M>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<M, Error>
where
    M: TryFrom<&'a mut aya::maps::Map>,
{
    ebpf.map_mut(name)
        .and_then(|map| M::try_from(map).ok())
        .ok_or(Error::Map(name))
}

fn run_task_iterator(ebpf: &mut Ebpf) -> Result<(), Error> {
    let program = "iter_task";
    let refused = |source| Error::Program {
        program,
        source: Box::new(source),
    };
    let iterator: &mut Iter = program_mut(ebpf, program)?;
    if iterator.fd().is_err() {
        let btf = aya::Btf::from_sys_fs().map_err(|error| refused(error.into()))?;
        iterator.load("task", &btf).map_err(refused)?;
    }
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
