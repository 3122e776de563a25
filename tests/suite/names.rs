//! Functions have their names, wherever the names are kept.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::harness::{
    Agent, Frame, LIFE, Profile, Target, alone, copy_executable, host_only, in_vm, program, source,
};

/// Two seconds of a program.
fn profile_of(name: &str) -> Profile {
    let target = Target::spawn(name, &[]);
    Agent::timed(target.pid(), if in_vm() { 6.0 } else { 2.0 }).run_to_profile()
}

/// The line of a marker in a source, from 1.
fn marked(text: &str, marker: &str) -> u32 {
    let index = text.lines().position(|line| line.contains(marker));
    index.unwrap_or_else(|| panic!("no {marker}")) as u32 + 1
}

/// Fails unless `outer` is there with the two functions that it inlines, qualified and at their
/// lines.
fn assert_inlined(profile: &Profile) {
    let function = |name: &str| -> Vec<&Frame> {
        let named = |frame: &&Frame| {
            frame
                .function
                .as_deref()
                .is_some_and(|function| function.contains(name))
        };
        profile.frames.iter().filter(named).collect()
    };
    let text = source("inlined.cpp");
    for (name, inlined) in [
        ("inlined::outer", false),
        ("inlined::middle<unsigned long>", true),
        ("inlined::innermost", true),
    ] {
        let frames = function(name);
        assert!(!frames.is_empty(), "no {name}\n{}", profile.explain());
        for frame in &frames {
            assert_eq!(frame.inlined, inlined, "{name}");
            assert!(
                frame
                    .file
                    .as_deref()
                    .is_some_and(|file| file.ends_with("inlined.cpp")),
                "{:?}",
                frame.file
            );
        }
        if let Some(text) = &text {
            let line = marked(
                text,
                &format!(
                    "LINE: {}",
                    name.trim_start_matches("inlined::")
                        .trim_end_matches("<unsigned long>")
                ),
            );
            assert!(
                frames.iter().any(|frame| frame.line == Some(line)),
                "{name} is never at line {line}"
            );
        }
    }
    for stack in profile.stacks.iter().filter(|stack| stack.is_complete()) {
        let names = profile.names_of(stack).join(";");
        let order = ["inlined::outer", "inlined::middle<", "inlined::innermost"]
            .map(|name| names.find(name));
        if order.iter().all(Option::is_some) {
            assert!(order.is_sorted(), "{names}");
        }
    }
}

#[test]
fn inlined_functions_and_lines() {
    let _alone = alone();
    assert_inlined(&profile_of("inlined"));
}

#[test]
fn debug_file_by_link() {
    let _alone = alone();
    assert_inlined(&profile_of("inlined-debuglink"));
}

/// Removes a file when it goes.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn debug_file_by_build_id() {
    let _alone = alone();
    // The build id that the program's build line sets.
    let place =
        Path::new("/usr/lib/debug/.build-id/ab/cdef0123456789abcdef0123456789abcdef01.debug");
    let program = program("inlined-buildid");
    let without = profile_of("inlined-buildid");
    assert_eq!(
        without.total_share("inlined::outer"),
        0.0,
        "{}",
        without.explain()
    );
    std::fs::create_dir_all(place.parent().unwrap()).unwrap();
    let _removed = Removed(place.to_owned());
    std::fs::copy(program.with_extension("debug"), place).unwrap();
    assert_inlined(&profile_of("inlined-buildid"));
}

#[test]
fn mini_debug_info() {
    let _alone = alone();
    profile_of("inlined-mini").assert_names(&["inlined::outer", "main"]);
}

#[test]
fn dynamic_symbols_when_there_are_no_others() {
    let _alone = alone();
    let profile = profile_of("plt");
    let named =
        |frame: &&Frame| frame.module.as_deref() == Some("libc.so.6") && frame.function.is_some();
    assert!(
        profile.frames.iter().filter(named).count() > 0,
        "{}",
        profile.explain()
    );
}

