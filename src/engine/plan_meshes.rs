//! The meshes that a training of so many ranks can have, with the same rows a step.

use super::{
    mesh_limits::check_mesh,
    plan::{Setup, sharing_of},
    plan_stages::{StagePlan, bubble, stages},
};
use crate::{
    config::{EngineConfig, MeshConfig, MeshShape, PipelineOptions, TensorParallelOptions},
    model::Workload,
};

/// A mesh with its stages.
#[derive(Debug, Clone)]
pub struct MeshPlan {
    /// The ranks on each axis.
    pub shape: MeshShape,
    /// Micro batches of a replica in a step.
    pub gradient_accumulation_steps: usize,
    /// Its stages.
    pub stages: Vec<StagePlan>,
    /// The share of the time for which stages wait.
    pub bubble: f64,
}

impl MeshPlan {
    /// The stage whose ranks need the most memory.
    pub fn largest(&self) -> Option<&StagePlan> {
        self.stages.iter().max_by_key(|stage| stage.memory.device.peak())
    }

    /// The most work that a rank of a stage has, in multiply-accumulates of a forward pass.
    pub fn most_work(&self) -> u64 {
        self.stages.iter().map(|stage| stage.macs).max().unwrap_or(0)
    }
}

/// Every mesh of as many ranks as `whole` has with `config` that its model and settings allow, and whose
/// replicas divide the micro batches of a step.
pub fn meshes(whole: &Setup, config: &EngineConfig) -> Vec<MeshPlan> {
    let ranks = whole.sharding.world_size as usize * config.mesh.ranks_of_a_replica();
    let divisors = |n: usize| (1..=n).filter(move |d| n.is_multiple_of(*d));
    let shapes = divisors(ranks).flat_map(|pp| {
        divisors(ranks / pp).map(move |tp| MeshShape { pp, dp: ranks / pp / tp, tp })
    });
    shapes.filter_map(|shape| mesh(whole, config, shape)).collect()
}

/// The plan of a mesh, or `None` where the training cannot have it.
fn mesh(whole: &Setup, config: &EngineConfig, shape: MeshShape) -> Option<MeshPlan> {
    let MeshShape { pp, dp, tp } = shape;
    let rows = config.gradient_accumulation_steps * whole.sharding.world_size as usize;
    if !rows.is_multiple_of(dp) {
        return None;
    }
    let sequence_parallel = config.mesh.tensor_parallel.sequence_parallel && tp > 1;
    let mesh = MeshConfig {
        pipeline: PipelineOptions { stages: pp, ..config.mesh.pipeline },
        tensor_parallel: TensorParallelOptions { autotp_size: tp, sequence_parallel },
    };
    let config = EngineConfig { mesh, gradient_accumulation_steps: rows / dp, ..config.clone() };
    check_mesh(&whole.model, &config).ok()?;
    let workload = Workload { sharing: sharing_of(&config), ..whole.workload };
    let mut setup = Setup { workload, ..whole.clone() };
    setup.gradient_accumulation_steps = config.gradient_accumulation_steps;
    setup.sharding.world_size = dp as u64;
    Some(MeshPlan {
        shape,
        gradient_accumulation_steps: config.gradient_accumulation_steps,
        stages: stages(&setup, &config).ok()?,
        bubble: bubble(&config),
    })
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::{
        engine::plan::optimizer_state_bytes,
        model::{Model, tiny_gpt2},
        tensor::Device,
    };

    /// Four ranks: two heads can be shared by two, six layers be in four stages at most, and four
    /// replicas need four micro batches a step.
    #[test]
    fn meshes_are_those_that_the_training_can_have() {
        let sizes = [("vocab_size", 64), ("n_positions", 32), ("n_embd", 64)];
        let model = Rc::new(Model::outline(&tiny_gpt2(&sizes, 0.0, true), Device::Cpu).unwrap());
        let mut config = crate::engine::config(None);
        (config.gradient_accumulation_steps, config.micro_batch_size) = (1, 4);
        config.mesh.tensor_parallel.autotp_size = 2;
        let state = optimizer_state_bytes(&model, &config).unwrap();
        let whole = Setup::new(&model, &config, state, 32, 2, Device::Cpu);
        let of = |config: &EngineConfig| -> Vec<_> {
            let all = meshes(&whole, config);
            all.iter().map(|m| (m.shape.to_string(), m.gradient_accumulation_steps)).collect()
        };
        let shapes = [
            ("pp 1 x dp 2 x tp 2", 1),
            ("pp 2 x dp 2 x tp 1", 1),
            ("pp 2 x dp 1 x tp 2", 2),
            ("pp 4 x dp 1 x tp 1", 2),
        ];
        assert_eq!(of(&config), shapes.map(|(shape, steps)| (shape.to_owned(), steps)));
        config.gradient_accumulation_steps = 2;
        assert_eq!(of(&config)[0], ("pp 1 x dp 4 x tp 1".to_owned(), 1));
    }
}
