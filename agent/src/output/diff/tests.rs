#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
use super::*;
use crate::diff::{Measure, Side, Stacks, Traffic};
use crate::output::html::tests::elements;
use crate::output::{escape, fixture};
use quick_xml::Reader;
use quick_xml::events::Event;

fn side(label: &str, stacks: &[(&[&str], u64)]) -> Side {
    let mut all = Stacks::default();
    for (stack, weight) in stacks {
        let frames = stack.iter().map(|name| all.name(name)).collect();
        all.add(frames, *weight).unwrap();
    }
    Side {
        label: label.to_owned(),
        measure: Measure::Cpu,
        per_sample: Some(1),
        seconds: Some(30.0),
        cpu_seconds: Some(10.0),
        processes: Some(true),
        traffic: None,
        stacks: all,
    }
}

fn example() -> Diff {
    let before = side(
        "before.pb.gz",
        &[
            (&["server", "main", "parse_json"], 41),
            (&["server", "main", "render"], 909),
            (&["server", "main", "legacy|path"], 50),
        ],
    );
    let after = side(
        "after.pb.gz",
        &[
            (&["server", "main", "parse_json"], 446),
            (&["server", "main", "render"], 1450),
            (&["server", "main", "retry"], 100),
            (&["server", "main"], 4),
        ],
    );
    Diff::new(before, after).unwrap()
}

fn hostile() -> Diff {
    let stacks: Vec<[&str; 1]> = fixture::HOSTILE.iter().map(|name| [*name]).collect();
    let before: Vec<(&[&str], u64)> = stacks.iter().map(|stack| (&stack[..], 10)).collect();
    let after: Vec<(&[&str], u64)> = stacks
        .iter()
        .enumerate()
        .map(|(at, stack)| (&stack[..], if at == 0 { 500 } else { 10 }))
        .collect();
    let label = fixture::HOSTILE.concat();
    Diff::new(side(&label, &before), side("after", &after)).unwrap()
}

fn rendered(format: Format, diff: &Diff) -> String {
    String::from_utf8(render(format, diff).unwrap()).unwrap()
}

#[test]
fn golden() {
    let diff = example();
    // The page's own scripts and styles are another's golden file.
    for format in [Format::Svg, Format::Markdown, Format::Json] {
        let name = format!("diff.{}", format.name());
        fixture::check_golden(&name, rendered(format, &diff).as_bytes());
    }
    fixture::check_golden("diff.txt", text(&diff, Style::Plain, 100).as_bytes());
}

#[test]
fn the_direction_stands_in_words() {
    assert_eq!(
        content::sentence(&example()),
        "parse_json grew from 4.1 % to 22.3 % of CPU time, most of the change."
    );
    let stacks: &[(&[&str], u64)] = &[(&["f"], 500), (&["g"], 500)];
    let other: &[(&[&str], u64)] = &[(&["f"], 490), (&["g"], 510)];
    let same = Diff::new(side("a", stacks), side("b", other)).unwrap();
    assert!(content::sentence(&same).contains("more than sampling noise"));
    let gone: &[(&[&str], u64)] = &[(&["f"], 500)];
    let gone = Diff::new(side("a", stacks), side("b", gone)).unwrap();
    assert!(content::sentence(&gone).contains("from 50.0 % to"));
}

#[test]
fn new_and_vanished_frames_are_drawn() {
    let svg = rendered(Format::Svg, &example());
    for title in [
        "retry: 0.0 % before, 5.0 % after (+5.0)",
        "legacy|path: 5.0 % before, 0.0 % after (-5.0)",
    ] {
        assert_eq!(svg.matches(&format!("<title>{title}</title>")).count(), 1);
    }
    // What both have is in both panels.
    assert_eq!(svg.matches("<title>render: ").count(), 2);
}

#[test]
fn hostile_names_are_text_everywhere() {
    let diff = hostile();
    for format in Format::ALL {
        let text = rendered(format, &diff);
        assert!(
            !text.chars().any(|c| c != '\n' && escape::is_unsafe(c)),
            "{format:?}"
        );
    }
    let plain = text(&diff, Style::Plain, 80);
    assert!(!plain.chars().any(|c| c != '\n' && escape::is_unsafe(c)));
    let svg = rendered(Format::Svg, &diff);
    let mut reader = Reader::from_str(&svg);
    reader.config_mut().check_end_names = true;
    loop {
        match reader.read_event().unwrap() {
            Event::Start(tag) | Event::Empty(tag) => {
                let name = tag.name();
                let known = [&b"svg"[..], b"title", b"rect", b"text", b"g"];
                assert!(known.contains(&name.as_ref()), "{name:?}");
            }
            Event::Eof => break,
            _ => {}
        }
    }
}

#[test]
fn a_page_has_the_picture_and_the_tables() {
    let page = rendered(Format::Html, &example());
    assert!(page.contains("default-src 'none'"));
    assert!(page.contains(&svg::element(&example())));
    assert!(page.contains("<h2>Flame graphs of the change</h2>"));
    let tables = page.matches("<table class=\"sortable\">").count();
    assert_eq!(tables, 2);
    // Names make no element that there is not without them.
    let known = elements(&page);
    for element in elements(&rendered(Format::Html, &hostile())) {
        assert!(known.contains(&element), "{element:?}");
    }
    // A policy with hashes forbids styles within elements.
    assert!(!svg::element(&example()).contains("style"));
}

#[test]
fn bundles_compare_their_connections_and_failures() {
    let mut captures = [fixture::capture::capture(), fixture::capture::capture()];
    let last = captures[1]
        .connections
        .iter_mut()
        .rfind(|document| document.last)
        .unwrap();
    let remotes = last.remotes.as_mut().unwrap();
    remotes[0].rate *= 2.0;
    let name = remotes[0].remote.clone();
    let report = captures[1]
        .syscalls
        .iter_mut()
        .rfind(|report| report.last)
        .unwrap();
    report.errors[0].count += 30_000;
    let sides = captures.each_ref().map(Traffic::of);
    let stacks: &[(&[&str], u64)] = &[(&["f"], 500)];
    let [before, after] = sides.map(|traffic| Side {
        traffic: Some(traffic),
        ..side("x.zip", stacks)
    });
    let diff = Diff::new(before, after).unwrap();
    let (remotes, failures) = diff.traffic.as_ref().unwrap();
    let remote = remotes.iter().find(|remote| remote.remote == name).unwrap();
    let [before, after] = remote.red.map(|red| red.unwrap().rate);
    assert_eq!(after, 2.0 * before);
    assert!(failures[0].rates[1] > failures[0].rates[0]);
    let markdown = rendered(Format::Markdown, &diff);
    for text in [
        "## Connections",
        "## Failing system calls",
        &name,
        &failures[0].name,
    ] {
        assert!(markdown.contains(text), "{text}: {markdown}");
    }
    let json: serde_json::Value = serde_json::from_str(&rendered(Format::Json, &diff)).unwrap();
    assert_eq!(json["failing_calls"][0]["call"], failures[0].name);
    assert!(json["connections"][0]["after"]["requests_per_second"].is_number());
}

#[test]
fn a_terminal_is_wide_enough() {
    for width in [40, 80, 200] {
        let text = text(&example(), Style::Plain, width);
        let table = text
            .lines()
            .filter(|line| line.contains("noise") || line.contains(" %"));
        assert!(table.count() > 3, "{text}");
    }
}
