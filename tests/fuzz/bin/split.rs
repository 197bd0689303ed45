//! Fuzzes `tests/fuzz/targets/split.rs`.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../targets/split.rs"]
mod target;

fuzz_target!(|data: &[u8]| target::run(data));
