//! Profiles for other tools: what `go tool pprof` and speedscope's format make of them.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::harness::{Agent, Finished, Target, alone, host_only, program};
use crate::outputs::folded;

const FREQUENCY: u64 = 499;
const PERIOD: u64 = 1_000_000_000 / FREQUENCY;

/// A run on this program that writes all three.
fn run(name: &str) -> Finished {
    let target = Target::spawn(name, &[]);
    let finished = Agent::profile()
        .args(["--pid", &target.pid().to_string(), "--duration", "2s"])
        .args(["--frequency", &FREQUENCY.to_string()])
        .args(["-o", "p.pb.gz", "-o", "p.folded", "-o", "p.speedscope.json"])
        .run();
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    finished
}

/// What `go tool pprof` says to this.
pub(crate) fn pprof(arguments: &[&str], file: &Path) -> String {
    let output = Command::new("go")
        .args(["tool", "pprof"])
        .args(arguments)
        .arg(file)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// Samples of each function itself and with all that it calls.
type Functions = BTreeMap<String, (u64, u64)>;

/// The lines of `-top`: `flat flat% sum% cum cum% name`.
fn top(text: &str) -> Functions {
    let mut functions = Functions::new();
    let heading = text
        .lines()
        .position(|line| line.contains("flat%"))
        .unwrap();
    for line in text.lines().skip(heading + 1) {
        let mut rest = line.trim_start();
        let mut fields = Vec::new();
        for _ in 0..5 {
            let (field, tail) = rest.split_once(char::is_whitespace).unwrap();
            fields.push(field);
            rest = tail.trim_start();
        }
        let name = rest
            .trim_end_matches(" (inline)")
            .trim_end_matches(" (partial-inline)");
        let counts = (fields[0].parse().unwrap(), fields[3].parse().unwrap());
        assert!(
            functions.insert(name.to_owned(), counts).is_none(),
            "{name} twice"
        );
    }
    functions
}

/// The same of folded stacks, the process aside.
fn of_folded(text: &str) -> Functions {
    let mut functions = Functions::new();
    for (stack, count) in folded(text) {
        let frames = stack
            .split(';')
            .skip(1)
            .map(|frame| frame.trim_end_matches("_[k]"));
        let mut frames: Vec<&str> = frames.collect();
        if let Some(leaf) = frames.last() {
            functions.entry((*leaf).to_owned()).or_default().0 += count;
        }
        frames.sort_unstable();
        frames.dedup();
        for frame in frames {
            functions.entry(frame.to_owned()).or_default().1 += count;
        }
    }
    functions
}

#[test]
fn go_reads_the_totals_of_the_folded_stacks() {
    if host_only("needs go") {
        return;
    }
    let _alone = alone();
    for name in ["inlined", "templates", "goprog"] {
        let finished = run(name);
        let file = finished.path("p.pb.gz");
        let all = [
            "-sample_index=samples",
            "-nodecount=100000",
            "-nodefraction=0",
            "-edgefraction=0",
        ];
        let text = pprof(&[&all[..], &["-top"]].concat(), &file);
        let expected = of_folded(&finished.text("p.folded"));
        assert!(expected.len() > 3, "{expected:?}");
        assert_eq!(top(&text), expected, "{name}: {text}");
        let total: u64 = folded(&finished.text("p.folded")).values().sum();
        assert!(text.contains(&format!("of {total} total")), "{text}");

        // `-traces` has a stack of each sample, whose first line begins with its value.
        let traces = pprof(&["-sample_index=samples", "-traces"], &file);
        let values = traces.split("-----------+").skip(1).filter_map(|trace| {
            let line = trace
                .lines()
                .skip(1)
                .find(|line| !line.trim_start().contains(":  "))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        });
        assert_eq!(values.sum::<u64>(), total, "{traces}");
    }
}

#[test]
fn go_reads_whose_samples_they_are_and_of_which_files() {
    if host_only("needs go") {
        return;
    }
    let _alone = alone();
    let finished = run("split");
    let file = finished.path("p.pb.gz");
    let raw = pprof(&["-raw"], &file);
    assert!(
        raw.contains(&format!("PeriodType: cpu nanoseconds\nPeriod: {PERIOD}\n")),
        "{raw}"
    );
    assert!(raw.contains("samples/count cpu/nanoseconds"), "{raw}");
    for label in ["process:[split]", "thread:[split]", "end:[root]", "pid:["] {
        assert!(raw.contains(label), "no {label}: {raw}");
    }
    let notes = Command::new("readelf")
        .arg("-n")
        .arg(program("split"))
        .output()
        .unwrap();
    let notes = String::from_utf8(notes.stdout).unwrap();
    let id = notes
        .split("Build ID: ")
        .nth(1)
        .unwrap()
        .lines()
        .next()
        .unwrap()
        .trim();
    let mapping = format!("{} {id} [FN]", program("split").display());
    assert!(raw.contains(&mapping), "no {mapping}: {raw}");
    let comments = pprof(&["-comments"], &file);
    assert!(
        comments.contains("ticks ") && comments.contains(" lost"),
        "{comments}"
    );
}

/// Fails unless the value is as `src/lib/file-format-spec.ts` of speedscope says a file of sampled
/// profiles is.
fn assert_speedscope(file: &Value) {
    assert_eq!(
        file["$schema"],
        "https://www.speedscope.app/file-format-schema.json"
    );
    assert!(file["exporter"].is_string() && file["name"].is_string());
    let frames = file["shared"]["frames"].as_array().unwrap();
    for frame in frames {
        assert!(frame["name"].is_string(), "{frame}");
        for (key, value) in frame.as_object().unwrap() {
            let right = match key.as_str() {
                "name" | "file" => value.is_string(),
                "line" | "col" => value.is_number(),
                _ => false,
            };
            assert!(right, "{frame}");
        }
    }
    let profiles = file["profiles"].as_array().unwrap();
    assert!((file["activeProfileIndex"].as_u64().unwrap() as usize) < profiles.len());
    for profile in profiles {
        assert_eq!(profile["type"], "sampled");
        assert!(profile["name"].is_string());
        let units = [
            "none",
            "nanoseconds",
            "microseconds",
            "milliseconds",
            "seconds",
            "bytes",
        ];
        assert!(units.contains(&profile["unit"].as_str().unwrap()));
        let weights = profile["weights"].as_array().unwrap();
        let samples = profile["samples"].as_array().unwrap();
        assert_eq!(samples.len(), weights.len());
        for sample in samples {
            for frame in sample.as_array().unwrap() {
                assert!((frame.as_u64().unwrap() as usize) < frames.len());
            }
        }
        let sum: u64 = weights.iter().map(|weight| weight.as_u64().unwrap()).sum();
        let length =
            profile["endValue"].as_u64().unwrap() - profile["startValue"].as_u64().unwrap();
        assert_eq!(sum, length);
    }
}

#[test]
fn speedscope_files_are_of_its_format() {
    let _alone = alone();
    let finished = run("threads");
    let file: Value = serde_json::from_str(&finished.text("p.speedscope.json")).unwrap();
    assert_speedscope(&file);
    let profiles = file["profiles"].as_array().unwrap();
    assert!(profiles.len() > 1, "one profile for each thread");
    let sum: u64 = profiles
        .iter()
        .map(|it| it["endValue"].as_u64().unwrap())
        .sum();
    let samples: u64 = folded(&finished.text("p.folded")).values().sum();
    assert_eq!(sum, samples * PERIOD);
    let active = file["activeProfileIndex"].as_u64().unwrap() as usize;
    let hottest = profiles
        .iter()
        .map(|it| it["endValue"].as_u64())
        .max()
        .unwrap();
    assert_eq!(profiles[active]["endValue"].as_u64(), hottest);
}
