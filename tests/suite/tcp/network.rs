//! Networks that delay and lose, each in a namespace of its own.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::{assert_requests, client, measured, number, only, requests, server};
use crate::harness::{Target, alone, in_vm};

/// Starts a server that takes `wait`, and a client of it, in a new network namespace whose loopback
/// device was prepared by `commands`.
fn beyond(commands: &[&str], wait: Duration, requests: [u32; 3]) -> (Target, Target) {
    let start = || {
        // SAFETY: it changes this thread only, which ends soon; its children stay there.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
        for command in ["ip link set lo up"].iter().chain(commands) {
            let done = Command::new("sh").args(["-ec", command]).status().unwrap();
            assert!(done.success(), "{command}: {done}");
        }
        let (server, port) = server(wait, requests[1], 1);
        let client = client("127.0.0.1", &port, requests);
        (server, client)
    };
    std::thread::scope(|scope| scope.spawn(start).join().unwrap())
}

/// The median of a part in milliseconds.
fn median(row: &Value, part: &str) -> f64 {
    number(&row["parts_us"][part]["p50"]) / 1000.0
}

#[test]
fn a_delay_of_the_network_is_the_peers_and_not_the_services() {
    if !in_vm() {
        // This kernel may lack sch_netem, and have no modules.
        println!("runs in the virtual machines only: netem");
        return;
    }
    let _alone = alone();
    let mut found = Vec::new();
    for delay in [0, 10, 60] {
        let netem = format!("/usr/sbin/tc qdisc add dev lo root netem delay {delay}ms");
        let commands = if delay == 0 {
            &[][..]
        } else {
            &[netem.as_str()]
        };
        let (server, client) = beyond(commands, Duration::from_millis(5), [40, 64, 1]);
        let (document, times) = measured(&server, &client);
        let ours = only(&document, client.pid(), "client");
        let theirs = only(&document, server.pid(), "server");
        assert_requests(&document, requests(ours), 40);
        assert_requests(&document, requests(theirs), 40);
        let truth = times[0] / 1000.0;
        found.push((median(ours, "peer"), median(theirs, "service"), truth));
    }
    println!("(peer, service, client's own clock) in ms at 0, 10 and 60 ms: {found:?}");
    let (peer, service, truth) = found[0];
    for ((delayed, served, seen), delay) in found[1..].iter().zip([10.0, 60.0]) {
        // The request is delayed, and the answer too; an emulated machine's timers are late.
        let moved = delayed - peer;
        assert!(
            (2.0 * delay - 5.0..2.0 * delay + 15.0).contains(&moved),
            "{moved}: {found:?}"
        );
        // What the client waits for is more than the peer's part, by what the machine itself takes.
        // A bucket of the histogram is 1.6 % wide.
        assert!(*delayed <= seen * 1.01 + 0.1, "{found:?}");
        assert!((moved - (seen - truth)).abs() <= 15.0, "{moved}: {found:?}");
        assert!((served - service).abs() <= 10.0, "{found:?}");
    }
}

#[test]
fn what_the_network_loses_is_counted_as_retransmitted() {
    let _alone = alone();
    let lossy: &[&str] = if in_vm() {
        &["/usr/sbin/tc qdisc add dev lo root netem loss 5%"]
    } else {
        &[
            "nft add table inet t",
            "nft add chain inet t in '{ type filter hook input priority 0; }'",
            "nft add rule inet t in meta length 100-1000 numgen inc mod 11 == 5 drop",
            "nft add rule inet t in meta length 1001-100000 numgen inc mod 23 == 5 drop",
        ]
    };
    let count = if in_vm() { 80 } else { 40 };
    let (server, client) = beyond(lossy, Duration::ZERO, [count, 200_000, 1]);
    let agent = super::agent(&[client.pid(), server.pid()], &[]).start();
    agent.await_said(super::ATTACHED);
    super::go_on(&client);
    let info = client.await_line(|line| super::numbers(line, "info"));
    client.await_word("done");
    let document = super::last(&super::interrupt(agent));
    let ours = only(&document, client.pid(), "client");
    let theirs = only(&document, server.pid(), "server");
    println!("client {info:?}, server {theirs}");
    // netem loses at random, and maybe none of the few requests.
    assert!(in_vm() || number(&ours["retransmits"]) > 0.0, "{ours}");
    for (name, index) in [("retransmits", 4), ("bytes_sent", 5), ("bytes_received", 6)] {
        assert_eq!(number(&ours[name]), info[index], "{name}: {ours}");
    }
    assert!(number(&theirs["retransmits"]) > 0.0, "{theirs}");
    assert_eq!(theirs["bytes_sent"], count * 200_000, "{theirs}");
    assert_requests(&document, requests(ours), count.into());
    assert_requests(&document, requests(theirs), count.into());
}
