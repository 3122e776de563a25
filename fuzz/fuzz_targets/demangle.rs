//! See `agent::fuzz_targets::demangle`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| agent::fuzz_targets::demangle(bytes));
