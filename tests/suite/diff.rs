//! Captures compared: a regression is found, two captures of one program are alike.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::harness::{Agent, Target, agent_binary, alone, host_only, in_vm};
use crate::outputs::titles;
use crate::tcp::free_port;

/// Captures `regress` with this share of its suspect into a file of the directory.
fn capture(directory: &Path, name: &str, units: &str) -> PathBuf {
    let target = Target::spawn("regress", &[units]);
    let duration = if in_vm() { "10s" } else { "3s" };
    let agent = Agent::profile()
        .args(["--pid", &target.pid().to_string(), "--duration", duration])
        .args(["--frequency", "499"]);
    written(agent, directory.join(name))
}

/// Runs the agent to its end; the file has what it saw.
fn written(agent: Agent, file: PathBuf) -> PathBuf {
    let finished = agent.args(["-o"]).args([&file]).run();
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    file
}

fn diff(before: &Path, after: &Path) -> Agent {
    Agent::subcommand("diff", &[], &agent_binary()).args([before, after])
}

fn compared(before: &Path, after: &Path) -> Value {
    let finished = diff(before, after).args(["--format", "json"]).run();
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    serde_json::from_str(&finished.stdout()).unwrap()
}

fn significant(diff: &Value) -> Vec<&str> {
    assert_eq!(diff["schema"], "agent.diff/1");
    let functions = diff["functions"].as_array().unwrap().iter();
    let changed = functions.filter(|function| {
        [&function["own"], &function["total"]]
            .iter()
            .any(|shares| shares["verdict"] == "significant")
    });
    changed
        .map(|function| function["function"].as_str().unwrap())
        .collect()
}

#[test]
fn a_regression_comes_first_and_its_absence_is_seen() {
    if host_only("an emulated machine takes too few samples") {
        return;
    }
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let mut alarms = Vec::new();
    for (run, ending) in ["pb.gz", "folded", "pb.gz", "folded"].iter().enumerate() {
        let name = |what: &str| format!("{what}-{run}.{ending}");
        let before = capture(directory.path(), &name("before"), "10");
        let same = capture(directory.path(), &name("same"), "10");
        let worse = capture(directory.path(), &name("worse"), "40");
        let comparison = compared(&before, &same);
        // What the machine does beside it differs more often: docs/diff.md.
        let own = ["suspect", "steady", "minor", "serve", "main"];
        let of_it = significant(&comparison)
            .into_iter()
            .filter(|name| own.contains(name));
        let of_it: Vec<String> = of_it.map(str::to_owned).collect();
        if !of_it.is_empty() {
            alarms.push(of_it);
        }

        let comparison = compared(&before, &worse);
        let sentence = comparison["sentence"].as_str().unwrap();
        assert!(sentence.starts_with("suspect grew from "), "{sentence}");
        let functions = comparison["functions"].as_array().unwrap();
        let growth = |function: &&Value| function["own"]["difference"].as_f64().unwrap();
        let first = functions
            .iter()
            .max_by(|a, b| growth(a).total_cmp(&growth(b)));
        assert_eq!(first.unwrap()["function"], "suspect", "{comparison}");
        let comparison = compared(&worse, &before);
        let sentence = comparison["sentence"].as_str().unwrap();
        assert!(sentence.starts_with("suspect shrank from "), "{sentence}");
    }
    // Of twenty pairs one may be called different by chance.
    assert!(
        alarms.len() <= 1,
        "differences of the same program: {alarms:?}"
    );
}

/// Records a client whose server takes so long for an answer, and another process, into a bundle.
fn bundle(directory: &Path, name: &str, port: &str, wait_us: &str, beside: &Target) -> PathBuf {
    let _server = Target::spawn("tcp_server", &[port, wait_us, "64", "64"]);
    let client = Target::spawn("tcp_client", &["127.0.0.1", port, "1000000", "64", "64"]);
    let agent = Agent::subcommand("record", &[], &agent_binary())
        .args(["--pid", &client.pid().to_string()])
        .args(["--pid", &beside.pid().to_string()])
        .args(["--duration", "3s"]);
    written(agent, directory.join(name))
}

#[test]
fn bundles_say_which_peer_grew_slow_and_which_calls_began_to_fail() {
    if host_only("an emulated machine has waits of its own") {
        return;
    }
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let port = free_port().to_string();
    let remote = format!("127.0.0.1:{port}");
    let idle = Target::spawn("idle", &[]);
    let before = bundle(directory.path(), "before.zip", &port, "1000", &idle);
    let flood = Target::spawn("sys_flood", &["1000000000"]);
    let after = bundle(directory.path(), "after.zip", &port, "20000", &flood);

    let json = compared(&before, &after);
    let peers = json["connections"].as_array().unwrap();
    let [peer] = &peers[..] else {
        panic!("{peers:?}");
    };
    assert_eq!(
        (peer["remote"].as_str(), peer["role"].as_str()),
        (Some(&*remote), Some("client"))
    );
    for (side, wait) in [("before", 1000.0), ("after", 20_000.0)] {
        let p50 = peer[side]["p50_us"].as_f64().unwrap();
        assert!(
            (wait..wait * 1.5 + 500.0).contains(&p50),
            "{side}: {p50} us"
        );
        let rate = peer[side]["requests_per_second"].as_f64().unwrap();
        assert!(
            (rate * p50 / 1e6 - 1.0).abs() < 0.3,
            "{side}: {rate} a second"
        );
    }
    let failing = json["failing_calls"].as_array().unwrap();
    for call in ["openat: ENOENT", "close: EBADF"] {
        let row = failing.iter().find(|row| row["call"] == call);
        let row = row.unwrap_or_else(|| panic!("no {call} in {failing:?}"));
        assert_eq!(row["before_per_second"], 0.0);
        assert!(row["after_per_second"].as_f64().unwrap() > 1000.0, "{row}");
    }

    let finished = diff(&before, &after)
        .args(["-o", "d.md", "-o", "d.html"])
        .run();
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    for text in [finished.text("d.md"), finished.text("d.html")] {
        for word in [&*remote, "openat: ENOENT"] {
            assert!(text.contains(word), "no {word} in {text}");
        }
    }
}

