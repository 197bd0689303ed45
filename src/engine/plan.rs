//! The memory that a training will need, before anything is loaded: pure arithmetic over the shapes of
//! a model and the settings of an engine.
//!
//! The states follow ZeRO's formulas (Rajbhandari et al. 2020, section 3.1, 5): with P parameters,
//! N ranks and 16-bit gradients, mixed precision with Adam takes 16P, of which stage 1 divides the
//! 12P of the optimizer by N, stage 2 the gradients too, and stage 3 everything. Gradients in
//! float32, this engine's default, are 2P more. Activations are the model's
//! ([`LayerCost`]), taken at each moment that can be the peak.

use std::{ops::Add, rc::Rc};

use super::{MemoryUse, trainable::optimizer_plan};
use crate::{
    config::{
        ActivationCheckpointing, Dtype, EngineConfig, OffloadDevice, OptimizerOffload,
        PrecisionConfig,
    },
    error::Result,
    model::{FlatUnit, HeldBytes, LayerCost, Model, ModelLayer, Workload},
    tensor::{self, Device, STAGE_BYTES},
};

/// Bytes for each parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StateBytes {
    /// In the model itself.
    pub parameter: u64,
    /// In the optimizer's float32 copy; 0 where the model is float32.
    pub master_weight: u64,
    /// In the accumulated gradients.
    pub gradient: u64,
}

/// Which states are divided among the ranks (ZeRO's stages), and where the optimizer's are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sharding {
    /// 0 divides nothing, 1 master weights and optimizer state, 2 gradients too, 3 parameters too.
    pub stage: u8,
    /// Ranks that train together.
    pub world_size: u64,
    /// Where master weights and optimizer state are, and reduced gradients are brought.
    pub optimizer: OptimizerOffload,
    /// Where the parameters are while they are not used.
    pub parameters: OffloadDevice,
}

/// A training to be planned.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The model.
    pub model: Rc<Model>,
    /// A micro batch of one rank.
    pub workload: Workload,
    /// Micro batches in an optimizer step.
    pub gradient_accumulation_steps: usize,
    /// Bytes of the states.
    pub states: StateBytes,
    /// Bytes that the optimizer keeps from step to step, for all parameters.
    pub optimizer_state: u64,
    /// Where they are.
    pub sharding: Sharding,
    /// Which blocks keep only their input.
    pub activation_checkpointing: Option<ActivationCheckpointing>,
    /// Micro batches between their forward and their backward pass, at most.
    pub in_flight: u64,
    /// Bytes of what a stage of a pipeline is given for each of them.
    pub incoming: u64,
}

/// Another way to run a training.
#[derive(Debug, Clone)]
pub struct Alternative {
    /// The name of its precision.
    pub precision: &'static str,
    /// The training.
    pub setup: Setup,
}

/// The memory that one rank needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryPlan {
    /// On its device, at the moment of the peak.
    pub device: MemoryUse,
    /// In host memory beside that, for offloaded states and kept inputs.
    pub host: u64,
    /// In files, for offloaded states.
    pub disk: u64,
}

impl StateBytes {
    /// The bytes of a precision.
    pub fn of(precision: &PrecisionConfig) -> Self {
        Self {
            parameter: precision.dtype.bytes(),
            master_weight: if precision.has_master_weights() { MASTER_BYTES } else { 0 },
            gradient: precision.grad_accum_dtype.bytes(),
        }
    }
}

/// Bytes that the optimizer of `config` keeps for the trained parameters of `model`, which may be an
/// outline, and those of the weights' averages.
pub fn optimizer_state_bytes(model: &Model, config: &EngineConfig) -> Result<u64> {
    let averages = average_bytes(model.trainable_units(), config);
    Ok(optimizer_plan(model, config, 1, None)?.state_bytes() + averages)
}

/// Bytes of the averages of the weights of `units`.
pub(super) fn average_bytes(units: &[FlatUnit], config: &EngineConfig) -> u64 {
    let numel = units.iter().map(|unit| unit.numel() as u64).sum::<u64>();
    if config.ema.is_some() { numel * MASTER_BYTES } else { 0 }
}

