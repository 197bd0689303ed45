//! What a checkpoint holds of an engine: parameters and averages by name, and one JSON.
//!
//! ```text
//! config.json               the model's, as Hugging Face writes it
//! model.safetensors         parameters, float32, under Hugging Face's names
//! optimizer.safetensors     exp_avg.NAME and exp_avg_sq.NAME for each parameter
//! tokenizer.json            where the model came with one
//! state.json                TrainState: the step, the place in the data, the recipe
//! ```
//!
//! Nothing in it depends on ranks or on how state is laid out in memory. There is no generator
//! state: dropout is seeded from the step. A checkpoint directory also loads as a model.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Engine, F32_BYTES, loss_scaler::LossScalerState, window::Window};
use crate::{
    data::LoaderState,
    error::{Code, Error, Result},
    fs::{read_to_string, write_atomic, write_json},
    tensor::{
        Tensor,
        safetensors::{self, SafetensorsFile},
    },
};

const STATE: &str = "state.json";
const MODEL: &str = "model.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
/// What precedes a parameter's name in [`OPTIMIZER`].
const AVERAGES: [&str; 2] = ["exp_avg.", "exp_avg_sq."];
/// The version of `state.json`.
const FORMAT: u32 = 1;
/// How much that does not fit is listed.
const MOST_FAULTS: usize = 12;

/// The part of a training's state that is no tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainState {
    /// The version of this layout: 1.
    pub format: u32,
    /// Optimizer steps done.
    pub global_step: u64,
    /// Those of them that changed the parameters; the schedule and AdamW's bias go by it.
    pub applied_steps: u64,
    /// Those that were skipped, because a gradient was not finite.
    #[serde(default)]
    pub skipped_steps: u64,
    /// The dynamic loss scale, where there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scaler: Option<LossScalerState>,
    /// Rows that these steps were made of; where it is absent, all had this engine's batch size.
    #[serde(default)]
    pub global_samples: Option<u64>,
    /// The place in the data, where a loader was saved with the engine.
    pub loader: Option<LoaderState>,
    /// What was run, where it is known.
    pub recipe: Option<RecipeRecord>,
}

/// A recipe with the values of its parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecipeRecord {
    /// Its text.
    pub source: String,
    /// Its parameters by name.
    pub params: serde_json::Map<String, serde_json::Value>,
}

impl Engine {
    /// Writes the state into the directory `dir`, which a
    /// [`Store`](crate::checkpoint::Store) publishes when it is whole.
    ///
    /// # Errors
    /// [`Code::CallOrder`] amid an accumulation, whose gradients a checkpoint does not hold;
    /// [`Code::DiskFull`] or [`Code::Io`].
    pub fn write_state(
        &self,
        dir: &Path,
        loader: Option<LoaderState>,
        recipe: Option<RecipeRecord>,
    ) -> Result<()> {
        self.check_whole()?;
        if self.window.micro_steps() > 0 {
            return Err(Error::new(
                Code::CallOrder,
                format!(
                    "a checkpoint is of whole steps, and {} of {} micro batches of the next are done",
                    self.window.micro_steps(), self.config.gradient_accumulation_steps
                ),
            )
            .hint("save where engine.step() returned true"));
        }
        write_json(&dir.join("config.json"), &self.model.config().to_json())?;
        let params = self.masters.named(&self.model);
        let params = params.iter().map(|(name, tensor)| (*name, tensor));
        safetensors::write(&dir.join(MODEL), params, &[("format", "pt")])?;
        let averages = self.named_averages();
        let averages = averages.iter().map(|(name, tensor)| (name.as_str(), tensor));
        safetensors::write(&dir.join(OPTIMIZER), averages, &[("format", "pt")])?;
        if let Some(tokenizer) = self.model.tokenizer_json() {
            write_atomic(&dir.join("tokenizer.json"), tokenizer)?;
        }
        let state = TrainState {
            format: FORMAT,
            global_step: self.global_step,
            applied_steps: self.optimizer.applied_steps(),
            skipped_steps: self.health.skipped_steps,
            loss_scaler: self.health.scaler.state(),
            global_samples: Some(self.global_samples),
            loader,
            recipe,
        };
        write_json(&dir.join(STATE), &state)
    }

    /// Bytes that [`Engine::write_state`] will write, about.
    pub fn state_bytes(&self) -> u64 {
        const JSON_BYTES: u64 = 4 << 20;
        3 * F32_BYTES * self.model.num_params() + JSON_BYTES
    }

