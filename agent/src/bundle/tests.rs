#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
use super::*;
use crate::capture::{Container, Cpu, Target};
use crate::guard;
use crate::output::fixture::{self, HOSTILE};
use crate::profile::TargetFacts;
use crate::syscalls::{Counted, CountedStack, Failure, Latency, Report};
use crate::tcp::Role;
use crate::tcp::histogram::Quantiles;
use crate::tcp::view::{self, Document, Failed, Parts, RemoteRow, Row, Sums};

fn quantiles() -> Option<Quantiles> {
    Some(Quantiles {
        p50: 812.3,
        p90: 1200.0,
        p99: 45_000.5,
        max: 45_100.1,
        mean: 999.9,
    })
}

fn row(name: &str) -> Row {
    Row {
        pid: 4242,
        comm: name.to_owned(),
        local: "[::1]:4000".parse().unwrap(),
        remote: "10.0.0.1:80".parse().unwrap(),
        role: Role::Client,
        state: "ESTABLISHED".into(),
        age_s: None,
        pre_existing: true,
        shared: false,
        overlapped: false,
        requests: 17,
        rate: 1.7,
        latency_us: quantiles(),
        parts_us: Parts {
            peer: quantiles(),
            ..Parts::default()
        },
        connect_us: Some(31.5),
        accept_wait_us: None,
        srtt_us: Some(44),
        min_rtt_us: None,
        rttvar_us: Some(1),
        retransmits: 2,
        resets_sent: 0,
        resets_received: 1,
        bytes_sent: 1 << 50,
        bytes_received: 3,
    }
}

fn document(last: bool, name: &str) -> Document {
    Document {
        last,
        elapsed_s: 1.003,
        span_s: last.then_some(1.5),
        target: view::Target::new(4242, name.to_owned()),
        connections: Some(vec![row(name)]),
        remotes: Some(vec![RemoteRow {
            remote: "10.0.0.1:80".to_owned(),
            role: Role::Client,
            connections: 1,
            requests: 17,
            latency_us: quantiles(),
            ..RemoteRow::default()
        }]),
        not_shown: 3,
        sums: Sums {
            connections: 4,
            requests: 20,
            rate: 20.1,
            failed: 1,
        },
        failed_connects: vec![Failed {
            remote: "10.0.0.2:81".parse().unwrap(),
            errno: 111,
            count: 1,
            error: "ECONNREFUSED".into(),
        }],
        losses: [("request_times_lost".into(), 0)].into(),
        guard: Some(guarded()),
    }
}

fn guarded() -> guard::Report {
    guard::Report {
        limit: 0.1,
        steps: vec![guard::Step {
            at_s: 2.5,
            probe: guard::Probe::Tcp,
            hz: None,
            cause: guard::Cause::Waiting,
            share: 0.25,
            limit: 0.1,
        }],
        ..guard::Report::default()
    }
}

fn report(last: bool, name: &str) -> Report {
    Report {
        last,
        elapsed_s: 1.000_123,
        span_s: last.then_some(1.25),
        target: TargetFacts {
            pid: 4242,
            comm: name.to_owned(),
            ..TargetFacts::default()
        },
        processes: 1,
        errors: vec![Failure {
            syscall: "openat".to_owned(),
            errno: "ENOENT".to_owned(),
            count: 12,
            args: vec![Counted {
                value: name.to_owned(),
                count: 12,
                benign: Some("why".to_owned()),
            }],
            latency_us: Some(Latency::default()),
            stacks: vec![CountedStack {
                frames: vec![name.to_owned()],
                count: 12,
            }],
            ..Failure::default()
        }],
        losses: [("undecoded".to_owned(), 0)].into(),
        ..Report::default()
    }
}

fn capture() -> Capture {
    Capture {
        meta: Meta {
            schema: capture::SCHEMA.to_owned(),
            started: 1_795_258_700,
            command_line: HOSTILE.iter().map(|&name| name.to_owned()).collect(),
            target: Target {
                pid: 4242,
                command_line: Some(vec!["a\"b\\".to_owned(), "{[,".to_owned()]),
                container: Some(Container::default()),
                ..Target::default()
            },
            cpu: Cpu {
                cpus: 2,
                used_seconds: Some(0.25),
                waited_seconds: None,
            },
            losses: [("tcp".to_owned(), [("lost".to_owned(), 3)].into())].into(),
            guard: Some(guarded()),
            ..Meta::default()
        },
        profile: fixture::hostile(),
        connections: HOSTILE.iter().map(|name| document(false, name)).collect(),
        syscalls: vec![report(false, HOSTILE[0]), report(true, HOSTILE[4])],
    }
}