#[test]
fn cpp_is_demangled() {
    let _alone = alone();
    let profile = profile_of("templates");
    profile.assert_names(&[
        "shapes::Mixer<unsigned long, 20000>::mix",
        "shapes::Square<unsigned long>::area",
    ]);
    let own = profile
        .frames
        .iter()
        .filter(|frame| frame.module.as_deref() == Some("templates"));
    let mangled: Vec<_> = own
        .map(|frame| frame.name())
        .filter(|name| name.starts_with("_Z"))
        .collect();
    assert!(mangled.is_empty(), "{mangled:?}");
}

#[test]
fn rust_is_demangled_and_inlined() {
    let _alone = alone();
    let profile = profile_of("rustprog-debug");
    profile.assert_names(&["rustprog::recurse"]);
    let hashed = |name: &str| {
        name.rsplit_once("::h")
            .is_some_and(|(_, hash)| hash.len() == 16)
    };
    for frame in &profile.frames {
        let name = frame.name();
        assert!(
            !name.starts_with("_R") && !name.starts_with("_ZN") && !hashed(&name),
            "{name}"
        );
    }
    let in_source = |frame: &Frame| {
        frame
            .file
            .as_deref()
            .is_some_and(|file| file.ends_with("rustprog.rs"))
    };
    assert!(
        profile
            .frames
            .iter()
            .any(|frame| in_source(frame) && frame.line.is_some()),
        "{}",
        profile.explain()
    );
    assert!(
        profile.frames.iter().any(|frame| frame.inlined),
        "nothing inlined\n{}",
        profile.explain()
    );
}

#[test]
fn stripped_go() {
    let _alone = alone();
    let profile = profile_of("goprog-stripped");
    profile.assert_names(&["main.churn", "main.recurse", "main.grow"]);
    let in_source = |frame: &&Frame| {
        let file = frame.file.as_deref();
        frame.function.as_deref() == Some("main.churn")
            && file.is_some_and(|file| file.ends_with("goprog.go"))
    };
    let mut lines = profile
        .frames
        .iter()
        .filter(in_source)
        .map(|frame| frame.line);
    let Some(text) = source("goprog.go") else {
        return;
    };
    let line = marked(&text, "value*0x2545f491");
    assert!(
        lines.any(|found| found == Some(line)),
        "{}",
        profile.explain()
    );
}

/// A program without names: the addresses within a function still count as one.
#[test]
fn unnamed_functions_are_told_apart() {
    let _alone = alone();
    let profile = profile_of("split-stripped");
    let mut shares: BTreeMap<&str, u64> = BTreeMap::new();
    for stack in &profile.stacks {
        let leaf = profile
            .frames_of(stack)
            .rfind(|frame| frame.space == "user");
        let start = leaf.and_then(|frame| frame.function_start.as_deref());
        *shares.entry(start.unwrap_or("none")).or_default() += stack.count;
    }
    let mut shares: Vec<u64> = shares.into_values().collect();
    shares.sort_unstable_by(|one, other| other.cmp(one));
    let all = profile.samples() as f64;
    for (share, wanted) in shares.iter().zip([0.5, 0.3, 0.2]) {
        let share = *share as f64 / all;
        let near = (share - wanted).abs() < 0.1;
        assert!(near, "{share} is not {wanted}\n{}", profile.explain());
    }
    assert!(shares.len() >= 3, "{shares:?}");
}

#[test]
fn kernel_functions() {
    let _alone = alone();
    let profile = profile_of("kern");
    let kernel: Vec<String> = profile
        .frames
        .iter()
        .filter(|f| f.space == "kernel")
        .map(Frame::name)
        .collect();
    assert!(
        kernel
            .iter()
            .any(|name| name.contains("read_zero") || name.contains("read_iter_zero")),
        "{kernel:?}"
    );
}

#[test]
fn deleted_program() {
    let _alone = alone();
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("gone");
    copy_executable(&program("split"), &path);
    let target = Target::run(Command::new(&path).arg(LIFE));
    std::fs::remove_file(&path).unwrap();
    let profile = Agent::timed(target.pid(), 2.0).run_to_profile();
    profile.assert_complete(30);
    profile.assert_names(&["main", "half"]);
}

