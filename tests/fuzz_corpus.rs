//! What was found worth keeping while fuzzing, through the functions that are fuzzed.

use std::{fs, path::Path};

#[path = "fuzz/targets/mod.rs"]
mod targets;

/// Runs every file of the corpus of `target`.
fn replay(target: &str, run: fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
    let mut files: Vec<_> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    for file in files {
        let data = fs::read(&file).unwrap();
        let outcome = std::panic::catch_unwind(|| run(&data));
        assert!(outcome.is_ok(), "{} makes {target} panic", file.display());
    }
}

#[test]
fn option_maps() {
    replay("options", targets::options::run);
}

#[test]
fn splits() {
    replay("split", targets::split::run);
}

#[test]
fn headers_of_weights() {
    replay("safetensors", targets::safetensors::run);
}

#[test]
fn configs_of_deepspeed() {
    replay("deepspeed", targets::deepspeed::run);
}

#[test]
fn recipes() {
    replay("recipe", targets::recipe::run);
}
