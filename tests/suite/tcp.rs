//! `agent tcp` against servers whose wait is known and clients that keep their own time.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::harness::{Agent, Finished, LIFE, Target, alone, host_only, in_vm, program};

const USAGE: i32 = 2;
const NOTHING_SEEN: i32 = 3;

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
    assert!(
        last["losses"]
            .as_object()
            .unwrap()
            .values()
            .all(|count| count == 0),
        "{}",
        last["losses"]
    );
    last
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

/// Runs a client of `count` requests under the agent; gives the last document and the client's
/// own quantiles in microseconds.
fn measured(server: &Target, client: &Target, seconds: &str) -> (Value, Vec<f64>) {
    let agent = agent(&[server.pid(), client.pid()], &["--duration", seconds]).start();
    agent.await_said(ATTACHED);
    go_on(client);
    let times = client.await_line(|line| numbers(line, "times"));
    let finished = agent.wait();
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    (
        last(&finished),
        times.iter().map(|time| time / 1000.0).collect(),
    )
}

#[test]
fn latency_is_what_the_client_sees() {
    let _alone = alone();
    for (wait_ms, count) in [(0, 1000), (1, 500), (5, 300), (20, 100), (100, 30)] {
        let (server, port) = server(Duration::from_millis(wait_ms), 64, 1);
        let client = client("127.0.0.1", &port, [count, 64, 1]);
        let (document, times) = measured(&server, &client, if in_vm() { "30s" } else { "6s" });
        let ours = only(&document, client.pid(), "client");
        assert_eq!(ours["requests"], count, "{ours}");
        // What the client itself takes between its clock and its calls is not the agent's to see.
        let slack = if in_vm() { 1000.0 } else { 50.0 };
        for (name, seen) in ["p50", "p90"].iter().zip(&times) {
            let found = number(&ours["latency_us"][name]);
            assert!(
                (found - seen).abs() <= f64::max(seen * 0.02, slack),
                "{wait_ms} ms: {name} {found}, {seen} {ours}"
            );
        }
        let theirs = only(&document, server.pid(), "server");
        assert_eq!(theirs["requests"], count, "{theirs}");
        let service = number(&theirs["parts_us"]["service"]["p50"]);
        assert!(service >= wait_ms as f64 * 990.0, "{theirs}");
        assert!(
            service <= number(&ours["latency_us"]["p50"]) * 1.02,
            "{theirs} {ours}"
        );
        for (connection, middle) in [(ours, "peer"), (theirs, "service")] {
            let parts = &connection["parts_us"];
            let sum: f64 = ["send", middle, "read_delay"]
                .iter()
                .map(|part| number(&parts[part]["mean"]))
                .sum();
            let total = number(&connection["latency_us"]["mean"]);
            assert!((sum - total).abs() <= 0.5, "{sum} {total}");
        }
    }
}

#[test]
fn the_kernels_own_numbers_are_shown() {
    let (server, port) = server(Duration::from_millis(1), 100_000, 3);
    let client = client("::1", &port, [50, 99_999, 2]);
    let agent = agent(
        &[client.pid()],
        &["--duration", if in_vm() { "30s" } else { "5s" }],
    )
    .start();
    agent.await_said(ATTACHED);
    go_on(&client);
    let infos: Vec<Vec<f64>> = (0..2)
        .map(|_| client.await_line(|line| numbers(line, "info")))
        .collect();
    client.await_word("done");
    let document = last(&agent.wait());
    let _ = server;
    assert_eq!(connections(&document).len(), 2);
    for info in infos {
        let ours = connections(&document)
            .iter()
            .find(|connection| connection["local"] == format!("[::1]:{}", info[0]))
            .unwrap_or_else(|| panic!("{info:?} in {document}"));
        let names = [
            "srtt_us",
            "min_rtt_us",
            "rttvar_us",
            "retransmits",
            "bytes_sent",
            "bytes_received",
        ];
        for (name, wanted) in names.iter().zip(&info[1..]) {
            assert_eq!(number(&ours[name]), *wanted, "{name}: {ours}");
        }
        assert_eq!(ours["pre_existing"], true);
    }
}

#[test]
fn a_long_answer_counts_once() {
    let (server, port) = server(Duration::from_millis(2), 3_000_000, 30);
    let client = client("127.0.0.1", &port, [20, 3_000_000, 1]);
    let (document, _) = measured(&server, &client, if in_vm() { "40s" } else { "5s" });
    assert_eq!(only(&document, client.pid(), "client")["requests"], 20);
    let theirs = only(&document, server.pid(), "server");
    assert_eq!(theirs["requests"], 20, "{theirs}");
    assert_eq!(theirs["bytes_sent"], 60_000_000, "{theirs}");
}

#[test]
fn overlapping_traffic_is_marked() {
    let (server, port) = server(Duration::ZERO, 64, 1);
    let client = Target::spawn(
        "tcp_client",
        &["127.0.0.1", &port, "100", "64", "64", "1", "-1", "4"],
    );
    let (document, _) = measured(&server, &client, if in_vm() { "30s" } else { "5s" });
    let ours = only(&document, client.pid(), "client");
    assert_eq!(
        (&ours["overlapped"], &ours["latency_us"]),
        (&Value::Bool(true), &Value::Null),
        "{ours}"
    );
}