/// The bundle with one entry replaced, or left out.
fn with(name: &str, contents: Option<&[u8]>) -> Vec<u8> {
    let bytes = write(&capture()).unwrap();
    let mut archive = Archive::open(&bytes, MAX_TOTAL).unwrap();
    let mut changed = Writer::new(Vec::new(), 0);
    for (entry, _) in ENTRIES {
        let own = archive.read(entry).unwrap();
        match contents {
            _ if *entry != name => changed.add(entry, &own).unwrap(),
            Some(contents) => changed.add(entry, contents).unwrap(),
            None => {}
        }
    }
    changed.finish().unwrap()
}

fn text(name: &'static str) -> String {
    let bytes = write(&capture()).unwrap();
    let mut archive = Archive::open(&bytes, MAX_TOTAL).unwrap();
    String::from_utf8(archive.read(name).unwrap()).unwrap()
}

fn message(bytes: &[u8]) -> String {
    read(bytes).unwrap_err().to_string()
}

#[test]
fn what_is_read_makes_the_same_bundle_again() {
    let capture = capture();
    let bytes = write(&capture).unwrap();
    let again = read(&bytes).unwrap();
    assert_eq!(again.meta, capture.meta);
    assert_eq!(again.connections, capture.connections);
    assert_eq!(again.syscalls, capture.syscalls);
    assert_eq!(again.all_syscalls(), Some(&capture.syscalls[1]));
    assert_eq!(again.all_connections(), None);
    assert!(write(&again).unwrap() == bytes);
}

#[test]
fn an_empty_capture_is_a_bundle() {
    let mut empty = Capture::default();
    empty.meta.schema = capture::SCHEMA.to_owned();
    let again = read(&write(&empty).unwrap()).unwrap();
    assert_eq!(again.meta, empty.meta);
}

#[test]
fn no_entry_holds_what_acts() {
    for name in [META, PROFILE, CONNECTIONS, SYSCALLS] {
        let text = text(name);
        let acts = |c: char| c != '\n' && escape::is_unsafe(c);
        assert!(!text.contains(acts), "{name}");
        assert!(!text.contains("</script"), "{name}");
    }
}

#[test]
fn the_meta_data_have_a_field_a_line() {
    let text = text(META);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "{");
    assert_eq!(lines[1], r#""schema":"agent.capture/1","#);
    assert!(lines.len() > 12 && lines.last() == Some(&"}"), "{text}");
    assert_eq!(serde_json::from_str::<Meta>(&text).unwrap(), capture().meta);
}

#[test]
fn what_is_missing_is_named() {
    for name in [META, PROFILE, CONNECTIONS, SYSCALLS] {
        assert!(message(&with(name, None)).contains(&format!("has no `{name}`")));
    }
    for name in ["flame.svg", "profile.pb.gz"] {
        assert!(read(&with(name, None)).is_ok());
    }
    let mut nested = Writer::new(Vec::new(), 0);
    nested.add("incident/meta.json", b"{}").unwrap();
    let text = message(&nested.finish().unwrap());
    assert!(text.contains("but `incident/meta.json`: pack"), "{text}");
}

#[test]
fn what_is_no_bundle_is_refused() {
    assert!(message(b"<svg/>").contains("no zip file"));
    let other = text(META).replace("agent.capture/1", "agent.capture/9\x1b");
    assert!(read(&with(META, Some(other.as_bytes()))).is_err());
    let other = text(META).replace("agent.capture/1", "agent.capture/9");
    let refusal = message(&with(META, Some(other.as_bytes())));
    assert!(refusal.contains("`agent.capture/9`, not"), "{refusal}");
    assert!(message(&with(META, Some(b"[]"))).contains("`meta.json`"));
    assert!(message(&with(PROFILE, Some(b"{}"))).contains("`profile.json`"));
    let lines = text(CONNECTIONS) + "\n{}\n";
    let refusal = message(&with(CONNECTIONS, Some(lines.as_bytes())));
    let line = HOSTILE.len() + 2;
    assert!(refusal.contains(&format!("line {line} of")), "{refusal}");
}

#[test]
fn sums_that_overflow_are_refused() {
    for (name, from, to) in [
        (
            CONNECTIONS,
            "\"requests\":17",
            "\"requests\":18446744073709551615",
        ),
        (
            CONNECTIONS,
            "\"not_shown\":3",
            "\"not_shown\":18446744073709551615",
        ),
        (SYSCALLS, "\"count\":12", "\"count\":18446744073709551615"),
        (META, "\"lost\":3", "\"lost\":18446744073709551615"),
    ] {
        let changed = text(name).replace(from, to);
        assert_ne!(changed, text(name));
        let refusal = message(&with(name, Some(changed.as_bytes())));
        assert!(refusal.contains("64 bits"), "{refusal}");
    }
}
