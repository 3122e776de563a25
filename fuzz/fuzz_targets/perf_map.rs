//! See `agent::fuzz_targets::perf_map`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| agent::fuzz_targets::perf_map(bytes));
