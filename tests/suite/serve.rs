//! `agent serve`: the page in a real browser, the metrics as Prometheus reads them, who may ask.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{
    Agent, Browser, Running, Target, alone, eventually, host_only, in_vm, patience,
};
use crate::tcp::redis;

/// Whether this is a virtual machine, where there is no browser and no redis.
fn no_peers() -> bool {
    host_only("redis, Chromium and promtool are not on the machine")
}

/// An agent that serves, and where.
struct Served {
    agent: Running,
    address: String,
    token: String,
}

impl Served {
    fn of(pid: u32, more: &[&str]) -> Served {
        let agent = Agent::subcommand("serve", &[], &crate::harness::agent_binary())
            .args(["--pid", &pid.to_string(), "--listen", "127.0.0.1:0"])
            .args(more)
            .start();
        let said = || agent.stdout().contains("token=") && agent.stdout().ends_with('\n');
        assert!(
            eventually(patience(30.0), said),
            "no URL: {}",
            agent.stdout()
        );
        let url = agent.stdout().trim().to_owned();
        let (address, token) = url.split_once("/?token=").unwrap();
        Served {
            address: address.strip_prefix("http://").unwrap().to_owned(),
            token: token.to_owned(),
            agent,
        }
    }

    fn url(&self) -> String {
        format!("http://{}/?token={}", self.address, self.token)
    }

    /// The status, the headers and the body of an answer.
    fn ask(&self, head: &str) -> (u16, String, Vec<u8>) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(patience(30.0))).unwrap();
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let end = answer
            .windows(4)
            .position(|four| four == b"\r\n\r\n")
            .unwrap();
        let head = String::from_utf8_lossy(&answer[..end]).to_lowercase();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head, answer[end + 4..].to_vec())
    }

    /// Gets a path with the token as Prometheus sends it.
    fn get(&self, path: &str) -> Vec<u8> {
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\n\r\n",
            self.address, self.token
        );
        let (status, head, body) = self.ask(&head);
        assert_eq!(
            status,
            200,
            "{path}: {head}\n{}",
            String::from_utf8_lossy(&body)
        );
        body
    }

    fn live(&self, window: u32) -> Value {
        serde_json::from_slice(&self.get(&format!("/live.json?window={window}"))).unwrap()
    }

    fn metrics(&self) -> String {
        String::from_utf8(self.get("/metrics")).unwrap()
    }

    /// Ends it as Ctrl-C does.
    fn end(self) {
        self.agent.signal(libc::SIGINT);
        let finished = self.agent.wait();
        assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    }
}

/// redis-benchmark without an end, with more arguments.
fn load(port: &str, more: &[&str]) -> Target {
    let command = [
        "-p", port, "-t", "get,set", "-n", "100000", "-c", "10", "-l", "-q",
    ];
    Target::run_unready(Command::new("redis-benchmark").args(command).args(more))
}

/// Writes a screenshot to the directory that `AGENT_SCREENSHOTS` names, for the documentation.
fn picture(browser: &mut Browser, name: &str) {
    if let Some(directory) = std::env::var_os("AGENT_SCREENSHOTS") {
        browser.screenshot(&PathBuf::from(directory).join(name));
    }
}

/// The samples of a metric: by its labels as they stand there.
fn samples(metrics: &str, name: &str) -> BTreeMap<String, f64> {
    let lines = metrics.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let (labels, value) = rest.rsplit_once(' ')?;
        (labels.is_empty() || labels.starts_with('{'))
            .then(|| (labels.to_owned(), value.parse().unwrap()))
    });
    lines.collect()
}

fn resident(served: &Served) -> f64 {
    samples(&served.metrics(), "agent_resident_memory_bytes")[""]
}

const BY_RATE: &str = "#connections th:nth-child(5) button";
const RATES: &str = "[...document.querySelectorAll('#connections tbody tr')]\
                     .map(row => Number(row.cells[4].dataset.sortValue))";

