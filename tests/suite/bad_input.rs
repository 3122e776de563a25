//! What is wrong with the input is said in words, with the right exit code, and soon.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::elf;
use crate::harness::{
    Agent, LIFE, Target, agent_binary, alone, copy_executable, in_vm, patience, program,
};

const FAILED: i32 = 1;
const USAGE: i32 = 2;
const NOTHING_SEEN: i32 = 3;
const NOT_EXECUTABLE: i32 = 126;
const NOT_FOUND: i32 = 127;

/// `agent profile --pid PID --duration 60s` and more.
fn with_pid(pid: u32, arguments: &[&str]) -> Agent {
    Agent::profile()
        .args(["--pid", &pid.to_string(), "--duration", "60s"])
        .args(arguments)
}

/// A process that is no more.
fn free_pid() -> u32 {
    let mut child = Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    child.id()
}

/// A copy of the agent that everyone may run.
pub(crate) fn public_agent(directory: &TempDir) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let copy = directory.path().join("agent");
    copy_executable(&agent_binary(), &copy);
    std::fs::set_permissions(&copy, PermissionsExt::from_mode(0o755)).unwrap();
    copy
}

#[test]
fn no_such_process() {
    let pid = free_pid();
    with_pid(pid, &[])
        .run()
        .assert_refused(FAILED, &[&pid.to_string(), "there is no process"]);
}

#[test]
fn zombie() {
    let mut child = Command::new("true").spawn().unwrap();
    let state = || std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
    assert!(crate::harness::eventually(patience(5.0), || state().contains(") Z ")));
    let finished = with_pid(child.id(), &[]).run();
    finished.assert_refused(FAILED, &[&child.id().to_string(), "zombie"]);
    child.wait().unwrap();
}

#[test]
fn a_name_with_escapes_stays_out_of_the_terminal() {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new("true");
    // SAFETY: both calls are async-signal-safe; the name is a static string.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_NAME, c"\x1b[2J\x1b]0;x".as_ptr());
            // It ends without an exec: its name is the one that it gave itself.
            libc::_exit(0)
        })
    };
    let mut child = command.spawn().unwrap();
    let state = || std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
    assert!(crate::harness::eventually(patience(5.0), || state().contains(") Z ")));
    let finished = with_pid(child.id(), &[]).run();
    finished.assert_refused(FAILED, &["zombie", "\\u{1b}[2J"]);
    assert!(!finished.stderr().contains('\x1b'), "{}", finished.stderr());
    child.wait().unwrap();
}

#[test]
fn kernel_thread() {
    // kthreadd is PID 2 wherever the initial PID namespace is seen.
    assert_eq!(
        std::fs::read_to_string("/proc/2/comm").unwrap(),
        "kthreadd\n"
    );
    with_pid(2, &[])
        .run()
        .assert_refused(FAILED, &["2", "kernel thread"]);
}

#[test]
fn process_of_another_user_without_privilege() {
    let target = Target::spawn("idle", &[]);
    let public = TempDir::new().unwrap();
    let agent = Agent::under(&[], &public_agent(&public)).without_privilege();
    let finished = agent
        .args(["--pid", &target.pid().to_string(), "--duration", "60s"])
        .run();
    finished.assert_refused(FAILED, &["sudo"]);
    let said = finished.stderr();
    assert!(
        said.contains("CAP_") || said.contains("another user"),
        "{said}"
    );
}

#[test]
fn no_privilege_at_all() {
    use std::os::unix::process::CommandExt;
    let public = TempDir::new().unwrap();
    let binary = public_agent(&public);
    let own = public.path().join("idle");
    copy_executable(&program("idle"), &own);
    let target = Target::run(Command::new(&own).arg(LIFE).uid(65534).gid(65534));
    let agent = Agent::under(&[], &binary).without_privilege();
    let finished = agent
        .args(["--pid", &target.pid().to_string(), "--duration", "60s"])
        .run();
    // The missing capability and the command that works.
    finished.assert_refused(FAILED, &["CAP_BPF", "CAP_PERFMON", "sudo"]);
    let agent = Agent::subcommand("syscalls", &[], &binary).without_privilege();
    let finished = agent.args(["--pid", &target.pid().to_string()]).run();
    finished.assert_refused(FAILED, &["CAP_BPF", "CAP_PERFMON", "sudo"]);
}

