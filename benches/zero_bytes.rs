//! What one rank of 8 to 1,024 keeps and sends in each of ZeRO's stages: counted in one step of the
//! real engine in a simulated world, beside the paper's formulas.
//!
//!     cargo bench --bench zero_bytes
//!
//! A GPT-2 of P parameters in bf16 with 16-bit gradients and Adam, on the last of N ranks. Formulas
//! in bytes: Rajbhandari et al. 2020, section 5 for what is kept (16 bytes a parameter: 2 and 2 for
//! parameter and gradient, 12 for master weight and averages), section 7 for what is sent.
//!
//! What is kept is counted at the moment of the peak, with the rest (activations and buffers) that
//! was there then: float32 copies of gradients that the step makes are in the rest. From stage 2 on
//! it includes what the formula leaves out: the units that are whole at the time, of this model a
//! tenth each.
#![allow(clippy::print_stdout, reason = "a benchmark prints its table")]

use std::{error::Error, rc::Rc};

use dsr::{
    config::{
        Dtype, EngineConfig, LossAverage, MeshConfig, MonitorConfig, Numerics, OptimizerConfig,
        OutlierConfig, PrecisionConfig, Schedule, TrainableConfig, ZeroConfig,
        optimizer::{AdamConfig, Algorithm},
    },
    data::{Batch, DataSource, Dataset, LoaderOptions, OpenOptions},
    dist::{ProcessGroup, Traffic},
    engine::{Engine, MemoryUse},
    model::{Model, ModelConfig},
    tensor::Device,
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const WORLD_SIZES: [usize; 4] = [8, 64, 512, 1024];
const STAGES: [u8; 4] = [0, 1, 2, 3];
/// Tokens of the only row of the batch: few, so that activations do not hide the rest.
const TOKENS: i64 = 16;
/// Parameters of one block of the model: what stage 3 gathers ahead, as the default of 50 million
/// does for a large one.
const BLOCK_ELEMENTS: u64 = 800_000;

/// What one step of one rank took.
struct Step {
    memory: MemoryUse,
    traffic: Traffic,
}

fn main() -> Result<()> {
    let batch = batch()?;
    let parameters = Model::from_scratch(&model_config()?, 1, Device::Cpu)?.num_params();
    println!("GPT-2, P = {parameters} parameters, bf16, one step of one rank. Bytes a parameter:");
    println!("kept at the peak (parameters + gradients + masters and averages), the rest at the");
    println!("same moment (activations and buffers), and sent in the step\n");
    println!(
        "ranks stage             kept by kind     kept  formula    ratio     rest   calls     sent  \
         formula   ratio"
    );
    for world_size in WORLD_SIZES {
        for stage in STAGES {
            let step = step(world_size, stage, &batch)?;
            print_row(world_size, stage, &step, parameters);
        }
    }
    Ok(())
}

fn print_row(world_size: usize, stage: u8, step: &Step, parameters: u64) {
    let per_parameter = |bytes: u64| bytes as f64 / parameters as f64;
    let MemoryUse {
        parameters: params,
        master_weights,
        gradients,
        optimizer_state,
        activations,
        buffers,
    } = step.memory;
    let states = master_weights + optimizer_state;
    let kinds = [params, gradients, states].map(|bytes| format!("{:.3}", per_parameter(bytes)));
    let (kept, sent) =
        (per_parameter(params + gradients + states), per_parameter(step.traffic.total().bytes));
    let (kept_formula, sent_formula) =
        (kept_bytes(stage, world_size), sent_bytes(stage, world_size));
    println!(
        "{world_size:>5} {stage:>5} {:>24} {kept:>8.3} {kept_formula:>8.3} {:>8.3} {:>8.3} {:>7} {sent:>8.3} \
         {sent_formula:>8.3} {:>7.3}",
        kinds.join(" + "),
        kept / kept_formula,
        per_parameter(activations + buffers),
        step.traffic.total().calls,
        sent / sent_formula,
    );
}

/// Bytes a parameter that a rank keeps.
fn kept_bytes(stage: u8, world_size: usize) -> f64 {
    let ranks = world_size as f64;
    match stage {
        0 => 16.0,
        1 => 4.0 + 12.0 / ranks,
        2 => 2.0 + 14.0 / ranks,
        _ => 16.0 / ranks,
    }
}

/// Bytes a parameter that a rank sends in a step: gradients and gathered parameters of 2 bytes.
fn sent_bytes(stage: u8, world_size: usize) -> f64 {
    let elements = if stage < 3 { 2.0 } else { 3.0 };
    let ranks = world_size as f64;
    elements * 2.0 * (ranks - 1.0) / ranks
}

/// Runs one step.
fn step(world_size: usize, stage: u8, batch: &Batch) -> Result<Step> {
    let stage3_prefetch_bucket_size = BLOCK_ELEMENTS;
    let zero = ZeroConfig { stage, stage3_prefetch_bucket_size, ..ZeroConfig::default() };
    let model = Rc::new(Model::from_scratch(&model_config()?, 1, Device::Cpu)?);
    let group = Rc::new(ProcessGroup::simulated(world_size - 1, world_size, Device::Cpu)?);
    let mut engine = Engine::new(model, Rc::clone(&group), engine_config(zero))?;
    let before = group.traffic();
    let loss = engine.forward(batch)?;
    engine.backward(&loss)?;
    if !engine.step()? || engine.last_step().is_none_or(|step| step.skipped.is_some()) {
        return Err("the step was not applied".into());
    }
    Ok(Step { memory: engine.memory(), traffic: group.traffic().since(&before) })
}

/// Blocks of equal size and a small vocabulary, as in a large model, where no single layer counts
/// for much.
fn model_config() -> Result<ModelConfig> {
    let sizes = [
        ("vocab_size", 512),
        ("n_positions", TOKENS),
        ("n_embd", 256),
        ("n_layer", 10),
        ("n_head", 4),
    ];
    let dropouts = ["resid_pdrop", "embd_pdrop", "attn_pdrop"].map(|key| (key, 0.into()));
    let settings = sizes.map(|(key, size)| (key, size.into())).into_iter().chain(dropouts);
    let gpt2 = ModelConfig::named("gpt2").ok_or("gpt2 is a size that is known")?;
    Ok(gpt2.with(settings, "bench")?)
}

fn engine_config(zero: ZeroConfig) -> EngineConfig {
    EngineConfig {
        micro_batch_size: 1,
        gradient_accumulation_steps: 1,
        numerics: Numerics::default(),
        precision: PrecisionConfig {
            grad_accum_dtype: Dtype::Bf16,
            communication_data_type: Dtype::Bf16,
            ..PrecisionConfig::new(Dtype::Bf16)
        },
        batch_choice: dsr::config::BatchChoice::Given,
        gradient_clipping: Some(1.0),
        loss_average: LossAverage::Tokens,
        ema: None,
        outliers: OutlierConfig::default(),
        optimizer: OptimizerConfig::new(Algorithm::Adam(AdamConfig::default()), 1e-4),
        trainable: TrainableConfig::default(),
        scheduler: Schedule::Constant,
        activation_checkpointing: None,
        sparse_attention: None,
        tiled_mlp: None,
        zero,
        mesh: MeshConfig::default(),
        seed: 1,
        monitor: MonitorConfig::default(),
    }
}

fn batch() -> Result<Batch> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("rows.jsonl");
    let ids: Vec<i64> = (0..TOKENS).map(|i| i * 31 % 512).collect();
    std::fs::write(&path, serde_json::json!({ "input_ids": ids }).to_string())?;
    let dataset =
        Dataset::open(DataSource::unguarded(&path.to_string_lossy()), &OpenOptions::default())?;
    let mut loader =
        dataset.loader(LoaderOptions { micro_batch_size: 1, ..LoaderOptions::default() })?;
    loader.next_batch()?.ok_or_else(|| "no batch".into())
}