/// Refuses a training that cannot fit, whatever its batches are: on the device, if that is the host,
/// and in the host's memory for what is offloaded.
pub(super) fn check_memory(
    model: &Rc<Model>,
    config: &EngineConfig,
    world_size: usize,
) -> Result<()> {
    let state = optimizer_state_bytes(model, config)?;
    let setup = Setup::new(model, config, state, 1, world_size, model.device());
    let plan = setup.plan();
    let here: u64 = model.units().iter().filter(|unit| unit.is_here()).map(FlatUnit::bytes).sum();
    let more = plan.device.peak().saturating_sub(here);
    tensor::check_memory(model.device(), more, "training the model")?;
    tensor::check_memory(Device::Cpu, plan.host, "what is offloaded to the host")
}

impl Setup {
    /// The training of `model` with `config` on `world_size` ranks that each have a `device` of this
    /// kind, with rows of `tokens` tokens; `optimizer_state` is of [`optimizer_state_bytes`].
    pub fn new(
        model: &Rc<Model>,
        config: &EngineConfig,
        optimizer_state: u64,
        tokens: u64,
        world_size: usize,
        device: Device,
    ) -> Self {
        let rows = config.micro_batch_size as u64;
        let states = StateBytes::of(&config.precision);
        Self {
            model: Rc::clone(model),
            workload: Workload {
                rows,
                tokens,
                decoder_tokens: tokens,
                element_bytes: states.parameter,
                device,
                whole_logits: false,
                density: None,
            },
            gradient_accumulation_steps: config.gradient_accumulation_steps,
            states,
            optimizer_state,
            sharding: Sharding {
                stage: config.zero.stage,
                world_size: world_size as u64,
                optimizer: OptimizerOffload {
                    device: place(config.zero.offload_optimizer.device, device),
                    ..config.zero.offload_optimizer
                },
                parameters: place(config.zero.offload_param, device),
            },
            activation_checkpointing: config.activation_checkpointing,
            in_flight: 1,
            incoming: 0,
        }
    }

    /// This training in every other way: precisions, ZeRO's stages where there are ranks to divide
    /// among, an offloaded optimizer (to the host, or to disk where the host is the device),
    /// activation checkpointing.
    pub fn alternatives(&self) -> Vec<Alternative> {
        let precisions = [("fp32", Dtype::Fp32), ("bf16, fp16", Dtype::Bf16)];
        let none = OffloadDevice::None;
        let away = if self.workload.device == Device::Cpu {
            OffloadDevice::Nvme
        } else {
            OffloadDevice::Cpu
        };
        let shardings: &[(u8, OffloadDevice)] = match self.sharding.world_size {
            1 => &[(0, none), (2, away)],
            _ => &[(0, none), (1, none), (2, none), (3, none), (2, away), (3, away)],
        };
        let mut all = Vec::new();
        for (precision, dtype) in precisions {
            let states = StateBytes::of(&PrecisionConfig::new(dtype));
            for &(stage, optimizer) in shardings {
                for activation_checkpointing in [None, Some(ActivationCheckpointing::default())] {
                    let setup = Self {
                        states,
                        workload: Workload { element_bytes: states.parameter, ..self.workload },
                        sharding: Sharding {
                            stage,
                            optimizer: optimizer.into(),
                            parameters: none,
                            ..self.sharding
                        },
                        activation_checkpointing,
                        ..self.clone()
                    };
                    all.push(Alternative { precision, setup });
                }
            }
        }
        all
    }

    /// The memory that a rank of this training needs.
    pub fn plan(&self) -> MemoryPlan {
        let sizes = self.model.units().iter().map(|unit| unit.padded_numel() as u64);
        let (units, trained) = (sizes.collect(), self.model.trainable_units().len());
        let codes = |unit: &FlatUnit| {
            let in_use = unit.dequantizing_bytes(self.workload.device);
            unit.quantization().map(|_| CodeBytes { kept: unit.bytes(), in_use })
        };
        let codes = self.model.units().iter().map(codes).collect();
        let layers = self.model.costs(&self.workload).unwrap_or_default();
        let numels = self.model.trainable_units().iter().map(|unit| unit.numel() as u64);
        let goes = self.sharding.optimizer.goes(&numels.collect::<Vec<_>>());
        StepMemory { setup: self, units, codes, trained, goes, layers }.plan()
    }

    /// How layer `i` keeps only its input, where it does.
    pub(super) fn checkpoints(&self, i: usize) -> Option<ActivationCheckpointing> {
        let block = self.model.layers().get(i)?.block?;
        self.activation_checkpointing.filter(|checkpointing| checkpointing.applies_to(block))
    }

