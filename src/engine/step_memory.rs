//! What the memory of a step consists of: units, where they are and what is kept of them.

use std::ops::{Add, Range, Sub};

use super::plan::{Setup, Sharding};
use crate::{
    config::{ActivationCheckpointing, OffloadDevice},
    model::{FlatUnit, LayerCost, ModelLayer},
    tensor::{Device, STAGE_BYTES},
};

/// Bytes of a unit that is quantized.
#[derive(Clone, Copy)]
struct CodeBytes {
    /// The codes.
    kept: u64,
    /// Beside codes and values while it is dequantized.
    in_use: u64,
}

/// Elements of some units by where the optimizer's state of these is.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Elements {
    /// With the model.
    pub(super) staying: u64,
    /// Elsewhere.
    pub(super) going: u64,
}

impl Add for Elements {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { staying: self.staying + other.staying, going: self.going + other.going }
    }
}

impl Sub for Elements {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self { staying: self.staying - other.staying, going: self.going - other.going }
    }
}

/// A step of a training.
pub(super) struct StepMemory<'a> {
    pub(super) setup: &'a Setup,
    /// Elements of each unit.
    units: Vec<u64>,
    /// Of each unit that is quantized.
    codes: Vec<Option<CodeBytes>>,
    /// For each unit that is trained, the first ones, whether the optimizer's state of it is elsewhere.
    goes: Vec<bool>,
    /// Of each layer; none where they are not known.
    pub(super) layers: Vec<LayerCost>,
    /// Bytes of the bias of scores of each block.
    pub(super) biases: Vec<u64>,
}

/// Bytes of the bias of scores of each layer: its own, or that of the layer before, of which the first was
/// given `incoming` bytes. Layers between stacks have none.
pub(super) fn biases(layers: &[ModelLayer], costs: &[LayerCost], incoming: u64) -> Vec<u64> {
    let of_layer = |bias: &mut u64, (layer, cost): (&ModelLayer, &LayerCost)| {
        *bias = match (cost.bias, layer.block) {
            (0, Some(_)) => *bias,
            (own, _) => own,
        };
        Some(*bias)
    };
    layers.iter().zip(costs).scan(incoming, of_layer).collect()
}

impl<'a> StepMemory<'a> {
    pub(super) fn of(setup: &'a Setup) -> Self {
        let model = &setup.model;
        let codes = |unit: &FlatUnit| {
            let in_use = unit.dequantizing_bytes(setup.workload.device);
            unit.quantization().map(|_| CodeBytes { kept: unit.bytes(), in_use })
        };
        let numels = model.trainable_units().iter().map(|unit| unit.numel() as u64);
        let layers = model.costs(&setup.workload).unwrap_or_default();
        let biases = biases(model.layers(), &layers, setup.incoming_bias);
        Self {
            setup,
            units: model.units().iter().map(|unit| unit.padded_numel() as u64).collect(),
            codes: model.units().iter().map(codes).collect(),
            goes: setup.sharding.optimizer.goes(&numels.collect::<Vec<_>>()),
            layers,
            biases,
        }
    }

    /// All units.
    pub(super) fn units(&self) -> Range<usize> {
        0..self.units.len()
    }

    /// Whether the optimizer steps on the host beside a GPU, if only for a share of the parameters.
    pub(super) fn steps_elsewhere(&self) -> bool {
        self.goes.contains(&true) && self.setup.workload.device != Device::Cpu
    }

    /// Whether a unit is brought for its use alone: from other ranks, the host or the disk.
    pub(super) fn is_gathered(&self, unit: usize) -> bool {
        let sharding = self.setup.sharding;
        let is_elsewhere = sharding.parameters != OffloadDevice::None
            || (sharding.stage >= 3 && sharding.world_size > 1);
        let numel = self.setup.model.units()[unit].numel() as u64;
        is_elsewhere && numel > sharding.persistence_threshold
    }

    /// Bytes that are kept of a unit.
    pub(super) fn stored(&self, unit: usize) -> u64 {
        let bytes = self.units[unit] * self.setup.states.parameter;
        self.codes[unit].map_or(bytes, |codes| codes.kept)
    }

