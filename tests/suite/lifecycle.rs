//! What targets do while they are profiled, and how a run ends.

use std::process::Command;
use std::time::Duration;

use crate::harness::{
    Agent, ENOUGH, FREQUENCY, LIFE, Stack, Target, agent_binary, alone, eventually, host_only,
    in_vm, patience, program,
};

#[test]
fn code_loaded_after_the_attach() {
    let _alone = alone();
    let target = Target::spawn("templates", &[]);
    let running = Agent::timed(target.pid(), patience(5.0).as_secs_f64().min(15.0)).start();
    target.await_word("plugin");
    let finished = running.wait();
    let profile = finished.profile();
    profile.assert_complete(ENOUGH);
    profile.assert_names(&["plugin_work", "plugin::inner"]);
    let modules: Vec<_> = profile
        .frames
        .iter()
        .filter(|frame| frame.is("plugin::inner"))
        .map(|f| &f.module)
        .collect();
    assert!(
        modules
            .iter()
            .all(|module| module.as_deref() == Some("plugin.so")),
        "{modules:?}"
    );
}

#[test]
fn exec_into_another_program() {
    let _alone = alone();
    let split = program("split");
    let target = Target::spawn("exec", &[split.to_str().unwrap(), LIFE]);
    let running = Agent::timed(target.pid(), patience(4.0).as_secs_f64().min(12.0)).start();
    target.await_word("ready");
    let profile = running.wait().profile();
    profile.assert_complete(ENOUGH);
    profile.assert_names(&["half", "third", "fifth"]);
    if !in_vm() {
        profile.assert_names(&["before_exec"]);
    }
    let renamed = profile
        .stacks
        .iter()
        .filter(|stack| profile.names_of(stack).iter().any(|name| name == "half"));
    for stack in renamed {
        assert_eq!((stack.pid, stack.comm.as_str()), (target.pid(), "split"));
    }
}

#[test]
fn children_are_in_scope_only_when_asked_for() {
    let _alone = alone();
    let target = Target::spawn("forker", &[]);
    let profile = Agent::standard(target.pid()).run_to_profile();
    profile.assert_complete(5);
    profile.assert_names(&["parent_work"]);
    assert!(
        profile.stacks.iter().all(|stack| stack.pid == target.pid()),
        "{}",
        profile.explain()
    );

    let profile = Agent::standard(target.pid())
        .args(["--children"])
        .run_to_profile();
    profile.assert_complete(ENOUGH);
    profile.assert_names(&["parent_work", "long_child", "short_child"]);
    let child = |stack: &Stack| stack.pid != target.pid() && stack.comm == "child";
    assert!(profile.count(child) > ENOUGH / 4, "{}", profile.explain());
}

/// Living children of a process, and theirs.
fn descendants(pid: u32) -> Vec<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let children = std::fs::read_to_string(path).unwrap_or_default();
    let children = children.split_whitespace().map(|pid| pid.parse().unwrap());
    children
        .flat_map(|child| std::iter::once(child).chain(descendants(child)))
        .collect()
}

/// Those forked between the list of the children and the attach are nowhere told.
#[test]
fn children_forked_while_the_agent_starts_are_in_scope() {
    let _alone = alone();
    let target = Target::spawn("brood", &[]);
    let running = Agent::standard(target.pid())
        .args(["--children", "-v"])
        .start();
    running.await_said("sampling by");
    let living = descendants(target.pid());
    let finished = running.wait();
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    let profile = finished.profile();
    let known: Vec<u32> = profile
        .facts
        .targets
        .iter()
        .map(|known| known.pid)
        .collect();
    assert!(living.len() > 10, "{living:?}");
    let missing: Vec<u32> = living
        .into_iter()
        .filter(|pid| !known.contains(pid))
        .collect();
    assert!(missing.is_empty(), "{missing:?} of {known:?}");
}

#[test]
fn several_processes() {
    let _alone = alone();
    let (first, second) = (Target::spawn("split", &[]), Target::spawn("deep", &["9"]));
    let agent = Agent::standard(first.pid()).args(["--pid", &second.pid().to_string()]);
    let profile = agent.run_to_profile();
    profile.assert_complete(ENOUGH);
    for (target, function) in [(&first, "half"), (&second, "bottom")] {
        let own = |stack: &Stack| {
            stack.pid == target.pid() && profile.names_of(stack).iter().any(|name| name == function)
        };
        assert!(
            profile.count(own) > 0,
            "no {function} of {}\n{}",
            target.pid(),
            profile.explain()
        );
    }
}

