//! `agent tcp` against servers whose wait is known and clients that keep their own time.

mod bad_input;
pub(crate) mod counts;
mod coverage;
mod life;
mod network;
mod output;
mod peers;
mod truth;

pub(crate) use counts::redis;

use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::harness::{Agent, Finished, LIFE, Running, Target, program, skips_programs};

/// `agent tcp --format json -v` of these processes.
fn agent(pids: &[u32], arguments: &[&str]) -> Agent {
    let pids: Vec<String> = pids.iter().map(|pid| format!("--pid={pid}")).collect();
    Agent::tcp()
        .args(&pids)
        .args(["-v", "--format", "json"])
        .args(arguments)
}

/// What the agent says once its probes are in place and the connections of before are known.
const ATTACHED: &str = "hooks:";

/// A server, and the port it listens on.
fn server(wait: Duration, answer: u32, pieces: u32) -> (Target, String) {
    let words = [
        wait.as_micros().to_string(),
        "64".into(),
        answer.to_string(),
        pieces.to_string(),
    ];
    let target = Target::run_unready(
        Command::new(program("tcp_server"))
            .arg(LIFE)
            .arg("0")
            .args(words),
    );
    let port = target.await_line(|line| line.strip_prefix("port ").map(str::to_owned));
    target.await_word("ready");
    (target, port)
}

/// A client that waits for [`go_on`].
fn client(address: &str, port: &str, arguments: [u32; 3]) -> Target {
    let [count, answer, connections] = arguments.map(|number| number.to_string());
    Target::spawn(
        "tcp_client",
        &[address, port, &count, "64", &answer, &connections, "-1"],
    )
}

fn go_on(client: &Target) {
    // SAFETY: kill has no memory effects; the child is not reaped yet.
    assert_eq!(unsafe { libc::kill(client.pid() as i32, libc::SIGCONT) }, 0);
}

/// Numbers that follow a word on a line of the client's.
fn numbers(line: &str, word: &str) -> Option<Vec<f64>> {
    let rest = line.strip_prefix(word)?;
    Some(
        rest.split_whitespace()
            .map(|number| number.parse().unwrap())
            .collect(),
    )
}

/// The documents of a run.
fn documents(finished: &Finished) -> Vec<Value> {
    let text = finished.stdout();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// The last document, which must say so.
fn last(finished: &Finished) -> Value {
    let last = documents(finished).pop().unwrap();
    assert_eq!(last["final"], true);
    let mut losses = last["losses"].as_object().unwrap().iter();
    assert!(
        losses.all(|(cause, count)| count == 0 || cause == "programs_skipped" && skips_programs()),
        "{}",
        last["losses"]
    );
    last
}

/// A row, or the rows together, have so many requests, but for those that went with runs of the
/// programs that the kernel skipped: each may take a request or two with it.
fn assert_requests(document: &Value, seen: u64, expected: u64) {
    let skipped = document["losses"]["programs_skipped"].as_u64().unwrap();
    assert!(
        seen.abs_diff(expected) <= 2 * skipped,
        "{seen} requests of {expected}, {skipped} runs skipped: {document}"
    );
}

/// The requests of a row.
fn requests(row: &Value) -> u64 {
    row["requests"].as_u64().unwrap()
}

fn connections(document: &Value) -> &Vec<Value> {
    document["connections"].as_array().unwrap()
}

/// The only connection that a process has in a role.
fn only<'a>(document: &'a Value, pid: u32, role: &str) -> &'a Value {
    let found: Vec<_> = connections(document)
        .iter()
        .filter(|connection| connection["pid"] == pid && connection["role"] == role)
        .collect();
    assert_eq!(found.len(), 1, "{role} of {pid} in {document}");
    found[0]
}

fn number(value: &Value) -> f64 {
    value
        .as_f64()
        .unwrap_or_else(|| panic!("no number: {value}"))
}

/// The port at the end of an address.
fn port_of(address: &Value) -> &str {
    address.as_str().unwrap().rsplit_once(':').unwrap().1
}

/// A port that nothing listens on.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// Ends the run as Ctrl-C does; it must be a success.
fn interrupt(agent: Running) -> Finished {
    agent.signal(libc::SIGINT);
    let finished = agent.wait();
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    finished
}

/// Runs a client of `count` requests under the agent; gives the last document and the client's
/// own p50, p90, p99 and maximum in microseconds.
fn measured(server: &Target, client: &Target) -> (Value, Vec<f64>) {
    let agent = agent(&[server.pid(), client.pid()], &[]).start();
    agent.await_said(ATTACHED);
    go_on(client);
    let times = client.await_line(|line| numbers(line, "times"));
    (
        last(&interrupt(agent)),
        times.iter().map(|time| time / 1000.0).collect(),
    )
}
