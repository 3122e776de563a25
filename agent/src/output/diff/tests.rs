#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
use super::*;
use crate::diff::{Measure, Side, Stacks};
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
    for format in Format::ALL {
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
                let known = [&b"svg"[..], b"title", b"style", b"rect", b"text", b"g"];
                assert!(known.contains(&name.as_ref()), "{name:?}");
            }
            Event::Eof => break,
            _ => {}
        }
    }
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
