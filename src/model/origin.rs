//! Where the values of a model come from.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::fs::Place;

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
}