    /// Goes on from the checkpoint in `dir`, which was verified. Everything is checked before
    /// anything is changed.
    ///
    /// # Errors
    /// [`Code::Checkpoint`] for one of another model or layout, listing what does not fit.
    pub fn read_state(&mut self, dir: &Path) -> Result<TrainState> {
        let state = train_state(dir)?;
        let open = |name: &str| SafetensorsFile::open(&dir.join(name)).map_err(|e| damaged(dir, e));
        let (params, averages) = (open(MODEL)?, open(OPTIMIZER)?);
        let named: Vec<(String, Tensor)> =
            self.masters.named(&self.model).into_iter().map(|(n, p)| (n.to_owned(), p)).collect();
        let named_averages = self.named_averages();
        check_names(dir, &params, &named)?;
        check_names(dir, &averages, &named_averages)?;
        self.torn = true;
        for (file, tensors) in [(&params, &named), (&averages, &named_averages)] {
            for (name, tensor) in tensors {
                file.copy_into(name, tensor)?;
            }
        }
        self.masters.publish(&self.model)?;
        self.health.forget();
        self.health.skipped_steps = state.skipped_steps;
        self.health.scaler.restore(state.loss_scaler);
        self.optimizer.set_applied_steps(state.applied_steps);
        self.global_step = state.global_step;
        let samples = state.global_step * self.train_batch_size() as u64;
        self.global_samples = state.global_samples.unwrap_or(samples);
        self.window = Window::default();
        self.timers.reset();
        (self.phase_times, self.flops_profile) = (None, None);
        self.gradients.clear();
        (self.pending, self.last_step) = (None, None);
        self.torn = false;
        Ok(state)
    }

    /// The optimizer's averages as views with their names in the file.
    fn named_averages(&self) -> Vec<(String, Tensor)> {
        let mut named = Vec::new();
        for (unit, moments) in self.model.units().iter().zip(self.optimizer.moments()) {
            for (prefix, flat) in AVERAGES.iter().zip([&moments.exp_avg, &moments.exp_avg_sq]) {
                let names = unit.specs().iter().map(|spec| format!("{prefix}{}", spec.name));
                named.extend(names.zip(unit.views(flat)));
            }
        }
        named
    }
}

fn train_state(dir: &Path) -> Result<TrainState> {
    let text = read_to_string(dir.join(STATE)).map_err(|e| damaged(dir, e))?;
    let state: TrainState = serde_json::from_str(&text).map_err(|e| {
        let message = format!("checkpoint {}: {STATE} cannot be understood", dir.display());
        Error::new(Code::Checkpoint, message).caused_by(e)
    })?;
    if state.format != FORMAT {
        bail!(
            Code::Checkpoint,
            "checkpoint {}: {STATE} has format {}; this dsr reads format {FORMAT}",
            dir.display(),
            state.format
        );
    }
    Ok(state)
}

/// Refuses a file whose tensors are not exactly the expected ones.
fn check_names(dir: &Path, file: &SafetensorsFile, expected: &[(String, Tensor)]) -> Result<()> {
    let mut faults = Vec::new();
    for (name, tensor) in expected {
        if !file.contains(name) {
            faults.push(format!("{name} is missing"));
        } else if file.shape(name)? != tensor.size() {
            let (found, wanted) = (file.shape(name)?, tensor.size());
            faults.push(format!("{name} has the shape {found:?}, the model {wanted:?}"));
        }
    }
    let known = |name: &String| expected.iter().any(|(known, _)| known == name);
    faults.extend(file.names().iter().filter(|n| !known(n)).map(|n| format!("{n} is too much")));
    if faults.is_empty() {
        return Ok(());
    }
    let shown = faults.iter().take(MOST_FAULTS).cloned().collect::<Vec<_>>().join("; ");
    let more = match faults.len().saturating_sub(MOST_FAULTS) {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    let message = format!("checkpoint {} is of another model: {shown}{more}", dir.display());
    Err(Error::new(Code::Checkpoint, message)
        .hint("make the model with the parameters of the run that wrote the checkpoint"))
}

fn damaged(dir: &Path, e: Error) -> Error {
    let message = format!("checkpoint {}: {}", dir.display(), e.message());
    Error::new(Code::Checkpoint, message).caused_by(e)
}
