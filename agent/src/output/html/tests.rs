#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
use super::*;
use crate::output::fixture;
use crate::profile::Profile;
use quick_xml::Reader;
use quick_xml::events::Event;

/// More names against HTML than other formats need.
const HOSTILE: [&str; 5] = [
    "</script><img src=x onerror=\"window.__pwned=1\">",
    "<!--<script>",
    "]]><svg onload=alert(1)>",
    "\u{200f}\u{202e}\u{1b}[31m",
    "javascript:alert(1)//\"'` onmouseover=alert(1) x=",
];

fn text_of(profile: &Profile) -> String {
    String::from_utf8(profile::render(profile).unwrap()).unwrap()
}

fn hostile() -> Profile {
    let mut profile = fixture::hostile();
    for name in HOSTILE {
        let frame = crate::profile::Frame {
            file: Some(name.to_owned()),
            ..fixture::user(name, name, 1)
        };
        fixture::push(&mut profile, &[frame], agent_ebpf::End::Root, 1);
        let stack = profile.stacks.last_mut().unwrap();
        stack.comm = name.to_owned();
        stack.thread = name.to_owned();
    }
    let all = [&HOSTILE[..], fixture::HOSTILE].concat();
    profile.facts.kernel = all.join(" ");
    profile.facts.command_line = all.iter().map(|&name| name.to_owned()).collect();
    profile.facts.targets[0].comm = all.concat();
    profile.facts.targets[0].exe = Some(all.concat());
    profile.accounting.notes.insert(all.concat(), 1);
    profile
}

/// The inside of every element of this name.
pub(in crate::output) fn insides<'a>(html: &'a str, name: &str) -> Vec<&'a str> {
    let (open, close) = (format!("<{name}"), format!("</{name}>"));
    let parts = html.split(open.as_str()).skip(1);
    parts
        .map(|part| {
            let (_, rest) = part.split_once('>').unwrap();
            rest.split_once(close.as_str()).unwrap().0
        })
        .collect()
}

/// The elements and attributes of a page, whose markup is XML but for the doctype and what is in
/// scripts and styles; panics on what is not well formed.
pub(in crate::output) fn elements(html: &str) -> Vec<(String, Vec<String>)> {
    let mut markup = html.replacen("<!DOCTYPE html>\n", "", 1);
    for name in ["script", "style"] {
        for inside in insides(html, name) {
            markup = markup.replacen(inside, "", 1);
        }
    }
    let mut reader = Reader::from_str(&markup);
    let config = reader.config_mut();
    config.check_end_names = true;
    config.check_comments = true;
    let mut found = Vec::new();
    loop {
        match reader.read_event().unwrap() {
            Event::Start(tag) | Event::Empty(tag) => {
                let name = String::from_utf8(tag.name().as_ref().to_vec()).unwrap();
                let attributes = tag.attributes().map(|attribute| {
                    String::from_utf8(attribute.unwrap().key.as_ref().to_vec()).unwrap()
                });
                found.push((name, attributes.collect()));
            }
            Event::Text(text) => drop(text.xml_content().unwrap()),
            Event::Eof => return found,
            _ => {}
        }
    }
}

#[test]
fn golden() {
    // Without the scripts and styles, which are files of their own.
    let html = text_of(&fixture::profile());
    let script = insides(&html, "script").pop().unwrap();
    let style = insides(&html, "style").pop().unwrap();
    let short = html.replacen(script, "…", 1).replacen(style, "…", 1);
    let (before, rest) = short.split_once("content=\"default-src").unwrap();
    let (_, after) = rest.split_once("\" />").unwrap();
    let short = format!("{before}content=\"…\" />{after}");
    fixture::check_golden("profile.html", short.as_bytes());
}

#[test]
fn pages_are_well_formed() {
    for profile in [fixture::profile(), fixture::empty(), hostile()] {
        let names = elements(&text_of(&profile));
        let count = |wanted: &str| names.iter().filter(|(name, _)| name == wanted).count();
        assert_eq!((count("html"), count("body"), count("main")), (1, 1, 1));
        assert_eq!(count("script"), 2);
        assert_eq!(count("style"), 1);
    }
}

#[test]
fn hostile_names_are_text() {
    let html = text_of(&hostile());
    let known = elements(&text_of(&fixture::profile()));
    for (name, attributes) in elements(&html) {
        let alike = known
            .iter()
            .any(|(other, others)| *other == name && *others == attributes);
        assert!(alike, "{name} {attributes:?}");
    }
    assert!(!html.chars().any(|c| c != '\n' && escape::is_unsafe(c)));
    let data = insides(&html, "script")[0];
    assert!(!data.contains(['<', '>', '&']));
    let data: serde_json::Value = serde_json::from_str(data).unwrap();
    let strings = data["strings"].as_array().unwrap();
    for name in HOSTILE {
        let shown = escape::frame(name);
        assert!(strings.iter().any(|text| *text == *shown), "{shown}");
        assert!(html.contains(&escape::xml(name)), "{name}");
    }
}

#[test]
fn the_policy_allows_this_script_and_this_style() {
    let html = text_of(&fixture::profile());
    let policy = html
        .split_once("Content-Security-Policy\" content=\"")
        .unwrap()
        .1;
    let policy = policy.split_once('"').unwrap().0;
    assert!(policy.starts_with("default-src 'none'; "), "{policy}");
    for refused in ["unsafe", "http", "data:", "*", "self"] {
        assert!(!policy.contains(refused), "{policy}");
    }
    let script = hash(insides(&html, "script").pop().unwrap());
    assert!(
        policy.contains(&format!("script-src {script};")),
        "{policy}"
    );
    let style = hash(insides(&html, "style")[0]);
    assert!(policy.contains(&format!("style-src {style};")), "{policy}");
}

#[test]
fn hashes_are_those_of_the_standard() {
    // `printf abc | openssl dgst -sha256 -binary | base64`
    assert_eq!(
        hash("abc"),
        "'sha256-ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0='"
    );
}

#[test]
fn a_page_names_no_other_place() {
    let html = text_of(&fixture::profile());
    for scheme in [
        "http:",
        "https:",
        "//cdn",
        "src=",
        "href=",
        "url(",
        "@import",
        "eval(",
        "innerHTML",
    ] {
        assert!(!html.contains(scheme), "{scheme}");
    }
}

#[test]
fn a_live_page_may_ask_its_own_server_only() {
    let html = Page::new("live").live().render();
    assert!(html.contains("connect-src 'self';"));
    assert_eq!(html.matches("'self'").count(), 1);
}

#[test]
fn scripts_are_safe_in_their_element() {
    for script in FLAME_JS.iter().chain([&PAGE_JS, &TABLE_JS]) {
        assert!(
            !script.contains("</") && !script.contains("<!--") && !script.contains("<script"),
            "{script:.80}"
        );
        assert!(!script.contains("\r"));
    }
    assert!(!PAGE_CSS.contains("</") && !FLAME_CSS.contains("</"));
}
