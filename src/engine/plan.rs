//! The memory that a training will need, before anything is loaded: pure arithmetic over the shapes of
//! a model and the settings of an engine.
//!
//! The states follow ZeRO's formulas (Rajbhandari et al. 2020, section 3.1, 5): with P parameters,
//! N ranks and 16-bit gradients, mixed precision with Adam takes 16P, of which stage 1 divides the
//! 12P of the optimizer by N, stage 2 the gradients too, and stage 3 everything. Gradients in
//! float32, this engine's default, are 2P more. Activations are the model's
//! ([`LayerCost`](crate::model::LayerCost)), taken at each moment that can be the peak.

use std::rc::Rc;

use super::{MemoryUse, trainable::optimizer_plan};
use crate::{
    config::{
        self, ActivationCheckpointing, Dtype, EngineConfig, OffloadDevice, OptimizerOffload,
        PrecisionConfig,
    },
    error::Result,
    model::{FlatUnit, LayerSharing, Model, Workload},
    tensor::{self, Device},
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
    /// Elements of a unit up to which it is whole on all ranks at stage 3.
    pub persistence_threshold: u64,
    /// Elements that are gathered ahead of their use.
    pub prefetch_bucket_size: u64,
    /// Whether gradients travel while the backward pass goes on, if that is not the stage's matter.
    pub overlap_comm: Option<bool>,
}

impl Sharding {
    /// Whether gradients travel while the backward pass goes on.
    pub(super) fn overlaps(&self) -> bool {
        config::overlaps(self.overlap_comm, self.stage)
    }
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
    /// Bytes of the bias of scores among them.
    pub incoming_bias: u64,
    /// Bytes of the gradients that the next stage returns beside that of the hidden states.
    pub gradients_beside: u64,
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
/// outline or a rank's part of one, and those of the weights' averages.
pub fn optimizer_state_bytes(model: &Model, config: &EngineConfig) -> Result<u64> {
    let trained = model.trainable_units();
    let here: Vec<_> = (0..trained.len()).map(|i| model.unit_number(i)).collect();
    let plan = optimizer_plan(model, config, 1, None)?.keeping(&here);
    Ok(plan.state_bytes() + average_bytes(trained, config))
}

/// Bytes of the averages of the weights of `units`.
fn average_bytes(units: &[FlatUnit], config: &EngineConfig) -> u64 {
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
    /// The training of `model` with `config` on `world_size` replicas that each have a `device` of this
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
                sharing: sharing_of(config),
                ..Workload::new((rows, tokens), states.parameter, device)
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
                persistence_threshold: config.zero.stage3_param_persistence_threshold,
                prefetch_bucket_size: config.zero.stage3_prefetch_bucket_size,
                overlap_comm: config.zero.overlap_comm,
            },
            activation_checkpointing: config.activation_checkpointing,
            in_flight: 1,
            incoming: 0,
            incoming_bias: 0,
            gradients_beside: 0,
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

/// How ranks share the layers of a training.
pub(super) fn sharing_of(config: &EngineConfig) -> LayerSharing {
    let options = config.mesh.tensor_parallel;
    LayerSharing { ranks: options.autotp_size as u64, sequence_parallel: options.sequence_parallel }
}

/// No micro batch is larger; keeps products within 64 bits.
const MOST_ROWS: u64 = 1 << 20;

/// Bytes of a master weight.
pub(super) const MASTER_BYTES: u64 = Dtype::Fp32.bytes();

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
    use crate::{model::ModelConfig, tensor::STAGE_BYTES};

    /// 16-bit gradients, as in the paper; with one token, states are nearly all there is.
    fn setup(stage: u8, world_size: u64, optimizer: OffloadDevice) -> Setup {
        let parameters = OffloadDevice::None;
        let model = ModelConfig::named("gpt2-xl").unwrap();
        let model = Rc::new(Model::outline(&model, Device::Cpu).unwrap());
        Setup {
            optimizer_state: model.units().iter().map(|unit| 8 * unit.padded_numel() as u64).sum(),
            model,
            workload: Workload::new((1, 1), 2, Device::Cuda(0)),
            gradient_accumulation_steps: 2,
            states: StateBytes { parameter: 2, master_weight: 4, gradient: 2 },
            sharding: Sharding {
                stage,
                world_size,
                optimizer: optimizer.into(),
                parameters,
                persistence_threshold: 0,
                prefetch_bucket_size: 0,
                overlap_comm: None,
            },
            activation_checkpointing: None,
            in_flight: 1,
            incoming: 0,
            incoming_bias: 0,
            gradients_beside: 0,
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
        // A unit is whole on the device while it is used: at the peak a block.
        assert_eq!(plan.device.parameters, 2 * units[1]);
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
