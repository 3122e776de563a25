//! The forms in which connections are shown.

use std::fs::File;
use std::io::Read;
use std::net::TcpStream;
use std::os::fd::{FromRawFd, OwnedFd};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::{
    ATTACHED, agent, client, documents, free_port, go_on, interrupt, last, number, only, server,
};
use crate::harness::{Agent, agent_binary, alone, eventually, in_vm, patience, program};

#[test]
fn remotes_are_summed_up_slowest_first() {
    let _alone = alone();
    let waits = [1, 40, 10];
    let servers = waits.map(|wait| server(Duration::from_millis(wait), 64, 1));
    let clients = [0, 1, 2].map(|at: usize| client("127.0.0.1", &servers[at].1, [20, 64, 2]));
    let mut pids = clients.each_ref().map(|client| client.pid()).to_vec();
    pids.push(std::process::id());
    let agent = agent(&pids, &["--by", "remote"]).start();
    agent.await_said(ATTACHED);
    clients.iter().for_each(go_on);
    let nobody = format!("127.0.0.1:{}", free_port());
    for _ in 0..3 {
        assert!(TcpStream::connect(&nobody).is_err());
    }
    clients.iter().for_each(|client| client.await_word("done"));
    let document = last(&interrupt(agent));
    let rows = document["remotes"].as_array().unwrap();
    let at = |remote: &str| {
        let found = rows.iter().position(|row| row["remote"] == remote);
        found.unwrap_or_else(|| panic!("no {remote} in {document}"))
    };
    let places = servers
        .each_ref()
        .map(|(_, port)| at(&format!("127.0.0.1:{port}")));
    let p99: Vec<f64> = rows
        .iter()
        .filter_map(|row| row["latency_us"]["p99"].as_f64())
        .collect();
    assert_eq!(p99.len(), 3, "{document}");
    assert!(
        p99.is_sorted_by(|slower, faster| slower >= faster),
        "{p99:?}"
    );
    for (place, wait) in places.iter().zip(waits) {
        let row = &rows[*place];
        assert_eq!(
            (&row["connections"], &row["requests"], &row["errors"]),
            (&2.into(), &40.into(), &0.into()),
            "{row}"
        );
        assert!(
            number(&row["latency_us"]["p50"]) >= wait as f64 * 990.0,
            "{row}"
        );
        assert!(number(&row["rate"]) > 0.0, "{row}");
    }
    let refused = &rows[at(&nobody)];
    assert_eq!(
        (&refused["errors"], &refused["failed_connects"]),
        (&3.into(), &3.into()),
        "{refused}"
    );
}

#[test]
fn each_interval_is_a_document_and_the_last_has_the_totals() {
    let (server, port) = server(Duration::from_millis(20), 64, 1);
    let client = client("127.0.0.1", &port, [50, 64, 1]);
    let agent = agent(&[client.pid()], &["--interval", "250ms"]).start();
    agent.await_said(ATTACHED);
    go_on(&client);
    client.await_word("done");
    let requests_of = |document: &Value| {
        let row = |row: &&Value| row["pid"] == client.pid() && row["role"] == "client";
        let found = document["connections"].as_array().unwrap().iter().find(row);
        found.map_or(0, |row| row["requests"].as_u64().unwrap())
    };
    let shown = || {
        let text = agent.stdout();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let documents = whole
            .lines()
            .map(|line| serde_json::from_str(line).unwrap());
        documents
            .map(|document| requests_of(&document))
            .sum::<u64>()
            == 50
    };
    assert!(eventually(patience(20.0), shown));
    let finished = interrupt(agent);
    let _ = server;
    let all = documents(&finished);
    let last = last(&finished);
    assert!(all.len() >= 4, "{}", all.len());
    let requests = |document| {
        only(document, client.pid(), "client")["requests"]
            .as_u64()
            .unwrap()
    };
    let (end, intervals) = all.split_last().unwrap();
    assert!(intervals.iter().all(|document| document["final"] == false));
    assert_eq!(intervals.iter().map(requests).sum::<u64>(), 50);
    assert_eq!(requests(end), 50);
    assert_eq!(last["target"]["pid"], client.pid());
    assert_eq!(last["target"]["comm"], "tcp_client");
    let row = only(end, client.pid(), "client").as_object().unwrap();
    for name in [
        "pid",
        "local",
        "remote",
        "role",
        "state",
        "pre_existing",
        "shared",
        "overlapped",
        "requests",
        "latency_us",
        "parts_us",
        "connect_us",
        "accept_wait_us",
        "srtt_us",
        "min_rtt_us",
        "rttvar_us",
        "retransmits",
        "resets_sent",
        "resets_received",
        "bytes_sent",
        "bytes_received",
    ] {
        assert!(row.contains_key(name), "no {name}");
    }
    for name in ["p50", "p90", "p99", "max", "mean"] {
        assert!(row["latency_us"][name].is_number(), "no {name}");
        assert!(row["parts_us"]["peer"][name].is_number(), "no {name}");
    }
    assert!(row["parts_us"]["service"].is_null() && row["parts_us"]["read_delay"].is_object());
}

