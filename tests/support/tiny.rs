//! The golden GPT-2 of tests/golden, small enough for a test, and how it is trained.

use std::rc::Rc;

use dsr::{
    config::{
        Dtype, EngineConfig, LossAverage, MeshConfig, MonitorConfig, Numerics, OptimizerConfig,
        OutlierConfig, PrecisionConfig, Schedule, TrainableConfig, ZeroConfig,
        optimizer::{AdamConfig, Algorithm},
        schedule::{DeepSpeedSchedule, OneCycle},
    },
    data::{Batch, DataSource, Dataset, Loader, LoaderOptions, OpenOptions},
    dist::ProcessGroup,
    engine::Engine,
    fs::Place,
    model::{Model, ModelConfig},
    tensor::{Device, Tensor},
};
use serde_json::{Value, json};

use super::files::golden;

/// AdamW in float32 on the CPU, with these batch sizes.
pub(crate) fn config(micro: usize, accum: usize) -> EngineConfig {
    EngineConfig {
        micro_batch_size: micro,
        gradient_accumulation_steps: accum,
        precision: PrecisionConfig::new(Dtype::Fp32),
        numerics: Numerics::default(),
        batch_choice: dsr::config::BatchChoice::Given,
        gradient_clipping: Some(1.0),
        loss_average: LossAverage::Tokens,
        ema: None,
        outliers: OutlierConfig::default(),
        optimizer: adamw((0.9, 0.95)),
        trainable: TrainableConfig::default(),
        scheduler: Schedule::Constant,
        activation_checkpointing: None,
        sparse_attention: None,
        tiled_mlp: None,
        zero: ZeroConfig::default(),
        mesh: MeshConfig::default(),
        seed: 1,
        monitor: MonitorConfig::default(),
    }
}

/// AdamW with these betas.
pub(crate) fn adamw(betas: (f64, f64)) -> OptimizerConfig {
    let algorithm = Algorithm::Adam(AdamConfig { betas, ..AdamConfig::default() });
    OptimizerConfig { weight_decay: 0.1, ..OptimizerConfig::new(algorithm, 5e-4) }
}

/// The model, with this dropout everywhere.
pub(crate) fn model(dropout: f64) -> Rc<Model> {
    let dir = golden("gpt2-tiny-v512");
    let dropouts = ["resid_pdrop", "embd_pdrop", "attn_pdrop"].map(|key| (key, dropout.into()));
    let config = ModelConfig::read(Place::unguarded(&dir)).unwrap().with(dropouts, "test").unwrap();
    Rc::new(Model::load(Place::unguarded(&dir), &config, Device::Cpu).unwrap())
}

/// The golden model of a family, as its files have it.
pub(crate) fn family(name: &str) -> Rc<Model> {
    let dir = golden(&format!("families/{name}"));
    let config = ModelConfig::read(Place::unguarded(&*dir)).unwrap();
    Rc::new(Model::load(Place::unguarded(&*dir), &config, Device::Cpu).unwrap())
}

/// GPT-2 with these settings.
pub(crate) fn gpt2<'a>(settings: impl IntoIterator<Item = (&'a str, Value)>) -> ModelConfig {
    ModelConfig::named("gpt2").unwrap().with(settings, "test").unwrap()
}

/// An engine of one rank.
pub(crate) fn init_engine(model: Rc<Model>, config: EngineConfig) -> Engine {
    let group = Rc::new(ProcessGroup::single(Device::Cpu).unwrap());
    Engine::new(model, group, config).unwrap()
}

/// The golden rows of tokens.
pub(crate) fn rows() -> Dataset {
    let path = golden("tokens-v512.parquet");
    Dataset::open(DataSource::unguarded(path.to_str().unwrap()), &OpenOptions::default()).unwrap()
}

/// Rows of so many token ids below 100, and the directory that they are in.
pub(crate) fn rows_of(lengths: &[usize]) -> (tempfile::TempDir, Dataset) {
    let dir = tempfile::tempdir().unwrap();
    let row = |(i, &length): (usize, &usize)| {
        let ids: Vec<usize> = (0..length).map(|t| (i * 31 + t * (5 + i % 3)) % 97 + 1).collect();
        json!({ "input_ids": ids, "labels": ids }).to_string()
    };
    let path = dir.path().join("rows.jsonl");
    let lines: Vec<String> = lengths.iter().enumerate().map(row).collect();
    std::fs::write(&path, lines.join("\n")).unwrap();
    let rows =
        Dataset::open(DataSource::unguarded(path.to_str().unwrap()), &OpenOptions::default())
            .unwrap();
    (dir, rows)
}

/// A loader of the golden rows without an end.
pub(crate) fn loader(micro_batch_size: usize) -> Loader {
    let options = LoaderOptions { micro_batch_size, epochs: None, ..LoaderOptions::default() };
    rows().loader(options).unwrap()
}

/// Runs until `steps` more optimizer steps are done; loss and gradient norm of each.
pub(crate) fn train(engine: &mut Engine, loader: &mut Loader, steps: u64) -> Vec<(f64, f64)> {
    let mut outcomes = Vec::new();
    while outcomes.len() < steps as usize {
        let batch: Batch = loader.next_batch().unwrap().unwrap();
        let loss = engine.forward(&batch).unwrap();
        engine.backward(&loss).unwrap();
        if engine.step().unwrap() {
            let last = engine.last_step().unwrap();
            outcomes.push((last.loss, last.grad_norm));
        }
    }
    outcomes
}

/// All parameters as one tensor, for comparing to the bit.
pub(crate) fn flat(model: &Model) -> Tensor {
    model.make_whole().unwrap();
    let parts: Vec<Tensor> = model.named_params().map(|(_, p)| p.detach().reshape([-1])).collect();
    Tensor::cat(&parts, 0)
}

/// Cycles of four steps at one rate; the momentum is cycled from its lowest to its highest value, if
/// they are given.
pub(crate) fn one_cycle(lr: f64, momentum: Option<(f64, f64)>) -> Schedule {
    let (cycle_min_mom, cycle_max_mom) = momentum.unwrap_or((0.8, 0.9));
    Schedule::DeepSpeed(DeepSpeedSchedule::OneCycle(OneCycle {
        cycle_min_lr: lr,
        cycle_max_lr: lr,
        cycle_first_step_size: 2,
        cycle_second_step_size: None,
        cycle_first_stair_count: 0,
        cycle_second_stair_count: None,
        decay_lr_rate: 0.0,
        decay_step_size: 0,
        cycle_momentum: momentum.is_some(),
        cycle_min_mom,
        cycle_max_mom,
        decay_mom_rate: 0.0,
    }))
}

/// A LLaMA of four layers, whose parameters outweigh what a step of one row holds beside them.
pub(crate) fn llama() -> ModelConfig {
    let sizes = [
        ("hidden_size", 256),
        ("intermediate_size", 704),
        ("num_hidden_layers", 4),
        ("num_attention_heads", 4),
        ("vocab_size", 512),
    ];
    let shape = ModelConfig::named("llama").unwrap();
    shape.with(sizes.map(|(key, size)| (key, size.into())), "test").unwrap()
}

/// The same with grouped heads and a vocabulary that outweighs its blocks.
pub(crate) fn llama_with_many_tokens() -> ModelConfig {
    let sizes = [("intermediate_size", 512), ("num_key_value_heads", 2), ("vocab_size", 5000)];
    llama().with(sizes.map(|(key, size)| (key, size.into())), "test").unwrap()
}
