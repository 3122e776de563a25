//! Latencies as load generators see them: the same processes at the same time, in the client's role.

use std::collections::BTreeMap;

use serde_json::Value;
use tempfile::TempDir;

use super::counts::{nginx, redis};
use super::number;
use crate::harness::{Agent, alone, host_only};

/// Runs a load generator under the agent: what it printed, and the remote's p50 and p99 in
/// microseconds as the agent saw them.
fn load(command: &str, port: &str) -> (String, [f64; 2]) {
    let finished = Agent::tcp()
        .args(["--by", "remote", "--format", "json", "-o", "tcp.json", "--"])
        .args(command.split(' '))
        .run();
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    let text = finished.text("tcp.json");
    let document: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    let remote = format!("127.0.0.1:{port}");
    let rows = document["remotes"].as_array().unwrap();
    let row = rows.iter().find(|row| row["remote"] == remote).unwrap();
    let latency = &row["latency_us"];
    (
        finished.stdout(),
        [number(&latency["p50"]), number(&latency["p99"])],
    )
}

/// p50 within 5 %, p99 within 10 %.
fn assert_close(ours: [f64; 2], theirs: [f64; 2]) {
    println!("ours {ours:?} theirs {theirs:?} µs");
    for ((ours, theirs), share) in ours.iter().zip(theirs).zip([0.05, 0.1]) {
        assert!((ours - theirs).abs() <= theirs * share, "{ours} {theirs}");
    }
}

#[test]
fn redis_benchmark_sees_the_same() {
    if host_only("the times of an emulated machine are no match for its clocks") {
        return;
    }
    let _alone = alone();
    let (_redis, port) = redis();
    let command = format!("redis-benchmark -p {port} -t get -n 200000 -c 50 --precision 3 --csv");
    let (said, ours) = load(&command, &port);
    // "GET",rps,average,minimum,p50,p95,p99,maximum: in milliseconds.
    let line = said.lines().find(|line| line.starts_with("\"GET")).unwrap();
    let field = |index: usize| {
        let field = line.split(',').nth(index).unwrap();
        1000.0 * field.trim_matches('"').parse::<f64>().unwrap()
    };
    assert_close(ours, [field(4), field(6)]);
}

/// Makes wrk print every sample that it has.
const SAMPLES: &str = "done = function(summary, latency)
    print('all', summary.duration, summary.requests)
    for i = 1, #latency do print('sample', latency(i)) end
end";

/// wrk's samples as it took them: how often each time in microseconds was seen.
///
/// Before it shows them, wrk adds samples that it never took, for requests that it would have sent
/// if it had not waited for a slow answer (`stats_correct` of wrk 4.1): for each above twice the
/// mean time between the requests of a connection, one for each such mean below it. This takes them away
/// again, from the largest to the smallest.
fn taken(said: &str, connections: u64) -> BTreeMap<u64, u64> {
    let mut samples = BTreeMap::new();
    let mut step = 0;
    let mut requests = 0;
    for line in said.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["all", duration, count] => {
                requests = count.parse().unwrap();
                step = duration.parse::<u64>().unwrap() / (requests / connections);
            }
            ["sample", time, count] => {
                samples.insert(time.parse::<u64>().unwrap(), count.parse::<u64>().unwrap());
            }
            _ => {}
        }
    }
    let times: Vec<u64> = samples
        .keys()
        .copied()
        .filter(|&time| time >= 2 * step)
        .collect();
    for time in times.into_iter().rev() {
        let count = samples[&time];
        let mut added = time - step;
        while count > 0 && added > step {
            *samples.get_mut(&added).unwrap() -= count;
            added -= step;
        }
    }
    assert_eq!(samples.values().sum::<u64>(), requests);
    samples
}

#[test]
fn wrk_sees_the_same() {
    if host_only("the times of an emulated machine are no match for its clocks") {
        return;
    }
    let _alone = alone();
    let directory = TempDir::new().unwrap();
    let (_nginx, port) = nginx(directory.path());
    let script = directory.path().join("samples.lua");
    std::fs::write(&script, SAMPLES).unwrap();
    let command = format!(
        "wrk -t1 -c16 -d4s -s {} http://127.0.0.1:{port}/",
        script.display()
    );
    let (said, ours) = load(&command, &port);
    let samples = taken(&said, 16);
    let all: u64 = samples.values().sum();
    let quantile = |share: f64| {
        let mut seen = 0;
        let found = samples.iter().find(|(_, count)| {
            seen += **count;
            seen as f64 >= all as f64 * share
        });
        *found.unwrap().0 as f64
    };
    assert_close(ours, [quantile(0.5), quantile(0.99)]);
}
