//! The numbers of a plan, as `dsr plan --json` prints them; the text is made of the same.

use serde::Serialize;

use super::{
    memory::MemoryNumbers,
    mesh::MeshNumbers,
    speed::TargetSpeed,
    target::{Target, TargetKind},
};
use crate::{
    config::{BatchChoice, Dtype, MatmulPrecision, OffloadDevice},
    engine::{
        plan::Setup,
        plan_time::{BANDWIDTH_SHARE, DeviceSpeed, MEASURED_SHARE, UTILIZATION},
    },
    error::Result,
    script::Planned,
    tensor::{Device, Gpu},
};

/// Tokens of a row where neither recipe nor model has a length.
const USUAL_TOKENS: u64 = 1024;

/// The cards that people own or rent.
const CARDS: [&str; 7] =
    ["RTX 3090", "RTX 4090", "RTX 5090", "A100 40GB", "A100 80GB", "H100", "H200"];

/// A plan.
#[derive(Debug, Serialize)]
pub(super) struct PlanNumbers {
    /// The device that the plan is for.
    pub(super) device: String,
    /// Bytes that a training can use of it; null where its memory is not known.
    pub(super) usable_memory: Option<u64>,
    /// How its speed is known.
    pub(super) speed: TargetKind,
    pub(super) parameters: u64,
    pub(super) world_size: usize,
    pub(super) micro_batch_size: usize,
    /// Whether the micro batch is the one that fits.
    pub(super) micro_batch_is_auto: bool,
    pub(super) tokens_per_row: u64,
    /// Where that comes from.
    #[serde(skip)]
    pub(super) tokens_from: &'static str,
    pub(super) gradient_accumulation_steps: usize,
    /// Tokens of a step, over all ranks.
    pub(super) tokens_per_step: u64,
    #[serde(skip)]
    pub(super) sparse_line: Option<String>,
    /// The recipe as it is; null for a mesh.
    pub(super) recipe: Option<WayNumbers>,
    /// Of pipelines, and of ranks that share layers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) mesh: Option<MeshNumbers>,
    /// Other ways to train it.
    pub(super) alternatives: Vec<WayNumbers>,
    /// The recipe as it is, on cards.
    pub(super) cards: Vec<CardNumbers>,
    /// The shares of peaks that the times assume.
    pub(super) assumed: Assumed,
}

/// One way to train, for each rank at the peak of its memory.
#[derive(Debug, Serialize)]
pub(super) struct WayNumbers {
    pub(super) precision: &'static str,
    pub(super) zero_stage: u8,
    pub(super) offload_optimizer: &'static str,
    pub(super) activation_checkpointing: bool,
    pub(super) memory: MemoryNumbers,
    /// The largest micro batch that fits, 0 where not even one row does; null where the memory is not
    /// known.
    pub(super) largest_micro_batch_size: Option<u64>,
    #[serde(flatten)]
    pub(super) time: TimeNumbers,
}

/// The time of a step; null where it is not known.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct TimeNumbers {
    pub(super) step_seconds: Option<f64>,
    /// Over all ranks.
    pub(super) tokens_per_second: Option<f64>,
}

/// The recipe as it is on a card.
#[derive(Debug, Serialize)]
pub(super) struct CardNumbers {
    pub(super) name: &'static str,
    pub(super) memory: u64,
    /// The format that the recipe computes in there.
    pub(super) precision: &'static str,
    /// Published, in that format; null where the card has no units for it.
    pub(super) peak_flops: Option<f64>,
    /// Published, in bytes a second.
    pub(super) bandwidth: f64,
    pub(super) fits: bool,
    pub(super) largest_micro_batch_size: u64,
    #[serde(flatten)]
    pub(super) time: TimeNumbers,
}

/// The assumptions behind the times.
#[derive(Debug, Serialize)]
pub(super) struct Assumed {
    /// Of a card's published peak.
    pub(super) utilization: f64,
    /// Of a card's published bandwidth.
    pub(super) bandwidth_share: f64,
    /// Of the product that was measured here.
    pub(super) measured_share: f64,
}

