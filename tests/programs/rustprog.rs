//! Rust: threads of the standard library, closures, trait objects, a deep recursion.
//!
//! usage: rustprog [SECONDS]
//!
//! build: rustc --edition 2021 -C opt-level=3 -C link-arg=-fuse-ld=lld {src} -o {out}
//! build(rustprog-debug): rustc --edition 2021 -C opt-level=3 -C debuginfo=2 -C link-arg=-fuse-ld=lld {src} -o {out}
use std::hint::black_box;
use std::time::Duration;

trait Engine: Send {
    fn turn(&self, value: u64) -> u64;
}

struct Multiplier(u64);
struct Rotator(u32);

impl Engine for Multiplier {
    #[inline(never)]
    fn turn(&self, value: u64) -> u64 {
        (0..20_000).fold(value, |sum, i| black_box(sum.wrapping_mul(self.0) ^ i))
    }
}

impl Engine for Rotator {
    #[inline(never)]
    fn turn(&self, value: u64) -> u64 {
        (0..20_000).fold(value, |sum, i| black_box(sum.rotate_left(self.0) ^ i))
    }
}

#[inline(never)]
fn apply<F: FnMut(u64) -> u64>(turns: u64, mut work: F) -> u64 {
    let mut value = 1;
    for _ in 0..turns {
        value = work(value);
    }
    value
}

#[inline(never)]
fn recurse(depth: u32, engine: &dyn Engine, value: u64) -> u64 {
    if depth == 0 {
        // Not in tail position, where the call would take the place of this frame.
        return black_box(engine.turn(value)) + 1;
    }
    black_box(recurse(depth - 1, engine, value)) + 1
}

fn main() {
    let seconds = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(0u64);
    let engines: Vec<Box<dyn Engine>> = vec![Box::new(Multiplier(0x2545_f491)), Box::new(Rotator(7))];
    for (index, engine) in engines.into_iter().enumerate() {
        let name = format!("engine-{index}");
        let spawned = std::thread::Builder::new().name(name).spawn(move || loop {
            black_box(apply(100, |value| recurse(50, engine.as_ref(), value)));
        });
        if let Err(error) = spawned {
            eprintln!("cannot start a thread: {error}");
            std::process::exit(1);
        }
    }
    println!("ready");
    let life = if seconds == 0 { u64::MAX } else { seconds };
    std::thread::sleep(Duration::from_secs(life));
}
