//! No connection is missed, however many there are and however short they live.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{
    ATTACHED, agent, assert_requests, connections, documents, interrupt, last, port_of, requests,
    server,
};
use crate::harness::{
    Finished, LIFE, Running, Target, alone, eventually, in_vm, patience, program,
};

/// What the test itself knows of a connection: it lived at least from the first moment to the
/// second.
struct Life {
    local: SocketAddr,
    remote: SocketAddr,
    from: Instant,
    to: Instant,
}

/// Connects, and has one request answered: both sides know of the connection.
fn connect(address: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(&[0; 64]).unwrap();
    stream.read_exact(&mut [0; 64]).unwrap();
    stream
}

/// Threads of this process that connect, exchange and close until they are told to stop.
struct Churn {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Vec<Life>>>,
}

impl Churn {
    /// Each thread has one connection at a time, to an address of its own (or the ports would run
    /// out), that lives for `life`.
    fn start(port: &str, threads: usize, life: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let start = |number: usize| {
            let (stop, address) = (
                stop.clone(),
                format!("127.1.{}.{}:{port}", number / 200, number % 200 + 1),
            );
            std::thread::spawn(move || {
                // Not all at the same moment.
                std::thread::sleep(life.mul_f64(number as f64 / threads as f64));
                let mut lives = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let stream = connect(&address);
                    let (local, remote) =
                        (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
                    let from = Instant::now();
                    std::thread::sleep(life);
                    let to = Instant::now();
                    lives.push(Life {
                        local,
                        remote,
                        from,
                        to,
                    });
                }
                lives
            })
        };
        let threads = (0..threads).map(start).collect();
        Self { stop, threads }
    }

    fn end(self) -> Vec<Life> {
        self.stop.store(true, Ordering::Relaxed);
        let lives = self
            .threads
            .into_iter()
            .map(|thread| thread.join().unwrap());
        lives.flatten().collect()
    }
}

/// How often each pair of addresses is listed for a process in a role.
fn listed(document: &Value, pid: u32, role: &str) -> HashMap<(String, String), usize> {
    let mut found = HashMap::new();
    for row in connections(document) {
        if row["pid"] == pid && row["role"] == role {
            let text = |name: &str| row[name].as_str().unwrap().to_owned();
            *found.entry((text("local"), text("remote"))).or_default() += 1;
        }
    }
    found
}

/// Asserts that a connection of this process to the server is listed on both sides.
fn assert_both_sides(
    [own, servers]: [&HashMap<(String, String), usize>; 2],
    local: SocketAddr,
    remote: SocketAddr,
) {
    let (local, remote) = (local.to_string(), remote.to_string());
    let pair = (local, remote);
    assert!(own.contains_key(&pair), "client side of {pair:?} missing");
    let pair = (pair.1, pair.0);
    assert!(
        servers.contains_key(&pair),
        "server side of {pair:?} missing"
    );
}