    /// Bytes of a unit that is in use beside what is kept: those of its values, where it has codes.
    pub(super) fn dequantized(&self, unit: usize) -> u64 {
        let bytes = self.units[unit] * self.setup.states.parameter;
        self.codes[unit].map_or(0, |codes| bytes + codes.in_use)
    }

    /// The units that are trained.
    pub(super) fn trained(&self) -> Range<usize> {
        0..self.goes.len()
    }

    /// Whether a step has several micro batches.
    pub(super) fn accumulates(&self) -> bool {
        self.setup.gradient_accumulation_steps > 1
    }

    /// Whether a rank keeps its slice alone of a gradient that is summed.
    pub(super) fn keeps_slices(&self) -> bool {
        self.setup.sharding.stage >= 1 && self.setup.sharding.world_size > 1
    }

    /// Whether the gradients of a unit are summed over the ranks as soon as they are there.
    pub(super) fn reduces_at_once(&self) -> bool {
        let Sharding { stage, world_size, .. } = self.setup.sharding;
        stage >= 2 && world_size > 1
    }

    /// The elements of all units that are trained.
    pub(super) fn all(&self) -> Elements {
        self.elements(self.trained())
    }

    /// The elements of these units.
    pub(super) fn elements(&self, units: impl IntoIterator<Item = usize>) -> Elements {
        let mut elements = Elements::default();
        for unit in units {
            let of_kind = match self.goes[unit] {
                true => &mut elements.going,
                false => &mut elements.staying,
            };
            *of_kind += self.units[unit];
        }
        elements
    }

    /// The bytes that layer `i` keeps on the device.
    pub(super) fn kept(&self, i: usize, cost: &LayerCost) -> u64 {
        match self.checkpoints(i) {
            None => cost.kept,
            // Its output is the next layer's input, and goes where that is kept.
            Some(_) if self.input_on_host(i + 1) => 0,
            Some(_) => cost.output + cost.bias,
        }
    }

    fn checkpoints(&self, i: usize) -> Option<ActivationCheckpointing> {
        self.setup.checkpoints(i)
    }

    /// Whether the input of layer `i` waits in host memory.
    pub(super) fn input_on_host(&self, i: usize) -> bool {
        let device_is_host = self.setup.workload.device == Device::Cpu;
        !device_is_host
            && self.checkpoints(i).is_some_and(|checkpointing| checkpointing.cpu_checkpointing)
    }

    /// Bytes of what layer `i` reads beside hidden states: a bias of scores, the output of an encoder.
    pub(super) fn given(&self, i: usize) -> [u64; 2] {
        let LayerCost { bias, encoded, .. } = self.layers[i];
        [if bias > 0 { 0 } else { self.biases[i] }, encoded]
    }

    /// Bytes of the gradients of what the layers above `i` read beside hidden states.
    pub(super) fn given_gradients(&self, i: usize) -> u64 {
        if i + 1 == self.layers.len() {
            return self.setup.gradients_beside;
        }
        let [bias, encoded] = self.given(i + 1);
        // The layer that gives a decoder the encoder's output has its gradient as that of its own.
        bias + encoded.min(self.layers[i].encoded)
    }

    pub(super) fn kept_on_host(&self) -> u64 {
        let layers = self.layers.iter().enumerate();
        // libtorch lends pinned memory in powers of two.
        let kept = layers.filter(|&(i, _)| self.input_on_host(i));
        let bytes = |(i, cost): (usize, &LayerCost)| [cost.output].into_iter().chain(self.given(i));
        let all = kept.flat_map(bytes).filter(|&bytes| bytes > 0);
        all.map(u64::next_power_of_two).sum()
    }

    /// Staging buffers for master weights that are rounded on the host on their way to the device: one part
    /// is rounded while another travels.
    pub(super) fn stages(&self) -> u64 {
        let Setup { states, sharding, .. } = self.setup;
        let travels = sharding.parameters == OffloadDevice::None && states.master_weight > 0;
        if self.steps_elsewhere() && travels { 2 * STAGE_BYTES } else { 0 }
    }

    /// Elements of the largest unit whose state is elsewhere.
    pub(super) fn largest_going(&self) -> u64 {
        let going = self.trained().filter(|&unit| self.goes[unit]);
        going.map(|unit| self.units[unit]).max().unwrap_or(0)
    }
}
