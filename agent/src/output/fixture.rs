//! Profiles for the tests of the formats, and the golden files.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

pub(crate) mod capture;

use std::path::Path;

use agent_ebpf::End;

use crate::profile::{
    Accounting, Cost, Facts, Frame, ModuleFacts, Profile, Space, Stack, TargetFacts, Unnamed,
};

/// A named frame of user code.
pub(crate) fn user(module: &str, function: &str, address: u64) -> Frame {
    Frame {
        function: Some(function.to_owned()),
        ..Frame::at(Space::User, Some(module.to_owned()), address)
    }
}

fn facts() -> Facts {
    Facts {
        agent_version: "0.1.0".to_owned(),
        command_line: ["agent", "profile", "--pid", "4242"]
            .map(str::to_owned)
            .to_vec(),
        kernel: "Linux 6.18.0 x86_64".to_owned(),
        event: "cpu-clock".to_owned(),
        frequency: 99,
        cpus: 2,
        started: 1_795_258_700,
        start_ms: 62.5,
        duration_seconds: 2.0,
        targets: vec![TargetFacts {
            pid: 4242,
            comm: "server".to_owned(),
            exe: Some("/usr/bin/server".to_owned()),
            ..TargetFacts::default()
        }],
        ended: "duration".to_owned(),
    }
}

/// Adds a stack of process 4242.
pub(crate) fn push(profile: &mut Profile, frames: &[Frame], end: End, count: u64) {
    let frames = frames
        .iter()
        .map(|frame| profile.intern(frame.clone()))
        .collect();
    profile.stacks.push(Stack {
        pid: 4242,
        tid: 4243,
        comm: "server".to_owned(),
        thread: "worker-1".to_owned(),
        frames,
        end,
        count,
    });
    profile.accounting.emitted += count;
    profile.accounting.ticks += count;
}

/// One frame of each kind, a cut stack, recursion and a loss.
pub(crate) fn profile() -> Profile {
    let start = user("server", "_start", 0x1040);
    let main = Frame {
        file: Some("/src/server.c".to_owned()),
        line: Some(42),
        ..user("server", "main", 0x1180)
    };
    let hash = Frame {
        inlined: true,
        ..user("server", "hash<std::vector<int>>", 0x1180)
    };
    let walk = user("server", "walk", 0x1300);
    let stripped = Frame {
        function: None,
        function_start: Some(0x1200),
        unnamed: Some(Unnamed::NoSymbols),
        ..user("libz.so.1", "", 0x1234)
    };
    let jit = Frame {
        module: None,
        function: None,
        unnamed: Some(Unnamed::NoModule),
        ..user("", "", 0x7f00_0000_1000)
    };
    let read = Frame {
        space: Space::Kernel,
        ..user("[kernel]", "vfs_read", 0xffff_ffff_8123_4567)
    };
    let mut profile = empty();
    profile.accounting = Accounting {
        ticks: 297,
        idle: 200,
        other: 96,
        lost: [("ring_full".into(), 1)].into(),
        expected_ticks: 396,
        ..Accounting::default()
    };
    profile.cost = Cost {
        cpu_seconds: 0.02,
        peak_rss_bytes: 21 << 20,
        bpf_ns_per_sample: Some(1830.0),
        ..Cost::default()
    };
    let module = |name: &str, path: &str, build_id: Option<&str>| ModuleFacts {
        name: name.to_owned(),
        path: path.to_owned(),
        build_id: build_id.map(str::to_owned),
    };
    profile.modules = vec![
        module("server", "/usr/bin/server", Some("8f0c1d")),
        module("libz.so.1", "/usr/lib/libz.so.1", None),
    ];
    push(
        &mut profile,
        &[start.clone(), main.clone(), hash],
        End::Root,
        60,
    );
    let recursive = [
        start.clone(),
        main.clone(),
        walk.clone(),
        walk.clone(),
        walk,
    ];
    push(&mut profile, &recursive, End::Root, 25);
    push(&mut profile, &[start, main, read], End::Root, 10);
    push(&mut profile, std::slice::from_ref(&stripped), End::NoRow, 4);
    push(&mut profile, &[jit, stripped], End::ReadFault, 1);
    profile.timeline = vec![48, 52];
    profile
}

/// A run that saw the target never run.
pub(crate) fn empty() -> Profile {
    let mut profile = Profile::default();
    profile.facts = facts();
    profile.accounting.ticks = 200;
    profile.accounting.idle = 200;
    profile.accounting.expected_ticks = 396;
    profile
}

/// Names that a target might choose against its reader.
pub(crate) const HOSTILE: &[&str] = &[
    "]]></script><script>document.documentElement.id='pwned'</script>",
    "</title></text><script xmlns='http://www.w3.org/1999/xhtml'>alert(1)</script>",
    "'\"><img src=x onerror=alert(1)>",
    "--><!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/passwd'>]>&e;",
    "\x1b]0;title\x07\x1b[2J\u{9b}31m",
    "user\u{202e}nimda\u{2066}\u{2069}",
    "a\nb;c\r\nd 7",
    "trailing 12",
    "nul\0\u{fffe}\u{ffff}\u{7f}",
    "# note",
    "spoof_[k]",
    " ",
    "\u{2028}line\u{85}",
];

/// A profile with one stack per hostile name.
pub(crate) fn hostile() -> Profile {
    let mut profile = empty();
    for (index, name) in HOSTILE.iter().enumerate() {
        push(
            &mut profile,
            &[user(name, name, index as u64)],
            End::Root,
            1,
        );
    }
    for (stack, name) in profile.stacks.iter_mut().zip(HOSTILE) {
        stack.comm = (*name).to_owned();
        stack.thread = (*name).to_owned();
    }
    profile
}

/// Compares with `tests/goldens/NAME`; writes it instead when `BLESS` is set.
pub(crate) fn check_golden(name: &str, actual: &[u8]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/goldens")
        .join(name);
    if std::env::var_os("BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, actual).unwrap();
    }
    let golden = std::fs::read(&path).unwrap_or_default();
    assert_eq!(
        String::from_utf8_lossy(actual),
        String::from_utf8_lossy(&golden),
        "{} differs; run with BLESS=1 to accept it",
        path.display()
    );
}
