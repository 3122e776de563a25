//! SIGKILL leaves nothing of the agent behind, at whatever moment it comes.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::harness::chosen::Random;
use crate::harness::{Agent, Running, Target, alone, eventually, in_vm, patience, program};

/// What has an id in the kernel, its name in fdinfo, and the command that lists all (linux/bpf.h).
const KINDS: [(&str, &str, i64); 3] = [
    ("prog", "prog_id:", 11),
    ("map", "map_id:", 12),
    ("link", "link_id:", 31),
];

/// Programs, maps and links, each by its kind and id.
type Objects = BTreeSet<(&'static str, u32)>;

/// All in the kernel.
fn loaded() -> Objects {
    let mut all = Objects::new();
    for (kind, _, command) in KINDS {
        // The part of `union bpf_attr` that these commands read: start_id, next_id, open_flags.
        let mut attribute = [0u32; 3];
        // SAFETY: the attribute is a live array of the size passed.
        while unsafe {
            libc::syscall(
                libc::SYS_bpf,
                command,
                attribute.as_mut_ptr(),
                size_of_val(&attribute),
            )
        } == 0
        {
            all.insert((kind, attribute[1]));
            attribute[0] = attribute[1];
        }
    }
    all
}

/// Those that a process holds.
fn held(pid: u32) -> Objects {
    let mut held = Objects::new();
    let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fdinfo")) else {
        return held;
    };
    for entry in entries.flatten() {
        let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
        for (kind, key, _) in KINDS {
            let mut values = text.lines().filter_map(|line| line.strip_prefix(key));
            held.extend(values.find_map(|id| Some((kind, id.trim().parse().ok()?))));
        }
    }
    held
}

/// Descriptors of perf events that a process holds.
fn perf_events(pid: u32) -> usize {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd"));
    let links = entries.into_iter().flatten().flatten();
    links
        .filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .filter(|link| link.to_string_lossy() == "anon_inode:[perf_event]")
        .count()
}

/// The processes that a process has started and has not reaped.
fn children(pid: u32) -> Vec<u32> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/task"));
    let threads = entries.into_iter().flatten().flatten();
    let texts = threads.filter_map(|entry| {
        let path = entry.path().join("children");
        std::fs::read_to_string(path).ok()
    });
    texts
        .flat_map(|text| {
            let ids: Vec<u32> = text.split_whitespace().flat_map(str::parse).collect();
            ids
        })
        .collect()
}

/// Whether a process runs (a zombie does not).
fn runs(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat
        .rsplit(") ")
        .next()
        .and_then(|rest| rest.chars().next());
    state.is_some_and(|state| !"ZX".contains(state))
}

/// Files of a directory, hidden ones too, without the streams of the test.
fn files(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names
        .filter(|name| name != ".stdout" && name != ".stderr")
        .collect()
}

/// A run of one of the commands. Every second one may come to its end, and writes its output, before
/// it is killed.
fn command(number: u64, pid: u32) -> (Agent, Option<&'static str>) {
    let name = ["profile", "tcp", "syscalls", "record", "serve"][number as usize % 5];
    let output = match name {
        "profile" => Some("profile.json"),
        "record" => Some("incident.zip"),
        "syscalls" => Some("errors.json"),
        _ => None,
    };
    let agent = Agent::subcommand(name, &[], &crate::harness::agent_binary());
    // Whatever is written beside the output would be here.
    let directory = agent.directory().to_owned();
    let mut agent = agent
        .env("TMPDIR", directory)
        .args(["--pid", &pid.to_string()]);
    if name == "serve" {
        agent = agent.args(["--listen", "127.0.0.1:0"]);
    } else {
        let duration = ["600s", "300ms"][number as usize % 2];
        agent = agent.args(["--duration", duration]);
    }
    if let Some(output) = output {
        agent = agent.args(["-o", output]);
    }
    (agent, output)
}

/// What an agent held when it was killed.
struct Killed {
    objects: Objects,
    perf_events: usize,
}

