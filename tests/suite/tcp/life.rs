//! How connections begin and end, and whose they are.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{ATTACHED, agent, connections, interrupt, last, only, server};
use crate::harness::{LIFE, in_vm, program};

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
fn a_filter_holds_for_failed_connects_too() {
    let agent = agent(
        &[std::process::id()],
        &["--by", "remote", "--filter", "127.0.0.77", "-d", "60s"],
    )
    .start();
    agent.await_said(ATTACHED);
    for address in ["127.0.0.77:1", "127.0.0.78:1"] {
        assert!(TcpStream::connect(address).is_err());
    }
    agent.signal(libc::SIGINT);
    let document = last(&agent.wait());
    let remotes: Vec<&Value> = document["remotes"].as_array().unwrap().iter().collect();
    assert_eq!(remotes.len(), 1, "{document}");
    assert_eq!(remotes[0]["remote"], "127.0.0.77:1", "{document}");
    assert!(document["not_shown"].as_u64().unwrap() >= 1, "{document}");
}

#[test]
fn what_waits_when_the_run_ends_is_taken_in() {
    let free = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    // As many as the ring buffer holds, and more than an emulated machine takes in within one look.
    let count = 6_000;
    let agent = agent(&[std::process::id()], &["--duration", "300s"]).start();
    agent.await_said(ATTACHED);
    // All of it comes while the agent cannot take any, just before its end.
    agent.signal(libc::SIGSTOP);
    for _ in 0..count {
        assert!(TcpStream::connect(free).is_err());
    }
    agent.signal(libc::SIGINT);
    agent.signal(libc::SIGCONT);
    let document = last(&agent.wait());
    let failed = document["failed_connects"].as_array().unwrap();
    let seen = failed
        .iter()
        .find(|failed| failed["remote"] == free.to_string())
        .map_or(0, |ours| ours["count"].as_u64().unwrap());
    assert_eq!(seen, count, "{document}");
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

/// The row of this end of a connection. Other tests may use its port too, to other addresses.
fn row_of<'a>(document: &'a Value, end: &Ends) -> &'a Value {
    let (local, remote) = (end.0.to_string(), end.1.to_string());
    let found = connections(document).iter().find(|row| {
        row["local"] == local && row["remote"] == remote && row["pid"] == std::process::id()
    });
    found.unwrap_or_else(|| panic!("no {end:?} in {document}"))
}

/// Our address and theirs.
type Ends = (SocketAddr, SocketAddr);

fn ends(stream: &TcpStream) -> Ends {
    (stream.local_addr().unwrap(), stream.peer_addr().unwrap())
}

/// Two ends of a connection, both of this process: the one that connected and the one that accepted.
fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (client, listener.accept().unwrap().0)
}

#[test]
fn resets_are_counted_where_they_are_sent_and_received() {
    let (mut kept, closed) = pair();
    let (quiet, other) = pair();
    let rows = [ends(&kept), ends(&closed), ends(&quiet)];
    let agent = agent(&[std::process::id()], &[]).start();
    agent.await_said(ATTACHED);
    kept.write_all(b"never read").unwrap();
    // What is closed with payload unread is reset (RFC 2525, 2.17).
    while closed.peek(&mut [0; 10]).unwrap() < 10 {}
    drop(closed);
    assert!(kept.read(&mut [0]).is_err());
    let document = last(&interrupt(agent));
    for (row, (sent, received)) in rows.iter().zip([(0, 1), (1, 0), (0, 0)]) {
        let row = row_of(&document, row);
        assert_eq!(
            (&row["resets_sent"], &row["resets_received"]),
            (&sent.into(), &received.into()),
            "{row}"
        );
    }
    drop(other);
}

#[test]
fn a_socket_of_two_processes_is_marked() {
    let (shared, _other) = pair();
    let (alone, _peer) = pair();
    let rows = [ends(&shared), ends(&alone)];
    let mut holder = Command::new(program("idle"))
        .arg(LIFE)
        .stdin(OwnedFd::from(shared.try_clone().unwrap()))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let document = last(&agent(&[std::process::id()], &["--duration", "500ms"]).run());
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert_eq!(row_of(&document, &rows[0])["shared"], true);
    assert_eq!(row_of(&document, &rows[1])["shared"], false);
}

#[test]
fn the_wait_to_be_accepted_is_measured() {
    let agent = agent(&[std::process::id()], &[]).start();
    agent.await_said(ATTACHED);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let before = Instant::now();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let connected = Instant::now();
    std::thread::sleep(Duration::from_millis(200));
    let least = connected.elapsed().as_secs_f64() * 1e6;
    let accepted = listener.accept().unwrap().0;
    let most = before.elapsed().as_secs_f64() * 1e6;
    let finished = interrupt(agent);
    let document = last(&finished);
    let row = row_of(&document, &ends(&accepted));
    if finished.stderr().contains("fexit inet_csk_accept") {
        let found = row["accept_wait_us"].as_f64().unwrap();
        // The server's side may be established a little after the client's, when the wait has begun.
        let late = if in_vm() { 1e4 } else { 1e3 };
        assert!((least - late..most).contains(&found), "{row}");
    } else {
        assert!(!in_vm(), "fexit is not used: {}", finished.stderr());
        assert_eq!(row["accept_wait_us"], Value::Null);
        assert!(
            finished.stderr().contains("the wait in the accept queue"),
            "{}",
            finished.stderr()
        );
    }
    let row = row_of(&document, &ends(&client));
    assert!(row["connect_us"].as_f64().unwrap() > 0.0, "{row}");
    assert_eq!(row["accept_wait_us"], Value::Null, "{row}");
}
