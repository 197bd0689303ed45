//! Fuzzes `tests/fuzz/targets/options.rs`.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../targets/options.rs"]
mod target;

fuzz_target!(|data: &[u8]| target::run(data));