    /// The most rows of a micro batch with which a rank stays within `bytes` of device memory;
    /// `None` where not even one row does.
    pub fn largest_micro_batch(&self, bytes: u64) -> Option<u64> {
        let fits = |rows: u64| {
            let workload = Workload { rows, ..self.workload };
            Self { workload, ..self.clone() }.plan().device.peak() <= bytes
        };
        if !fits(1) {
            return None;
        }
        // Doubling until it does not fit, then halving the interval.
        let mut below = 1;
        while below < MOST_ROWS && fits(2 * below) {
            below *= 2;
        }
        let mut above = 2 * below;
        while above - below > 1 {
            let middle = u64::midpoint(below, above);
            if fits(middle) { below = middle } else { above = middle }
        }
        Some(below)
    }
}

/// No micro batch is larger; keeps products within 64 bits.
const MOST_ROWS: u64 = 1 << 20;

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
    /// The first so many units are trained.
    trained: usize,
    /// Whether the optimizer's state of each of these is elsewhere.
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
        // What is on disk is updated last, when the gradients of the others are gone.
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
        self.elements(0..self.trained)
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
            let made = (0..self.trained).filter(|&unit| made[unit]);
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
        let trained = layer.places().all().filter(|place| place.unit < self.trained);
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
                let unit = (staying + leaving).min(self.largest(0..self.trained)) * bytes;
                (staying * bytes).div_ceil(world_size) + unit
            }
        }
    }

    /// Elements of the largest unit whose state is elsewhere.
    fn largest_going(&self) -> u64 {
        self.largest((0..self.trained).filter(|&unit| self.goes[unit]))
    }

    fn largest(&self, units: impl Iterator<Item = usize>) -> u64 {
        units.map(|unit| self.units[unit]).max().unwrap_or(0)
    }
}

/// Bytes of a master weight.
const MASTER_BYTES: u64 = Dtype::Fp32.bytes();

