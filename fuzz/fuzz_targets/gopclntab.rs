//! See `agent::fuzz_targets::gopclntab`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| agent::fuzz_targets::gopclntab(bytes));
