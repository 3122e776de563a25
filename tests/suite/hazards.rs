//! What is done about the hazards of kernels: the rows of `agent/src/hazards.rs` that no other test is
//! about. `hazards.rs` names the test of each.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process::Command;

use serde_json::Value;

use crate::harness::{Agent, Target, agent_binary, alone, host_only, program};

/// Sends a file's first bytes over a connection, without reading them.
fn send_file(to: &TcpStream, file: &File, length: usize) {
    let mut offset = 0;
    // SAFETY: both descriptors are open, the offset is ours.
    let sent = unsafe { libc::sendfile(to.as_raw_fd(), file.as_raw_fd(), &raw mut offset, length) };
    assert_eq!(sent, length as isize);
}

#[test]
fn answers_by_sendfile_are_seen() {
    let _alone = alone();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let mut server = listener.accept().unwrap().0;
    let file = File::open(program("idle")).unwrap();
    let agent = Agent::tcp()
        .args(["--pid", &std::process::id().to_string(), "-v"])
        .args(["--format", "json"])
        .start();
    agent.await_said("hooks:");
    for _ in 0..20 {
        client.write_all(b"GET").unwrap();
        server.read_exact(&mut [0; 3]).unwrap();
        send_file(&server, &file, 64);
        client.read_exact(&mut [0; 64]).unwrap();
    }
    agent.signal(libc::SIGINT);
    let finished = agent.wait();
    let text = finished.stdout();
    let document: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    let local = server.local_addr().unwrap().to_string();
    let remote = server.peer_addr().unwrap().to_string();
    let rows = document["connections"].as_array().unwrap();
    let row = rows
        .iter()
        .find(|row| row["local"] == local.as_str() && row["remote"] == remote.as_str())
        .unwrap_or_else(|| panic!("{document}"));
    let skipped = document["losses"]["programs_skipped"].as_u64().unwrap();
    let requests = row["requests"].as_u64().unwrap();
    assert!(requests.abs_diff(20) <= 1 + 2 * skipped, "{row}");
    assert_eq!(row["bytes_sent"], 20 * 64);
}

/// Whether the machine counts CPU cycles.
fn counts_cycles() -> bool {
    // struct perf_event_attr: type 0 is hardware, then its size; config 0 is cycles.
    let mut attr = [0u64; 16];
    attr[0] = 128 << 32;
    // SAFETY: the structure is as long as it says; no thread, CPU 0, no group, no flags.
    let fd = unsafe { libc::syscall(libc::SYS_perf_event_open, attr.as_ptr(), -1, 0, -1, 0) };
    if fd >= 0 {
        // SAFETY: fresh from the kernel.
        unsafe { libc::close(fd as i32) };
    }
    fd >= 0
}

#[test]
fn without_hardware_counters_the_clock_is_the_timer() {
    let _alone = alone();
    let target = Target::spawn("split", &[]);
    let profile = Agent::timed(target.pid(), 1.0).run_to_profile();
    let expected = if counts_cycles() {
        "cycles"
    } else {
        "cpu-clock"
    };
    assert_eq!(profile.facts.event, expected);
    assert!(profile.accounting.ticks > 0);
}

#[test]
fn no_cycles_beside_stacks_of_failing_calls() {
    if host_only("its bundle is read with the host's unzip") {
        return;
    }
    let _alone = alone();
    let target = Target::spawn("split", &[]);
    let finished = Agent::subcommand("record", &[], &agent_binary())
        .args(["--pid", &target.pid().to_string(), "-d", "1s", "--stacks"])
        .args(["-o", "incident.zip"])
        .run();
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    let unzip = Command::new("unzip")
        .arg("-p")
        .arg(finished.path("incident.zip"))
        .arg("profile.json")
        .output()
        .unwrap();
    let profile: Value = serde_json::from_slice(&unzip.stdout).unwrap();
    assert_eq!(profile["facts"]["event"], "cpu-clock");
}

#[test]
fn failing_calls_are_counted_without_the_right_to_mount() {
    if host_only("its capabilities are set with the host's setpriv") {
        return;
    }
    let _alone = alone();
    let target = Target::spawn("sys_flood", &["1000000000"]);
    let wrapper = ["setpriv", "--bounding-set", "-sys_admin"];
    let finished = Agent::subcommand("syscalls", &wrapper, &agent_binary())
        .args(["--pid", &target.pid().to_string(), "-d", "1s"])
        .args(["--format", "json"])
        .run();
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    let text = finished.stdout();
    let report: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert!(
        report["errors"][0]["count"].as_u64().unwrap() > 0,
        "{report}"
    );
    assert!(report["losses"]["programs_skipped"].is_u64(), "{report}");
}
