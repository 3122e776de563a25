//! The HTML outputs in a real browser: they work, ask for nothing, and names do nothing.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;

use crate::harness::{Agent, Browser, Finished, Target, alone, host_only};
use crate::outputs::folded;
use crate::tcp::counts::redis;

/// Whether this is a virtual machine, where there is no browser.
fn no_browser() -> bool {
    host_only("Chromium is not on the machine")
}

/// Two seconds of a program as page, folded stacks and JSON.
fn profile_of(target: &Target) -> Finished {
    let outputs = ["-o", "profile.html", "-o", "stacks.folded"];
    let finished = Agent::timed(target.pid(), 2.0).args(outputs).run();
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    finished
}

/// A browser that shows the profile, in a window of 1280 by 800.
fn opened(finished: &Finished) -> Browser {
    let mut browser = Browser::start();
    browser.prefer("light");
    browser.open_file(&finished.path("profile.html"));
    browser
}

/// Fails if anything went wrong or any request was made but the one for the page.
pub(crate) fn assert_quiet(browser: &mut Browser) {
    assert_eq!(browser.problems(), [""; 0]);
    let requests = browser.requests();
    assert!(
        requests.len() == 1 && requests[0].starts_with("file://"),
        "{requests:?}"
    );
}

/// Clicks on the widest frame of this name.
fn click_frame(browser: &mut Browser, name: &str) {
    let at = browser.evaluate(&format!("graph.locate({})", serde_json::json!(name)));
    assert!(at.is_object(), "no frame {name}");
    browser.click_at(at["x"].as_f64().unwrap(), at["y"].as_f64().unwrap());
}

/// Writes a screenshot to the directory that `AGENT_SCREENSHOTS` names, for the documentation.
pub(crate) fn picture(browser: &mut Browser, name: &str) {
    if let Some(directory) = std::env::var_os("AGENT_SCREENSHOTS") {
        browser.screenshot(&PathBuf::from(directory).join(name));
    }
}

/// The percentage at the start of what the page says to a search.
fn matched(browser: &mut Browser) -> f64 {
    let said = browser.text(".matched");
    let number = said.split(' ').next().unwrap();
    number
        .parse()
        .unwrap_or_else(|_| panic!("no share: {said:?}"))
}

/// Share of the samples, in percent, with a frame on their stack whose name has this part.
fn folded_share(finished: &Finished, part: &str) -> f64 {
    let stacks = folded(&finished.text("stacks.folded"));
    let all: u64 = stacks.values().sum();
    let with = stacks
        .iter()
        .filter(|(stack, _)| stack.split(';').any(|frame| frame.contains(part)));
    with.map(|(_, count)| count).sum::<u64>() as f64 * 100.0 / all as f64
}

#[test]
fn a_click_zooms_and_escape_goes_back() {
    if no_browser() {
        return;
    }
    let _alone = alone();
    let finished = profile_of(&Target::spawn("split", &[]));
    let mut browser = opened(&finished);
    assert_eq!(browser.evaluate("graph.shown()"), "all");
    click_frame(&mut browser, "third");
    assert_eq!(browser.evaluate("graph.shown()"), "third");
    let trail = browser.text(".crumbs");
    assert!(
        trail.contains("main") && trail.ends_with("third"),
        "{trail}"
    );
    let detail = browser.text(".detail");
    let profile = finished.profile();
    let module = profile
        .frames
        .iter()
        .find(|frame| frame.is("third"))
        .unwrap();
    assert!(
        detail.contains(module.module.as_deref().unwrap()),
        "{detail}"
    );
    assert!(
        detail.contains("total ") && detail.contains("self "),
        "{detail}"
    );
    browser.press("Escape");
    assert_eq!(browser.evaluate("graph.shown()"), "one_round");
    let update = "graph.update(embedded('profile'))";
    browser.evaluate(update);
    assert_eq!(
        browser.evaluate("graph.shown()"),
        "one_round",
        "an update loses the zoom"
    );
    browser.click(".crumbs li:first-child button");
    assert_eq!(browser.evaluate("graph.shown()"), "all");
    assert_quiet(&mut browser);
}

