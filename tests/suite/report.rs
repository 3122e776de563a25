//! `agent report`: everything in a bundle can be made again from it, the page works in a browser,
//! what is no bundle is refused.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::browser::{assert_quiet, picture};
use crate::harness::{Agent, Browser, Finished, Target, agent_binary, alone, host_only};
use crate::tcp::counts::redis;

/// What a bundle must have.
const ENTRIES: [&str; 8] = [
    "report.md",
    "report.html",
    "flame.svg",
    "profile.pb.gz",
    "profile.json",
    "connections.json",
    "syscalls.json",
    "meta.json",
];

fn report(bundle: &Path) -> Agent {
    Agent::subcommand("report", &[], &agent_binary()).args([bundle])
}

/// A bundle of this process: `incident.zip`.
fn record(pid: u32, seconds: &str) -> Finished {
    let finished = Agent::subcommand("record", &[], &agent_binary())
        .args(["--pid", &pid.to_string(), "-d", seconds])
        .args(["-o", "incident.zip"])
        .run();
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    finished
}

/// A redis server under load, which stops for a second, and the bundle of that time.
fn redis_bundle() -> Finished {
    let (redis, port) = redis();
    let mut load = Command::new("redis-benchmark");
    load.args(["-p", &port, "-t", "get,set", "-n", "1000000000", "-q"]);
    let _load = Target::run_unready(&mut load);
    record(redis.pid(), "8s")
}

