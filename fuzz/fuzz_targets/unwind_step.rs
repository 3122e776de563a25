//! See `agent::fuzz_targets::unwind_step`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| agent::fuzz_targets::unwind_step(bytes));
