//! See `agent::fuzz_targets::folded`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| agent::fuzz_targets::folded(bytes));
