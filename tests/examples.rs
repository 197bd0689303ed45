//! `examples/`: each runs as it is, from the root of the repository, and prints what it says. The
//! READMEs of its directories are pages of `book.rs`.

use std::{fs, path::Path, process::Command};

use crate::support::{
    files::repository,
    program::{dsr, out},
};

/// A directory with a copy of the examples.
fn place() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut copy = Command::new("cp");
    copy.arg("-r").arg(repository().join("examples")).arg(dir.path());
    assert!(copy.status().unwrap().success());
    dir
}

fn run(dir: &Path, words: &[&str]) -> String {
    out(&dsr(dir, words).env("HF_HUB_OFFLINE", "1").output().unwrap())
}

/// A test for each example, with words that it prints.
macro_rules! examples {
    ($($test:ident: $shown:expr),* $(,)?) => {
        const EXAMPLES: &[&str] = &[$(stringify!($test)),*];

        $(#[test]
        fn $test() {
            let dir = place();
            let file = concat!("examples/", stringify!($test), ".rhai");
            assert_eq!(run(dir.path(), &["check", file]), format!("{file}: no mistake found\n"));
            let printed = run(dir.path(), &["run", file]);
            for words in $shown {
                assert!(printed.contains(words), "no `{words}` in:\n{printed}");
            }
        })*
    };
}

examples! {
    best_checkpoint: ["step 25  validation_loss", "best: step "],
    callbacks: ["loss of the first step: 10.", "stopped early: true"],
    evaluate: ["targets", "perplexity", "bits per token 15."],
    freeze: ["embedding: equal true", "head: equal false"],
    generate: ["{\"prompt\":", "\"text\":"],
    loss: ["step 1  loss 10.", "step 20  loss"],
    lr_range: ["step 1  ", "suggested learning rate: 0."],
    mixing: ["step 10  loss", " rows make "],
    own_text: ["validation perplexity"],
    pairs: ["step 100  loss 0.0", "What is the capital of France? The capital of France is Paris."],
    prompt_masks: ["of 48 tokens are targets", "Answer: Frozen water is called ice."],
    schedule: ["step 1  loss 10.", "step 20  loss"],
    tensors: ["step 0  loss", "slope 2.9", "intercept -0.9"],
}

#[test]
fn every_example_is_run_and_listed() {
    let listed = fs::read_to_string(repository().join("examples/README.md")).unwrap();
    let entries = fs::read_dir(repository().join("examples")).unwrap();
    for entry in entries {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(name == "README.md" || listed.contains(&name), "{name} is not in the README");
        if let Some(stem) = name.strip_suffix(".rhai") {
            assert!(EXAMPLES.contains(&stem), "{name} is not run");
        }
    }
}