#[test]
fn output_that_cannot_be_written() {
    let target = Target::spawn("idle", &[]);
    let finished = with_pid(target.pid(), &["-o", "missing/flame.svg"]).run();
    finished.assert_refused(FAILED, &["missing/flame.svg", "no such file or directory"]);
    let finished = with_pid(target.pid(), &["-o", "/proc/flame.svg"]).run();
    finished.assert_refused(FAILED, &["/proc/flame.svg"]);
}

#[test]
fn output_that_is_a_directory() {
    let target = Target::spawn("idle", &[]);
    let agent = with_pid(target.pid(), &["-o", "directory.svg"]);
    std::fs::create_dir(agent.directory().join("directory.svg")).unwrap();
    agent
        .run()
        .assert_refused(FAILED, &["directory.svg", "a directory"]);
}

#[test]
fn unknown_extension() {
    let target = Target::spawn("idle", &[]);
    for name in ["flame.jpeg", "flame"] {
        let finished = with_pid(target.pid(), &["-o", name]).run();
        finished.assert_refused(USAGE, &[name, "svg", "folded", "json"]);
    }
}

#[test]
fn frequency_out_of_range() {
    let target = Target::spawn("idle", &[]);
    with_pid(target.pid(), &["--frequency", "0"])
        .run()
        .assert_refused(USAGE, &["frequency", "0"]);
    let finished = with_pid(target.pid(), &["--frequency", "100000000"]).run();
    let limit = std::fs::read_to_string("/proc/sys/kernel/perf_event_max_sample_rate").unwrap();
    finished.assert_refused(USAGE, &["frequency", limit.trim()]);
}

#[test]
fn usage() {
    let refused = |arguments: &[&str], words: &[&str]| {
        Agent::profile()
            .args(arguments)
            .run()
            .assert_refused(USAGE, words)
    };
    refused(&[], &["--pid"]);
    refused(&["--pid", "abc"], &["abc"]);
    refused(&["--pid", "0"], &["--pid"]);
    refused(&["--pid", "4294967296"], &["4294967296"]);
    refused(&["--pid", "1", "--duration", "soon"], &["soon", "10s"]);
    refused(&["--pid", "1", "--duration", "0s"], &["duration"]);
    refused(
        &["--pid", "1", "--format", "jpeg"],
        &["jpeg", "svg", "folded", "json"],
    );
    refused(&["--pid", "1", "-o", "-"], &["--format"]);
    refused(&["--pid", "1", "-o", "a.svg", "-o", "./a.svg"], &["twice"]);
    refused(&["--pid", "1", "-F", "abc"], &["abc", "whole number"]);
    refused(&["--pid", "1", "-F", "-5"], &["-5", "whole number"]);
    refused(&["--pid", "1", "--", "true"], &["--pid"]);
    refused(&["--no-such-option"], &["--no-such-option"]);
    let page = Agent::subcommand("man", &[], &agent_binary()).args(["nosuch"]);
    page.run().assert_refused(USAGE, &["nosuch", "profile"]);
}

