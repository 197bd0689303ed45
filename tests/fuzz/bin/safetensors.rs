//! Fuzzes `tests/fuzz/targets/safetensors.rs`.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../targets/safetensors.rs"]
mod target;

fuzz_target!(|data: &[u8]| target::run(data));
