//! How a run begins, and how it is kept.

use std::path::PathBuf;

use super::LineInterval;
use crate::{engine::RecipeRecord, fs::Place};

/// The start of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// Nothing: a new directory.
    Afresh,
    /// The newest checkpoint of the newest run of the same name.
    Latest,
    /// This checkpoint, or the latest of this run's directory.
    From(PathBuf),
}

/// How a run is kept.
#[derive(Debug, Clone)]
pub struct TrainingOptions {
    /// The directory of all runs.
    pub root: Place,
    /// The run's name.
    pub name: String,
    /// Whether a run that branches off from another one has this name, and not the name of that one.
    pub is_named: bool,
    /// Where it starts.
    pub start: Start,
    /// The number of its last step.
    pub total_steps: u64,
    /// After how many steps a checkpoint is saved; `None` is only at the end.
    pub save_every: Option<u64>,
    /// Whether the checkpoint of the evaluation with the lowest loss stays.
    pub keeps_best: bool,
    /// Whether the run is only tried: its directory goes away with it.
    pub is_trial: bool,
    /// How many checkpoints are kept; `None` is all.
    pub keep: Option<usize>,
    /// Which steps get a line.
    pub lines: LineInterval,
    /// The recipe that is run.
    pub recipe: RecipeRecord,
    /// The command line of this process.
    pub command: Vec<String>,
}
