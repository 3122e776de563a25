//! Requests are counted exactly.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use super::{
    ATTACHED, agent, assert_requests, connections, free_port, interrupt, last, only, port_of,
    requests,
};
use crate::harness::{Target, alone, eventually, in_vm, patience};

/// A redis server, and the port it listens on.
pub(crate) fn redis() -> (Target, String) {
    let port = free_port().to_string();
    let redis = Target::run_unready(Command::new("redis-server").args([
        "--port",
        &port,
        "--save",
        "",
        "--appendonly",
        "no",
    ]));
    redis.await_line(|line| line.contains("Ready to accept").then_some(()));
    (redis, port)
}

/// The number that redis's INFO has for a name.
fn redis_says(stream: &mut BufReader<TcpStream>, name: &str) -> u64 {
    stream.get_mut().write_all(b"INFO stats\r\n").unwrap();
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    let length: usize = line.trim().trim_start_matches('$').parse().unwrap();
    let mut text = vec![0; length + 2];
    stream.read_exact(&mut text).unwrap();
    let text = String::from_utf8(text).unwrap();
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.unwrap().trim().parse().unwrap()
}

#[test]
fn redis_counts_the_same() {
    let _alone = alone();
    let (redis, port) = redis();
    let mut stream = BufReader::new(TcpStream::connect(format!("127.0.0.1:{port}")).unwrap());
    let before = redis_says(&mut stream, "total_commands_processed");
    let agent = agent(&[redis.pid()], &[]).start();
    agent.await_said(ATTACHED);
    for _ in 0..if in_vm() { 500 } else { 20_000 } {
        stream.get_mut().write_all(b"PING\r\n").unwrap();
        stream.read_exact(&mut [0; 7]).unwrap();
    }
    let after = redis_says(&mut stream, "total_commands_processed");
    let document = last(&interrupt(agent));
    // The first INFO does not count itself, nor does the second.
    let seen = requests(only(&document, redis.pid(), "server"));
    assert_requests(&document, seen, after - before);
}

/// An nginx with two workers that answers `/` itself: it, and the port it listens on.
pub(super) fn nginx(directory: &Path) -> (Target, String) {
    let port = free_port().to_string();
    let place = directory.display();
    let configuration = format!(
        "user root; daemon off; worker_processes 2; pid {place}/pid; error_log {place}/errors;
         events {{ worker_connections 512; }}
         http {{ access_log {place}/access; keepalive_requests 1000000; client_body_temp_path {place};
         proxy_temp_path {place}; fastcgi_temp_path {place}; uwsgi_temp_path {place}; scgi_temp_path {place};
         server {{ listen 127.0.0.1:{port}; location / {{ return 200 hello; }} }} }}"
    );
    let file = directory.join("nginx.conf");
    std::fs::write(&file, configuration).unwrap();
    let nginx = Target::run_unready(Command::new("nginx").arg("-c").arg(&file));
    let answers = || TcpStream::connect(format!("127.0.0.1:{port}")).is_ok();
    assert!(eventually(patience(10.0), answers), "nginx does not start");
    (nginx, port)
}

/// Sends so many requests over one connection, each after the answer to the one before.
fn fetch(port: &str, count: u64) {
    let stream = TcpStream::connect(format!("127.0.0.1:{port}")).unwrap();
    let mut stream = BufReader::new(stream);
    for _ in 0..count {
        let request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
        stream.get_mut().write_all(request).unwrap();
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            assert!(stream.read_line(&mut line).unwrap() > 0);
        }
        stream.read_exact(&mut [0; 5]).unwrap();
    }
}

#[test]
fn nginx_counts_the_same() {
    let _alone = alone();
    let directory = TempDir::new().unwrap();
    let (nginx, port) = nginx(directory.path());
    let agent = agent(&[nginx.pid()], &["--children"]).start();
    agent.await_said(ATTACHED);
    let count = if in_vm() { 50 } else { 2000 };
    std::thread::scope(|scope| {
        for share in [1, 1, 1, 2, 7, count, count, count] {
            let port = &port;
            scope.spawn(move || fetch(port, share));
        }
    });
    let document = last(&interrupt(agent));
    // Each line of the log is written before the next request is read.
    let logged = std::fs::read_to_string(directory.path().join("access")).unwrap();
    let rows: Vec<_> = connections(&document)
        .iter()
        .filter(|row| port_of(&row["local"]) == port)
        .collect();
    let seen: u64 = rows.iter().map(|row| requests(row)).sum();
    let logged = logged.lines().count() as u64;
    assert_eq!(logged, 3 * count + 12);
    assert_requests(&document, seen, logged);
    assert!(
        rows.iter()
            .all(|row| row["role"] == "server" && row["pid"] != nginx.pid())
    );
}
