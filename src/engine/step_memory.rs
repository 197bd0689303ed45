//! The memory of a step at each moment that can be its peak.

use std::ops::Add;

use super::{
    MemoryUse,
    plan::{MASTER_BYTES, MemoryPlan, Setup, Sharding},
};
use crate::{
    config::{ActivationCheckpointing, OffloadDevice},
    model::{FlatUnit, HeldBytes, LayerCost, ModelLayer},
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
struct Elements {
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

/// The moments of a step at which memory can be highest.
struct StepMemory<'a> {
    setup: &'a Setup,
    /// Elements of each unit.
    units: Vec<u64>,
    /// Of each unit that is quantized.
    codes: Vec<Option<CodeBytes>>,
    /// For each unit that is trained, the first ones, whether the optimizer's state of it is elsewhere.
    goes: Vec<bool>,
    /// Of each layer; none where they are not known.
    layers: Vec<LayerCost>,
}

impl StepMemory<'_> {
    fn plan(&self) -> MemoryPlan {
        let Setup { states, sharding, .. } = self.setup;
        let Sharding { stage, world_size, optimizer, parameters } = *sharding;
        let Elements { staying, going } = self.trained_elements();
        let all = staying + going;
        let divided = |bytes: u64, from: u8| {
            if stage >= from { bytes.div_ceil(world_size) } else { bytes }
        };
        let own_parameters = divided(self.stored().sum(), 3);
        // A unit is whole while it is used.
        let is_gathered = parameters != OffloadDevice::None || (stage >= 3 && world_size > 1);
        let gathered = self.largest_in_use(is_gathered);
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
            parameters: gathered,
            master_weights: divided(master(staying, has_masters), 1),
            optimizer_state: divided(state(staying), 1),
            ..MemoryUse::default()
        };
        let (mut host, mut disk, mut step) = (self.kept_on_host() + self.stages(), 0, 0);
        match parameters {
            OffloadDevice::None => fixed.parameters += own_parameters,
            OffloadDevice::Cpu => host += own_parameters,
            OffloadDevice::Nvme => disk += own_parameters,
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
        let with = |(gradients, held): (Elements, HeldBytes)| MemoryUse {
            gradients: self.gradients(gradients),
            activations: held.activations,
            buffers: held.buffers,
            ..fixed
        };
        let none = HeldBytes::default();
        let step_begins = with((Elements { staying, going }, none));
        // The units on disk are updated last, when the gradients of the others are gone.
        let last = with((Elements { staying: 0, going }, none));
        let last = MemoryUse { optimizer_state: last.optimizer_state + step, ..last };
        let moments = self.moments().into_iter().map(with);
        let device = moments.chain([step_begins, last]).max_by_key(MemoryUse::peak).unwrap_or(last);
        MemoryPlan { device, host, disk }
    }

    /// Whether the optimizer steps on the host beside a GPU, if only for a share of the parameters.
    fn steps_elsewhere(&self) -> bool {
        self.goes.contains(&true) && self.setup.workload.device != Device::Cpu
    }

    /// Bytes that are kept of each unit.
    fn stored(&self) -> impl Iterator<Item = u64> {
        let bytes = self.setup.states.parameter;
        let units = self.units.iter().zip(&self.codes);
        units.map(move |(n, codes)| codes.map_or(n * bytes, |codes| codes.kept))
    }

    /// Bytes that the unit in use takes beside what is kept: where it was gathered, and where it was
    /// dequantized.
    fn largest_in_use(&self, is_gathered: bool) -> u64 {
        let bytes = self.setup.states.parameter;
        let units = self.units.iter().zip(&self.codes);
        let values = units.map(|(n, codes)| codes.map_or(0, |codes| n * bytes + codes.in_use));
        let gathered = self.stored().map(|stored| if is_gathered { stored } else { 0 });
        values.zip(gathered).map(|(values, gathered)| values + gathered).max().unwrap_or(0)
    }

    fn trained_elements(&self) -> Elements {
        self.elements(0..self.goes.len())
    }

    /// The elements of these units.
    fn elements(&self, units: impl Iterator<Item = usize>) -> Elements {
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

    /// Elements of the gradients that exist, and what else is held, at each moment.
    fn moments(&self) -> Vec<(Elements, HeldBytes)> {
        let all = self.trained_elements();
        let lowest = self.setup.model.lowest_backward();
        let accumulates = self.setup.gradient_accumulation_steps > 1;
        let (mut kept, mut before) = (Vec::new(), 0);
        for (i, cost) in self.layers.iter().enumerate() {
            kept.push(before);
            before += if i < lowest { 0 } else { self.kept(i, cost) };
        }
        // Passes that wait hold all that a pass keeps.
        let Setup { in_flight, incoming, .. } = *self.setup;
        let waiting = (in_flight - 1) * before + in_flight * incoming;
        kept.iter_mut().for_each(|kept| *kept += waiting);
        // The gradients that the last layer makes in its forward pass.
        let mut made = vec![false; self.units.len()];
        let mut elements = |layer: &ModelLayer| {
            layer.places().all().for_each(|place| made[place.unit] = true);
            let made = (0..self.goes.len()).filter(|&unit| made[unit]);
            if accumulates { all } else { self.elements(made) }
        };
        let mut so_far = if accumulates { all } else { Elements::default() };
        let mut moments = Vec::new();
        let layers = self.setup.model.layers();
        for (i, (layer, cost)) in layers.iter().zip(&self.layers).enumerate().skip(lowest).rev() {
            if cost.forward > 0 {
                let of_pass = self.borrowed_or_own(layer);
                let before = if accumulates { all } else { Elements::default() };
                let held = HeldBytes { activations: kept[i], buffers: cost.forward };
                moments.push((before + of_pass, held));
            }
            // The input of the layer below comes back while this one runs.
            let below = i.checked_sub(1).filter(|&below| self.input_on_host(below));
            let back = u64::from(self.input_on_host(i)) + u64::from(below.is_some());
            let activations = cost.backward.activations + kept[i] + back * cost.output;
            let (before, with) = (so_far, elements(layer));
            so_far = with;
            let gradients = if cost.adds_gradients_last { before } else { with };
            moments.push((gradients, HeldBytes { activations, ..cost.backward }));
        }
        moments
    }

    /// Elements of the units of a layer whose gradients its forward pass makes: of the first that it
    /// names, where the projection is.
    fn borrowed_or_own(&self, layer: &ModelLayer) -> Elements {
        let trained = layer.places().all().filter(|place| place.unit < self.goes.len());
        self.elements(trained.map(|place| place.unit).last().into_iter())
    }

    /// The bytes that layer `i` keeps on the device.
    fn kept(&self, i: usize, cost: &LayerCost) -> u64 {
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
    fn input_on_host(&self, i: usize) -> bool {
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

    /// Bytes of gradients on the device when these of them exist in whole.
    fn gradients(&self, Elements { staying, going }: Elements) -> u64 {
        let Sharding { stage, world_size, .. } = self.setup.sharding;
        let bytes = self.setup.states.gradient;
        if stage < 2 {
            return (staying + going) * bytes;
        }
        // A gradient goes to the host as soon as it is reduced.
        let leaving = if self.steps_elsewhere() { going } else { 0 };
        let staying = staying + going - leaving;
        match world_size {
            1 => staying * bytes + leaving.min(self.largest_going()) * bytes,
            _ => {
                let unit = (staying + leaving).min(self.largest(0..self.goes.len())) * bytes;
                (staying * bytes).div_ceil(world_size) + unit
            }
        }
    }

    /// Elements of the largest unit whose state is elsewhere.
    fn largest_going(&self) -> u64 {
        self.largest((0..self.goes.len()).filter(|&unit| self.goes[unit]))
    }

    fn largest(&self, units: impl Iterator<Item = usize>) -> u64 {
        units.map(|unit| self.units[unit]).max().unwrap_or(0)
    }
}
