//! From raw samples to the model: each distinct address is named once, each stack written in names.

pub mod live;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent_ebpf::frame;

use crate::parser::Parser;
use crate::probe::cpu::{Key, RawStack, Samples};
use crate::process;
use crate::process::privilege::{self, Cap};
use crate::profile::{Frame, FrameId, ModuleFacts, Profile, Space, Stack, Unnamed};
use crate::session::target::{Targets, Tracked};
use crate::symbolize::debug_files::DebugRoots;
use crate::symbolize::{self, Budget, NotTrusted};

/// Threads that name modules at the end of a run, each with a parser.
const WORKERS: usize = 2;

/// Where an address belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Place {
    /// A module, by its slot.
    Module(u16),
    /// A process, by its place among the targets: memory without a file.
    Process(usize),
    /// The kernel.
    Kernel,
}

/// All distinct addresses, by where they belong.
type Addresses = BTreeMap<Place, BTreeSet<u64>>;
/// The functions at each, innermost first.
type Names = HashMap<(Place, u64), Vec<FrameId>>;

/// Writes the samples into the profile, named.
pub fn name(profile: &mut Profile, samples: &Samples, targets: &Targets) {
    let mut keys: Vec<(&Key, u64)> = samples
        .counts
        .iter()
        .map(|(key, &count)| (key, count))
        .collect();
    keys.sort_unstable();
    let stacks: Vec<(usize, &RawStack)> = keys
        .iter()
        .filter_map(|(key, _)| Some((key.process, samples.stacks.get(&key.stack)?)))
        .collect();
    let mut frames = frames(profile, &stacks, targets).into_iter();
    for (key, count) in keys {
        let Some(stack) = samples.stacks.get(&key.stack) else {
            continue;
        };
        let frames = frames.next().unwrap_or_default();
        let Some(tracked) = targets.list().get(key.process) else {
            continue;
        };
        profile.stacks.push(Stack {
            pid: tracked.pid,
            tid: key.tid,
            comm: text(samples, key.comm),
            thread: text(samples, key.thread),
            frames,
            end: stack.end,
            count,
        });
    }
}

/// The frames of stacks, root first, each stack with the place of its process among the targets.
pub fn frames(
    profile: &mut Profile,
    stacks: &[(usize, &RawStack)],
    targets: &Targets,
) -> Vec<Vec<FrameId>> {
    let mut addresses = Addresses::new();
    for (process, stack) in stacks {
        for (place, address) in places(*process, stack) {
            addresses.entry(place).or_default().insert(address);
        }
    }
    let names = name_addresses(profile, &addresses, targets);
    stacks
        .iter()
        .map(|(process, stack)| {
            places(*process, stack)
                .filter_map(|place| names.get(&place))
                .flat_map(|functions| functions.iter().rev().copied())
                .collect()
        })
        .collect()
}

fn text(samples: &Samples, id: u32) -> String {
    samples.names.get(id as usize).cloned().unwrap_or_default()
}

/// The addresses of a stack, root first. Those of calls in the kernel are return addresses, which
/// may already belong to the next function.
fn places(process: usize, stack: &RawStack) -> impl Iterator<Item = (Place, u64)> {
    let user = stack
        .user
        .iter()
        .rev()
        .map(move |&packed| match frame::module(packed) {
            0 => (Place::Process(process), frame::address(packed)),
            slot => (Place::Module(slot), frame::address(packed)),
        });
    let kernel = stack.kernel.iter().enumerate().rev();
    user.chain(kernel.map(|(depth, &address)| (Place::Kernel, address - u64::from(depth > 0))))
}

/// Names everything, modules side by side.
fn name_addresses(profile: &mut Profile, addresses: &Addresses, targets: &Targets) -> Names {
    let work = addresses
        .iter()
        .map(|(&place, set)| Work::of(place, set.iter().copied().collect(), targets))
        .collect();
    let mut names = Names::new();
    for named in name_all(work, WORKERS) {
        named.intern(profile, &mut names);
    }
    names
}

/// The addresses of one place, in ascending order, and what names them.
struct Work {
    place: Place,
    addresses: Vec<u64>,
    source: Source,
    /// Why a source that is there is not used.
    refused: Option<String>,
}

/// Where names come from, opened already.
enum Source {
    Kernel(Option<process::Kallsyms>),
    Module {
        file: Option<Arc<File>>,
        name: String,
        path: Arc<OsStr>,
        roots: Arc<DebugRoots>,
        /// Why its addresses are not known, if they are not.
        no_addresses: Option<Unnamed>,
    },
    /// The perf map of a process, if it can be trusted.
    Jit(Option<File>),
    Nothing,
}

/// The frames at each address of one place, innermost first.
struct Named {
    place: Place,
    addresses: Vec<u64>,
    frames: Vec<Vec<Frame>>,
    facts: Option<ModuleFacts>,
    refused: Option<String>,
}

