//! The files, their names and their insides.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;

use crate::harness::{Agent, Finished, Profile, Target, agent_binary, alone, patience};

/// Parses an SVG and returns the texts of its `title` elements.
pub(crate) fn titles(svg: &str) -> Vec<String> {
    let options = roxmltree::ParsingOptions {
        allow_dtd: true,
        ..Default::default()
    };
    let document =
        roxmltree::Document::parse_with_options(svg, options).expect("the SVG is well-formed");
    assert_eq!(document.root_element().tag_name().name(), "svg");
    let nodes = document
        .descendants()
        .filter(|node| node.tag_name().name() == "title");
    nodes
        .filter_map(|node| node.text().map(str::to_owned))
        .collect()
}

/// Parses folded stacks: comments after `# `, then `frame;frame;… count`.
pub(crate) fn folded(text: &str) -> BTreeMap<String, u64> {
    let mut stacks = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with("# ")) {
        let (stack, count) = line
            .rsplit_once(' ')
            .unwrap_or_else(|| panic!("no count: {line}"));
        let count: u64 = count
            .parse()
            .unwrap_or_else(|_| panic!("no number: {line}"));
        assert!(!stack.is_empty() && count > 0, "{line}");
        assert!(
            stacks.insert(stack.to_owned(), count).is_none(),
            "twice: {stack}"
        );
    }
    stacks
}

/// One run of split with these outputs.
fn run(outputs: &[&str]) -> (Finished, u32) {
    let target = Target::spawn("split", &[]);
    let pid = target.pid();
    let arguments = [
        "--pid",
        &pid.to_string(),
        "--duration",
        "1s",
        "--frequency",
        "199",
    ];
    let finished = Agent::profile().args(arguments).args(outputs).run();
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    (finished, pid)
}

#[test]
fn every_format_tells_the_same() {
    let _alone = alone();
    let (finished, pid) = run(&[
        "-o",
        "profile.json",
        "-o",
        "flame.svg",
        "-o",
        "stacks.folded",
    ]);
    let profile = finished.profile();
    assert_facts(&profile, pid);

    let stacks = folded(&finished.text("stacks.folded"));
    assert_eq!(stacks.values().sum::<u64>(), profile.samples());
    assert!(
        stacks.keys().all(|stack| stack.starts_with("split;")),
        "{stacks:?}"
    );
    let halves = stacks
        .iter()
        .filter(|(stack, _)| stack.contains(";main;one_round;half"));
    let expected = profile.count(|stack| profile.frames_of(stack).any(|frame| frame.is("half")));
    assert_eq!(halves.map(|(_, count)| count).sum::<u64>(), expected);

    let svg = finished.text("flame.svg");
    let titles = titles(&svg);
    for function in ["main", "half", "third", "fifth"] {
        assert!(
            titles.iter().any(|title| title.starts_with(function)),
            "no {function} in {titles:?}"
        );
    }
    let all = format!("({} samples, 100", profile.samples());
    assert!(
        titles.iter().any(|title| title.contains(&all)),
        "no {all:?} in {titles:?}"
    );
}

fn assert_facts(profile: &Profile, pid: u32) {
    assert_eq!(profile.schema, "agent.profile/1");
    let facts = &profile.facts;
    assert!(!facts.agent_version.is_empty());
    assert!(facts.command_line.iter().any(|word| word == "--pid"));
    assert!(
        facts.kernel.contains(
            std::fs::read_to_string("/proc/sys/kernel/osrelease")
                .unwrap()
                .trim()
        )
    );
    assert!(
        ["cycles", "cpu-clock"].contains(&facts.event.as_str()),
        "{}",
        facts.event
    );
    assert_eq!(facts.frequency, 199);
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    assert!(
        (now - patience(60.0).as_secs()..=now).contains(&facts.started),
        "{} at {now}",
        facts.started
    );
    assert!(facts.duration_seconds >= 0.9, "{}", facts.duration_seconds);
    assert_eq!(facts.ended, "duration");
    let target = facts
        .targets
        .iter()
        .find(|target| target.pid == pid)
        .expect("the target is listed");
    assert_eq!(target.comm, "split");
    assert!(
        target
            .exe
            .as_deref()
            .is_some_and(|exe| exe.ends_with("/split")),
        "{:?}",
        target.exe
    );
    assert!(
        profile
            .stacks
            .iter()
            .all(|stack| stack.pid == pid && stack.tid == pid && stack.comm == "split")
    );
    assert!(
        profile
            .frames
            .iter()
            .all(|frame| frame.function.is_some() != frame.unnamed.is_some())
    );
}