#[test]
fn threads_that_start_and_end() {
    let _alone = alone();
    let target = Target::spawn("threads", &[]);
    let profile = Agent::standard(target.pid()).run_to_profile();
    profile.assert_complete(ENOUGH);
    profile.assert_names(&["thread_work"]);
    // A thread has its name before it calls this: not one sample may have another's.
    let works = |stack: &Stack| {
        profile
            .names_of(stack)
            .iter()
            .any(|name| name == "thread_work")
    };
    let misnamed = |stack: &Stack| works(stack) && !stack.thread.starts_with("short-");
    assert_eq!(profile.count(misnamed), 0, "{}", profile.explain());
    assert!(profile.count(works) > ENOUGH / 2, "{}", profile.explain());
    let threads: std::collections::BTreeSet<_> =
        profile.stacks.iter().map(|stack| stack.tid).collect();
    assert!(
        threads.len() >= if in_vm() { 5 } else { 15 },
        "only {} threads",
        threads.len()
    );
}

/// Programs that live for a millisecond each, more of them than the agent may have open files.
#[test]
fn a_storm_of_short_programs_is_followed() {
    if host_only("the machines' only shell is a busybox without unwind tables") {
        return;
    }
    let _alone = alone();
    let script = "i=0; while [ $i -lt 1000 ]; do /bin/true; i=$((i+1)); done";
    let limit = ["prlimit", "--nofile=128:128"];
    let finished = Agent::under(&limit, &agent_binary())
        .args(["--frequency", "999", "-o", "profile.json", "--children"])
        .args(["--", "/bin/sh", "-c", script])
        .run();
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    let profile = finished.profile();
    let all = profile.samples();
    let complete = profile.count(Stack::is_complete);
    assert!(all > 100, "{}", profile.explain());
    assert!(
        complete as f64 >= 0.97 * all as f64,
        "{}",
        profile.explain()
    );
}

/// `agent profile … -- COMMAND`.
fn command(words: &[&str]) -> Agent {
    let frequency = FREQUENCY.to_string();
    Agent::profile()
        .args([
            "--frequency",
            &frequency,
            "-o",
            "profile.json",
            "--children",
            "--",
        ])
        .args(words)
}

#[test]
fn a_command_is_profiled_from_its_start_to_its_end() {
    let _alone = alone();
    let split = program("split");
    let finished = command(&[split.to_str().unwrap(), "3"]).run();
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    assert!(
        finished.stdout().contains("ready"),
        "the command's own output is lost"
    );
    let profile = finished.profile();
    assert_eq!(profile.facts.ended, "target_exited");
    profile.assert_complete(ENOUGH);
    // What the program does before it says that it is warm.
    let before = |stack: &Stack| {
        stack.is_complete() && !profile.names_of(stack).contains(&"one_round".to_owned())
    };
    assert!(profile.count(before) > 0, "{}", profile.explain());
    assert!(
        profile.stacks.iter().all(|stack| stack.comm == "split"),
        "the agent's own child is in the profile"
    );
}

#[test]
fn the_exit_code_of_the_command_is_passed_on() {
    let _alone = alone();
    let split = program("split");
    let life = if in_vm() { 5 } else { 1 };
    let script = format!("{} {life}; exit 7", split.display());
    let finished = command(&["sh", "-c", &script]).run();
    assert_eq!(finished.code(), Some(7), "{}", finished.stderr());
    finished.profile().assert_names(&["half"]);
    let finished = command(&["sh", "-c", &format!("{} 1; kill -9 $$", split.display())]).run();
    assert_eq!(
        finished.code(),
        Some(128 + libc::SIGKILL),
        "{}",
        finished.stderr()
    );
}

#[test]
fn an_interrupt_keeps_what_was_seen() {
    let _alone = alone();
    let target = Target::spawn("split", &[]);
    // A hang-up that is ignored, as under nohup, stays so: the test after this one.
    let heard = |signal: &libc::c_int| !is_ignored(*signal);
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP]
        .into_iter()
        .filter(heard)
    {
        let running = Agent::timed(target.pid(), 600.0)
            .args(["-v", "-o", "flame.svg"])
            .start();
        running.await_said("sampling by");
        std::thread::sleep(std::time::Duration::from_secs(2));
        running.signal(signal);
        let finished = running.wait();
        assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
        let profile = finished.profile();
        profile.assert_complete(ENOUGH);
        assert_eq!(profile.facts.ended, "interrupted");
        assert!(profile.facts.duration_seconds < patience(4.0).as_secs_f64());
        assert!(
            crate::outputs::titles(&finished.text("flame.svg"))
                .iter()
                .any(|title| title.starts_with("half"))
        );
    }
}

/// Whether what this process starts ignores the signal.
fn is_ignored(signal: libc::c_int) -> bool {
    // SAFETY: all-zero is a valid value of this plain structure.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: nothing is set; the structure that is filled in is ours.
    unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut action) };
    action.sa_sigaction == libc::SIG_IGN
}

