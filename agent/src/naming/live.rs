//! Names for a run without an end: each address is named once and in the background, so that nobody
//! waits for debug information; what is kept is bounded.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use super::{Addresses, Named, Names, Place, Work, name_all, places, text};
use crate::probe::cpu::{Key, RawStack, Samples};
use crate::process::privilege::{self, Cap};
use crate::profile::{Frame, FrameId, Profile, Space, Stack};
use crate::session::target::Targets;

/// Threads that name modules: tables are built at the same time.
const WORKERS: usize = 1;
/// Addresses whose names are kept; with more, all are forgotten, and those in use named again.
const MAX_NAMES: usize = 1 << 18;
/// After naming so long, so many times as long nothing is named: a program with ever new code must
/// not keep the agent busy.
const REST: u32 = 9;
/// JIT compilers list code when it is made, some later, and use its place again: names of such code
/// are trusted for so long.
const JIT_TRUST: Duration = Duration::from_secs(10);

/// The names known so far, and what is being named.
pub struct LiveNames {
    known: Profile,
    names: Names,
    doing: Option<Doing>,
    /// When the next naming may begin.
    next: Instant,
    jit_since: Instant,
}

struct Doing {
    since: Instant,
    named: Receiver<Vec<Named>>,
}

impl Default for LiveNames {
    fn default() -> Self {
        let now = Instant::now();
        Self {
            known: Profile::default(),
            names: Names::new(),
            doing: None,
            next: now,
            jit_since: now,
        }
    }
}

/// A profile in the making.
#[derive(Default)]
struct Making {
    profile: Profile,
    /// Numbers of frames there by those of [`LiveNames::known`].
    moved: HashMap<FrameId, FrameId>,
    missing: Addresses,
}

impl LiveNames {
    /// The samples as a profile of stacks and frames, as far as their names are known; the other
    /// frames have none yet. Gives the number of these addresses too, whose naming it has begun.
    /// Does not wait.
    pub fn profile(
        &mut self,
        counts: HashMap<Key, u64>,
        samples: &Samples,
        targets: &Targets,
    ) -> (Profile, usize) {
        self.take_in();
        let mut sorted: Vec<(Key, u64)> = counts.into_iter().collect();
        sorted.sort_unstable();
        let mut making = Making::default();
        for (key, count) in sorted {
            let stack = samples.stacks.get(&key.stack);
            let (Some(raw), Some(tracked)) = (stack, targets.list().get(key.process)) else {
                continue;
            };
            let frames = self.frames(&mut making, key.process, raw, targets);
            making.profile.stacks.push(Stack {
                pid: tracked.pid,
                tid: key.tid,
                comm: text(samples, key.comm),
                thread: text(samples, key.thread),
                frames,
                end: raw.end,
                count,
            });
        }
        let pending = making.missing.values().map(BTreeSet::len).sum();
        self.begin(making.missing, targets);
        let mut profile = making.profile;
        profile.accounting.notes = self.known.accounting.notes.clone();
        let frames = profile.frames.iter();
        let used: HashSet<&str> = frames.filter_map(|frame| frame.module.as_deref()).collect();
        let known = self.known.modules.iter();
        let modules = known.filter(|facts| used.contains(&*facts.name));
        profile.modules = modules.cloned().collect();
        (profile, pending)
    }

    /// The frames of one stack, root first.
    fn frames(
        &self,
        making: &mut Making,
        process: usize,
        raw: &RawStack,
        targets: &Targets,
    ) -> Vec<FrameId> {
        let profile = &mut making.profile;
        let mut frames = Vec::new();
        for (place, address) in places(process, raw) {
            let Some(functions) = self.names.get(&(place, address)) else {
                making.missing.entry(place).or_default().insert(address);
                frames.push(profile.intern(not_yet(place, address, targets)));
                continue;
            };
            for &id in functions.iter().rev() {
                let known = self.known.frames.get(id as usize);
                frames.extend(known.map(|frame| {
                    let moved = making.moved.entry(id);
                    *moved.or_insert_with(|| profile.intern(frame.clone()))
                }));
            }
        }
        frames
    }

    /// Takes in what has been named meanwhile.
    fn take_in(&mut self) {
        if self.jit_since.elapsed() > JIT_TRUST {
            self.jit_since = Instant::now();
            self.names
                .retain(|(place, _), _| !matches!(place, Place::Process(_)));
        }
        let Some(doing) = &self.doing else { return };
        let all = match doing.named.try_recv() {
            Ok(all) => all,
            Err(TryRecvError::Empty) => return,
            Err(TryRecvError::Disconnected) => Vec::new(),
        };
        self.next = Instant::now() + doing.since.elapsed() * REST;
        self.doing = None;
        let new: usize = all.iter().map(|named| named.addresses.len()).sum();
        // A name counts as long as its frame is kept, also where its address was forgotten.
        if self.names.len().max(self.known.frames.len()) + new > MAX_NAMES {
            self.names.clear();
            self.known = Profile::default();
        }
        for named in all {
            named.intern(&mut self.known, &mut self.names);
        }
    }

    /// Has these named, unless others are being named or it is too early.
    fn begin(&mut self, missing: Addresses, targets: &Targets) {
        if missing.is_empty() || self.doing.is_some() || Instant::now() < self.next {
            return;
        }
        let mut room = MAX_NAMES;
        let mut work = Vec::new();
        for (place, addresses) in missing {
            let addresses: Vec<u64> = addresses.into_iter().take(room).collect();
            room -= addresses.len();
            work.push(Work::of(place, addresses, targets));
        }
        let (done, named) = mpsc::channel();
        let since = Instant::now();
        // Nobody may be waiting any more when it is done.
        let body = move || {
            let _ = privilege::drop_to(&[Cap::DacReadSearch]);
            drop(done.send(name_all(work, WORKERS)));
        };
        let spawned = thread::Builder::new().name("naming".to_owned()).spawn(body);
        self.doing = spawned.is_ok().then_some(Doing { since, named });
    }
}

/// A frame whose name is not known yet.
fn not_yet(place: Place, address: u64, targets: &Targets) -> Frame {
    let (space, module) = match place {
        Place::Kernel => (Space::Kernel, Some("[kernel]".to_owned())),
        Place::Process(_) => (Space::User, None),
        Place::Module(slot) => {
            let mut modules = targets.modules().iter();
            let module = modules.find(|module| module.slot == slot);
            (Space::User, module.map(|module| module.name.clone()))
        }
    };
    Frame::at(space, module, address)
}
