//! Times and counters against what the programs themselves know.

use std::time::Duration;

use serde_json::Value;

use super::{
    ATTACHED, agent, assert_requests, client, connections, go_on, last, measured, number, numbers,
    only, requests, server,
};
use crate::harness::{Target, alone, in_vm};

#[test]
fn latency_is_what_the_client_sees() {
    let _alone = alone();
    for (wait_ms, count) in [(0, 1000), (1, 500), (5, 300), (20, 100), (100, 30)] {
        let (server, port) = server(Duration::from_millis(wait_ms), 64, 1);
        let client = client("127.0.0.1", &port, [count, 64, 1]);
        let (document, times) = measured(&server, &client);
        let ours = only(&document, client.pid(), "client");
        assert_requests(&document, requests(ours), count.into());
        // What the client itself takes between its clock and its calls is not the agent's to see.
        // An emulated one is interrupted there for milliseconds in many requests, but not in most.
        let (slack, compared) = if in_vm() { (1000.0, 1) } else { (50.0, 2) };
        for (name, seen) in ["p50", "p90"].iter().zip(&times).take(compared) {
            let found = number(&ours["latency_us"][name]);
            assert!(
                (found - seen).abs() <= f64::max(seen * 0.02, slack),
                "{wait_ms} ms: {name} {found}, {seen} {ours}"
            );
        }
        let theirs = only(&document, server.pid(), "server");
        assert_requests(&document, requests(theirs), count.into());
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
    let (document, _) = measured(&server, &client);
    let ours = only(&document, client.pid(), "client");
    assert_requests(&document, requests(ours), 20);
    let theirs = only(&document, server.pid(), "server");
    assert_requests(&document, requests(theirs), 20);
    assert_eq!(theirs["bytes_sent"], 60_000_000, "{theirs}");
}

#[test]
fn overlapping_traffic_is_marked() {
    let (server, port) = server(Duration::ZERO, 64, 1);
    let client = Target::spawn(
        "tcp_client",
        &["127.0.0.1", &port, "100", "64", "64", "1", "-1", "4"],
    );
    let (document, _) = measured(&server, &client);
    let ours = only(&document, client.pid(), "client");
    assert_eq!(
        (&ours["overlapped"], &ours["latency_us"]),
        (&Value::Bool(true), &Value::Null),
        "{ours}"
    );
}
