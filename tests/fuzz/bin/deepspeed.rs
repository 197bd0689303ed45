//! Fuzzes `tests/fuzz/targets/deepspeed.rs`.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../targets/deepspeed.rs"]
mod target;

fuzz_target!(|data: &[u8]| target::run(data));