#[test]
fn every_output_prints_the_losses() {
    let _alone = alone();
    let (finished, _) = run(&[
        "-o",
        "profile.json",
        "-o",
        "flame.svg",
        "-o",
        "stacks.folded",
    ]);
    let sums = finished.profile().accounting;
    for text in [
        finished.text("flame.svg"),
        finished.text("stacks.folded"),
        finished.stderr(),
    ] {
        let separators = [',', '_', '\u{a0}', '\u{202f}'];
        let digits = text.replace(separators, "");
        assert!(
            digits.contains(&sums.ticks.to_string()),
            "no {} ticks in the output",
            sums.ticks
        );
        assert!(
            text.contains("idle") && text.contains("other"),
            "no accounting in the output"
        );
    }
}

#[test]
fn the_default_is_an_svg_named_after_the_target() {
    let _alone = alone();
    let (finished, pid) = run(&[]);
    let files = finished.files();
    let [name] = &files[..] else {
        panic!("{files:?}")
    };
    assert!(
        name.starts_with(&format!("profile-split-{pid}-")) && name.ends_with(".svg"),
        "{name}"
    );
    assert!(
        titles(&finished.text(name))
            .iter()
            .any(|title| title.starts_with("half"))
    );
    assert!(
        finished.stderr().contains(name.as_str()),
        "the file is not named: {}",
        finished.stderr()
    );
}

#[test]
fn the_summary_goes_to_standard_error() {
    let _alone = alone();
    let (finished, _) = run(&["-o", "flame.svg"]);
    assert_eq!(finished.stdout(), "");
    let said = finished.stderr();
    for word in ["half", "third", "fifth", "complete", "flame.svg"] {
        assert!(said.contains(word), "no {word:?} in: {said}");
    }
    assert!(!said.contains('\u{1b}'), "escape sequences into a file");
}

#[test]
fn dash_is_standard_output() {
    let _alone = alone();
    let (finished, _) = run(&["--format", "folded", "-o", "-"]);
    assert!(
        folded(&finished.stdout())
            .keys()
            .any(|stack| stack.ends_with(";half")),
        "{}",
        finished.stdout()
    );
    assert!(finished.files().is_empty(), "{:?}", finished.files());
    let (finished, _) = run(&["--format", "json", "-o", "-"]);
    let profile: Profile = serde_json::from_str(&finished.stdout()).unwrap();
    assert!(profile.samples() > 0);
}

#[test]
fn the_format_option_overrides_the_extension() {
    let _alone = alone();
    let (finished, _) = run(&["--format", "folded", "-o", "stacks.txt"]);
    assert!(!folded(&finished.text("stacks.txt")).is_empty());
}

#[test]
fn one_output_that_fails_keeps_no_other_from_being_written() {
    let target = Target::spawn("idle", &[]);
    let pid = target.pid().to_string();
    let agent = Agent::profile()
        .args(["--pid", &pid, "--duration", "60s", "-v"])
        .args(["-o", "gone/flame.svg", "-o", "profile.json"]);
    let gone = agent.directory().join("gone");
    std::fs::create_dir(&gone).unwrap();
    let running = agent.start();
    running.await_said("sampling by");
    std::fs::remove_dir(&gone).unwrap();
    running.signal(libc::SIGINT);
    let finished = running.wait();
    let said = finished.stderr();
    assert_eq!(finished.code(), Some(1), "{said}");
    assert!(said.contains("gone/flame.svg"), "{said}");
    assert!(
        said.contains("wrote profile.json") && said.contains("ticks"),
        "no summary: {said}"
    );
    assert_eq!(finished.profile().facts.ended, "interrupted");
}