/// An entry, as others unpack it.
fn unzipped(bundle: &Path, entry: &str) -> Vec<u8> {
    let output = Command::new("unzip")
        .arg("-p")
        .args([bundle.as_os_str(), entry.as_ref()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{entry}: {output:?}");
    output.stdout
}

#[test]
fn every_entry_can_be_made_again() {
    if host_only("redis is not on the machine") {
        return;
    }
    let _alone = alone();
    let recorded = redis_bundle();
    let bundle = recorded.path("incident.zip");
    let mut agent = report(&bundle);
    for entry in ENTRIES {
        agent = agent.args(["-o", entry]);
    }
    let finished = agent.args(["-o", "x.folded"]).run();
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    for entry in ENTRIES {
        let again = std::fs::read(finished.path(entry)).unwrap();
        assert!(again == unzipped(&bundle, entry), "{entry} differs");
    }
    let lines = finished.text("x.folded");
    assert!(lines.lines().any(|line| line.starts_with("redis-server;")));

    let markdown = finished.text("report.md");
    assert!(markdown.len() < 60_000, "{} bytes", markdown.len());
    for expected in [
        "requests/s",
        "127.0.0.1",
        "## Second by second",
        "## What was lost",
    ] {
        assert!(markdown.contains(expected), "no {expected:?}: {markdown}");
    }
    let size = |entry| std::fs::metadata(finished.path(entry)).unwrap().len();
    assert!(size("report.html") < 5 << 20 && size("flame.svg") < 1 << 20);
    let printed = report(&bundle).run();
    assert_eq!(printed.stdout(), markdown);
}

#[test]
fn the_page_works_and_asks_for_nothing() {
    if host_only("Chromium is not on the machine") {
        return;
    }
    let _alone = alone();
    let recorded = redis_bundle();
    let finished = report(&recorded.path("incident.zip"))
        .args(["-o", "report.html"])
        .run();
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    let mut browser = Browser::start();
    browser.prefer("light");
    browser.open_file(&finished.path("report.html"));
    picture(&mut browser, "report-light.png");
    let summary = browser.text("ul.summary");
    assert!(
        summary.contains("redis-server used") && summary.contains("requests/s"),
        "{summary}"
    );
    let charts = browser.evaluate("document.querySelectorAll('svg.chart').length");
    assert!(charts.as_u64().unwrap() >= 3, "{charts}");

    // Many connections, of which the first are shown.
    let rows = |browser: &mut Browser| -> Vec<f64> {
        let rows = "[...document.querySelectorAll('#connections tbody tr')]";
        let cells = format!(
            "{rows}.filter(row => row.offsetHeight > 0).map(row => +row.cells[3].dataset.sortValue)"
        );
        serde_json::from_value(browser.evaluate(&cells)).unwrap()
    };
    assert_eq!(rows(&mut browser).len(), 12);
    browser.click("#connections th:nth-child(4) button");
    assert!(rows(&mut browser).is_sorted_by(|a, b| a >= b));
    browser.click("#connections button.all");
    assert_eq!(rows(&mut browser).len(), 50);

    // A function of the table is searched in the flame graph.
    browser.click("#cpu table code");
    let found = browser.text(".matched");
    let share: f64 = found.split(' ').next().unwrap().parse().unwrap();
    assert!(share > 0.0, "{found}");
    browser.prefer("dark");
    browser.evaluate("scrollTo(0, 0)");
    picture(&mut browser, "report-dark.png");
    assert_quiet(&mut browser);
}

/// As GitHub and ticket systems show it: as an image, in which no script runs.
#[test]
fn the_flame_graph_reads_as_an_image() {
    if host_only("Chromium is not on the machine") {
        return;
    }
    let _alone = alone();
    let recorded = redis_bundle();
    let finished = report(&recorded.path("incident.zip"))
        .args(["-o", "flame.svg"])
        .run();
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    let page = finished.path("image.html");
    std::fs::write(&page, "<body><img src=\"flame.svg\">").unwrap();
    let mut browser = Browser::start();
    browser.open_file(&page);
    browser.await_true("document.images[0].complete");
    let size =
        browser.evaluate("[document.images[0].naturalWidth, document.images[0].naturalHeight]");
    assert!(size[0] == 1200 && size[1].as_u64().unwrap() > 300, "{size}");
    picture(&mut browser, "flame-image.png");
    // The names stand in it without any script.
    let svg = finished.text("flame.svg");
    let names: Vec<&str> = svg
        .split("<text ")
        .skip(1)
        .filter_map(|text| text.split('>').nth(1)?.split('<').next())
        .collect();
    for name in ["aeMain", "main", "redis-server"] {
        assert!(names.contains(&name), "{names:?}");
    }
}

#[test]
fn names_of_the_target_do_nothing() {
    let _alone = alone();
    let target = Target::spawn("hostile", &[]);
    let recorded = record(target.pid(), "2s");
    let finished = report(&recorded.path("incident.zip"))
        .args(["-o", "report.html", "-o", "report.md"])
        .run();
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    for name in ["report.md", "report.html"] {
        let text = finished.text(name);
        let acts =
            |c: char| c != '\n' && (c.is_control() || "\u{202e}\u{2066}\u{200f}".contains(c));
        assert!(!text.contains(acts), "{name}");
    }
    if host_only("Chromium is not on the machine") {
        return;
    }
    let mut browser = Browser::start();
    browser.open_file(&finished.path("report.html"));
    assert_eq!(
        browser.evaluate("document.querySelectorAll('img').length"),
        0
    );
    assert_quiet(&mut browser);
}

#[test]
fn what_is_no_bundle_is_refused() {
    let directory = tempfile::TempDir::new().unwrap();
    let path = directory.path().join("x.zip");
    let refused = |contents: &[u8], words: &[&str]| {
        std::fs::write(&path, contents).unwrap();
        let finished = report(&path).args(["-o", "report.md"]).run();
        finished.assert_refused(1, words);
        assert!(finished.files().is_empty(), "{:?}", finished.files());
    };
    refused(b"", &["x.zip", "no zip"]);
    refused(b"hello", &["no zip"]);
    refused(&[b'P', b'K', 5, 6], &["zip"]);
    let missing = directory.path().join("none.zip");
    report(&missing)
        .run()
        .assert_refused(1, &["none.zip", "cannot read"]);
    report(directory.path())
        .run()
        .assert_refused(1, &["cannot read"]);
    report(&path)
        .args(["-o", "x.pdf"])
        .run()
        .assert_refused(2, &["x.pdf", "--format"]);
    let took = report(&path).args(["-o", "-"]).run();
    took.assert_refused(2, &["--format"]);
    assert!(took.took < Duration::from_secs(5));
}
