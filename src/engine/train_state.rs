//! The part of a checkpoint that is no tensor: `state.json`.

use serde::{Deserialize, Serialize};

use super::{exact::Exact, loss_scaler::LossScalerState, outliers::OutlierState};
use crate::{data::SavedPlace, model::OriginRecord};

/// The part of a training's state that is no tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainState {
    /// The version of this layout: 1.
    pub format: u32,
    /// Optimizer steps done.
    pub global_step: u64,
    /// Steps that changed the parameters; the schedule and the averages' bias go by them.
    pub applied_steps: u64,
    /// Steps that were skipped, because a gradient was not finite or as outliers.
    #[serde(default)]
    pub skipped_steps: u64,
    /// The dynamic loss scale, where there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scaler: Option<LossScalerState>,
    /// The recent losses and gradient norms, where outliers among them are skipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outliers: Option<OutlierState>,
    /// Steps that the averages of the weights were made of, where there are averages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema_updates: Option<u64>,
    /// Rows that these steps were made of; where it is absent, all had this engine's batch size.
    #[serde(default)]
    pub global_samples: Option<u64>,
    /// Rows of a micro batch; absent in checkpoints of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub micro_batch_size: Option<usize>,
    /// The learning rate that the recipe has set, where it has set one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lr: Option<Exact>,
    /// The optimizer, whose state is in the checkpoint.
    #[serde(default = "adamw")]
    pub optimizer: String,
    /// The base of the adapter, where the checkpoint is of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<OriginRecord>,
    /// The options of block-sparse attention, where there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sparse_attention: Option<serde_json::Value>,
    /// The place in the data, where a loader was saved with the engine.
    pub loader: Option<SavedPlace>,
    /// The recipe that was run, where it is known.
    pub recipe: Option<RecipeRecord>,
}

/// The optimizer of checkpoints that do not name it: there was one.
fn adamw() -> String {
    "AdamW".to_owned()
}

/// A recipe with the values of its parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecipeRecord {
    /// Its text.
    pub source: String,
    /// Its parameters by name.
    pub params: serde_json::Map<String, serde_json::Value>,
}
