//! The time of a step before anything is trained: its work over the speed of a device.
//!
//! A step does the products of its forward pass three times, once more where blocks are computed again,
//! and twice where weights are frozen; then the optimizer reads and writes what it keeps. The products of
//! a micro batch take at least as long as it takes to read the weights. Communication, offloads and
//! the reading of data are left out.

use super::plan::Setup;
use crate::{
    config::{Dtype, MatmulPrecision, OffloadDevice},
    model::FlatUnit,
    tensor::Gpu,
};

/// The share of a card's published peak that the products of a whole step reach: PaLM reports 46 % of
/// it (Chowdhery et al. 2022, table 3), Llama 3 38 to 43 % (Grattafiori et al. 2024, table 4).
pub const UTILIZATION: f64 = 0.4;

/// The share of a card's published bandwidth that reading and writing in order reaches.
pub const BANDWIDTH_SHARE: f64 = 0.8;

/// The share of the speed of the bare product that a step reaches where that was measured: attention's
/// scores, norms and the loss take the rest (`benches/README.md`, "The time of a plan").
pub const MEASURED_SHARE: f64 = 0.6;

/// The work of a step of one rank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepWork {
    /// Floating-point operations of the products.
    pub flops: f64,
    /// Bytes of weights that these read.
    pub weight_bytes: f64,
    /// Bytes that the optimizer reads and writes.
    pub optimizer_bytes: f64,
    /// Tokens.
    pub tokens: u64,
}

/// The work of a device in a second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DeviceSpeed {
    /// Floating-point operations of products.
    pub flops: f64,
    /// Bytes that it reads and writes.
    pub bytes: f64,
}

impl DeviceSpeed {
    /// The speed that is expected of a card with products of `dtype`, those of float32 as
    /// `matmul_precision` says; `None` where it has no units for them.
    pub fn of(gpu: &Gpu, dtype: Dtype, matmul_precision: MatmulPrecision) -> Option<Self> {
        let peak = gpu.peak(dtype, matmul_precision != MatmulPrecision::Highest)?;
        Some(Self { flops: peak * UTILIZATION, bytes: gpu.bandwidth() * BANDWIDTH_SHARE })
    }

    /// The time of a step.
    pub fn seconds(&self, work: &StepWork) -> f64 {
        let products = (work.flops / self.flops).max(work.weight_bytes / self.bytes);
        products + work.optimizer_bytes / self.bytes
    }
}

impl Setup {
    /// The work of a step; `None` where the products are not known, and where the optimizer or the
    /// parameters are elsewhere, whose transfers decide.
    pub fn step_work(&self) -> Option<StepWork> {
        let is_here = [self.sharding.optimizer.device, self.sharding.parameters];
        if is_here.iter().any(|place| *place != OffloadDevice::None) {
            return None;
        }
        let costs = self.model.costs(&self.workload)?;
        let micro_batches = self.gradient_accumulation_steps as f64;
        let lowest = self.model.lowest_backward();
        let flops = costs.iter().enumerate().map(|(i, cost)| {
            let forward = 2.0 * cost.profile.macs as f64;
            let backward = if i < lowest { 0.0 } else { 1.0 + self.trained_share(i) };
            let again = if self.checkpoints(i).is_some() && i >= lowest { 1.0 } else { 0.0 };
            forward * (1.0 + backward + again)
        });
        let bytes = |units: &[FlatUnit]| -> f64 {
            let numel: u64 = units.iter().map(|unit| unit.numel() as u64).sum();
            (numel * self.states.parameter) as f64
        };
        let weights = 2.0 * bytes(self.model.units()) + bytes(self.model.trainable_units());
        Some(StepWork {
            flops: micro_batches * flops.sum::<f64>(),
            weight_bytes: micro_batches * weights,
            optimizer_bytes: self.optimizer_bytes(),
            tokens: self.workload.rows * self.workload.tokens * micro_batches as u64,
        })
    }

    /// Bytes that the optimizer reads and writes of what this rank updates.
    fn optimizer_bytes(&self) -> f64 {
        let trained = self.model.trainable_units().iter().map(|unit| unit.numel() as u64);
        let each = self.states.gradient
            + 2 * self.states.master_weight.max(self.states.parameter)
            + if self.states.master_weight > 0 { self.states.parameter } else { 0 };
        let all = trained.sum::<u64>() * each + 2 * self.optimizer_state;
        let ranks = if self.sharding.stage > 0 { self.sharding.world_size } else { 1 };
        all as f64 / ranks as f64
    }

