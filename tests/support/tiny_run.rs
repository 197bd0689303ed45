//! A directory with a recipe of a tiny model that is run by the real program.

use std::{fs, path::PathBuf, process::Output};

use serde_json::Value;

use super::program::dsr;

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