impl Work {
    fn of(place: Place, addresses: Vec<u64>, targets: &Targets) -> Self {
        let mut refused = None;
        let source = match place {
            Place::Kernel => Source::Kernel(process::kallsyms().ok()),
            Place::Module(slot) => {
                match targets.modules().iter().find(|module| module.slot == slot) {
                    Some(module) => Source::Module {
                        file: module.file.clone(),
                        name: module.name.clone(),
                        path: module.path.clone(),
                        roots: Arc::clone(&module.roots),
                        no_addresses: module.no_addresses(),
                    },
                    None => Source::Nothing,
                }
            }
            Place::Process(index) => {
                let tracked = targets.list().get(index);
                let map = tracked.map_or(Ok(None), open_perf_map);
                if let (Err(reason), Some(tracked)) = (&map, tracked) {
                    refused = Some(format!("process {}: {reason}, not used", tracked.pid));
                }
                Source::Jit(map.unwrap_or_default())
            }
        };
        Self {
            place,
            addresses,
            source,
            refused,
        }
    }

    fn name(mut self, parser: &mut Parser, budget: &Budget) -> Named {
        let addresses = &self.addresses;
        let nothing = |module, reason| unnamed(addresses, Space::User, module, reason);
        let mut build_id = None;
        let frames = match &mut self.source {
            Source::Kernel(Some(symbols)) => symbolize::kernel(symbols, addresses),
            Source::Kernel(None) => unnamed(addresses, Space::Kernel, None, Unnamed::KernelHidden),
            Source::Module {
                no_addresses: Some(reason),
                name,
                ..
            } => nothing(Some(name), *reason),
            Source::Module {
                file: Some(file),
                name,
                path,
                roots,
                ..
            } => {
                let debug = roots.of_module(Path::new(&**path));
                let named = parser.names(file, name, &debug, addresses, budget);
                build_id = named.build_id;
                named.frames
            }
            Source::Module {
                file: None, name, ..
            } => nothing(Some(name), Unnamed::FileUnavailable),
            Source::Jit(_) if budget.is_over() => nothing(None, Unnamed::GaveUp),
            Source::Jit(Some(file)) => parser.jit_names(file, addresses, budget),
            Source::Jit(None) | Source::Nothing => nothing(None, Unnamed::NoModule),
        };
        Named {
            place: self.place,
            facts: self.source.facts(build_id),
            frames,
            addresses: self.addresses,
            refused: self.refused,
        }
    }
}

impl Source {
    /// What is known of the module, if it is one.
    fn facts(&self, build_id: Option<Vec<u8>>) -> Option<ModuleFacts> {
        let Source::Module { name, path, .. } = self else {
            return None;
        };
        let digits = |id: Vec<u8>| id.iter().map(|byte| format!("{byte:02x}")).collect();
        Some(ModuleFacts {
            name: name.clone(),
            path: path.to_string_lossy().into_owned(),
            build_id: build_id.map(digits),
        })
    }
}

impl Named {
    fn intern(self, profile: &mut Profile, names: &mut Names) {
        if let Some(facts) = self.facts
            && !profile.modules.contains(&facts)
        {
            profile.modules.push(facts);
        }
        if let Some(note) = self.refused {
            profile.accounting.notes.insert(note, 1);
        }
        for (address, functions) in self.addresses.into_iter().zip(self.frames) {
            let ids = functions
                .into_iter()
                .map(|frame| profile.intern(frame))
                .collect();
            names.insert((self.place, address), ids);
        }
    }
}

/// Does the work with so many threads, side by side, within the time of one [`Budget`]; the results are in the order of
/// their places.
fn name_all(work: Vec<Work>, workers: usize) -> Vec<Named> {
    let budget = Budget::start();
    let queue = Mutex::new(work.into_iter());
    let done = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                // Debug files may be their owner's alone; what has started the run has warned where
                // nothing can be given up.
                let _ = privilege::drop_to(&[Cap::DacReadSearch]);
                let mut parser = Parser::of_names();
                // A lock is poisoned only if a worker panicked: its part stays unnamed.
                while let Some(work) = queue.lock().ok().and_then(|mut queue| queue.next()) {
                    let named = work.name(&mut parser, &budget);
                    if let Ok(mut done) = done.lock() {
                        done.push(named);
                    }
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_default();
    done.sort_by_key(|named| named.place);
    done
}

/// How far the times of files and of events may lie apart: a tick of the kernel.
const FILE_TIME: Duration = Duration::from_millis(10);

/// The perf map of the process, if there is one.
fn open_perf_map(tracked: &Tracked) -> Result<Option<File>, NotTrusted> {
    let Some(process) = &tracked.process else {
        return Ok(None);
    };
    let file = match process.open_perf_map() {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            return Err(NotTrusted::NotRegular);
        }
        opened => opened.ok(),
    };
    let Some(metadata) = file.as_ref().and_then(|file| file.metadata().ok()) else {
        return Ok(file);
    };
    symbolize::check_perf_map_owner(&metadata, process.uid())?;
    let is_theirs = tracked.exited_at.is_none_or(|exited_at| {
        // What was written later is of another process of its id.
        let exited = process::wall_time(exited_at) + FILE_TIME;
        metadata.modified().is_ok_and(|at| at <= exited)
    });
    Ok(file.filter(|_| is_theirs))
}

fn unnamed(
    addresses: &[u64],
    space: Space,
    module: Option<&str>,
    reason: Unnamed,
) -> Vec<Vec<Frame>> {
    let frame = |&address: &u64| {
        vec![Frame {
            unnamed: Some(reason),
            ..Frame::at(space, module.map(str::to_owned), address)
        }]
    };
    addresses.iter().map(frame).collect()
}