impl PlanNumbers {
    pub(super) fn of(planned: &Planned, target: &Target) -> Result<Self> {
        let Planned { model, config, rows, world_size, .. } = planned;
        let setup = setup(planned, target.device);
        let tokens = setup.workload.tokens;
        let is_mesh = planned.replicas < *world_size;
        let mut numbers = Self {
            device: target.name.clone(),
            usable_memory: target.usable(),
            speed: target.kind,
            parameters: model.num_params(),
            world_size: *world_size,
            micro_batch_size: config.micro_batch_size,
            micro_batch_is_auto: matches!(config.batch_choice, BatchChoice::Fitted(_)),
            tokens_per_row: tokens,
            tokens_from: match rows.tokens {
                Some(_) => "as the recipe makes them",
                None if model.facts().max_positions.is_some() => {
                    "the model's positions: the recipe packs no rows before init_engine"
                }
                None => "a usual length: the recipe packs no rows before init_engine",
            },
            gradient_accumulation_steps: config.gradient_accumulation_steps,
            tokens_per_step: tokens
                * (config.micro_batch_size * config.gradient_accumulation_steps * planned.replicas)
                    as u64,
            sparse_line: model.sparse_line(tokens.cast_signed())?,
            recipe: None,
            mesh: None,
            alternatives: Vec::new(),
            cards: Vec::new(),
            assumed: Assumed {
                utilization: UTILIZATION,
                bandwidth_share: BANDWIDTH_SHARE,
                measured_share: MEASURED_SHARE,
            },
        };
        if is_mesh {
            numbers.mesh = Some(MeshNumbers::of(&setup, config, target.usable())?);
            return Ok(numbers);
        }
        let speed = TargetSpeed::of(target, &setup, config)?;
        let dtype = config.precision.dtype;
        let way =
            |name, setup: &Setup, dtype| WayNumbers::of((name, setup), target, speed.with(dtype));
        numbers.recipe = Some(way(dtype.name(), &setup, dtype));
        let alternatives = setup.alternatives().into_iter().map(|alternative| {
            let dtype = if alternative.precision == "fp32" { Dtype::Fp32 } else { Dtype::Bf16 };
            way(alternative.precision, &alternative.setup, dtype)
        });
        numbers.alternatives = alternatives.collect();
        numbers.cards = CARDS.iter().filter_map(|name| CardNumbers::of(name, planned)).collect();
        Ok(numbers)
    }
}

/// The training on a device of this kind.
fn setup(planned: &Planned, device: Device) -> Setup {
    let Planned { model, config, optimizer_state, rows, replicas, world_size, .. } = planned;
    let positions = model.facts().max_positions.map_or(USUAL_TOKENS, i64::unsigned_abs);
    let tokens = rows.tokens.unwrap_or(positions);
    let mut setup = Setup::new(model, config, *optimizer_state, tokens, *replicas, device);
    setup.workload.whole_logits = rows.whole_logits;
    setup.workload.decoder_tokens = rows.targets.unwrap_or(tokens);
    // As `dsr launch` starts them.
    if *world_size > 1 && std::env::var_os("OMP_NUM_THREADS").is_none() {
        setup.workload.threads = 1;
    }
    setup
}

impl WayNumbers {
    fn of(
        (precision, setup): (&'static str, &Setup),
        target: &Target,
        speed: Option<DeviceSpeed>,
    ) -> Self {
        let plan = setup.plan();
        let offload = setup.sharding.optimizer.device;
        Self {
            precision,
            zero_stage: setup.sharding.stage,
            offload_optimizer: offload.name(),
            activation_checkpointing: setup.activation_checkpointing.is_some(),
            memory: MemoryNumbers::of(plan.device, plan.host, plan.disk),
            largest_micro_batch_size: target
                .usable()
                .map(|usable| setup.largest_micro_batch(usable).unwrap_or(0)),
            time: TimeNumbers::of(setup, speed),
        }
    }

    /// Whether the optimizer is elsewhere.
    pub(super) fn is_offloaded(&self) -> bool {
        self.offload_optimizer != OffloadDevice::None.name()
    }
}

impl TimeNumbers {
    fn of(setup: &Setup, speed: Option<DeviceSpeed>) -> Self {
        let Some((speed, work)) = speed.zip(setup.step_work()) else { return Self::default() };
        let seconds = speed.seconds(&work);
        let tokens = (work.tokens * setup.sharding.world_size) as f64;
        Self { step_seconds: Some(seconds), tokens_per_second: Some(tokens / seconds) }
    }
}

impl CardNumbers {
    fn of(name: &'static str, planned: &Planned) -> Option<Self> {
        let gpu = Gpu::find(name)?;
        let target = Target::card(gpu);
        let mut planned = planned.clone();
        planned.config.precision = planned.config.precision.on(gpu.has_bf16());
        let setup = setup(&planned, target.device);
        let config = &planned.config;
        let (dtype, precision) = (config.precision.dtype, config.numerics.matmul_precision);
        let usable = target.usable().unwrap_or(0);
        Some(Self {
            name,
            memory: gpu.memory(),
            precision: dtype.name(),
            peak_flops: gpu.peak(dtype, precision != MatmulPrecision::Highest),
            bandwidth: gpu.bandwidth(),
            fits: setup.plan().device.peak() <= usable,
            largest_micro_batch_size: setup.largest_micro_batch(usable).unwrap_or(0),
            time: TimeNumbers::of(&setup, DeviceSpeed::of(&gpu, dtype, precision)),
        })
    }
}
