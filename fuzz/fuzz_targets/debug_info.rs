//! See `agent::fuzz_targets::debug_info`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| agent::fuzz_targets::debug_info(bytes));
