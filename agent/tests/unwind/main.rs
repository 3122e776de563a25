//! Tests of the unwind tables: every row against gimli's evaluation of the same entry, whole
//! stacks of running programs against framehop, and malformed input.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod agreement;
mod malformed;
mod process;
mod rows;
mod table;