/// Runs `agent NAME --pid IDLE` and more with standard output as the shell's redirection says.
fn redirected(name: &str, redirection: &str, arguments: &[&str]) -> Finished {
    let target = Target::spawn("idle", &[]);
    let script = format!("exec \"$@\" {redirection}");
    Agent::subcommand(name, &["sh", "-c", &script, "sh"], &agent_binary())
        .args(["--pid", &target.pid().to_string(), "--duration", "1s"])
        .args(arguments)
        .run()
}

#[test]
fn a_full_standard_output_is_said_and_the_files_are_written() {
    let folded = ["-o", "-", "--format", "folded", "-o", "profile.json"];
    let finished = redirected("profile", ">/dev/full", &folded);
    finished.assert_refused(1, &["standard output", "no space", "wrote profile.json"]);
    let _ = finished.profile();
    let finished = redirected("syscalls", ">/dev/full", &["-o", "report.json"]);
    finished.assert_refused(1, &["standard output", "no space"]);
    assert_eq!(finished.files(), ["report.json"]);
    let finished = redirected("tcp", ">/dev/full", &["--format", "json"]);
    finished.assert_refused(1, &["standard output", "no space"]);
}

#[test]
fn a_closed_standard_output_is_said_before_the_run() {
    let outputs = ["-o", "-", "--format", "folded"];
    redirected("profile", ">&-", &outputs).assert_refused(1, &["standard output", "closed"]);
    redirected("tcp", ">&-", &[]).assert_refused(1, &["standard output", "closed"]);
    redirected("syscalls", ">&-", &[]).assert_refused(1, &["standard output", "closed"]);
    let finished = redirected("profile", ">&-", &["-o", "profile.json"]);
    assert_eq!(finished.code(), Some(3), "{}", finished.stderr());
}

#[test]
fn a_table_of_connections_goes_to_a_file_that_is_named() {
    let finished = redirected("tcp", "", &["-o", "tcp.txt"]);
    assert_eq!(finished.code(), Some(3), "{}", finished.stderr());
    assert!(
        finished.stderr().contains("wrote tcp.txt"),
        "{}",
        finished.stderr()
    );
    assert!(finished.text("tcp.txt").contains("no TCP connections"));
    let finished = redirected("tcp", "", &["-o", "tcp.svg"]);
    finished.assert_refused(2, &["tcp.svg", ".json, .csv, .txt"]);
}

#[test]
fn outputs_are_private_and_replace_what_was_there() {
    let _alone = alone();
    let target = Target::spawn("split", &[]);
    let pid = target.pid().to_string();
    let agent = Agent::profile().args(["--pid", &pid, "--duration", "1s", "-o", "flame.svg"]);
    let before = agent.directory().join("flame.svg");
    let kept = agent.directory().join("kept");
    std::fs::write(&before, "old").unwrap();
    std::fs::hard_link(&before, &kept).unwrap();
    let finished = agent.run();
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    assert_eq!(
        finished.text("kept"),
        "old",
        "written into the file that was there"
    );
    let _ = titles(&finished.text("flame.svg"));
    let mode = finished
        .path("flame.svg")
        .metadata()
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn no_symbolic_link_is_followed() {
    let target = Target::spawn("idle", &[]);
    let pid = target.pid().to_string();
    let agent = Agent::profile().args(["--pid", &pid, "--duration", "60s", "-o", "link.svg"]);
    std::fs::write(agent.directory().join("victim"), "precious").unwrap();
    std::os::unix::fs::symlink("victim", agent.directory().join("link.svg")).unwrap();
    let finished = agent.run();
    finished.assert_refused(1, &["link.svg", "symbolic link"]);
    assert_eq!(finished.text("victim"), "precious");
}

#[test]
fn help_and_version_need_nothing() {
    for (argument, word) in [("--help", "profile"), ("--version", "agent ")] {
        let output = std::process::Command::new(agent_binary())
            .arg(argument)
            .output()
            .unwrap();
        assert!(output.status.success());
        assert!(
            String::from_utf8_lossy(&output.stdout).contains(word),
            "{output:?}"
        );
    }
}