#[test]
fn a_command_that_does_not_exist() {
    let finished = Agent::profile()
        .args(["-o", "profile.json", "--", "/no/such/program"])
        .run();
    finished.assert_refused(
        NOT_FOUND,
        &["/no/such/program", "no such file or directory"],
    );
    let refused = |word: &str, code, words: &[&str]| {
        let finished = Agent::profile().args(["--", word]).run();
        finished.assert_refused(code, words);
        assert!(finished.files().is_empty(), "{:?}", finished.files());
    };
    refused("no-such-program", NOT_FOUND, &["not found in PATH"]);
    refused("/", NOT_EXECUTABLE, &["a directory"]);
    let agent = Agent::profile().args(["--", "./text"]);
    std::fs::write(agent.directory().join("text"), "no program").unwrap();
    agent
        .run()
        .assert_refused(NOT_EXECUTABLE, &["./text", "not executable"]);
    let agent = Agent::profile().args(["--", "./script"]);
    write_executable(
        &agent.directory().join("script"),
        b"#!/no/such/interpreter\n",
    );
    agent
        .run()
        .assert_refused(NOT_FOUND, &["/no/such/interpreter"]);
}

/// Asserts valid outputs without a sample.
fn assert_empty(finished: &crate::harness::Finished) {
    let profile = finished.profile();
    assert_eq!(profile.samples(), 0);
    let sums = &profile.accounting;
    assert_eq!(
        sums.ticks,
        sums.idle + sums.other + sums.lost.values().sum::<u64>()
    );
    let _ = crate::outputs::titles(&finished.text("flame.svg"));
    assert_eq!(
        finished
            .text("stacks.folded")
            .lines()
            .filter(|line| !line.starts_with('#'))
            .count(),
        0
    );
}

const ALL_OUTPUTS: [&str; 6] = [
    "-o",
    "profile.json",
    "-o",
    "flame.svg",
    "-o",
    "stacks.folded",
];

#[test]
fn an_idle_target_gives_empty_outputs() {
    let _alone = alone();
    let target = Target::spawn("idle", &[]);
    let arguments = ["--pid", &target.pid().to_string(), "--duration", "1s"];
    let finished = Agent::profile().args(arguments).args(ALL_OUTPUTS).run();
    assert_eq!(finished.code(), Some(NOTHING_SEEN), "{}", finished.stderr());
    assert!(finished.stderr().contains("idle"), "{}", finished.stderr());
    assert_empty(&finished);
}

#[test]
fn a_command_that_ends_at_once() {
    let _alone = alone();
    let finished = Agent::profile()
        .args(ALL_OUTPUTS)
        .args(["--", "true"])
        .run();
    // The command's own code, whether it was ever caught at work or not.
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    if finished.profile().samples() == 0 {
        assert_empty(&finished);
    }
    assert_eq!(finished.profile().facts.ended, "target_exited");
}

#[test]
fn a_target_that_ends_at_once() {
    let _alone = alone();
    for delay in [0.0, 0.02, 0.05, 0.1, 0.2] {
        let mut target = Target::spawn("split", &[]);
        let pid = target.pid();
        let running = with_pid(pid, &ALL_OUTPUTS).start();
        std::thread::sleep(std::time::Duration::from_secs_f64(delay));
        // SAFETY: kill has no memory effects; the target is not reaped yet.
        unsafe { libc::kill(pid as i32, libc::SIGKILL) };
        assert!(crate::harness::eventually(patience(2.0), || !target.is_alive()));
        let finished = running.wait();
        match finished.code() {
            Some(0) => assert!(finished.profile().samples() > 0),
            Some(NOTHING_SEEN) => assert_empty(&finished),
            Some(FAILED) => assert!(
                finished.stderr().contains(&pid.to_string()),
                "{}",
                finished.stderr()
            ),
            other => panic!("code {other:?} after {delay} s: {}", finished.stderr()),
        }
    }
}

/// Numbers that only look random (xorshift64).
fn noise(seed: u64) -> impl FnMut() -> u8 {
    let mut state = seed;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    }
}