#[test]
fn every_output_says_which_way() {
    let directory = tempfile::tempdir().unwrap();
    let (before, after) = (
        directory.path().join("a.folded"),
        directory.path().join("b.folded"),
    );
    std::fs::write(&before, "main;parse 41\nmain;render 909\nmain;gone 50\n").unwrap();
    std::fs::write(&after, "main;parse 446\nmain;render 1454\nmain;fresh 100\n").unwrap();
    let said = "parse grew from 4.1 % to 22.3 % of all samples, most of the change.";
    let files = ["-o", "d.svg", "-o", "d.html", "-o", "d.md", "-o", "d.json"];
    let finished = diff(&before, &after).args(files).run();
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    let svg = finished.text("d.svg");
    let titles = titles(&svg);
    assert_eq!(titles[0], said);
    for title in [
        "gone: 5.0 % before, 0.0 % after (-5.0)",
        "fresh: 0.0 % before, 5.0 % after (+5.0)",
    ] {
        assert!(
            titles.iter().any(|it| it == title),
            "no {title:?} in {titles:?}"
        );
    }
    assert!(svg.contains("red grew") && svg.contains("blue shrank"));
    let page = finished.text("d.html");
    assert!(
        page.contains("default-src 'none'") && page.contains("<code>parse</code> grew from 4.1 %")
    );
    let markdown = finished.text("d.md");
    assert!(
        markdown.contains("`parse` grew from 4.1 %")
            && markdown.contains("| `fresh` | 0.0 % | 5.0 % | +5.0 |")
    );
    let json: Value = serde_json::from_str(&finished.text("d.json")).unwrap();
    assert_eq!(json["sentence"], said);
    let terminal = diff(&before, &after).run();
    assert_eq!(terminal.stdout().lines().next(), Some(said));
    assert!(terminal.files().is_empty());
}

#[test]
fn what_cannot_be_compared_is_refused_and_nothing_written() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = directory.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let good = write("good.folded", b"a;b 3\n");
    let cases: [(&str, &[u8], &[&str]); 6] = [
        ("empty.folded", b"", &["empty.folded", "empty"]),
        ("none.folded", b"# agent\n", &["none.folded", "no samples"]),
        ("text.folded", b"hello\n", &["line 1"]),
        ("broken.zip", b"PK\x03\x04 and no more", &["broken.zip"]),
        (
            "cut.pb.gz",
            b"\x1f\x8b\x08\0\0\0\0\0",
            &["cut.pb.gz", "truncated"],
        ),
        (
            "image.png",
            b"\x89PNG\r\n\x1a\n",
            &["none of the formats", ".folded"],
        ),
    ];
    for (name, bytes, words) in cases {
        let bad = write(name, bytes);
        for (before, after) in [(&bad, &good), (&good, &bad)] {
            let finished = diff(before, after)
                .args(["-o", "d.svg", "-o", "d.json"])
                .run();
            finished.assert_refused(1, words);
            assert!(finished.files().is_empty(), "{:?}", finished.files());
        }
    }
    diff(&good, &good)
        .args(["-o", "d.pdf"])
        .run()
        .assert_refused(2, &["d.pdf", ".svg"]);
    diff(&good, Path::new("missing.zip"))
        .run()
        .assert_refused(1, &["missing.zip"]);
    let finished = diff(&good, &good).run();
    assert!(finished.stdout().contains("both sides are the same file"));
}

/// Writes a CPU and a heap profile of itself.
const GO_PROFILES: &str = r#"package main

import (
	"os"
	"runtime/pprof"
	"time"
)

var kept [][]byte

//go:noinline
func spin(until time.Time) (n int) {
	for time.Now().Before(until) {
		n++
	}
	return
}

func main() {
	cpu, _ := os.Create("cpu.pb.gz")
	pprof.StartCPUProfile(cpu)
	spin(time.Now().Add(time.Second))
	pprof.StopCPUProfile()
	for i := 0; i < 64; i++ {
		kept = append(kept, make([]byte, 1<<20))
	}
	heap, _ := os.Create("heap.pb.gz")
	pprof.WriteHeapProfile(heap)
}
"#;

#[test]
fn profiles_of_go_itself_are_read_and_told_apart() {
    if host_only("needs go") {
        return;
    }
    // The compiler takes all CPUs.
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("main.go"), GO_PROFILES).unwrap();
    let status = Command::new("go")
        .args(["run", "main.go"])
        .current_dir(directory.path())
        .status()
        .unwrap();
    assert!(status.success());
    let [cpu, heap] = ["cpu.pb.gz", "heap.pb.gz"].map(|name| directory.path().join(name));
    let comparison = compared(&cpu, &cpu);
    assert_eq!(comparison["measure"], "CPU time");
    let functions = comparison["functions"].as_array().unwrap();
    let spin = functions
        .iter()
        .find(|function| function["function"] == "main.spin")
        .unwrap();
    assert!(spin["total"]["before"].as_f64().unwrap() > 0.9, "{spin}");
    diff(&cpu, &heap)
        .run()
        .assert_refused(1, &["CPU time", "inuse_space/bytes", "same kind"]);
    let comparison = compared(&heap, &heap);
    assert_eq!(comparison["measure"], "inuse_space/bytes");
    assert_eq!(comparison["tested"], false);
}