/// Host memory is another place only beside a GPU.
fn place(offload: OffloadDevice, device: Device) -> OffloadDevice {
    match offload {
        OffloadDevice::Cpu if device == Device::Cpu => OffloadDevice::None,
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ModelConfig;

    /// 16-bit gradients, as in the paper; with one token, states are nearly all there is.
    fn setup(stage: u8, world_size: u64, optimizer: OffloadDevice) -> Setup {
        let parameters = OffloadDevice::None;
        let model = ModelConfig::named("gpt2-xl").unwrap();
        let model = Rc::new(Model::outline(&model, Device::Cpu).unwrap());
        Setup {
            optimizer_state: model.units().iter().map(|unit| 8 * unit.padded_numel() as u64).sum(),
            model,
            workload: Workload {
                rows: 1,
                tokens: 1,
                decoder_tokens: 1,
                element_bytes: 2,
                device: Device::Cuda(0),
                whole_logits: false,
                density: None,
            },
            gradient_accumulation_steps: 2,
            states: StateBytes { parameter: 2, master_weight: 4, gradient: 2 },
            sharding: Sharding { stage, world_size, optimizer: optimizer.into(), parameters },
            activation_checkpointing: None,
            in_flight: 1,
            incoming: 0,
        }
    }

    fn unit_sizes(setup: &Setup) -> Vec<u64> {
        setup.model.units().iter().map(|unit| unit.padded_numel() as u64).collect()
    }

    fn states(plan: &MemoryPlan) -> u64 {
        let MemoryUse { parameters, master_weights, gradients, optimizer_state, .. } = plan.device;
        parameters + master_weights + gradients + optimizer_state
    }

    /// 16P; 4P + 12P/N; 2P + 14P/N; 16P/N, and units that are whole while they are used.
    #[test]
    fn the_states_are_those_of_zero() {
        let units = unit_sizes(&setup(0, 1, OffloadDevice::None));
        let (p, unit) = (units.iter().sum::<u64>(), *units.iter().max().unwrap());
        let n = 64;
        let expected =
            [16 * p, 4 * p + 12 * p / n, 2 * p + 14 * p / n + 2 * unit, 16 * p / n + 4 * unit];
        for (stage, expected) in (0..).zip(expected) {
            let found = states(&setup(stage, n, OffloadDevice::None).plan());
            // The embedding's gradient is there twice while its parts are added up.
            let allowed = 2 * unit + 8;
            assert!(
                (expected..=expected + allowed).contains(&found),
                "{stage}: {found} {expected}"
            );
        }
        // Alone, a stage changes nothing.
        let alone = [0, 1, 2, 3].map(|stage| setup(stage, 1, OffloadDevice::None).plan());
        assert!(alone.iter().all(|plan| *plan == alone[0]));
    }

    #[test]
    fn an_offloaded_optimizer_is_on_the_host() {
        let p: u64 = unit_sizes(&setup(0, 1, OffloadDevice::None)).iter().sum();
        let plan = setup(2, 1, OffloadDevice::Cpu).plan();
        assert_eq!(plan.host, (4 + 8 + 2) * p + 2 * STAGE_BYTES);
        assert_eq!((plan.device.optimizer_state, plan.device.master_weights), (0, 0));
        assert_eq!(plan.disk, 0);
    }

    /// The half that stays takes what it takes without an offload, and the rest what it takes with one.
    #[test]
    fn a_share_of_the_optimizer_is_on_the_host() {
        let mut shared = setup(2, 1, OffloadDevice::Cpu);
        shared.sharding.optimizer.ratio = 0.5;
        let units = unit_sizes(&shared);
        let p: u64 = units.iter().sum();
        let staying = {
            let goes = shared.sharding.optimizer.goes(&units);
            units.iter().zip(goes).filter(|(_, goes)| !goes).map(|(n, _)| n).sum::<u64>()
        };
        assert!((0.45..=0.5).contains(&(staying as f64 / p as f64)));
        let plan = shared.plan();
        assert_eq!(plan.host, (4 + 8 + 2) * (p - staying) + 2 * STAGE_BYTES);
        assert_eq!(plan.device.master_weights, 4 * staying);
        assert_eq!(plan.device.optimizer_state, 8 * staying);
        let whole = setup(2, 1, OffloadDevice::None).plan().device;
        let none = setup(2, 1, OffloadDevice::Cpu).plan().device;
        assert!((none.gradients..whole.gradients).contains(&plan.device.gradients));
    }

    #[test]
    fn what_is_on_disk_is_in_memory_three_units_at_a_time() {
        let mut setup = setup(3, 2, OffloadDevice::Nvme);
        setup.sharding.parameters = OffloadDevice::Nvme;
        let units = unit_sizes(&setup);
        let (p, unit) = (units.iter().sum::<u64>(), *units.iter().max().unwrap());
        let plan = setup.plan();
        assert_eq!(plan.disk, (2 + 4 + 8) * p / 2);
        assert_eq!(plan.host, 2 * p / 2 + 3 * (4 + 8) * unit / 2);
        assert_eq!(plan.device.parameters, 2 * unit);
        // Where the host is the device, its memory is.
        setup.workload.device = Device::Cpu;
        let plan = setup.plan();
        assert_eq!((plan.host, plan.disk), (0, (2 + 4 + 8) * p / 2));
        assert_eq!(plan.device.master_weights, 0);
    }

    #[test]
    fn kept_inputs_on_the_host_are_not_on_the_device() {
        let with = |cpu_checkpointing| {
            let checkpointing = ActivationCheckpointing { every: 1, cpu_checkpointing };
            let workload =
                Workload { rows: 8, tokens: 1024, ..setup(0, 1, OffloadDevice::None).workload };
            let activation_checkpointing = Some(checkpointing);
            Setup { workload, activation_checkpointing, ..setup(0, 1, OffloadDevice::None) }.plan()
        };
        let (on_device, on_host) = (with(false), with(true));
        // 26,214,400 bytes of a block, in the next power of two.
        assert_eq!((on_device.host, on_host.host), (0, 48 << 25));
        assert!(on_host.device.activations < on_device.device.activations / 2);
    }

    #[test]
    fn one_row_more_than_the_largest_micro_batch_does_not_fit() {
        let setup = setup(0, 1, OffloadDevice::None);
        let bytes = 40 << 30;
        let most = setup.largest_micro_batch(bytes).unwrap();
        let peak = |rows| {
            let workload = Workload { rows, ..setup.workload };
            Setup { workload, ..setup.clone() }.plan().device.peak()
        };
        assert!(most > 1 && peak(most) <= bytes && peak(most + 1) > bytes);
        assert_eq!(setup.largest_micro_batch(1 << 30), None);
    }
}