/// Profiles a copy of split that `damage` has changed; it must still run, and the agent must survive it.
fn damaged(title: &str, damage: impl Fn(&mut Vec<u8>)) {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("split");
    let mut bytes = std::fs::read(program("split")).unwrap();
    damage(&mut bytes);
    write_executable(&path, &bytes);
    let target = Target::run(Command::new(&path).arg(LIFE));
    let arguments = [
        "--pid",
        &target.pid().to_string(),
        "--duration",
        if in_vm() { "3s" } else { "1s" },
        "--frequency",
        "199",
    ];
    let finished = Agent::profile().args(arguments).args(ALL_OUTPUTS).run();
    assert_eq!(finished.code(), Some(0), "{title}: {}", finished.stderr());
    let profile = finished.profile();
    assert!(
        profile.samples() >= 20,
        "{title}: {} samples",
        profile.samples()
    );
    let counted = profile.count(|stack| !stack.is_complete()) > 0
        || !profile.accounting.notes.is_empty()
        || profile.accounting.frame_pointer_frames > 0
        || profile.frames.iter().any(|frame| frame.unnamed.is_some());
    assert!(
        counted || title.starts_with("harmless"),
        "{title}: not counted anywhere\n{}",
        profile.explain()
    );
    let _ = crate::outputs::titles(&finished.text("flame.svg"));
    let total: u64 = crate::outputs::folded(&finished.text("stacks.folded"))
        .values()
        .sum();
    assert_eq!(total, profile.samples(), "{title}");
}

fn write_executable(path: &Path, bytes: &[u8]) {
    use std::os::unix::fs::PermissionsExt;
    let draft = path.with_extension("draft");
    std::fs::write(&draft, bytes).unwrap();
    std::fs::set_permissions(&draft, PermissionsExt::from_mode(0o755)).unwrap();
    copy_executable(&draft, path);
}

fn fill(bytes: &mut [u8], mut value: impl FnMut() -> u8) {
    bytes.iter_mut().for_each(|byte| *byte = value());
}

#[test]
fn damaged_unwind_information() {
    let _alone = alone();
    damaged("eh_frame of ones", |file| {
        let at = elf::section(file, ".eh_frame");
        fill(&mut file[at], || 0xff);
    });
    damaged("eh_frame of zeros", |file| {
        let at = elf::section(file, ".eh_frame");
        fill(&mut file[at], || 0);
    });
    for seed in 1..=3 {
        damaged("eh_frame of noise", |file| {
            let at = elf::section(file, ".eh_frame");
            fill(&mut file[at], noise(seed));
        });
        damaged("harmless: eh_frame with a few wrong bytes", |file| {
            let at = elf::section(file, ".eh_frame");
            let (mut random, length) = (noise(seed), at.len());
            for _ in 0..8 {
                let position = (usize::from(random()) << 8 | usize::from(random())) % length;
                file[at.start + position] = random();
            }
        });
        damaged("harmless: eh_frame_hdr of noise", |file| {
            let at = elf::section(file, ".eh_frame_hdr");
            fill(&mut file[at], noise(seed));
        });
    }
}

#[test]
fn damaged_symbols() {
    let _alone = alone();
    for (title, name) in [
        ("symbol table of noise", ".symtab"),
        ("symbol names of noise", ".strtab"),
    ] {
        damaged(&format!("harmless: {title}"), |file| {
            let at = elf::section(file, name);
            fill(&mut file[at], noise(7));
        });
    }
    damaged("harmless: names without an end", |file| {
        let at = elf::section(file, ".strtab");
        fill(&mut file[at], || b'A');
    });
    damaged("harmless: names that are markup", |file| {
        let at = elf::section(file, ".strtab");
        let mut text = b"</script>]]>\x1b[31m\"&;\n".iter().cycle();
        fill(&mut file[at], || text.next().copied().unwrap());
    });
}

#[test]
fn damaged_section_headers() {
    let _alone = alone();
    damaged("harmless: section headers of noise", |file| {
        let at = elf::section_headers(file);
        fill(&mut file[at], noise(11));
    });
    damaged("harmless: section headers beyond the end", |file| {
        file[0x28..0x30].fill(0x7f)
    });
    damaged("harmless: section headers cut off", |file| {
        let at = elf::section_headers(file);
        file.truncate(at.start + 100);
    });
}
