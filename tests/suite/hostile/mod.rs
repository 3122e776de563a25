//! Targets made to hurt whoever looks at them. Each is a real process, and a file or a behaviour of
//! it lies; the agent must end soon, stay small, write outputs that are whole and harmless, and say
//! what it could not find out, and why.
//!
//! The tables of cases are in the modules, by kind; `docs/hostile.md` lists them all, which a test
//! here checks (`AGENT_BLESS=1` writes it anew).

mod cfi;
mod dwarf;
mod elf;
mod image;
mod names;
mod perf_map;
mod process;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tempfile::TempDir;

use crate::harness::{
    Agent, Finished, Profile, Target, agent_binary, alone, host_only, in_vm, patience,
};

/// What the agent may take from the end of the capture to its own end, in seconds.
const LAST_SECONDS: f64 = 5.0;
/// What the start of a command may take that does not say how long it took, in seconds.
const LONGEST_START: f64 = 1.5;
/// What the agent and all its children may hold in memory at the same time, in bytes.
const MEMORY: u64 = 256 << 20;
/// Length of a capture, in seconds.
const CAPTURE: f64 = 0.5;
/// Captures until a target must have been seen at work.
const ATTEMPTS: u32 = 5;
/// Cases that run side by side.
const WORKERS: usize = 3;

/// One hostile target.
struct Case {
    /// A name for it, short.
    name: &'static str,
    /// What is wrong with it.
    claim: &'static str,
    /// Starts it; what it needs is made in the directory.
    start: fn(&Path) -> Target,
    /// What the agent must say.
    says: &'static [Says],
    /// How the agent is called.
    call: Call,
}