#[test]
fn replaced_program() {
    let _alone = alone();
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("replaced");
    copy_executable(&program("split"), &path);
    let target = Target::run(Command::new(&path).arg(LIFE));
    std::fs::remove_file(&path).unwrap();
    copy_executable(&program("deep"), &path);
    let profile = Agent::timed(target.pid(), 2.0).run_to_profile();
    profile.assert_complete(30);
    profile.assert_names(&["half"]);
    assert_eq!(
        profile.total_share("descend_0"),
        0.0,
        "names of the new file"
    );
}

/// Target and program both are gone by the time that the names are looked up.
#[test]
fn target_that_is_gone() {
    let _alone = alone();
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("gone");
    copy_executable(&program("split"), &path);
    let target = Target::run(Command::new(&path).arg(if in_vm() { "30" } else { "3" }));
    let running = Agent::timed(target.pid(), 600.0).start();
    std::thread::sleep(crate::harness::patience(0.8));
    std::fs::remove_file(&path).unwrap();
    let profile = running.wait().profile();
    assert_eq!(profile.facts.ended, "target_exited");
    profile.assert_complete(30);
    profile.assert_names(&["main", "half", "third", "fifth"]);
}

#[test]
fn perf_map_of_node() {
    if host_only("the machine has no Node.js") {
        return;
    }
    let _alone = alone();
    let target = Target::run(
        Command::new("node")
            .arg("--perf-basic-prof")
            .arg(program("busy.js"))
            .arg(LIFE),
    );
    let _removed = Removed(format!("/tmp/perf-{}.map", target.pid()).into());
    let profile = Agent::timed(target.pid(), 2.0).run_to_profile();
    // The engine may inline the leaf into its caller.
    let named = |frame: &Frame| {
        frame
            .function
            .as_deref()
            .is_some_and(|name| name.contains("jitted_"))
    };
    let share = profile.frame_share(named);
    assert!(share > 0.9, "{share:.3}\n{}", profile.explain());
}

/// Profiles `jit` with a perf map of this owner and text (a `{}` stands for the code's address).
fn with_perf_map(owner: u32, text: &str) -> Profile {
    let mut target = Target::run_unready(Command::new(program("jit")).arg(LIFE));
    let address = target.await_line(|line| line.strip_prefix("code ").map(str::to_owned));
    target.await_word("ready");
    let map = PathBuf::from(format!("/tmp/perf-{}.map", target.pid()));
    let _removed = Removed(map.clone());
    std::fs::write(&map, text.replace("{}", &address)).unwrap();
    std::os::unix::fs::chown(&map, Some(owner), Some(owner)).unwrap();
    let profile = Agent::timed(target.pid(), 2.0).run_to_profile();
    assert!(target.is_alive());
    profile
}

#[test]
fn perf_map() {
    let _alone = alone();
    let profile = with_perf_map(0, "{} 15 made up at run time\n");
    let share = profile.self_share("made up at run time");
    assert!(share > 0.9, "{share}\n{}", profile.explain());
}

#[test]
fn perf_map_of_a_foreign_owner_is_refused() {
    let _alone = alone();
    let profile = with_perf_map(65534, "{} 15 planted\n");
    assert_eq!(profile.total_share("planted"), 0.0, "{}", profile.explain());
    let unnamed = |frame: &Frame| frame.space == "user" && frame.unnamed.is_some();
    let share = profile.frame_share(unnamed);
    assert!(
        share > 0.9,
        "the reason is not counted\n{}",
        profile.explain()
    );
}

#[test]
fn malformed_perf_map() {
    let _alone = alone();
    for text in [
        "",
        "\n",
        "zz zz zz\n",
        "{}\n",
        "{} ffffffffffffffffffffffff name\n",
        "{} 0 \u{202e}<b>\u{1b}[1m;\n",
        "ffffffffffffffff ffffffffffffffff end\n",
    ] {
        let profile = with_perf_map(0, text);
        assert!(profile.samples() > 10, "{text:?}");
        profile.assert_names(&["call_jitted"]);
    }
}