#[test]
fn a_hangup_that_is_ignored_stays_ignored() {
    let target = Target::spawn("idle", &[]);
    let wrapper = ["sh", "-c", "trap '' HUP; exec \"$@\"", "sh"];
    let running = Agent::under(&wrapper, &agent_binary())
        .args(["--pid", &target.pid().to_string(), "-d", "2s", "-v"])
        .args(["-o", "profile.json"])
        .start();
    running.await_said("sampling by");
    running.signal(libc::SIGHUP);
    assert_eq!(running.wait().profile().facts.ended, "duration");
}

/// A command that only SIGKILL ends, said to be at work by the file `started`.
fn stubborn() -> (Agent, std::path::PathBuf) {
    let agent = command(&["sh", "-c", "trap '' TERM; : > started; sleep 20"]);
    let started = agent.directory().join("started");
    (agent, started)
}

#[test]
fn a_command_that_does_not_end_is_killed_and_that_is_said() {
    let (agent, started) = stubborn();
    let running = agent.start();
    assert!(eventually(patience(20.0), || started.exists()));
    running.signal(libc::SIGTERM);
    let finished = running.wait();
    assert_eq!(finished.code(), Some(128 + libc::SIGKILL));
    assert!(
        finished.stderr().contains("`sh` did not end"),
        "{}",
        finished.stderr()
    );
    assert_eq!(finished.profile().facts.ended, "interrupted");
}

#[test]
fn a_second_interrupt_ends_the_agent() {
    use std::os::unix::process::ExitStatusExt;
    let (agent, started) = stubborn();
    let running = agent.start();
    assert!(eventually(patience(20.0), || started.exists()));
    running.signal(libc::SIGINT);
    // timeout(1) sends every signal twice: the second is none of its own.
    running.signal(libc::SIGINT);
    std::thread::sleep(Duration::from_millis(1200));
    // What comes within half a second after the agent has seen the first is taken for its echo.
    assert!(eventually(patience(20.0), || {
        let ended = running.has_ended();
        if !ended {
            running.signal(libc::SIGINT);
            std::thread::sleep(Duration::from_millis(300));
        }
        ended
    }));
    let finished = running.wait();
    assert_eq!(
        finished.status.signal(),
        Some(libc::SIGINT),
        "{}",
        finished.stderr()
    );
}

#[test]
fn a_reader_that_has_seen_enough_ends_the_command() {
    let wrapper = ["sh", "-c", "\"$@\" | { read line; echo \"$line\"; }", "sh"];
    let agent = Agent::subcommand("tcp", &wrapper, &agent_binary())
        .args(["--format", "json", "--interval", "100ms", "--"])
        .args(["sh", "-c", "echo $$ > pid; exec sleep 50"]);
    let path = agent.directory().join("pid");
    let running = agent.start();
    let mut pid = String::new();
    assert!(eventually(patience(20.0), || {
        pid = std::fs::read_to_string(&path).unwrap_or_default();
        pid.ends_with('\n')
    }));
    let finished = running.wait();
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    assert!(finished.took < patience(20.0));
    assert!(finished.stdout().starts_with('{'), "{}", finished.stdout());
    let command = format!("/proc/{}/cmdline", pid.trim());
    let runs = std::fs::read(command).is_ok_and(|words| words.starts_with(b"sleep"));
    assert!(!runs, "the command outlives the run");
}

#[test]
fn an_interrupt_at_any_moment_ends_well() {
    let _alone = alone();
    let target = Target::spawn("split", &[]);
    for milliseconds in [5, 20, 50, 80, 120, 180, 250, 400] {
        let running = Agent::timed(target.pid(), 600.0).start();
        std::thread::sleep(Duration::from_millis(milliseconds));
        running.signal(libc::SIGINT);
        let finished = running.wait();
        match finished.code() {
            Some(0) => assert!(finished.profile().samples() > 0),
            Some(3) => assert_eq!(finished.profile().samples(), 0),
            // Before it has a handler, the signal ends it as it ends any program.
            None if milliseconds < 100 || in_vm() => {
                assert!(!finished.path("profile.json").exists())
            }
            other => panic!(
                "code {other:?} after {milliseconds} ms: {}",
                finished.stderr()
            ),
        }
    }
}

#[test]
fn the_exit_of_the_target_ends_the_run() {
    let _alone = alone();
    let target = Target::run(Command::new(program("split")).arg(if in_vm() { "20" } else { "3" }));
    let finished = Agent::timed(target.pid(), 600.0).run();
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    let profile = finished.profile();
    assert_eq!(profile.facts.ended, "target_exited");
    profile.assert_complete(ENOUGH);
    profile.assert_names(&["half"]);
}
