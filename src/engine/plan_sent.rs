//! The bytes that a rank of a mesh sends in a step, as rings send them: each sum of a tensor over n ranks
//! takes 2 (n - 1) / n of its bytes, and a gathering or a scattering half of that.

use serde::Serialize;

use super::{
    placement::Placement,
    plan::{Setup, sharing_of},
};
use crate::{config::EngineConfig, model::FlatUnit, tensor_parallel::Split};

/// Bytes that a rank sends in a step, by axis of the mesh.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct SentBytes {
    /// To the ranks that share its layers: activations and their gradients.
    pub tp: u64,
    /// To the replicas: gradients and parameters.
    pub dp: u64,
    /// To other stages: flows forward, gradients back, and the gradients of tied weights.
    pub pp: u64,
}

impl SentBytes {
    /// All axes together.
    pub fn all(&self) -> u64 {
        self.tp + self.dp + self.pp
    }

    /// Those of a rank of `stage`, which sends `flows` to its neighbours.
    pub(super) fn of(
        stage: &Setup,
        config: &EngineConfig,
        flows: u64,
        placement: &Placement,
    ) -> Self {
        let mut sent = Self { tp: 0, dp: of_replicas(stage, config), pp: flows };
        sent.tp = over_layers(stage, config);
        for (unit, users) in owned(stage).map(|(number, unit)| (unit, placement.users(number))) {
            let gradient = elements(unit, stage) * sum_bytes(config);
            // From stage 1 of ZeRO on each rank has its slice of the sum.
            sent.pp += ring(per_replica(gradient, stage, 1), users as u64);
        }
        sent
    }
}

/// What a rank sends of `bytes` that are summed over so many ranks.
fn ring(bytes: u64, ranks: u64) -> u64 {
    2 * bytes * (ranks - 1) / ranks.max(1)
}

/// The share of a rank of `bytes` that ZeRO divides from stage `from` on.
fn per_replica(bytes: u64, Setup { sharding, .. }: &Setup, from: u8) -> u64 {
    if sharding.stage >= from { bytes.div_ceil(sharding.world_size) } else { bytes }
}

/// Bytes of an element of a gradient on its way.
fn sum_bytes(config: &EngineConfig) -> u64 {
    config.precision.communication_data_type.bytes()
}

/// The trained units of a stage, each with its number among those of the whole model.
fn owned(stage: &Setup) -> impl Iterator<Item = (usize, &FlatUnit)> {
    let units = stage.model.trainable_units().iter().enumerate();
    units.map(|(i, unit)| (stage.model.unit_number(i), unit))
}

/// Elements of a unit that the replicas can divide.
fn elements(unit: &FlatUnit, stage: &Setup) -> u64 {
    unit.numel_for(stage.sharding.world_size as usize) as u64
}

/// To the ranks that share the layers: the sums of each micro batch, and at the step those of gradients
/// of which each rank has made a part.
fn over_layers(stage: &Setup, config: &EngineConfig) -> u64 {
    let (model, ranks) = (&stage.model, sharing_of(config).ranks);
    if ranks == 1 {
        return 0;
    }
    let lowest = model.lowest_backward();
    let costs = model.costs(&stage.workload).unwrap_or_default();
    let passes = costs.iter().enumerate().map(|(i, cost)| {
        let again = u64::from(stage.checkpoints(i).is_some());
        match i < lowest {
            true => cost.summed.forward,
            false => cost.summed.forward * (1 + again) + cost.summed.backward,
        }
    });
    let of_passes = passes.sum::<u64>() * stage.gradient_accumulation_steps as u64;
    let in_parts = owned(stage).map(|(number, unit)| {
        let specs = unit.specs().iter().enumerate();
        let summed = specs.filter(|(i, _)| model.split(number, *i) == Some(&Split::Summed));
        summed.map(|(_, spec)| spec.numel() as u64).sum::<u64>()
    });
    let at_step = per_replica(in_parts.sum::<u64>() * sum_bytes(config), stage, 1);
    ring(of_passes, ranks) + ring(at_step, ranks)
}

/// To the replicas: gradients once a step, from ZeRO's stage 2 on once a micro batch; parameters after
/// the step, at stage 3 before their layers run, forward and back.
fn of_replicas(stage: &Setup, config: &EngineConfig) -> u64 {
    let Setup { sharding, states, gradient_accumulation_steps, .. } = stage;
    let (ranks, micro_batches) = (sharding.world_size, *gradient_accumulation_steps as u64);
    if ranks == 1 {
        return 0;
    }
    let all = owned(stage).map(|(_, unit)| elements(unit, stage)).sum::<u64>();
    let gradients = ring(all * sum_bytes(config), ranks);
    let parameters = ring(all * states.parameter, ranks) / 2;
    match sharding.stage {
        0 => gradients,
        1 => gradients / 2 + parameters,
        2 => gradients / 2 * micro_batches + parameters,
        _ => gradients / 2 * micro_batches + gathered(stage, config),
    }
}

/// Parameters that are gathered for each micro batch, and those that stay whole once a step.
fn gathered(stage: &Setup, config: &EngineConfig) -> u64 {
    let (model, threshold) = (&stage.model, config.zero.stage3_param_persistence_threshold);
    let ranks = stage.sharding.world_size;
    let bytes = |unit: &FlatUnit| {
        let bytes = match unit.quantization() {
            Some(_) => unit.bytes(),
            None => elements(unit, stage) * stage.states.parameter,
        };
        ring(bytes, ranks) / 2
    };
    let stays = |unit: &FlatUnit| unit.numel() as u64 <= threshold;
    let lowest = model.lowest_backward();
    let passes = model.layers().iter().enumerate().map(|(i, layer)| {
        let reads_again = i >= lowest && layer.layer().backward_reads_params();
        let units = layer.units().iter().map(|&unit| &model.units()[unit]);
        let used: u64 = units.filter(|unit| !stays(unit)).map(bytes).sum();
        used * (1 + u64::from(reads_again))
    });
    let once = owned(stage).map(|(_, unit)| unit).filter(|unit| stays(unit)).map(bytes);
    passes.sum::<u64>() * stage.gradient_accumulation_steps as u64 + once.sum::<u64>()
}
