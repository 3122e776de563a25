//! A small target to try `agent profile` on: two threads count words and sort the counts.
//!
//! `busy [SECONDS]` runs for 5 seconds unless told otherwise.

use std::collections::HashMap;
use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

fn main() {
    let seconds = std::env::args()
        .nth(1)
        .and_then(|text| text.parse().ok())
        .unwrap_or(5);
    let end = Instant::now() + Duration::from_secs(seconds);
    let threads = ["counter-1", "counter-2"].map(|name| {
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || count_until(end))
    });
    let rounds: u64 = threads
        .into_iter()
        .filter_map(|thread| thread.ok()?.join().ok())
        .sum();
    println!("{rounds} rounds in {seconds} s");
}

#[inline(never)]
fn count_until(end: Instant) -> u64 {
    let mut rounds = 0;
    while Instant::now() < end {
        let text = make_text(rounds);
        let counts = count_words(&text);
        black_box(most_frequent(&counts));
        rounds += 1;
    }
    rounds
}

#[inline(never)]
fn make_text(seed: u64) -> String {
    let mut state = seed | 1;
    let mut text = String::new();
    for _ in 0..2000 {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        text.push_str(&format!("word{} ", (state >> 33) % 500));
    }
    text
}

#[inline(never)]
fn count_words(text: &str) -> HashMap<&str, u32> {
    let mut counts = HashMap::new();
    for word in text.split_whitespace() {
        *counts.entry(word).or_default() += 1;
    }
    counts
}

#[inline(never)]
fn most_frequent<'a>(counts: &HashMap<&'a str, u32>) -> Vec<(&'a str, u32)> {
    let mut sorted: Vec<_> = counts.iter().map(|(&word, &count)| (word, count)).collect();
    sorted.sort_by(|a, b| (b.1, a.0).cmp(&(a.1, b.0)));
    sorted
}
