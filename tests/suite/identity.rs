//! Never the wrong process: ids that are another's at once when a target has ended, a thousand times.

use std::ffi::CString;
use std::hint::black_box;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

use crate::harness::chosen::{Chosen, Random, can_choose, cpu_ns, free_ids, nap, sleep_on};
use crate::harness::{Agent, Profile, Running, Stack, alone, eventually, in_vm, patience, program};

/// A fast clock: a stranger is seen for a moment only.
const FREQUENCY: &str = "997";
/// CPU time that a stranger takes: it outlasts the moment in which the kernel still frees the task
/// of the process before it.
const STRANGER_NS: u64 = 12_000_000;
const CHILD_NS: u64 = 2_000_000;

#[inline(never)]
fn stranger_burns() {
    burn(STRANGER_NS);
    black_box(());
}

#[inline(never)]
fn target_burns() {
    burn(CHILD_NS);
    black_box(());
}

#[inline(always)]
fn burn(nanoseconds: u64) {
    let end = cpu_ns() + nanoseconds;
    let mut number = 1u64;
    while cpu_ns() < end {
        for _ in 0..1000 {
            number = black_box(number.wrapping_mul(3));
        }
    }
}

/// Fails if anything in the outputs is a stranger's.
fn assert_no_stranger(profile: &Profile, round: &str) {
    let burns = |stack: &Stack| {
        profile
            .names_of(stack)
            .iter()
            .any(|name| name.contains("stranger_burns"))
    };
    let strange = |name: &str| ["stranger", "idle"].contains(&name);
    let named = |stack: &Stack| strange(&stack.comm) || strange(&stack.thread);
    let samples = profile.count(|stack| burns(stack) || named(stack));
    assert_eq!(samples, 0, "{round}: of strangers\n{}", profile.explain());
    for target in &profile.facts.targets {
        let program = target.exe.as_deref().unwrap_or_default();
        assert!(
            !strange(&target.comm) && !program.ends_with("/idle"),
            "{round}: process {} is said to be {} ({program})",
            target.pid,
            target.comm
        );
    }
    assert!(profile.totals.balances, "{round}");
}

fn of_target(profile: &Profile) -> u64 {
    profile.count(|stack| {
        let names = profile.names_of(stack);
        names.iter().any(|name| name.contains("target_burns"))
    })
}

/// Ticks that came to a stranger while the kernel side still had the id in scope.
fn refused(profile: &Profile) -> u64 {
    let note = "events of others with the id of an ended target";
    profile.accounting.notes.get(note).copied().unwrap_or(0)
}

/// Processes that the agent holds by a pidfd.
fn held(agent: &Running) -> usize {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{}/fdinfo", agent.pid())) else {
        return 0;
    };
    let texts = entries.filter_map(|entry| std::fs::read_to_string(entry.ok()?.path()).ok());
    texts.filter(|text| text.contains("\nPid:")).count()
}

/// A stranger with this id: burns, and runs another program if one is given.
fn stranger(pid: u32, then: Option<&CString>) -> io::Result<Chosen> {
    let words = [
        then.map_or(std::ptr::null(), |path| path.as_ptr()),
        c"300".as_ptr(),
        std::ptr::null(),
    ];
    Chosen::start(pid, b"stranger\0", || {
        stranger_burns();
        if let Some(path) = then {
            // SAFETY: strings that end in zeros, lists that end in null pointers.
            unsafe { libc::execve(path.as_ptr(), words.as_ptr(), &raw const words[2]) };
        }
        sleep_on();
    })
}

/// Targets that end at any moment from when the agent has just taken hold of them to when it
/// samples; a stranger has the id at once.
#[test]
fn an_id_that_is_reused_while_a_run_begins() {
    let _alone = alone();
    if !can_choose() {
        return;
    }
    let (rounds, count) = if in_vm() { (1, 20) } else { (10, 60) };
    let mut random = Random::new();
    let (mut early, mut late, mut seen) = (0, 0, 0);
    for round in 0..rounds {
        let counts = race(&mut random, count, &format!("round {round}"));
        early += counts.0;
        late += counts.1;
        seen += counts.2;
    }
    println!(
        "{} races: {early} before the clock started, {late} while it ran; {seen} ticks of strangers refused",
        early + late
    );
    assert!(early + late >= rounds * count * 9 / 10, "too few races");
}