#[test]
fn the_page_works_in_a_real_browser() {
    if no_peers() {
        return;
    }
    let _alone = alone();
    let (redis, port) = redis();
    let benchmark = load(&port, &[]);
    let served = Served::of(redis.pid(), &["--window", "10s"]);
    let mut browser = Browser::start();
    browser.prefer("light");
    browser.resize(1280, 1600);
    browser.open(&served.url());
    browser.await_true("document.querySelector('#status').className === 'live'");
    browser.await_true("live.last.samples > 20 && live.last.pending_names < 50");
    browser.await_true("live.last.elapsed_s > 12");
    picture(&mut browser, "live.png");
    assert_eq!(
        browser.evaluate("location.search"),
        "",
        "the token stays in the address"
    );
    assert_eq!(
        browser.evaluate("document.cookie"),
        "",
        "scripts see the cookie"
    );

    sorting_stays(&mut browser);
    zoom_and_search_stay(&mut browser);
    pausing_holds(&mut browser);
    browser.click("#windows button:nth-child(2)");
    browser.await_true("live.last.window_s > 12");
    browser.prefer("dark");
    picture(&mut browser, "live-dark.png");

    assert_eq!(browser.problems(), [""; 0]);
    let origin = format!("http://{}/", served.address);
    let requests = browser.requests();
    assert!(requests.len() > 5);
    assert!(
        requests.iter().all(|url| url.starts_with(&origin)),
        "{requests:?}"
    );

    drop(benchmark);
    drop(redis);
    browser.await_true("document.querySelector('#status').className === 'ended'");
    assert!(browser.evaluate("live.last.samples").as_u64().unwrap() > 0);
    picture(&mut browser, "live-ended.png");
    served.end();
    browser.await_true("document.querySelector('#status').className === 'lost'");
    assert!(
        browser
            .text("#status")
            .contains("connection to the agent lost")
    );
}

/// The order of a table that was chosen by a click is kept when its rows are replaced.
fn sorting_stays(browser: &mut Browser) {
    browser.click(BY_RATE);
    let before = browser.evaluate("live.last.elapsed_s").as_f64().unwrap();
    browser.await_true(&format!("live.last.elapsed_s > {}", before + 1.5));
    let head = "document.querySelector('#connections th:nth-child(5)').getAttribute('aria-sort')";
    assert_eq!(browser.evaluate(head), "descending");
    let rates: Vec<f64> = serde_json::from_value(browser.evaluate(RATES)).unwrap();
    assert!(rates.len() >= 10, "{rates:?}");
    assert!(
        rates.is_sorted_by(|a, b| a >= b) && rates[0] > 0.0,
        "{rates:?}"
    );
}

fn zoom_and_search_stay(browser: &mut Browser) {
    let widest = "(() => { const names = live.last.flame.frames.name.map(i => live.last.flame.strings[i]); \
                  return names.find((name) => live.graph.locate(name) && live.graph.locate(name).y > 0 \
                  && name !== live.graph.shown() && name.includes('main')) })()";
    let name = browser.evaluate(widest);
    let name = name.as_str().expect("redis has its main function");
    let at = browser.evaluate(&format!("live.graph.locate({})", json!(name)));
    browser
        .evaluate("document.getElementById('flame').scrollIntoView({ block: 'center' }) ?? true");
    let at_now = browser.evaluate(&format!("live.graph.locate({})", json!(name)));
    assert!(at.is_object() && at_now.is_object());
    browser.click_at(at_now["x"].as_f64().unwrap(), at_now["y"].as_f64().unwrap());
    assert_eq!(browser.evaluate("live.graph.shown()"), name);
    let share = browser.evaluate("live.graph.search('e')").as_f64().unwrap();
    assert!(share > 0.0, "nothing has an e");
    let before = browser.evaluate("live.last.elapsed_s").as_f64().unwrap();
    browser.await_true(&format!("live.last.elapsed_s > {}", before + 1.5));
    assert_eq!(
        browser.evaluate("live.graph.shown()"),
        name,
        "an update undid the zoom"
    );
    assert_eq!(
        browser.evaluate("document.querySelector('#flame input[type=search]').value"),
        "e"
    );
    browser.evaluate("live.graph.search('')");
    browser.evaluate("live.graph.reset() ?? true");
}

