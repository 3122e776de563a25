//! See `agent::fuzz_targets::unwind_table`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| agent::fuzz_targets::unwind_table(bytes));
