//! From raw samples to the model: each distinct address is named once, each stack written in names.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Mutex;

use agent_ebpf::frame;

use crate::probe::cpu::{Key, RawStack, Samples};
use crate::process;
use crate::profile::{Frame, FrameId, ModuleFacts, Profile, Space, Stack, Unnamed};
use crate::session::modules::Module;
use crate::session::target::{Targets, Tracked};
use crate::symbolize::{self, Budget};

/// Threads that name modules.
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
    for module in addresses.keys().filter_map(|&place| module(place, targets)) {
        let facts = module_facts(module);
        if !profile.modules.contains(&facts) {
            profile.modules.push(facts);
        }
    }
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
    let budget = Budget::start();
    let queue = Mutex::new(addresses.iter());
    let done = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                // A lock is poisoned only if a worker panicked: its part stays unnamed.
                while let Some((&place, set)) = queue.lock().ok().and_then(|mut queue| queue.next())
                {
                    let sorted: Vec<u64> = set.iter().copied().collect();
                    let frames = name_place(place, &sorted, targets, &budget);
                    if let Ok(mut done) = done.lock() {
                        done.push((place, sorted, frames));
                    }
                }
            });
        }
    });
    let mut names = Names::new();
    let mut done = done.into_inner().unwrap_or_default();
    done.sort_by_key(|(place, ..)| *place);
    for (place, sorted, frames) in done {
        for (address, functions) in sorted.into_iter().zip(frames) {
            let ids = functions
                .into_iter()
                .map(|frame| profile.intern(frame))
                .collect();
            names.insert((place, address), ids);
        }
    }
    names
}

fn name_place(
    place: Place,
    addresses: &[u64],
    targets: &Targets,
    budget: &Budget,
) -> Vec<Vec<Frame>> {
    match place {
        Place::Kernel => match process::kallsyms() {
            Ok(file) => symbolize::kernel(file, addresses),
            Err(_) => unnamed(addresses, Space::Kernel, None, Unnamed::KernelHidden),
        },
        Place::Module(_) => match module(place, targets) {
            Some(module) => name_module(module, addresses, budget),
            None => unnamed(addresses, Space::User, None, Unnamed::NoModule),
        },
        Place::Process(_) if budget.is_over() => {
            unnamed(addresses, Space::User, None, Unnamed::GaveUp)
        }
        Place::Process(index) => targets
            .list()
            .get(index)
            .and_then(|tracked| name_jit(tracked, addresses))
            .unwrap_or_else(|| unnamed(addresses, Space::User, None, Unnamed::NoModule)),
    }
}

fn module(place: Place, targets: &Targets) -> Option<&Module> {
    let Place::Module(slot) = place else {
        return None;
    };
    targets.modules().iter().find(|module| module.slot == slot)
}

fn module_facts(module: &Module) -> ModuleFacts {
    let id = module.file.as_deref().and_then(symbolize::build_id);
    let digits = |id: Vec<u8>| id.iter().map(|byte| format!("{byte:02x}")).collect();
    ModuleFacts {
        name: module.name.clone(),
        path: module.path.to_string_lossy().into_owned(),
        build_id: id.map(digits),
    }
}

fn name_module(module: &Module, addresses: &[u64], budget: &Budget) -> Vec<Vec<Frame>> {
    let Some(file) = &module.file else {
        return unnamed(
            addresses,
            Space::User,
            Some(&module.name),
            Unnamed::FileUnavailable,
        );
    };
    let debug = module.roots.of_module(Path::new(&module.path));
    symbolize::module(file, &module.name, &debug, addresses, budget)
}

/// Names JIT code by the perf map of its process, if that can be trusted.
fn name_jit(tracked: &Tracked, addresses: &[u64]) -> Option<Vec<Vec<Frame>>> {
    let process = tracked.process.as_ref()?;
    let file = process.open_perf_map()?;
    symbolize::check_perf_map_owner(&file.metadata().ok()?, process.uid()).ok()?;
    Some(symbolize::perf_map(&file, addresses))
}

fn unnamed(
    addresses: &[u64],
    space: Space,
    module: Option<&str>,
    reason: Unnamed,
) -> Vec<Vec<Frame>> {
    let frame = |&address: &u64| {
        vec![Frame {
            space,
            module: module.map(str::to_owned),
            function: None,
            file: None,
            line: None,
            inlined: false,
            address,
            function_start: None,
            unnamed: Some(reason),
        }]
    };
    addresses.iter().map(frame).collect()
}
