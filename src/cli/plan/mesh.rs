//! The mesh of a plan: what a rank of each stage needs and sends, which stage the others wait for, and the
//! meshes that as many ranks could have in its place.

use serde::Serialize;

use super::memory::MemoryNumbers;
use crate::{
    config::EngineConfig,
    engine::{
        SentBytes,
        plan::Setup,
        plan_meshes::{MeshPlan, meshes},
        plan_stages::{StagePlan, bubble, stages},
    },
    error::Result,
};

/// A mesh.
#[derive(Debug, Serialize)]
pub(super) struct MeshNumbers {
    /// Stages of the pipeline.
    pub(super) pp: usize,
    /// Replicas.
    pub(super) dp: usize,
    /// Ranks that share each layer.
    pub(super) tp: usize,
    pub(super) sequence_parallel: bool,
    pub(super) stages: Vec<StageNumbers>,
    /// The share of the time for which stages wait.
    pub(super) bubble: f64,
    /// The meshes of as many ranks, this one among them.
    pub(super) alternatives: Vec<MeshWay>,
}

/// A stage, for each rank at the peak of its memory.
#[derive(Debug, Serialize)]
pub(super) struct StageNumbers {
    /// The first of its layers, and the last.
    pub(super) layers: (usize, usize),
    /// The parameters that one rank has.
    pub(super) parameters: u64,
    /// The share of the products.
    pub(super) work: f64,
    pub(super) memory: MemoryNumbers,
    /// Bytes that a rank sends in a step, by axis.
    pub(super) sent: SentBytes,
}

/// Another mesh, by the rank that needs the most memory and the one that sends most.
#[derive(Debug, Serialize)]
pub(super) struct MeshWay {
    pub(super) pp: usize,
    pub(super) dp: usize,
    pub(super) tp: usize,
    pub(super) gradient_accumulation_steps: usize,
    pub(super) memory: MemoryNumbers,
    pub(super) sent: SentBytes,
    /// The work of the slowest stage beside that of a stage of an even cut.
    pub(super) slowest: f64,
    pub(super) bubble: f64,
    /// Whether it fits; null where the memory is not known.
    pub(super) fits: Option<bool>,
}

impl MeshNumbers {
    /// Of the training `setup`, on devices with so much `usable` memory.
    pub(super) fn of(setup: &Setup, config: &EngineConfig, usable: Option<u64>) -> Result<Self> {
        let plans = stages(setup, config)?;
        let all: u64 = plans.iter().map(|stage| stage.macs).sum();
        let (pipeline, sharing) = (config.mesh.pipeline, config.mesh.tensor_parallel);
        Ok(Self {
            pp: pipeline.stages,
            dp: setup.sharding.world_size as usize,
            tp: sharing.autotp_size,
            sequence_parallel: sharing.sequence_parallel,
            stages: plans.iter().map(|stage| StageNumbers::of(stage, all)).collect(),
            bubble: bubble(config),
            alternatives: meshes(setup, config)
                .iter()
                .filter_map(|mesh| MeshWay::of(mesh, usable))
                .collect(),
        })
    }

    /// The stage with most work, and its share.
    pub(super) fn slowest(&self) -> (usize, f64) {
        let works = self.stages.iter().map(|stage| stage.work).enumerate();
        works.fold((0, 0.0), |most, stage| if stage.1 > most.1 { stage } else { most })
    }

    /// Whether this is the mesh of the recipe.
    pub(super) fn is(&self, way: &MeshWay) -> bool {
        (way.pp, way.dp, way.tp) == (self.pp, self.dp, self.tp)
    }
}

impl StageNumbers {
    /// A stage of those that do `all` the work.
    fn of(stage: &StagePlan, all: u64) -> Self {
        Self {
            layers: (stage.layers.start, stage.layers.end - 1),
            parameters: stage.params,
            work: stage.macs as f64 / all.max(1) as f64,
            memory: MemoryNumbers::of(stage.memory.device, stage.memory.host, stage.memory.disk),
            sent: stage.sent,
        }
    }
}

impl MeshWay {
    fn of(mesh: &MeshPlan, usable: Option<u64>) -> Option<Self> {
        let largest = mesh.largest()?.memory;
        let sent = mesh.stages.iter().map(|stage| stage.sent).max_by_key(SentBytes::all)?;
        let all: u64 = mesh.stages.iter().map(|stage| stage.macs).sum();
        let even = all as f64 / mesh.stages.len() as f64;
        Some(Self {
            pp: mesh.shape.pp,
            dp: mesh.shape.dp,
            tp: mesh.shape.tp,
            gradient_accumulation_steps: mesh.gradient_accumulation_steps,
            memory: MemoryNumbers::of(largest.device, largest.host, largest.disk),
            sent,
            slowest: mesh.most_work() as f64 / even.max(1.0),
            bubble: mesh.bubble,
            fits: usable.map(|usable| largest.device.peak() <= usable),
        })
    }
}