#[test]
fn a_search_finds_what_the_folded_stacks_say() {
    if no_browser() {
        return;
    }
    let _alone = alone();
    let finished = profile_of(&Target::spawn("split", &[]));
    let mut browser = opened(&finished);
    for part in ["half", "third", "r", "main", "no such function"] {
        browser.press("/");
        browser.type_text(part);
        let (shown, expected) = (matched(&mut browser), folded_share(&finished, part));
        assert!(
            (shown - expected).abs() < 0.006,
            "{part}: {shown} is not {expected}"
        );
        browser.press("Escape");
        assert_eq!(browser.text(".matched"), "");
    }
    browser.click(".regex input");
    browser.press("/");
    browser.type_text("^(half|third)$");
    let expected = folded_share(&finished, "half") + folded_share(&finished, "third");
    assert!((matched(&mut browser) - expected).abs() < 0.02);
    picture(&mut browser, "search-light.png");
    browser.type_text("(");
    assert_eq!(browser.text(".matched"), "not a regular expression");
    assert_quiet(&mut browser);
}

#[test]
fn the_keyboard_reaches_every_frame() {
    if no_browser() {
        return;
    }
    let _alone = alone();
    let finished = profile_of(&Target::spawn("split", &[]));
    let mut browser = opened(&finished);
    let focused = |browser: &mut Browser| browser.text(".detail .name");
    let mut way = vec![focused(&mut browser)];
    while way.last().unwrap() != "half" {
        assert!(way.len() < 30, "{way:?}");
        browser.press("ArrowDown");
        way.push(focused(&mut browser));
    }
    browser.press("ArrowRight");
    let neighbour = focused(&mut browser);
    assert!(
        neighbour == "third" || neighbour == "fifth" || neighbour.contains("half"),
        "{neighbour}"
    );
    browser.press("ArrowLeft");
    browser.press("Enter");
    assert_eq!(browser.evaluate("graph.shown()"), *way.last().unwrap());
    browser.press("Home");
    assert_eq!(browser.evaluate("graph.shown()"), "all");
    browser.press("i");
    assert_eq!(browser.text(".tools button.flip"), "Flame ↑");
    browser.press("?");
    assert_eq!(
        browser.evaluate("document.querySelector('dialog').open"),
        true
    );
    browser.press("Escape");
    assert_eq!(
        browser.evaluate("document.querySelector('dialog').open"),
        false
    );
    assert_quiet(&mut browser);
}

#[test]
fn a_table_is_sorted_by_a_click_on_its_head() {
    if no_browser() {
        return;
    }
    let _alone = alone();
    let finished = profile_of(&Target::spawn("split", &[]));
    let mut browser = opened(&finished);
    let column = |browser: &mut Browser, index: usize| -> Vec<String> {
        let cells =
            format!("[...document.querySelectorAll('.sortable tbody td:nth-child({index})')]");
        let value = "cell.dataset.sortValue ?? cell.innerText";
        let texts = browser.evaluate(&format!("{cells}.map(cell => {value})"));
        serde_json::from_value(texts).unwrap()
    };
    let numbers = |texts: Vec<String>| -> Vec<u64> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    };
    assert!(numbers(column(&mut browser, 1)).is_sorted_by(|a, b| a >= b));
    browser.click("th:nth-child(2) button");
    assert!(numbers(column(&mut browser, 2)).is_sorted_by(|a, b| a >= b));
    browser.press("Enter");
    assert!(numbers(column(&mut browser, 2)).is_sorted());
    browser.click("th:nth-child(3) button");
    let names = column(&mut browser, 3);
    let place = |name: &str| names.iter().position(|found| found == name).unwrap();
    assert!(
        place("half") < place("main") && place("main") < place("third"),
        "{names:?}"
    );
    let head = "document.querySelector('th:nth-child(3)').getAttribute('aria-sort')";
    assert_eq!(browser.evaluate(head), "ascending");
    browser.click("button[data-function=half]");
    let expected = folded_share(&finished, "half");
    assert!((matched(&mut browser) - expected).abs() < 0.006);
    assert_quiet(&mut browser);
}

#[test]
fn light_and_dark() {
    if no_browser() {
        return;
    }
    let _alone = alone();
    let (redis, port) = redis();
    let mut load = Command::new("redis-benchmark");
    load.args(["-p", &port, "-t", "get,set", "-n", "1000000000", "-q"]);
    let _load = Target::run_unready(&mut load);
    let finished = profile_of(&redis);
    let mut browser = opened(&finished);
    picture(&mut browser, "profile-light.png");
    let paper = "getComputedStyle(document.body).backgroundColor";
    let light = browser.evaluate(paper);
    browser.prefer("dark");
    let dark = browser.evaluate(paper);
    assert_ne!(light, dark);
    picture(&mut browser, "profile-dark.png");
    browser.click("button.theme");
    assert_eq!(browser.evaluate(paper), light);
    browser.click("button.theme");
    assert_eq!(browser.evaluate(paper), dark);
    assert_quiet(&mut browser);
}