/// How the agent is called.
#[derive(Clone, Copy, PartialEq)]
enum Call {
    /// `profile` into all formats.
    Profile,
    /// The same with `--children`.
    Children,
    /// Another command.
    Command(&'static str),
}

/// What the agent says of a case.
enum Says {
    /// The function that the target is in, by name; the beginning is enough.
    Name(&'static str),
    /// That a frame has no name, with this reason.
    Unnamed(&'static str),
    /// A note with these words.
    Note(&'static str),
    /// Why stacks end.
    End(&'static str),
    /// These words on standard error.
    Words(&'static str),
    /// One of these: it depends on how fast the machine is.
    OneOf(&'static [Says]),
}

impl Case {
    const fn new(
        name: &'static str,
        claim: &'static str,
        start: fn(&Path) -> Target,
        says: &'static [Says],
    ) -> Case {
        let call = Call::Profile;
        Case {
            name,
            claim,
            start,
            says,
            call,
        }
    }

    const fn called(mut self, call: Call) -> Case {
        self.call = call;
        self
    }

    fn run(&self) {
        let directory = TempDir::new().unwrap();
        let target = (self.start)(directory.path());
        let _map = PerfMap(target.pid());
        let pid = target.pid().to_string();
        let probe = matches!(self.call, Call::Command(_));
        let mut attempts = 0;
        let finished = loop {
            let finished = watched(self.agent(&pid));
            attempts += 1;
            // 3: what the probe looks for did not happen. A target that was never sampled did not
            // get a CPU: the next capture is as good.
            match finished.code() {
                Some(0) => break finished,
                Some(3) if probe => break finished,
                Some(3) if attempts < ATTEMPTS => {}
                code => panic!("{code:?}: {}", finished.stderr()),
            }
        };
        for file in finished.files() {
            match file.ends_with(".zip") {
                true => assert_bundle_harmless(&finished.path(&file)),
                false => assert_harmless(&file, &finished.text(&file)),
            }
        }
        assert_harmless("standard error", &finished.stderr());
        assert_harmless("standard output", &finished.stdout());
        let profile = matches!(self.call, Call::Profile | Call::Children).then(|| whole(&finished));
        for says in self.says {
            says.check(profile.as_ref(), &finished);
        }
    }

    fn agent(&self, pid: &str) -> Agent {
        let agent = match self.call {
            Call::Profile => Agent::profile(),
            Call::Children => Agent::profile().args(["--children"]),
            Call::Command(name) => Agent::subcommand(name, &[], &agent_binary()),
        };
        let agent = agent.args(["--pid", pid, "--duration", &format!("{CAPTURE}s")]);
        match self.call {
            Call::Command("record") => agent.args(["-o", "incident.zip"]),
            Call::Command(_) => agent.args(["--format", "json"]),
            _ => agent
                .args(["--frequency", "199", "-o", "profile.json"])
                .args(["-o", "flame.svg", "-o", "stacks.folded"]),
        }
    }
}

/// The perf map of a target, which goes with it.
struct PerfMap(u32);

impl Drop for PerfMap {
    fn drop(&mut self) {
        perf_map::remove(&perf_map::map_of(self.0));
    }
}

/// Runs the agent to its end, and fails if it grows or takes too long.
fn watched(agent: Agent) -> Finished {
    let running = agent.start();
    let pid = running.pid();
    let (over, peak, waited) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let finished = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let tree = tree(pid);
                let resident = tree.iter().copied().map(resident).sum();
                peak.fetch_max(resident, Ordering::Relaxed);
                let delay = tree.iter().copied().map(run_delay).sum();
                waited.fetch_max(delay, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        let finished = catch_unwind(AssertUnwindSafe(|| running.wait()));
        over.store(true, Ordering::Relaxed);
        finished
    });
    let finished = finished.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    let peak = peak.into_inner();
    assert!(peak < MEMORY, "{} MB resident", peak >> 20);
    // What it waited for a CPU that others had is not its own time.
    let waited = Duration::from_nanos(waited.into_inner());
    let limit = patience(LAST_SECONDS) + Duration::from_secs_f64(CAPTURE) + waited;
    let start = started_after(&finished);
    let took = finished.took.saturating_sub(start);
    assert!(
        took < limit,
        "{took:?} from the start of the capture on, {waited:?} of it without a CPU"
    );
    finished
}

/// A process and its descendants.
fn tree(pid: u32) -> Vec<u32> {
    let mut tree = vec![pid];
    for task in tasks(pid) {
        let text = std::fs::read_to_string(task.join("children")).unwrap_or_default();
        let children = text.split_whitespace().map(|pid| pid.parse().unwrap());
        tree.extend(children.flat_map(self::tree));
    }
    tree
}

fn tasks(pid: u32) -> impl Iterator<Item = PathBuf> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"));
    tasks
        .into_iter()
        .flatten()
        .flatten()
        .map(|task| task.path())
}

/// What a process holds in memory, in bytes.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    1024 * kilobytes.unwrap_or(0)
}

/// What a process waited for a CPU, in nanoseconds: its main thread, and that of the others which
/// waited longest (`schedstat`, Documentation/scheduler/sched-stats.rst).
fn run_delay(pid: u32) -> u64 {
    let mut longest = 0;
    let mut main = 0;
    for task in tasks(pid) {
        let text = std::fs::read_to_string(task.join("schedstat")).unwrap_or_default();
        let delay = text.split(' ').nth(1).and_then(|delay| delay.parse().ok());
        if task.ends_with(pid.to_string()) {
            main = delay.unwrap_or(0);
        } else {
            longest = longest.max(delay.unwrap_or(0));
        }
    }
    main + longest
}

/// What the agent took until its clock ran; where it does not say, what it may take.
fn started_after(finished: &Finished) -> Duration {
    let file = std::fs::read_to_string(finished.path("profile.json")).unwrap_or_default();
    let profile: serde_json::Value = serde_json::from_str(&file).unwrap_or_default();
    let start = profile["facts"]["start_ms"]
        .as_f64()
        .map(|start| Duration::from_secs_f64(start / 1e3));
    start.unwrap_or(patience(LONGEST_START))
}

/// The profile, after the other outputs were found to be whole too.
fn whole(finished: &Finished) -> Profile {
    let profile = finished.profile();
    assert!(profile.totals.balances, "{}", profile.explain());
    assert!(profile.samples() > 0, "{}", finished.stderr());
    let _ = crate::outputs::titles(&finished.text("flame.svg"));
    let folded = crate::outputs::folded(&finished.text("stacks.folded"));
    assert_eq!(folded.values().sum::<u64>(), profile.samples());
    assert!(profile.cost.peak_rss_bytes < MEMORY);
    profile
}

/// Fails on what could move a cursor or turn the direction of writing.
fn assert_harmless(file: &str, text: &str) {
    let harmful = |c: &char| {
        c.is_control() && *c != '\n'
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let found = text.chars().find(harmful);
    assert!(found.is_none(), "{found:?} in {file}");
}

/// The same for the entries of a bundle that are text.
fn assert_bundle_harmless(bundle: &Path) {
    let directory = TempDir::new().unwrap();
    let mut unzip = std::process::Command::new("unzip");
    unzip.arg("-q").arg(bundle).current_dir(directory.path());
    assert!(unzip.status().unwrap().success());
    let entries = std::fs::read_dir(directory.path()).unwrap();
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.extension().is_none_or(|extension| extension != "gz") {
            let text = std::fs::read_to_string(&path).unwrap();
            assert_harmless(&path.to_string_lossy(), &text);
        }
    }
}

impl Says {
    fn check(&self, profile: Option<&Profile>, finished: &Finished) {
        assert!(
            self.holds(profile, finished),
            "it does not say: {}\n{}\n{}",
            self.text(),
            finished.stderr(),
            seen(finished)
        );
    }

    fn holds(&self, of: Option<&Profile>, finished: &Finished) -> bool {
        let profile = |holds: &dyn Fn(&Profile) -> bool| of.is_some_and(holds);
        let user = |profile: &Profile, name: &str| {
            let mut frames = profile.frames.iter().filter(|frame| frame.space == "user");
            frames.any(|frame| {
                frame
                    .function
                    .as_deref()
                    .is_some_and(|f| f.starts_with(name))
            })
        };
        match *self {
            Says::Name(name) => profile(&|profile| user(profile, name)),
            Says::Unnamed(reason) => profile(&|profile| {
                let mut frames = profile.frames.iter();
                frames.any(|frame| frame.unnamed.as_deref() == Some(reason))
            }),
            Says::Note(words) => profile(&|profile| {
                let mut notes = profile.accounting.notes.keys();
                notes.any(|note| note.contains(words))
            }),
            Says::End(end) => {
                profile(&|profile| profile.stacks.iter().any(|stack| stack.end == end))
            }
            Says::Words(words) => finished.stderr().contains(words),
            Says::OneOf(all) => all.iter().any(|says| says.holds(of, finished)),
        }
    }

    /// For the table of the documentation.
    fn text(&self) -> String {
        match self {
            Says::Name(name) => format!("the name `{name}`"),
            Says::Unnamed(reason) => format!("no name: `{reason}`"),
            Says::Note(words) => format!("note “{words}”"),
            Says::End(end) => format!("stacks end in `{end}`"),
            Says::Words(words) => format!("“{words}”"),
            Says::OneOf(all) => {
                let all: Vec<_> = all.iter().map(Says::text).collect();
                all.join(" or ")
            }
        }
    }
}

/// What there was instead.
fn seen(finished: &Finished) -> String {
    let Ok(text) = std::fs::read_to_string(finished.path("profile.json")) else {
        return String::new();
    };
    let profile: Profile = serde_json::from_str(&text).unwrap();
    let frames = profile.frames.iter().filter(|frame| frame.space == "user");
    let frames = frames.map(|frame| {
        let mut name = frame.name();
        name.truncate(60);
        format!("{name} {:?}", frame.unnamed)
    });
    let frames: Vec<_> = frames.take(20).collect();
    format!("{}\n{}", profile.explain(), frames.join(", "))
}

/// Runs the cases side by side; fails with all that went wrong, by case.
fn run_all(cases: &[Case]) {
    let _alone = alone();
    let chosen = std::env::var("AGENT_CASE").unwrap_or_default();
    let cases = cases.iter().filter(|case| case.name.contains(&chosen));
    let queue = Mutex::new(cases);
    let failures = Mutex::new(BTreeMap::new());
    let next = || queue.lock().unwrap().next();
    let work = || {
        while let Some(case) = next() {
            let begin = std::time::Instant::now();
            let done = catch_unwind(AssertUnwindSafe(|| case.run()));
            println!("{:?} {}", begin.elapsed(), case.name);
            if let Err(panic) = done {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| Some((*panic.downcast_ref::<&str>()?).to_owned()));
                let text = text.unwrap_or_default();
                failures.lock().unwrap().insert(case.name, text);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(work);
        }
    });
    let failures = failures.into_inner().unwrap();
    let text: Vec<_> = failures
        .iter()
        .map(|(name, text)| format!("== {name}: {text:.4000}"))
        .collect();
    assert!(text.is_empty(), "{}", text.join("\n"));
}

/// All cases, by kind.
const KINDS: [(&str, &[Case]); 6] = [
    ("ELF headers, notes and links", elf::CASES),
    ("Unwind information", cfi::CASES),
    ("DWARF", dwarf::CASES),
    ("Symbols", names::CASES),
    ("Perf maps", perf_map::CASES),
    ("Processes", process::CASES),
];

const SAME_EVERYWHERE: &str = "what parses a file is the same on every kernel";

#[test]
fn elf_headers() {
    if !host_only(SAME_EVERYWHERE) {
        run_all(elf::CASES);
    }
}

#[test]
fn unwind_information() {
    if !host_only(SAME_EVERYWHERE) {
        run_all(cfi::CASES);
    }
}

#[test]
fn debug_information() {
    if !host_only(SAME_EVERYWHERE) {
        run_all(dwarf::CASES);
    }
}

#[test]
fn symbols() {
    if !host_only(SAME_EVERYWHERE) {
        run_all(names::CASES);
    }
}

#[test]
fn perf_maps() {
    if !host_only(SAME_EVERYWHERE) {
        run_all(perf_map::CASES);
    }
}

#[test]
fn processes() {
    run_all(process::CASES);
}

/// The cases as the documentation lists them.
fn tables() -> String {
    let mut text = String::new();
    for (title, cases) in KINDS {
        let _ = write!(
            text,
            "\n## {title}\n\n| case | claim | agent says |\n|-|-|-|\n"
        );
        for case in cases {
            let says: Vec<_> = case.says.iter().map(Says::text).collect();
            let says = match says.is_empty() {
                true => "whole outputs".to_owned(),
                false => says.join("; "),
            };
            let command = match case.call {
                Call::Command(name) => format!("`agent {name}`: "),
                Call::Children => "`--children`: ".to_owned(),
                Call::Profile => String::new(),
            };
            let _ = writeln!(text, "| {} | {command}{} | {says} |", case.name, case.claim);
        }
    }
    text
}

#[test]
fn the_documentation_lists_the_cases() {
    if in_vm() {
        return;
    }
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/hostile.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let start = text.find("\n## ELF").unwrap();
    if std::env::var_os("AGENT_BLESS").is_some() {
        std::fs::write(&path, format!("{}{}", &text[..start], tables())).unwrap();
        return;
    }
    assert!(
        text[start..] == tables(),
        "AGENT_BLESS=1 writes docs/hostile.md anew"
    );
    let count: usize = KINDS.iter().map(|(_, cases)| cases.len()).sum();
    assert!(count >= 40, "{count} cases");
}