/// One run with `count` targets that are replaced. The races before the clock started and after,
/// and the ticks that were refused.
fn race(random: &mut Random, count: usize, round: &str) -> (usize, usize, u64) {
    let idle = CString::new(program("idle").as_os_str().as_bytes()).unwrap();
    let works = || loop {
        target_burns();
        nap(8);
    };
    let ids = free_ids(count + 1);
    let survivor = Chosen::start(ids[0], b"target\0", works).unwrap();
    let sleeping = |&pid: &u32| Chosen::start(pid, b"target\0", sleep_on).ok();
    let targets: Vec<Chosen> = ids[1..].iter().filter_map(sleeping).collect();
    let all = [&survivor].into_iter().chain(&targets);
    let pids = all.flat_map(|target| ["--pid".to_owned(), target.pid().to_string()]);
    let agent = Agent::profile()
        .args(["-v", "--duration", "600s", "--frequency", FREQUENCY])
        .args(["-o", "profile.json"])
        .args(pids)
        .start();
    let expected = targets.len() + 1;
    let taken = eventually(patience(20.0), || held(&agent) >= expected);
    assert!(
        taken,
        "{round}: the agent holds {} of {expected}",
        held(&agent)
    );

    let spread = patience(0.5).as_millis() as u64;
    let mut moments: Vec<u64> = targets.iter().map(|_| random.below(spread)).collect();
    moments.sort_unstable();
    let begin = Instant::now();
    let mut strangers = Vec::new();
    let mut early = 0;
    for (number, (target, moment)) in targets.into_iter().zip(moments).enumerate() {
        let wait = Duration::from_millis(moment).saturating_sub(begin.elapsed());
        std::thread::sleep(wait);
        let pid = target.pid();
        drop(target);
        let then = (number % 2 == 0).then_some(&idle);
        // Somebody else on the machine may have been given the id.
        if let Ok(stranger) = stranger(pid, then) {
            early += usize::from(!agent.has_said("sampling by"));
            strangers.push(stranger);
        }
    }
    agent.await_said("sampling by");
    std::thread::sleep(patience(0.3));
    agent.signal(libc::SIGINT);
    let finished = agent.wait();
    assert_eq!(finished.code(), Some(0), "{round}: {}", finished.stderr());
    let profile = finished.profile();
    assert_no_stranger(&profile, round);
    let of_survivor = |stack: &Stack| stack.pid == survivor.pid();
    assert!(
        profile.count(of_survivor) > 0,
        "{round}\n{}",
        profile.explain()
    );
    (early, strangers.len() - early, refused(&profile))
}

/// The parent's side of [`children_with_ids_of_strangers`]: a child with the id for each byte that
/// comes, answered when it is reaped.
fn bear_children(pid: u32, rounds: usize, ask: RawFd, answer: RawFd) {
    for _ in 0..rounds {
        let mut byte = [0u8];
        // SAFETY: the buffer is as long as said.
        if unsafe { libc::read(ask, byte.as_mut_ptr().cast(), 1) } != 1 {
            return;
        }
        let child = Chosen::start(pid, b"target\0", target_burns);
        byte[0] = u8::from(child.is_ok());
        if let Ok(child) = child {
            child.wait();
        }
        // SAFETY: as above.
        unsafe { libc::write(answer, byte.as_ptr().cast(), 1) };
    }
}

fn pipe() -> (RawFd, RawFd) {
    let mut ends = [0; 2];
    // SAFETY: the array has room for both.
    let failed = unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) };
    assert_eq!(failed, 0);
    (ends[0], ends[1])
}

/// A child of a target ends and is reaped; a stranger has its id at once, while the kernel still
/// frees the child's task. Each fourth time the next is a child again.
#[test]
fn an_id_that_is_a_childs_and_a_strangers_in_turn() {
    let _alone = alone();
    if !can_choose() {
        return;
    }
    let rounds = if in_vm() { 150 } else { 540 };
    let (ask, asked) = (pipe(), pipe());
    let ids = free_ids(2);
    let parent = Chosen::start(ids[0], b"target\0", || {
        bear_children(ids[1], rounds, ask.0, asked.1);
        sleep_on();
    })
    .unwrap();
    let agent = Agent::profile()
        .args(["--pid", &parent.pid().to_string(), "--children", "-v"])
        .args(["--duration", "600s", "--frequency", FREQUENCY])
        .args(["-o", "profile.json"])
        .start();
    agent.await_said("sampling by");
    let (mut children, mut races) = (0u64, 0);
    for round in 0..rounds {
        let mut byte = [1u8];
        // SAFETY: buffers of one byte.
        let answered = unsafe {
            libc::write(ask.1, byte.as_ptr().cast(), 1);
            libc::read(asked.0, byte.as_mut_ptr().cast(), 1)
        };
        assert_eq!(answered, 1);
        children += u64::from(byte[0]);
        if round % 4 == 3 {
            continue;
        }
        let stranger = Chosen::start(ids[1], b"stranger\0", stranger_burns);
        if let Ok(stranger) = stranger {
            races += 1;
            stranger.wait();
        }
    }
    agent.signal(libc::SIGINT);
    let finished = agent.wait();
    for end in [ask.0, ask.1, asked.0, asked.1] {
        // SAFETY: our own descriptors, closed once.
        unsafe { libc::close(end) };
    }
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    let profile = finished.profile();
    let expected = children * CHILD_NS * 997 / 1_000_000_000;
    println!(
        "{races} races; {} ticks of strangers refused; {} samples of children, {expected} expected",
        refused(&profile),
        of_target(&profile)
    );
    assert_no_stranger(&profile, "children");
    assert!(races >= rounds * 6 / 10, "too few races");
    if !in_vm() {
        assert!(refused(&profile) > 0, "no race came into the moment");
        assert!(
            of_target(&profile) as f64 > 0.7 * expected as f64,
            "samples of the children are missing\n{}",
            profile.explain()
        );
    }
}