#[test]
fn a_command_is_watched_from_its_first_connect() {
    let (_server, port) = server(Duration::ZERO, 64, 1);
    let finished = Agent::tcp()
        .args(["-o", "tcp.csv", "--"])
        .args([program("tcp_client")])
        .args(["2", "127.0.0.1", &port, "5", "64", "64", "1"])
        .run();
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    let text = finished.text("tcp.csv");
    let mut lines = text.lines().map(|line| line.split(',').collect::<Vec<_>>());
    let heading = lines.next().unwrap();
    let row = lines.next_back().unwrap();
    assert_eq!(heading.len(), row.len());
    let field = |name: &str| row[heading.iter().position(|found| *found == name).unwrap()];
    assert_eq!(
        ["final", "role", "pre_existing", "requests"].map(field),
        ["true", "client", "false", "5"]
    );
    assert!(field("connect_us").parse::<f64>().unwrap() > 0.0);
    assert_eq!(field("parts_us.service.p50"), "");
}

/// A terminal of this size: what the program sees, and our end of it.
fn terminal(columns: u16, rows: u16) -> (OwnedFd, File) {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let (mut ours, mut theirs) = (0, 0);
    // SAFETY: the descriptors and the size are ours, the rest may be null.
    let failed = unsafe {
        libc::openpty(
            &raw mut ours,
            &raw mut theirs,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            (&raw const size).cast_mut(),
        )
    };
    assert_eq!(failed, 0);
    // SAFETY: both were opened just now, for nobody else.
    unsafe { (OwnedFd::from_raw_fd(theirs), File::from_raw_fd(ours)) }
}

#[test]
fn a_terminal_gets_a_table_that_is_redrawn_and_fits() {
    let (server, port) = server(Duration::ZERO, 64, 1);
    let _held: Vec<TcpStream> = (0..40)
        .map(|_| TcpStream::connect(format!("127.0.0.1:{port}")).unwrap())
        .collect();
    let (theirs, mut ours) = terminal(60, 12);
    let seconds = if in_vm() { "8s" } else { "3s" };
    let mut child = Command::new(agent_binary())
        .args(["tcp", "--interval", "300ms", "--duration", seconds])
        .arg(format!("--pid={}", server.pid()))
        .env("TERM", "xterm")
        .stderr(theirs.try_clone().unwrap())
        .stdout(theirs)
        .spawn()
        .unwrap();
    let mut bytes = Vec::new();
    // Reading ends with an error once the other end is closed.
    let _ = ours.read_to_end(&mut bytes);
    assert!(child.wait().unwrap().success());
    let text = String::from_utf8(bytes).unwrap();
    // CUU by the eleven lines that fit above the cursor.
    let frames: Vec<&str> = text.split("\x1b[11A").collect();
    assert!(frames.len() >= 3, "{text:?}");
    let live = &frames[1];
    assert!(live.contains("… 3") && live.contains(" more"), "{live:?}");
    assert!(
        text.contains("40 connections") && text.contains("REMOTE"),
        "{text:?}"
    );
    for line in text.lines() {
        let width = plain(line).trim_matches('\r').chars().count();
        assert!(width <= 60, "{width}: {line:?}");
    }
}

/// The text without its escape sequences (ECMA-48: CSI up to a letter).
fn plain(line: &str) -> String {
    let mut parts = line.split("\x1b[");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        text += part
            .trim_start_matches(|c: char| !c.is_ascii_alphabetic())
            .get(1..)
            .unwrap_or_default();
    }
    text
}