fn pausing_holds(browser: &mut Browser) {
    browser.click("#pause");
    let held = browser.evaluate("live.last.elapsed_s");
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(browser.evaluate("live.last.elapsed_s"), held);
    assert_eq!(
        browser.evaluate("document.querySelector('#status').className"),
        "paused"
    );
    browser.click("#pause");
    browser.await_true(&format!("live.last.elapsed_s > {held}"));
    browser.await_true("document.querySelector('#status').className === 'live'");
}

#[test]
fn who_has_no_token_gets_nothing() {
    let idle = Target::spawn("idle", &[]);
    let served = Served::of(idle.pid(), &[]);
    let own = served.address.clone();
    let bearer = format!("Authorization: Bearer {}\r\n", served.token);
    let wrong = format!("Authorization: Bearer {}\r\n", "0".repeat(32));
    let get = |path: &str, host: &str, more: &str| {
        served.ask(&format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n"
        ))
    };
    for path in [
        "/",
        "/live.json",
        "/metrics",
        "/bundle.zip",
        "/nothing",
        "/?token=",
    ] {
        for more in ["", &*wrong] {
            let (status, head, body) = get(path, &own, more);
            assert_eq!(status, 403, "{path}");
            assert!(head.contains("content-type: text/plain"), "{head}");
            assert!(
                !head.contains("set-cookie") && !head.contains("access-control"),
                "{head}"
            );
            assert!(body.starts_with(b"403: "));
        }
        let (status, ..) = get(path, "evil.example", &bearer);
        assert_eq!(status, 403, "{path} under a foreign name");
    }
    let (status, head, body) = get(&format!("/?token={}", served.token), &own, "");
    assert_eq!(status, 200);
    for header in [
        "content-security-policy: default-src 'none'; script-src 'sha256-",
        "cache-control: no-store",
        "x-content-type-options: nosniff",
        "referrer-policy: no-referrer",
        "httponly; samesite=strict",
    ] {
        assert!(head.contains(header), "no {header}: {head}");
    }
    assert!(!String::from_utf8(body).unwrap().contains(&served.token));
    assert_eq!(get("/nothing", &own, &bearer).0, 404);
    let post =
        format!("POST /metrics HTTP/1.1\r\nHost: {own}\r\n{bearer}Content-Length: 0\r\n\r\n");
    assert_eq!(served.ask(&post).0, 405);
    served.end();
}

#[test]
fn clients_that_say_nothing_are_dropped() {
    let idle = Target::spawn("idle", &[]);
    let served = Served::of(idle.pid(), &[]);
    let begin = Instant::now();
    let silent: Vec<TcpStream> = (0..40)
        .map(|_| TcpStream::connect(&served.address).unwrap())
        .collect();
    assert!(!served.metrics().is_empty());
    assert!(begin.elapsed() < patience(20.0), "{:?}", begin.elapsed());
    drop(silent);
    served.end();
}

#[test]
fn prometheus_accepts_the_metrics() {
    if no_peers() {
        return;
    }
    let _alone = alone();
    let (redis, port) = redis();
    let benchmark = load(&port, &[]);
    // The benchmark's own connections come and go.
    let held: Vec<TcpStream> = (0..10)
        .map(|_| TcpStream::connect(format!("127.0.0.1:{port}")).unwrap())
        .collect();
    let served = Served::of(redis.pid(), &[]);
    std::thread::sleep(Duration::from_secs(4));
    let first = served.metrics();
    std::thread::sleep(Duration::from_secs(3));
    let second = served.metrics();
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("promtool is missing: `cargo xtask setup` installs it");
    promtool
        .stdin
        .take()
        .unwrap()
        .write_all(second.as_bytes())
        .unwrap();
    let output = promtool.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );

    let label = "{remote=\"127.0.0.1\",role=\"server\"}";
    let count = |text| samples(text, "agent_request_duration_seconds_count")[label];
    assert!(count(&first) > 100.0 && count(&second) > count(&first));
    let buckets = samples(&second, "agent_request_duration_seconds_bucket");
    let all = "{remote=\"127.0.0.1\",role=\"server\",le=\"+Inf\"}";
    assert_eq!(buckets[all], count(&second));
    assert!(samples(&second, "agent_connections")[label] >= 10.0);
    drop(held);
    assert!(samples(&second, "agent_samples_total")[""] > 10.0);
    for line in first.lines().filter(|line| line.starts_with("agent_")) {
        let (series, before) = line.rsplit_once(' ').unwrap();
        let counter = ["_total", "_bucket", "_count", "_sum"];
        if counter
            .iter()
            .any(|end| series.split('{').next().unwrap().ends_with(end))
        {
            let now = second
                .lines()
                .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
            let now: f64 = now.expect(series).parse().unwrap();
            assert!(
                now >= before.parse().unwrap(),
                "{series} fell from {before} to {now}"
            );
        }
    }
    drop(benchmark);
    served.end();
}

