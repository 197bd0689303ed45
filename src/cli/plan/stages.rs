//! The stages of a pipeline: what a rank of each needs, and which one the others wait for.

use serde::Serialize;

use super::memory::MemoryNumbers;
use crate::{
    config::EngineConfig,
    engine::{
        plan::Setup,
        plan_stages::{StagePlan, bubble, stages},
    },
    error::Result,
};

/// A pipeline.
#[derive(Debug, Serialize)]
pub(super) struct PipelineNumbers {
    pub(super) stages: Vec<StageNumbers>,
    /// The share of the time for which stages wait.
    pub(super) bubble: f64,
}

/// A stage, for each rank at the peak of its memory.
#[derive(Debug, Serialize)]
pub(super) struct StageNumbers {
    /// The first of its layers, and the last.
    pub(super) layers: (usize, usize),
    pub(super) parameters: u64,
    /// The share of the products.
    pub(super) work: f64,
    pub(super) memory: MemoryNumbers,
    /// Bytes to the neighbours in a step.
    pub(super) sent: u64,
}

impl StageNumbers {
    pub(super) fn all(setup: &Setup, config: &EngineConfig) -> Result<PipelineNumbers> {
        let plans = stages(setup, config)?;
        let all: u64 = plans.iter().map(|stage| stage.macs).sum();
        let stage = |stage: &StagePlan| Self {
            layers: (stage.layers.start, stage.layers.end - 1),
            parameters: stage.params,
            work: stage.macs as f64 / all.max(1) as f64,
            memory: MemoryNumbers::of(stage.memory.device, stage.memory.host, stage.memory.disk),
            sent: stage.sent,
        };
        Ok(PipelineNumbers { stages: plans.iter().map(stage).collect(), bubble: bubble(config) })
    }
}

impl PipelineNumbers {
    /// The stage with most work, and its share.
    pub(super) fn slowest(&self) -> (usize, f64) {
        let works = self.stages.iter().map(|stage| stage.work).enumerate();
        works.fold((0, 0.0), |most, stage| if stage.1 > most.1 { stage } else { most })
    }
}
