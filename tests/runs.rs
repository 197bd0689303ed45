//! What a run says of itself: before its first step, in its directory, and when it has ended.

use std::{fs, path::PathBuf, process::Output};

use crate::support::program::{dsr, out, text};

/// A recipe of a tiny model that trains in no time.
const RECIPE: &str = r#"param("steps", 4);
param("lr", 0.01);
let rows = dataset("rows.jsonl");
let model = new_model("gpt2", #{ vocab_size: 8, n_positions: 4, n_embd: 4, n_layer: 1, n_head: 1 });
let engine = init_engine(model, #{
    micro_batch_size: 2, gradient_accumulation_steps: 2, optimizer: #{ lr: P::lr },
});
let loader = rows.loader(#{ micro_batch_size: 2, endless: true });
let run = start_run(engine, loader, #{ total_steps: P::steps });
while run.train_batch() { run.evaluate(rows); }
run.finish();
print("behind the run");
"#;

/// A directory with the recipe and its data.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("tiny.rhai"), RECIPE).unwrap();
        let rows = "{\"input_ids\": [1, 2, 3, 1]}\n".repeat(8);
        fs::write(dir.path().join("rows.jsonl"), rows).unwrap();
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn dsr(&self, args: &[&str]) -> Output {
        dsr(self.0.path(), args).output().unwrap()
    }
}

#[test]
fn a_run_says_what_trains_on_what() {
    let folder = Folder::new();
    let output = folder.dsr(&["run", "tiny.rhai"]);
    assert_eq!(out(&output), "behind the run\n");
    let shown = text(&output.stderr);
    let expected = [
        "a new run in runs/tiny\n  device      cpu",
        "\n  precision   fp32, AdamW\n  ranks       1\n  parameters  300 trained\n  batch       4 rows \
         a step = micro_batch_size 2 x accumulation 2 x 1 replica\n  steps       1 to 4\nstep 1/4",
    ];
    for part in expected {
        assert!(shown.contains(part), "{shown}");
    }
}

#[test]
fn a_dry_run_makes_one_step_and_leaves_nothing() {
    let folder = Folder::new();
    let output = folder.dsr(&["run", "tiny.rhai", "--dry-run"]);
    // The recipe ends where its run does.
    assert_eq!(out(&output), "");
    let shown = text(&output.stderr);
    assert!(shown.starts_with("a dry run of one step\n  device "), "{shown}");
    let end = "the dry run is done: one step, one evaluation, one checkpoint; nothing is kept\n";
    assert!(shown.ends_with(end), "{shown}");
    assert!(!folder.path("runs").exists());
}

#[test]
fn a_dry_run_that_fails_leaves_nothing_either() {
    let folder = Folder::new();
    let fails = RECIPE.replace("run.finish();", "throw \"no\";");
    fs::write(folder.path("tiny.rhai"), fails).unwrap();
    let output = folder.dsr(&["run", "tiny.rhai", "--dry-run"]);
    assert!(!output.status.success());
    assert!(!folder.path("runs").exists(), "{}", text(&output.stderr));
}

#[test]
fn a_dry_run_of_a_recipe_without_a_run_is_refused() {
    let folder = Folder::new();
    fs::write(folder.path("tiny.rhai"), "print(1);").unwrap();
    let output = folder.dsr(&["run", "tiny.rhai", "--dry-run"]);
    let error = text(&output.stderr);
    assert!(error.starts_with("error[E105]: --dry-run has no meaning for this recipe"), "{error}");
}
