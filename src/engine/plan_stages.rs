//! What each stage of a mesh needs and does, before anything is loaded: consecutive layers, and of these
//! the part that a rank has where ranks share them.

use std::{ops::Range, rc::Rc};

use super::{
    mesh_limits::check_mesh,
    placement::Placement,
    plan::{MemoryPlan, Setup, optimizer_state_bytes, sharing_of},
    plan_sent::SentBytes,
    step_memory::biases,
};
use crate::{
    config::EngineConfig,
    error::{Code, Error, Result},
    model::LayerSharing,
};

/// A stage of a mesh; a training without a pipeline has one.
#[derive(Debug, Clone)]
pub struct StagePlan {
    /// Its layers, of those of the model.
    pub layers: Range<usize>,
    /// The parameters of one of its ranks; what stages share counts in each.
    pub params: u64,
    /// Multiply-accumulates of a forward pass of one of its ranks.
    pub macs: u64,
    /// The memory of one of its ranks.
    pub memory: MemoryPlan,
    /// Bytes that one of its ranks sends in a step.
    pub sent: SentBytes,
}

/// The stages of the training `whole`, which is of all layers on one rank of a replica.
///
/// # Errors
/// More stages than layers, or ranks that do not divide them.
pub fn stages(whole: &Setup, config: &EngineConfig) -> Result<Vec<StagePlan>> {
    let (model, pipeline) = (&whole.model, config.mesh.pipeline);
    let sharing = sharing_of(config);
    if pipeline.stages > 1 || sharing != LayerSharing::ALONE {
        model.check_divisible()?;
    }
    check_mesh(model, config)?;
    check_tokens(whole, sharing)?;
    let placement = Placement::of(model, pipeline)?;
    let micro_batches = config.gradient_accumulation_steps;
    let costs = model.costs(&whole.workload).unwrap_or_default();
    let biases = biases(model.all_layers(), &costs, 0);
    let bias = |layer: Option<usize>| layer.and_then(|layer| biases.get(layer)).copied();
    let cost = |layer: Option<usize>| layer.and_then(|layer| costs.get(layer));
    let beside = |layer| cost(layer).map_or(0, |cost| cost.encoded) + bias(layer).unwrap_or(0);
    let flow = |layer| cost(layer).map_or(0, |cost| cost.output) + beside(layer);
    let stage = |number: usize| -> Result<StagePlan> {
        let layers = placement.layers(number);
        let part = Rc::new(model.part_outline(layers.clone(), sharing)?);
        let below = layers.start.checked_sub(1);
        let incoming = flow(below);
        let above = (layers.end < model.all_layers().len()).then(|| layers.end - 1);
        let setup = Setup {
            model: Rc::clone(&part),
            optimizer_state: optimizer_state_bytes(&part, config)?,
            in_flight: (pipeline.stages - number).min(micro_batches) as u64,
            incoming,
            incoming_bias: bias(below).unwrap_or(0),
            gradients_beside: beside(above),
            ..whole.clone()
        };
        let of_stage = costs.get(layers.clone()).unwrap_or_default();
        let flows = micro_batches as u64 * (incoming + flow(above));
        Ok(StagePlan {
            params: part.units().iter().map(|unit| unit.numel() as u64).sum(),
            macs: of_stage.iter().map(|cost| cost.profile.macs).sum(),
            memory: setup.plan(),
            sent: SentBytes::of(&setup, config, flows, &placement),
            layers,
        })
    };
    (0..pipeline.stages).map(stage).collect()
}

/// Refuses rows whose tokens the ranks that share the layers cannot have equal parts of.
fn check_tokens(whole: &Setup, sharing: LayerSharing) -> Result<()> {
    let (tokens, ranks) = (whole.workload.tokens, sharing.ranks);
    if !sharing.sequence_parallel || tokens.is_multiple_of(ranks) {
        return Ok(());
    }
    let message = format!(
        "`sequence_parallel` divides rows among {ranks} ranks, and {tokens} tokens are no multiple of that"
    );
    Err(Error::new(Code::BadValue, message).option("tensor_parallel.sequence_parallel").hint(
        format!("pack rows of such a length, or give the loader pad_to_multiple_of: {ranks}"),
    ))
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
        // The first and the last stage sum the gradient of the tied table, as a ring of two does.
        let tied = 4 * (shared + 32 * 64);
        let sent: Vec<_> = all.iter().map(|s| s.sent.pp).collect();
        assert_eq!(sent, [8 * flow + tied, 16 * flow, 8 * flow + tied]);
        let activations: Vec<u64> = all.iter().map(|s| s.memory.device.activations).collect();
        assert!(activations[0] > activations[1], "{activations:?}");
        let most = whole.plan().device;
        assert!(all.iter().all(|s| s.memory.device.optimizer_state < most.optimizer_state));
        assert_eq!(bubble(&config), 0.2);
    }
}