/// Stops the agent where it is, so that what it holds can be looked at, kills it, and fails if
/// anything of it remains.
fn kill(running: Running, output: Option<&str>) -> Killed {
    let pid = running.pid();
    running.signal(libc::SIGSTOP);
    let stat = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let stopped = || [") T", ") Z"].iter().any(|state| stat().contains(state));
    assert!(eventually(patience(5.0), stopped), "{}", stat());
    let (objects, perf_events, offspring) = (held(pid), perf_events(pid), children(pid));
    running.signal(libc::SIGKILL);
    let finished = running.wait();
    let remaining = || {
        loaded()
            .intersection(&objects)
            .copied()
            .collect::<Objects>()
    };
    assert!(
        eventually(patience(10.0), || remaining().is_empty()),
        "{:?} outlive the agent",
        remaining()
    );
    assert!(
        eventually(patience(10.0), || !offspring.iter().any(|&pid| runs(pid))),
        "of {offspring:?} some outlive the agent"
    );
    for name in files(&finished.path(".")) {
        assert_eq!(Some(name.as_str()), output, "a file is left");
        let bytes = std::fs::read(finished.path(&name)).unwrap();
        // The end of a zip file's directory (APPNOTE 4.3.16), 22 bytes without a comment.
        let complete = match name.ends_with(".zip") {
            true => bytes.len() > 22 && bytes[bytes.len() - 22..].starts_with(b"PK\x05\x06"),
            false => serde_json::from_slice::<serde_json::Value>(&bytes).is_ok(),
        };
        assert!(complete, "{name} is cut short");
    }
    Killed {
        objects,
        perf_events,
    }
}

/// Whether another agent runs on this machine: its programs are not ours.
fn others_run() -> bool {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let names = entries.filter_map(|entry| std::fs::read_to_string(entry.path().join("comm")).ok());
    names.into_iter().any(|name| name.trim() == "agent")
}

/// Fails if `bpftool`, where there is one, lists any of these.
fn assert_unlisted(objects: &Objects) {
    for (kind, _, _) in KINDS {
        let Ok(output) = Command::new("bpftool").args(["-j", kind, "show"]).output() else {
            println!("without bpftool: the kernel's own lists were asked");
            return;
        };
        let listed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let ids = listed.as_array().unwrap().iter();
        let ids: Vec<u64> = ids.filter_map(|object| object["id"].as_u64()).collect();
        let left: Vec<_> = objects
            .iter()
            .filter(|(of, id)| *of == kind && ids.contains(&u64::from(*id)))
            .collect();
        assert!(left.is_empty(), "bpftool shows {left:?}");
    }
}

#[test]
fn a_kill_at_any_moment_leaves_nothing_behind() {
    let _alone = alone();
    let mut target = Target::spawn("split", &[]);
    let kills = if in_vm() { 10 } else { 50 };
    let longest = patience(1.5).as_millis() as u64;
    let before = loaded();
    let quiet = !others_run();
    let mut random = Random::new();
    let mut seen = Objects::new();
    let (mut with_objects, mut with_events) = (0, 0);
    for number in 0..kills {
        let used = target.cpu_seconds();
        let (agent, output) = command(number, target.pid());
        let moment = Duration::from_millis(random.below(longest + 1));
        let begin = Instant::now();
        let running = agent.start();
        std::thread::sleep(moment.saturating_sub(begin.elapsed()));
        let killed = kill(running, output);
        with_objects += usize::from(!killed.objects.is_empty());
        with_events += usize::from(killed.perf_events > 0);
        seen.extend(killed.objects);
        assert!(target.is_alive(), "the target ended with kill {number}");
        let works = || target.cpu_seconds() > used;
        assert!(
            eventually(patience(5.0), works),
            "the target stands still after kill {number}"
        );
    }
    println!(
        "{kills} kills: {with_objects} while the agent held programs or maps, {with_events} while perf events; \
         {} programs, maps and links, all gone",
        seen.len()
    );
    assert!(with_objects > 0 && with_events > 0, "all came too early");
    assert_unlisted(&seen);
    if quiet && !others_run() {
        let more = || loaded().difference(&before).copied().collect::<Objects>();
        assert!(
            eventually(patience(10.0), || more().is_empty()),
            "{:?} were not there before",
            more()
        );
    } else {
        println!("another agent runs here: only what these held was looked for");
    }
}

/// A program that was started with `--` is the user's: it goes on. One that still waits for its
/// start ends with the agent.
#[test]
fn a_killed_agents_command_lives_on() {
    let agent = Agent::profile()
        .args(["-o", "profile.json", "--"])
        .args([program("idle").as_os_str(), "300".as_ref()]);
    let running = agent.start();
    let is_idle = |pid: &u32| {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm"));
        name.is_ok_and(|name| name.trim() == "idle")
    };
    let mut command = None;
    assert!(eventually(patience(20.0), || {
        command = children(running.pid()).into_iter().find(is_idle);
        command.is_some()
    }));
    let pid = command.unwrap();
    running.signal(libc::SIGKILL);
    let finished = running.wait();
    std::thread::sleep(Duration::from_millis(200));
    assert!(
        runs(pid) && is_idle(&pid),
        "the command went with the agent"
    );
    assert!(files(&finished.path(".")).is_empty());
    // SAFETY: kill has no memory effects; the process has just been seen to be ours.
    unsafe { libc::kill(pid as i32, libc::SIGKILL) };
}
