//! A directory with a recipe of a tiny model that is run by the real program.

use std::{fs, path::PathBuf, process::Output};

use serde_json::Value;

use super::program::dsr;

/// A recipe of a tiny model that trains in no time.
pub(crate) const RECIPE: &str = r#"param("steps", 4);
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

/// A directory with the recipe `tiny.rhai` and its data, `rows.jsonl`.
pub(crate) struct Folder(pub(crate) tempfile::TempDir);

impl Folder {
    pub(crate) fn new(recipe: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("tiny.rhai"), recipe).unwrap();
        let rows = "{\"input_ids\": [1, 2, 3, 1]}\n".repeat(8);
        fs::write(dir.path().join("rows.jsonl"), rows).unwrap();
        Self(dir)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The content of a run's `run.json`.
    pub(crate) fn told(&self, run: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path(run).join("run.json")).unwrap()).unwrap()
    }

    /// Changes the recipe.
    pub(crate) fn with(self, old: &str, new: &str) -> Self {
        let text = fs::read_to_string(self.path("tiny.rhai")).unwrap();
        assert!(text.contains(old));
        fs::write(self.path("tiny.rhai"), text.replace(old, new)).unwrap();
        self
    }

    pub(crate) fn dsr(&self, args: &[&str]) -> Output {
        dsr(self.0.path(), args).output().unwrap()
    }
}
