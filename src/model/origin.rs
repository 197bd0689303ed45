//! Where the values of a model come from.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{config::Quantization, fs::Place};

/// Where a model's values come from.
#[derive(Debug, Clone)]
pub enum Origin {
    /// From the files of a directory.
    Files(Place),
    /// From a seed.
    Seed(u64),
    /// From tensors, or from a training.
    Memory,
}

/// A base model, as a checkpoint of its adapter names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OriginRecord {
    /// The directory that it was loaded from.
    pub path: Option<PathBuf>,
    /// The hash of its settings, and of its files' content or its seed.
    pub sha256: String,
    /// How its matrices were quantized, where they were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantization: Option<Quantization>,
}

impl OriginRecord {
    /// Refuses another base, whatever its quantization: the words that follow "checkpoint DIR".
    pub fn check_same(&self, other: &Self) -> Result<(), String> {
        if self.sha256 == other.sha256 {
            return Ok(());
        }
        let path = self.path.as_ref().map(|path| format!(", {}", path.display()));
        let path = path.unwrap_or_default();
        Err(format!("is of an adapter of another base{path}, whose hash is {}", self.sha256))
    }
}
