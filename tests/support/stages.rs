//! Trainings for every stage of ZeRO.

use std::rc::Rc;

use dsr::{
    config::{
        ActivationCheckpointing, Dtype, EngineConfig, OptimizerConfig, PrecisionConfig, ZeroConfig,
        optimizer::{
            AdagradConfig, AdamConfig, Algorithm, BlockwiseConfig, LambConfig, LionConfig,
            MuonConfig, SgdConfig, StateDtype,
        },
    },
    data::LoaderOptions,
    engine::Engine,
    model::ModelConfig,
};

use super::tiny::{self, config, gpt2, rows};

/// Rows of a step, whatever the number of ranks from 1 to 4.
pub(crate) const GLOBAL_BATCH: usize = 12;

/// A way to train, for every stage.
pub(crate) fn trainings(world_size: usize) -> Vec<(&'static str, EngineConfig)> {
    let plain = config(GLOBAL_BATCH / world_size, 1);
    let with = |algorithm, lr| OptimizerConfig::new(algorithm, lr);
    let accumulated = EngineConfig {
        micro_batch_size: 1,
        gradient_accumulation_steps: plain.micro_batch_size,
        ..plain.clone()
    };
    let adam = with(Algorithm::Adam(AdamConfig::default()), 5e-4);
    let mut all = vec![
        ("fp32", plain.clone()),
        ("bf16", EngineConfig { precision: PrecisionConfig::new(Dtype::Bf16), ..plain.clone() }),
        ("fp16", EngineConfig { precision: PrecisionConfig::new(Dtype::Fp16), ..plain.clone() }),
        ("bf16 weights", EngineConfig { precision: bf16_weights(), ..plain.clone() }),
        (
            "checkpointed",
            EngineConfig {
                activation_checkpointing: Some(ActivationCheckpointing::default()),
                ..plain.clone()
            },
        ),
        (
            "bf16 state",
            EngineConfig {
                optimizer: OptimizerConfig { state_dtype: StateDtype::Bf16, ..adam.clone() },
                ..plain.clone()
            },
        ),
    ];
    let blockwise = Some(BlockwiseConfig::default());
    for (name, optimizer) in [
        ("8-bit state", OptimizerConfig { blockwise, ..adam }),
        ("Lamb", with(Algorithm::Lamb(LambConfig::default()), 2e-3)),
        ("Lion", with(Algorithm::Lion(LionConfig::default()), 1e-4)),
        ("Muon", with(Algorithm::Muon(MuonConfig::default()), 2e-3)),
        ("SGD", with(Algorithm::Sgd(SgdConfig { momentum: 0.9, ..SgdConfig::default() }), 1e-2)),
        ("Adagrad", with(Algorithm::Adagrad(AdagradConfig::default()), 1e-2)),
    ] {
        all.push((name, EngineConfig { optimizer, ..plain.clone() }));
    }
    all.push(("accumulated", accumulated));
    all
}

/// Weights of bf16 that are updated themselves.
pub(crate) fn bf16_weights() -> PrecisionConfig {
    PrecisionConfig { master_weights: Dtype::Bf16, ..PrecisionConfig::new(Dtype::Bf16) }
}

/// The ways in which the parts travel.
pub(crate) fn zero(stage: u8, overlap_comm: bool) -> ZeroConfig {
    let plain = ZeroConfig { stage, overlap_comm: Some(overlap_comm), ..ZeroConfig::default() };
    if overlap_comm {
        // Pieces of a unit; every unit shared out, and the next one or two on their way.
        return ZeroConfig {
            reduce_bucket_size: 20_000,
            allgather_bucket_size: 15_000,
            stage3_prefetch_bucket_size: 400_000,
            stage3_param_persistence_threshold: 0,
            ..plain
        };
    }
    // Whole units, of which the last norm alone stays on all ranks, and none on its way.
    ZeroConfig { stage3_prefetch_bucket_size: 0, stage3_param_persistence_threshold: 1000, ..plain }
}

pub(crate) fn train(engine: &mut Engine, first_row: u64, steps: usize) -> Vec<(f64, f64)> {
    let group = Rc::clone(engine.group());
    let options = LoaderOptions {
        micro_batch_size: engine.config().micro_batch_size,
        rank: group.rank(),
        world_size: group.world_size(),
        epochs: None,
        ..LoaderOptions::default()
    };
    // Short rows: how long they are changes nothing that is shared out.
    let mut loader = rows().pack(16).unwrap().loader(options).unwrap();
    let skipped = first_row as usize / GLOBAL_BATCH * engine.config().gradient_accumulation_steps;
    for _ in 0..skipped {
        loader.next_batch().unwrap().unwrap();
    }
    tiny::train(engine, &mut loader, steps as u64)
}

/// A model of 3.4M parameters for a width of 128, of which no unit is more than a tenth.
pub(crate) fn small_shape(width: usize) -> ModelConfig {
    let sizes = [("n_embd", width), ("n_layer", 16), ("n_head", 4), ("vocab_size", 1024)];
    gpt2(sizes.map(|(key, size)| (key, size.into())))
}

/// A training of bfloat16 with gradients in 16 bits, as the ZeRO paper counts it.
pub(crate) fn in_16_bits(zero: ZeroConfig) -> EngineConfig {
    let mut precision = PrecisionConfig::new(Dtype::Bf16);
    (precision.grad_accum_dtype, precision.communication_data_type) = (Dtype::Bf16, Dtype::Bf16);
    let activation_checkpointing = Some(ActivationCheckpointing::default());
    EngineConfig { precision, activation_checkpointing, zero, ..config(1, 1) }
}