#[test]
fn every_connection_is_listed_within_a_second() {
    let _alone = alone();
    let (idle, churning, attaches) = if in_vm() { (50, 20, 2) } else { (500, 500, 20) };
    let window = Duration::from_millis(if in_vm() { 1500 } else { 200 });
    let life = patience(0.3);
    let (server, port) = server(Duration::ZERO, 64, 1);
    let own = std::process::id();
    let held: Vec<TcpStream> = (0..idle)
        .map(|_| connect(&format!("127.0.0.1:{port}")))
        .collect();
    // Its connections are the server's too, but it is no target itself.
    let bystander = Target::spawn("tcp_client", &["127.0.0.1", &port, "1", "64", "64", "5"]);
    let churn = Churn::start(&port, churning, life);
    std::thread::sleep(life.mul_f64(1.5));
    let mut runs = Vec::new();
    for _ in 0..attaches {
        let agent = agent(&[server.pid(), own], &[]).start();
        agent.await_said(ATTACHED);
        let attached = Instant::now();
        std::thread::sleep(window);
        let until = Instant::now();
        runs.push((attached, until, last(&interrupt(agent))));
    }
    let lives = churn.end();
    // One of twenty may be held up by the machine.
    let elapsed = |document: &Value| document["elapsed_s"].as_f64().unwrap();
    let slow = runs
        .iter()
        .filter(|(_, _, document)| elapsed(document) > 1.0);
    assert!(in_vm() || slow.count() <= 1, "longer than a second");
    for (attached, until, document) in &runs {
        let sides = [
            &listed(document, own, "client"),
            &listed(document, server.pid(), "server"),
        ];
        for stream in &held {
            assert_both_sides(
                sides,
                stream.local_addr().unwrap(),
                stream.peer_addr().unwrap(),
            );
        }
        let lived = |life: &&Life| life.to > *attached && life.from < *until;
        let mut seen = 0;
        for life in lives.iter().filter(lived) {
            seen += 1;
            assert_both_sides(sides, life.local, life.remote);
        }
        assert!(2 * seen >= churning, "only {seen} came and went");
        for row in connections(document) {
            let ours = [port_of(&row["local"]), port_of(&row["remote"])].contains(&port.as_str());
            let pid = &row["pid"];
            assert!(
                !ours || row["role"] != "unknown" && *pid != bystander.pid(),
                "{row}"
            );
        }
        assert!(
            sides
                .iter()
                .all(|side| side.values().all(|&count| count == 1))
        );
    }
}

/// Peak resident memory of a process in KiB (proc(5), `VmHWM`); `None` once it has ended.
fn peak_kib(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}

/// Ends the run and watches its memory to the last moment: the peak in KiB.
fn end_and_weigh(agent: Running) -> (Finished, u64) {
    let pid = agent.pid();
    agent.signal(libc::SIGINT);
    let mut peak = 0;
    while let Some(now) = peak_kib(pid) {
        peak = now;
        std::thread::sleep(Duration::from_millis(1));
    }
    let finished = agent.wait();
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    (finished, peak)
}

/// A server and its client with many connections, and the client's process id.
fn crowd(count: u64, rounds: u64) -> (Target, u32) {
    let target = Target::run_unready(Command::new(program("tcp_crowd")).args([
        LIFE,
        &count.to_string(),
        &rounds.to_string(),
    ]));
    let client = target.await_line(|line| line.strip_prefix("client ")?.parse().ok());
    target.await_word("ready");
    (target, client)
}

/// Lets the crowd's client do its rounds.
fn one_more(server: &Target, client: u32) {
    // SAFETY: kill has no memory effects; the child of our child lives as long as that.
    assert_eq!(unsafe { libc::kill(client as i32, libc::SIGCONT) }, 0);
    server.await_word("round");
}

#[test]
fn ten_thousand_connections_take_little_memory() {
    let _alone = alone();
    let (count, rounds) = if in_vm() { (1000, 2) } else { (10_000, 8) };
    let (server, client) = crowd(count, rounds);
    let agent = agent(&[server.pid()], &[]).start();
    agent.await_said(ATTACHED);
    for documents in 1..=3 {
        one_more(&server, client);
        let shown = || agent.stdout().lines().count() >= documents;
        assert!(eventually(patience(20.0), shown));
    }
    let (finished, peak) = end_and_weigh(agent);
    let document = last(&finished);
    assert_eq!(connections(&document).len() as u64, count);
    for row in connections(&document) {
        assert_requests(&document, requests(row), 3 * rounds);
        assert_eq!(row["role"], "server", "{row}");
    }
    println!("{count} connections: {peak} KiB at most");
    assert!(peak <= 64 << 10, "{peak} KiB");
}

#[test]
fn connections_that_find_no_room_are_counted() {
    let _alone = alone();
    // Each is one of the server's and one of the client's; the kernel's table holds 20,480.
    let (count, room) = (11_000, 20_480);
    let (server, client) = crowd(count, 1);
    let agent = agent(&[server.pid(), client], &["--duration", "2s"]).start();
    let finished = agent.wait();
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    let document = documents(&finished).pop().unwrap();
    assert_eq!(connections(&document).len(), room);
    let lost = document["losses"]["connections_not_followed"]
        .as_u64()
        .unwrap();
    assert_eq!(lost, 2 * count - room as u64);
}
