//! What each stage of a pipeline needs and does, before anything is loaded.

use std::{ops::Range, rc::Rc};

use super::{
    layout::layouts,
    placement::Placement,
    plan::{MemoryPlan, Setup, average_bytes},
};
use crate::{config::EngineConfig, error::Result, optim::OptimizerPlan};

/// A stage of a pipeline.
#[derive(Debug, Clone)]
pub struct StagePlan {
    /// Its layers, of those of the model.
    pub layers: Range<usize>,
    /// Its parameters; what stages share counts in each.
    pub params: u64,
    /// Multiply-accumulates of a forward pass.
    pub macs: u64,
    /// The memory of one of its ranks.
    pub memory: MemoryPlan,
    /// Bytes that one of its ranks sends to its neighbours in a step: flows forward, gradients back.
    pub sent: u64,
}

/// The stages of the training `whole`, which is of all layers on one rank of a replica.
///
/// # Errors
/// More stages than layers.
pub fn stages(whole: &Setup, config: &EngineConfig) -> Result<Vec<StagePlan>> {
    let (model, pipeline) = (&whole.model, config.mesh.pipeline);
    let placement = Placement::of(model, pipeline)?;
    let micro_batches = config.gradient_accumulation_steps;
    let costs = model.costs(&whole.workload).unwrap_or_default();
    let flow = |layer: Option<usize>| {
        layer.and_then(|layer| costs.get(layer)).map_or(0, |cost| cost.output)
    };
    let stage = |number: usize| -> Result<StagePlan> {
        let layers = placement.layers(number);
        let part = Rc::new(model.stage_outline(layers.clone()));
        let plan = OptimizerPlan::new(&config.optimizer, &layouts(model.all_units(), 1), None)?;
        let here: Vec<_> = (0..part.units().len()).map(|i| part.unit_number(i)).collect();
        let incoming = layers.start.checked_sub(1);
        let outgoing = (layers.end < model.all_layers().len()).then(|| layers.end - 1);
        let setup = Setup {
            model: Rc::clone(&part),
            optimizer_state: plan.keeping(&here).state_bytes()
                + average_bytes(part.units(), config),
            in_flight: (pipeline.stages - number).min(micro_batches) as u64,
            incoming: flow(incoming),
            ..whole.clone()
        };
        Ok(StagePlan {
            params: part.units().iter().map(|unit| unit.numel() as u64).sum(),
            macs: costs
                .get(layers.clone())
                .unwrap_or_default()
                .iter()
                .map(|c| c.profile.macs)
                .sum(),
            memory: setup.plan(),
            sent: micro_batches as u64 * (flow(incoming) + flow(outgoing)),
            layers,
        })
    };
    (0..pipeline.stages).map(stage).collect()
}

/// The part of the time for which stages wait: `(p - 1) / (m + p - 1)`.
pub fn bubble(config: &EngineConfig) -> f64 {
    let (p, m) = (config.mesh.pipeline.stages, config.gradient_accumulation_steps);
    (p - 1) as f64 / (m + p - 1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::PipelineOptions,
        engine::plan::optimizer_state_bytes,
        model::{Model, tiny_gpt2},
        tensor::Device,
    };

    /// Stages have all layers among them, the first holds most passes, and none needs what all do.
    #[test]
    fn stages_divide_the_model_and_the_first_holds_most_passes() {
        let sizes = [("vocab_size", 64), ("n_positions", 32), ("n_embd", 64), ("n_layer", 6)];
        let model = Rc::new(Model::outline(&tiny_gpt2(&sizes, 0.0, true), Device::Cpu).unwrap());
        let mut config = crate::engine::config(None);
        (config.gradient_accumulation_steps, config.micro_batch_size) = (8, 4);
        config.mesh.pipeline = PipelineOptions { stages: 3, ..PipelineOptions::default() };
        let state = optimizer_state_bytes(&model, &config).unwrap();
        let whole = Setup::new(&model, &config, state, 32, 1, Device::Cpu);
        let all = stages(&whole, &config).unwrap();
        assert_eq!((all[0].layers.start, all[2].layers.end), (0, model.layers().len()));
        // A tied table is in the first and in the last.
        let shared = model.units()[0].specs()[0].numel() as u64;
        assert_eq!(
            all.iter().map(|s| s.params).sum::<u64>(),
            model.num_params() + shared + 32 * 64
        );
        let flow = 4 * 32 * 64 * 4;
        assert_eq!(all.iter().map(|s| s.sent).collect::<Vec<_>>(), [8 * flow, 16 * flow, 8 * flow]);
        let activations: Vec<u64> = all.iter().map(|s| s.memory.device.activations).collect();
        assert!(activations[0] > activations[1], "{activations:?}");
        let most = whole.plan().device;
        assert!(all.iter().all(|s| s.memory.device.optimizer_state < most.optimizer_state));
        assert_eq!(bubble(&config), 0.2);
    }
}