#[test]
fn names_of_the_target_are_text() {
    if no_browser() {
        return;
    }
    let _alone = alone();
    let finished = profile_of(&Target::spawn("hostile", &[]));
    let mut browser = opened(&finished);
    let page = browser.evaluate("document.documentElement.innerText");
    let page = page.as_str().unwrap();
    for name in [
        "</script><img src=x onerror=window.__pwned=1>",
        "]]><script>alert(1)</script>",
        "<!--<script>",
        "\\u{1b}]0;pwned\\u{7}\\u{1b}[31mred",
        "user\\u{202e}nimda\\u{200f}",
    ] {
        assert!(page.contains(name), "{name} is not in the table: {page}");
        click_frame(&mut browser, &name.replace(';', ":"));
        assert!(browser.text(".crumbs").ends_with(&name.replace(';', ":")));
        browser.press("Home");
    }
    let threads = browser.evaluate(
        "[...document.querySelectorAll('.tools option')].map(option => option.text).join('\\n')",
    );
    for name in [
        "</script><b>t",
        "]]><svg/onload",
        "\\u{1b}[2Jescape",
        "a\\u{202e}b\\u{200f}",
    ] {
        assert!(
            threads.as_str().unwrap().contains(name),
            "{name}: {threads}"
        );
    }
    assert_eq!(browser.evaluate("typeof window.__pwned"), "undefined");
    let planted = "document.querySelectorAll('img, svg, b, i, script').length";
    assert_eq!(browser.evaluate(planted), 2, "the page has two scripts");
    picture(&mut browser, "hostile.png");
    assert_quiet(&mut browser);
}

#[test]
fn a_thread_can_be_chosen() {
    if no_browser() {
        return;
    }
    let _alone = alone();
    let finished = profile_of(&Target::spawn("hostile", &[]));
    let mut browser = opened(&finished);
    let choice = "[...document.querySelectorAll('.tools option')].find(option => option.text.startsWith('|'))";
    browser.evaluate(&format!(
        "(({choice}).selected = true, document.querySelector('.tools select').dispatchEvent(new Event('change')))"
    ));
    browser.press("/");
    browser.type_text("|`[x]");
    assert!(matched(&mut browser) > 99.0);
    assert_quiet(&mut browser);
}

#[test]
fn the_policy_lets_nothing_out_of_the_page() {
    if no_browser() {
        return;
    }
    let _alone = alone();
    let finished = profile_of(&Target::spawn("split", &[]));
    let mut browser = opened(&finished);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let asked = browser.evaluate(&format!(
        "(new Image().src = '{url}', navigator.sendBeacon('{url}'),
          fetch('{url}').then(() => 'answered', error => error.name))"
    ));
    assert_eq!(asked, "TypeError");
    let markup = "(() => { try { document.body.innerHTML = '<b>x</b>'; } catch (error) { return error.name; } })()";
    assert_eq!(browser.evaluate(markup), "TypeError");
    let inline =
        "(() => { const s = document.createElement('script'); s.append('window.__pwned = 1');
        try { document.body.append(s); } catch {} return typeof window.__pwned; })()";
    assert_eq!(browser.evaluate(inline), "undefined");
    assert!(listener.accept().is_err(), "a request left the page");
    assert!(!browser.problems().is_empty(), "the refusals are not seen");
}

#[test]
fn the_browser_test_would_see_a_script_run() {
    if no_browser() {
        return;
    }
    let directory = tempfile::TempDir::new().unwrap();
    let path = directory.path().join("bad.html");
    let bad = "<!DOCTYPE html><img src='x.png' onerror='window.__pwned = 1; console.error(1)'>";
    std::fs::write(&path, bad).unwrap();
    let mut browser = Browser::start();
    browser.open_file(&path);
    browser.await_true("window.__pwned === 1");
    assert!(!browser.problems().is_empty());
    assert_eq!(browser.requests().len(), 2);
}
