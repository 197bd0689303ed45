//! Fuzzes `tests/fuzz/targets/recipe.rs`.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../targets/recipe.rs"]
mod target;

fuzz_target!(|data: &[u8]| target::run(data));
