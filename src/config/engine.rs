//! The settings of an engine.

use super::{
    monitor::MonitorConfig, numerics::Numerics, optimizer::OptimizerConfig,
    precision::PrecisionConfig, schedule::Schedule, zero::ZeroConfig,
};
use crate::error::{Code, Error, Result};

/// What an engine is made with; options of scripts have these names.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Rows in a batch of one rank.
    pub micro_batch_size: usize,
    /// Micro batches in an optimizer step.
    pub gradient_accumulation_steps: usize,
    /// The number formats.
    pub precision: PrecisionConfig,
    /// How exactly libtorch computes.
    pub numerics: Numerics,
    /// The largest norm of the gradient, over all parameters; `None` leaves it as it is.
    pub gradient_clipping: Option<f64>,
    /// How the losses of a global batch become one.
    pub loss_average: LossAverage,
    /// The optimizer.
    pub optimizer: OptimizerConfig,
    /// The learning rate over the steps.
    pub scheduler: Schedule,
    /// Which blocks keep only their input for the backward pass; `None` is no block.
    pub activation_checkpointing: Option<ActivationCheckpointing>,
    /// What the ranks share out among them.
    pub zero: ZeroConfig,
    /// The seed of dropout.
    pub seed: u64,
    /// What is timed, printed and logged.
    pub monitor: MonitorConfig,
}

/// Blocks that keep only their input for the backward pass, which runs them once more (Chen et al.
/// 2016).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ActivationCheckpointing {
    /// Every how many blocks one does so, from 1: the last of each group of this many, as in
    /// torchtitan's selective checkpointing.
    pub every: usize,
    /// Whether the kept inputs are in host memory until the backward pass, as in DeepSpeed.
    pub cpu_checkpointing: bool,
}

impl ActivationCheckpointing {
    /// Refuses an `every` that none of `blocks` blocks is reached by.
    ///
    /// # Errors
    /// [`Code::BadValue`].
    pub fn check(&self, blocks: usize) -> Result<()> {
        if self.every <= blocks {
            return Ok(());
        }
        let path = "activation_checkpointing.every";
        let message =
            format!("`{path}` must be at most the model's {blocks} blocks, found {}", self.every);
        Err(Error::new(Code::BadValue, message).option(path))
    }

    /// Whether block `i`, from 0, keeps only its input.
    pub fn applies_to(&self, i: usize) -> bool {
        (i + 1).is_multiple_of(self.every)
    }
}

impl Default for ActivationCheckpointing {
    fn default() -> Self {
        Self { every: 1, cpu_checkpointing: false }
    }
}

/// What the loss of an optimizer step is the mean of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LossAverage {
    /// The target tokens of the whole global batch: the result does not depend on how it is cut.
    Tokens,
    /// The means of the micro batches, as in DeepSpeed: tokens of a micro batch with few targets
    /// count for more.
    MicroBatches,
}
