//! The memory of a step at each moment that can be its peak.

use std::ops::{Add, Range, Sub};

use super::{
    MemoryUse,
    plan::{MASTER_BYTES, MemoryPlan, Setup, Sharding},
    step_moments::{GradientElements, Moment},
};
use crate::{
    config::{ActivationCheckpointing, OffloadDevice},
    model::{FlatUnit, LayerCost},
    tensor::{Device, STAGE_BYTES},
};

impl Setup {
    /// The memory that a rank of this training needs.
    pub fn plan(&self) -> MemoryPlan {
        let sizes = self.model.units().iter().map(|unit| unit.padded_numel() as u64);
        let units = sizes.collect();
        let codes = |unit: &FlatUnit| {
            let in_use = unit.dequantizing_bytes(self.workload.device);
            unit.quantization().map(|_| CodeBytes { kept: unit.bytes(), in_use })
        };
        let codes = self.model.units().iter().map(codes).collect();
        let layers = self.model.costs(&self.workload).unwrap_or_default();
        let numels = self.model.trainable_units().iter().map(|unit| unit.numel() as u64);
        let goes = self.sharding.optimizer.goes(&numels.collect::<Vec<_>>());
        StepMemory { setup: self, units, codes, goes, layers }.plan()
    }
}

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
    staying: u64,
    /// Elsewhere.
    going: u64,
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

/// A step, whose memory can be highest at several moments.
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
}

impl StepMemory<'_> {
    fn plan(&self) -> MemoryPlan {
        let Setup { states, sharding, .. } = self.setup;
        let Sharding { stage, world_size, optimizer, parameters, .. } = *sharding;
        let Elements { staying, going } = self.all();
        let all = staying + going;
        let divided = |bytes: u64, from: u8| {
            if stage >= from { bytes.div_ceil(world_size) } else { bytes }
        };
        // What is not brought for its use stays on the device.
        let units = || 0..self.units.len();
        let brought = units().filter(|&unit| self.is_gathered(unit));
        let slices = brought.map(|unit| divided(self.stored(unit), 3)).sum::<u64>();
        let whole = units().filter(|&unit| !self.is_gathered(unit));
        let whole = whole.map(|unit| self.stored(unit)).sum();
        let has_masters = states.master_weight > 0 || parameters != OffloadDevice::None;
        let master = |elements: u64, has: bool| if has { elements * MASTER_BYTES } else { 0 };
        // Of all parameters alike.
        let state = |elements: u64| {
            let bytes = u128::from(self.setup.optimizer_state) * u128::from(elements);
            bytes.div_ceil(u128::from(all.max(1))) as u64
        };
        let away = master(going, has_masters || self.steps_elsewhere()) + state(going);
        let away = divided(away, 1);
        // A step has three units in memory: one is read, one updated, one written.
        let in_turn = (3 * self.largest_going() * away).div_ceil(going.max(1));
        let mut fixed = MemoryUse {
            parameters: whole,
            master_weights: divided(master(staying, has_masters), 1),
            optimizer_state: divided(state(staying), 1),
            ..MemoryUse::default()
        };
        let (mut host, mut disk, mut step) = (self.kept_on_host() + self.stages(), 0, 0);
        match parameters {
            OffloadDevice::None => fixed.parameters += slices,
            OffloadDevice::Cpu => host += slices,
            OffloadDevice::Nvme => disk += slices,
        }
        match optimizer.device {
            OffloadDevice::None => {}
            OffloadDevice::Cpu => host += away,
            OffloadDevice::Nvme => disk += away,
        }
        if self.steps_elsewhere() {
            host += divided(going * states.gradient, 1);
        }
        match (optimizer.device, self.steps_elsewhere()) {
            (OffloadDevice::Nvme, true) => host += in_turn,
            (OffloadDevice::Nvme, false) => step = in_turn,
            _ => {}
        }
        let with = |Moment { gradients, parameters, held }: Moment| MemoryUse {
            gradients: self.gradients(&gradients),
            parameters: fixed.parameters + parameters,
            activations: held.activations,
            buffers: held.buffers,
            ..fixed
        };
        let of_gradients = |gradients| with(Moment { gradients, ..Moment::default() });
        let update = |all: Elements| {
            of_gradients(match self.keeps_slices() {
                true => GradientElements { reduced: all, ..GradientElements::default() },
                false => GradientElements { whole: all, ..GradientElements::default() },
            })
        };
        let step_begins = update(Elements { staying, going });
        let sums = self.gradients_of_step().into_iter().map(of_gradients);
        // The units on disk are updated last, when the gradients of the others are gone.
        let last = update(Elements { staying: 0, going });
        let last = MemoryUse { optimizer_state: last.optimizer_state + step, ..last };
        let moments = self.moments().into_iter().map(with);
        let device = moments
            .chain(sums)
            .chain([step_begins, last])
            .max_by_key(MemoryUse::peak)
            .unwrap_or(last);
        MemoryPlan { device, host, disk }
    }

    /// Whether the optimizer steps on the host beside a GPU, if only for a share of the parameters.
    fn steps_elsewhere(&self) -> bool {
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
            Some(_) => cost.output,
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

    fn kept_on_host(&self) -> u64 {
        let layers = self.layers.iter().enumerate();
        // libtorch lends pinned memory in powers of two.
        let kept = layers.filter(|&(i, _)| self.input_on_host(i));
        kept.map(|(_, cost)| cost.output.next_power_of_two()).sum()
    }

    /// Staging buffers for master weights that are rounded on the host on their way to the device: one part
    /// is rounded while another travels.
    fn stages(&self) -> u64 {
        let Setup { states, sharding, .. } = self.setup;
        let travels = sharding.parameters == OffloadDevice::None && states.master_weight > 0;
        if self.steps_elsewhere() && travels { 2 * STAGE_BYTES } else { 0 }
    }

    /// Bytes of gradients on the device when there are these.
    fn gradients(&self, GradientElements { reduced, whole }: &GradientElements) -> u64 {
        let Sharding { stage, world_size, .. } = self.setup.sharding;
        let bytes = self.setup.states.gradient;
        let Elements { staying, going } = *whole;
        // A gradient goes to the host as soon as it is reduced.
        let goes_on = stage >= 2 && self.steps_elsewhere();
        let (whole, leaving) = match (self.reduces_at_once(), goes_on) {
            // Alone a rank has nothing to reduce, and one gradient on its way.
            (false, true) => (staying, going.min(self.largest_going())),
            _ => (staying + going, 0),
        };
        let slices = if goes_on { reduced.staying } else { reduced.staying + reduced.going };
        (whole + leaving + slices.div_ceil(world_size)) * bytes
    }

    /// Elements of the largest unit whose state is elsewhere.
    fn largest_going(&self) -> u64 {
        self.largest((0..self.goes.len()).filter(|&unit| self.goes[unit]))
    }

    fn largest(&self, units: impl Iterator<Item = usize>) -> u64 {
        units.map(|unit| self.units[unit]).max().unwrap_or(0)
    }
}