    /// The part of a layer's parameters that is trained.
    fn trained_share(&self, layer: usize) -> f64 {
        let units = self.model.units();
        let (mut all, mut trained) = (0, 0);
        for place in self.model.layers()[layer].places().all() {
            let numel = units[place.unit].specs()[place.index].numel();
            all += numel;
            trained += if units[place.unit].is_trainable() { numel } else { 0 };
        }
        trained as f64 / all.max(1) as f64
    }

    /// Inputs and outputs of the matrix that stands for the products of the model: the largest of a
    /// block, or of all where there is none.
    pub fn typical_matrix(&self) -> Option<(i64, i64)> {
        let specs = || self.model.units().iter().flat_map(FlatUnit::specs);
        let largest = specs().filter_map(|spec| spec.fan_in_out).max_by_key(|(a, b)| a * b);
        largest.or_else(|| specs().filter_map(|spec| spec.matrix()).max_by_key(|(a, b)| a * b))
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::{
        config::{ActivationCheckpointing, EngineConfig},
        engine::{config, plan::optimizer_state_bytes},
        model::{Model, ModelConfig},
        tensor::Device,
    };

    fn setup(change: impl FnOnce(&mut EngineConfig)) -> Setup {
        let model = ModelConfig::named("gpt2").unwrap();
        let model = Rc::new(Model::outline(&model, Device::Cpu).unwrap());
        let mut config = config(None);
        (config.micro_batch_size, config.gradient_accumulation_steps) = (4, 2);
        change(&mut config);
        let state = optimizer_state_bytes(&model, &config).unwrap();
        Setup::new(&model, &config, state, 1024, 1, Device::Cpu)
    }

    /// The products are those of the model FLOPs, and once more forward for the blocks.
    #[test]
    fn the_work_is_that_of_the_model() {
        let plain = setup(|_| ());
        let work = plain.step_work().unwrap();
        assert_eq!(work.tokens, 8 * 1024);
        let expected = plain.model.flops_per_token(1024) * 8192.0;
        assert!((work.flops / expected - 1.0).abs() < 1e-9, "{} {expected}", work.flops);
        // Gradient, weights and two averages: 4 + 8 + 16 bytes a parameter; the averages are padded.
        let bytes = 28.0 * plain.model.num_params() as f64;
        assert!((work.optimizer_bytes / bytes - 1.0).abs() < 1e-3, "{}", work.optimizer_bytes);
        let again = setup(|config| {
            config.activation_checkpointing = Some(ActivationCheckpointing::default());
        });
        let ratio = again.step_work().unwrap().flops / work.flops;
        // The head is not computed again: 4/3 without it.
        assert!((1.2..1.33).contains(&ratio), "{ratio}");
    }

    #[test]
    fn an_offload_has_no_time() {
        let away = setup(|config| {
            config.zero.stage = 2;
            config.zero.offload_optimizer = OffloadDevice::Nvme.into();
        });
        assert_eq!(away.step_work(), None);
    }

    /// A hundredth of the tokens takes as long as reading the weights does.
    #[test]
    fn few_tokens_take_as_long_as_the_weights() {
        let speed = DeviceSpeed { flops: 1e12, bytes: 1e9 };
        let work = StepWork { flops: 1e12, weight_bytes: 2e9, optimizer_bytes: 5e8, tokens: 1 };
        assert_eq!(speed.seconds(&work), 2.5);
        assert_eq!(speed.seconds(&StepWork { flops: 3e12, ..work }), 3.5);
    }

    #[test]
    fn a_card_is_as_fast_as_its_utilization() {
        let gpu = Gpu::find("H100").unwrap();
        let speed = DeviceSpeed::of(&gpu, Dtype::Bf16, MatmulPrecision::Highest).unwrap();
        assert_eq!(speed, DeviceSpeed { flops: 989.4e12 * 0.4, bytes: 3350e9 * 0.8 });
        let fp32 = DeviceSpeed::of(&gpu, Dtype::Fp32, MatmulPrecision::High).unwrap();
        assert_eq!(fp32.flops, 494.7e12 * 0.4);
    }
}
