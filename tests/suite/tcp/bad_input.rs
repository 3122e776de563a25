//! Nothing to show, wrong arguments, targets that end.

use std::net::TcpStream;
use std::time::Duration;

use tempfile::TempDir;

use super::{ATTACHED, agent, connections, last, server};
use crate::bad_input::public_agent;
use crate::harness::{Agent, Target};

const FAILED: i32 = 1;
const USAGE: i32 = 2;
const NOTHING_SEEN: i32 = 3;

#[test]
fn nothing_to_show_is_said() {
    let idle = Target::spawn("idle", &[]);
    let finished = Agent::tcp()
        .args([&format!("--pid={}", idle.pid()), "--duration", "300ms"])
        .run();
    assert_eq!(finished.code(), Some(NOTHING_SEEN), "{}", finished.stderr());
    assert!(
        finished.stdout().contains("no TCP connections"),
        "{}",
        finished.stdout()
    );
}

#[test]
fn a_filter_that_matches_nothing_says_so() {
    let (server, port) = server(Duration::ZERO, 64, 1);
    let _stream = TcpStream::connect(format!("127.0.0.1:{port}")).unwrap();
    let pid = format!("--pid={}", server.pid());
    let finished = Agent::tcp()
        .args([&pid, "--duration", "300ms", "--filter", "10.1.2.3"])
        .run();
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    assert!(
        finished
            .stdout()
            .contains("no connection matches the filter"),
        "{}",
        finished.stdout()
    );
}

#[test]
fn wrong_arguments_name_their_flag() {
    let idle = Target::spawn("idle", &[]);
    let pid = format!("--pid={}", idle.pid());
    for (arguments, words) in [
        (["--sort", "speed"], ["--sort", "p50, p90, p99"]),
        (["--filter", "fast"], ["--filter", "neither an address"]),
        (["--interval", "never"], ["--interval", "not a duration"]),
    ] {
        let finished = Agent::tcp().args([&pid]).args(arguments).run();
        finished.assert_refused(USAGE, &words);
    }
}

#[test]
fn without_privilege_it_says_what_is_missing() {
    let idle = Target::spawn("idle", &[]);
    let public = TempDir::new().unwrap();
    let finished = Agent::subcommand("tcp", &[], &public_agent(&public))
        .args([&format!("--pid={}", idle.pid())])
        .without_privilege()
        .run();
    finished.assert_refused(FAILED, &["CAP_BPF", "CAP_PERFMON", "sudo"]);
}

#[test]
fn a_target_that_ends_ends_the_run() {
    let (server, port) = server(Duration::ZERO, 64, 1);
    let stream = TcpStream::connect(format!("127.0.0.1:{port}")).unwrap();
    let agent = agent(&[server.pid()], &["--duration", "60s"]).start();
    agent.await_said(ATTACHED);
    drop(server);
    let finished = agent.wait();
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    assert_eq!(connections(&last(&finished)).len(), 1);
    drop(stream);
}