#[test]
fn the_bundle_of_the_window_is_a_zip_file() {
    let busy = Target::spawn("threads", &[]);
    let served = Served::of(busy.pid(), &[]);
    std::thread::sleep(patience(2.5));
    assert!(served.live(10)["samples"].as_u64().unwrap() > 10);
    let directory = tempfile::TempDir::new().unwrap();
    let path = directory.path().join("bundle.zip");
    let bundle = served.get("/bundle.zip?window=10");
    std::fs::write(&path, &bundle).unwrap();
    if !in_vm() {
        let unzip = Command::new("unzip").arg("-t").arg(&path).output().unwrap();
        assert!(
            unzip.status.success(),
            "{}",
            String::from_utf8_lossy(&unzip.stdout)
        );
    }
    served.end();
    let report = Agent::subcommand("report", &[], &crate::harness::agent_binary())
        .args([path.as_os_str(), "-o".as_ref(), "report.md".as_ref()])
        .run();
    assert_eq!(report.code(), Some(0), "{}", report.stderr());
    assert!(report.text("report.md").contains("threads"));
}

/// A short version of what hours do: connections come and go, each with its own port.
#[test]
fn churn_does_not_grow_the_agent() {
    if no_peers() {
        return;
    }
    let _alone = alone();
    let (redis, port) = redis();
    let benchmark = load(&port, &["-k", "0"]);
    let served = Served::of(redis.pid(), &["-F", "499"]);
    let look = || served.live(60);
    std::thread::sleep(Duration::from_secs(6));
    look();
    let before = resident(&served);
    for _ in 0..10 {
        std::thread::sleep(Duration::from_secs(1));
        look();
    }
    let after = resident(&served);
    let seen = samples(&served.metrics(), "agent_losses_total");
    let unlisted = seen["{probe=\"tcp\",cause=\"closed_connections_not_listed\"}"];
    assert!(unlisted > 1000.0, "no churn: {unlisted}");
    assert!(after < 128e6, "{after} bytes resident");
    assert!(after - before < 24e6, "grew from {before} to {after} bytes");
    drop(benchmark);
    served.end();
}

#[test]
fn a_port_in_use_names_the_flag() {
    let idle = Target::spawn("idle", &[]);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let run = |listen: &str| {
        Agent::subcommand("serve", &[], &crate::harness::agent_binary())
            .args(["--pid", &idle.pid().to_string(), "--listen", listen])
            .run()
    };
    run(&address).assert_refused(1, &["--listen", &address, "another program", "in use"]);
    run("somewhere").assert_refused(2, &["--listen", "127.0.0.1:7070"]);
}

#[test]
fn another_address_than_loopback_is_warned_of() {
    let idle = Target::spawn("idle", &[]);
    let agent = Agent::subcommand("serve", &[], &crate::harness::agent_binary())
        .args(["--pid", &idle.pid().to_string(), "--listen", "0.0.0.0:0"])
        .start();
    agent.await_said("nothing is encrypted");
    agent.signal(libc::SIGINT);
    assert_eq!(agent.wait().code(), Some(0));
}
