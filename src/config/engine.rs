//! The settings of an engine.

use super::{
    monitor::MonitorConfig, optimizer::OptimizerConfig, precision::PrecisionConfig,
    schedule::Schedule,
};

/// What an engine is made with; options of scripts have these names.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Rows in a batch of one rank.
    pub micro_batch_size: usize,
    /// Micro batches in an optimizer step.
    pub gradient_accumulation_steps: usize,
    /// The number formats.
    pub precision: PrecisionConfig,
    /// The largest norm of the gradient, over all parameters; `None` leaves it as it is.
    pub gradient_clipping: Option<f64>,
    /// How the losses of a global batch become one.
    pub loss_average: LossAverage,
    /// The optimizer.
    pub optimizer: OptimizerConfig,
    /// The learning rate over the steps.
    pub scheduler: Schedule,
    /// Whether only the input of each block is kept for the backward pass, which then runs the
    /// block once more (Chen et al. 2016).
    pub activation_checkpointing: bool,
    /// The seed of dropout.
    pub seed: u64,
    /// What is timed, printed and logged.
    pub monitor: MonitorConfig,
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
