//! Figures for big files: `cargo test -p agent --release big -- --ignored --nocapture`.

use std::time::Instant;

use super::*;

fn resident(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Names addresses spread over the code of the file in `SYMBOLIZE_FILE`.
#[test]
#[ignore = "needs a big file named in SYMBOLIZE_FILE"]
fn big_file() {
    let path = PathBuf::from(std::env::var("SYMBOLIZE_FILE").unwrap());
    let functions = functions(&path);
    let step = (functions.len() / 500).max(1);
    let mut addresses: Vec<u64> = functions
        .iter()
        .step_by(step)
        .map(|(start, size, _)| start + size / 2)
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    drop(functions);
    let roots = DebugRoots::open([Path::new("/")]);
    let file = File::open(&path).unwrap();
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = resident("VmRSS:");
    let begin = Instant::now();
    let named = module(
        &file,
        "big",
        &roots.of_module(&path),
        &addresses,
        &Budget::start(),
    );
    let elapsed = begin.elapsed();
    let count = |test: fn(&Frame) -> bool| {
        named
            .iter()
            .filter(|frames| frames.iter().any(test))
            .count()
    };
    println!(
        "{} addresses, {} named, {} with a line, {} frames; {elapsed:?}; {} kB resident before, at most {} kB",
        addresses.len(),
        count(|frame| !frame.inlined && frame.function.is_some()),
        count(|frame| frame.line.is_some()),
        named.iter().map(Vec::len).sum::<usize>(),
        before,
        resident("VmHWM:"),
    );
}