/// Threads of this process that connect, exchange and close until they are told to stop.
struct Churn {
    stop: Arc<AtomicBool>,
    made: Arc<AtomicU64>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Churn {
    fn start(port: &str, threads: usize) -> Self {
        let (stop, made) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let address = format!("127.0.0.1:{port}");
        let threads = (0..threads)
            .map(|_| {
                let (stop, made, address) = (stop.clone(), made.clone(), address.clone());
                std::thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let mut stream = TcpStream::connect(&address).unwrap();
                        stream.write_all(&[0; 64]).unwrap();
                        stream.read_exact(&mut [0; 64]).unwrap();
                        made.fetch_add(1, Ordering::Relaxed);
                        std::thread::sleep(Duration::from_millis(20));
                    }
                })
            })
            .collect();
        Self {
            stop,
            made,
            threads,
        }
    }

    fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.threads
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
        self.made.load(Ordering::Relaxed)
    }
}

#[test]
fn every_connection_is_listed() {
    let _alone = alone();
    let (server, port) = server(Duration::ZERO, 64, 1);
    let idle = 200;
    let held: Vec<TcpStream> = (0..idle)
        .map(|_| TcpStream::connect(format!("127.0.0.1:{port}")).unwrap())
        .collect();
    let own = std::process::id();
    for _ in 0..if in_vm() { 1 } else { 5 } {
        let churn = Churn::start(&port, 50);
        let at_start = churn.made.load(Ordering::Relaxed);
        let agent = agent(
            &[server.pid(), own],
            &["--interval", "500ms", "--duration", "60s"],
        )
        .start();
        agent.await_said(ATTACHED);
        let (before, begun) = (churn.made.load(Ordering::Relaxed), 50);
        std::thread::sleep(Duration::from_secs(2));
        let all = churn.end();
        let (made, most) = (all - before, all - at_start);
        std::thread::sleep(Duration::from_millis(700));
        agent.signal(libc::SIGINT);
        let finished = agent.wait();
        assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
        let documents = documents(&finished);
        let count = |document: &Value, pid: u32, role: &str, state: &str| {
            let of_it = |connection: &&Value| {
                connection["pid"] == pid
                    && connection["role"] == role
                    && connection["state"] == state
                    && (connection["local"]
                        .as_str()
                        .unwrap()
                        .ends_with(&format!(":{port}"))
                        || connection["remote"]
                            .as_str()
                            .unwrap()
                            .ends_with(&format!(":{port}")))
            };
            connections(document).iter().filter(of_it).count() as u64
        };
        let first = documents.first().unwrap();
        assert!(
            count(first, own, "client", "ESTABLISHED") >= idle,
            "{}",
            connections(first).len()
        );
        assert!(
            count(first, server.pid(), "server", "ESTABLISHED") >= idle,
            "{}",
            connections(first).len()
        );
        let last = documents.last().unwrap();
        assert_eq!(count(last, own, "client", "ESTABLISHED"), idle);
        for (pid, role) in [(own, "client"), (server.pid(), "server")] {
            let closed = count(last, pid, role, "CLOSED");
            assert!(
                closed + begun >= made && closed <= most,
                "{role}: {closed} of {made} to {most}"
            );
        }
        let unknown = connections(last)
            .iter()
            .filter(|connection| connection["role"] == "unknown")
            .count();
        assert_eq!(unknown, 0);
    }
    drop(held);
}

#[test]
fn failed_connects_say_why() {
    let free = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let agent = agent(&[std::process::id()], &["--duration", "60s"]).start();
    agent.await_said(ATTACHED);
    for _ in 0..7 {
        assert!(TcpStream::connect(free).is_err());
    }
    agent.signal(libc::SIGINT);
    let document = last(&agent.wait());
    let failed = document["failed_connects"].as_array().unwrap();
    let ours = failed
        .iter()
        .find(|failed| failed["remote"] == free.to_string())
        .unwrap();
    assert_eq!(
        (&ours["errno"], &ours["count"]),
        (&libc::ECONNREFUSED.into(), &7.into()),
        "{ours}"
    );
}

#[test]
fn mapped_addresses_are_folded() {
    let (server, port) = server(Duration::ZERO, 64, 1);
    let stream = TcpStream::connect(format!("127.0.0.1:{port}")).unwrap();
    let finished = agent(&[server.pid()], &["--duration", "1s"]).run();
    let document = last(&finished);
    let ours = only(&document, server.pid(), "server");
    assert_eq!(ours["local"], format!("127.0.0.1:{port}"));
    assert_eq!(ours["remote"], stream.local_addr().unwrap().to_string());
}

#[test]
fn redis_counts_the_same() {
    if host_only("redis") {
        return;
    }
    let _alone = alone();
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
        .to_string();
    let redis =
        Target::run_unready(Command::new("redis-server").args(["--port", &port, "--save", ""]));
    redis.await_line(|line| line.contains("Ready to accept").then_some(()));
    let agent = agent(&[redis.pid()], &["--duration", "120s"]).start();
    agent.await_said(ATTACHED);
    let mut stream = TcpStream::connect(format!("127.0.0.1:{port}")).unwrap();
    let asked = 20_000;
    for _ in 0..asked {
        stream.write_all(b"PING\r\n").unwrap();
        stream.read_exact(&mut [0; 7]).unwrap();
    }
    agent.signal(libc::SIGINT);
    let document = last(&agent.wait());
    assert_eq!(only(&document, redis.pid(), "server")["requests"], asked);
}

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
