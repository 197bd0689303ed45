//! What training needs of memory: counted, planned, and made smaller.

mod divided_states;
mod long_rows;
mod scores;
mod shared_layers;

use std::rc::Rc;

use dsr::{
    config::{
        ActivationCheckpointing, Dtype, EmaConfig, EngineConfig, LossAverage, MeshConfig,
        MonitorConfig, Numerics, OptimizerConfig, OutlierConfig, PrecisionConfig, Schedule,
        SparseAttention, TiledMlp, TrainableConfig, ZeroConfig,
        optimizer::{AdamConfig, Algorithm, BlockwiseConfig},
    },
    data::{Batch, DataSource, Dataset, LoaderOptions, OpenOptions},
    dist::ProcessGroup,
    engine::{
        Engine, MemoryUse,
        plan::{Setup, optimizer_state_bytes},
        trained,
    },
    model::{Masks, Model, ModelConfig},
    tensor::{Device, cuda_is_available, no_grad},
};

use serde_json::Value;

use crate::support::{
    alone,
    files::golden,
    hub_server::{HubRepo, HubServer},
    numbers::assert_relative,
    program::{dsr, out, text},
    recipe::Recipe,
    tiny::gpt2,
};

/// A batch of rows of this many tokens.
fn batch(rows: i64, tokens: i64, vocab: i64) -> Batch {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.jsonl");
    let row = |r| {
        let ids: Vec<i64> = (0..tokens).map(|t| (r * 7919 + t * 31) % vocab).collect();
        // For a model with an encoder the same once more.
        serde_json::json!({ "input_ids": ids, "labels": ids }).to_string()
    };
    let text: Vec<String> = (0..rows).map(row).collect();
    std::fs::write(&path, text.join("\n")).unwrap();
    let rows_of =
        Dataset::open(DataSource::unguarded(path.to_str().unwrap()), &OpenOptions::default())
            .unwrap();
    let options = LoaderOptions { micro_batch_size: rows as usize, ..LoaderOptions::default() };
    rows_of.loader(options).unwrap().next_batch().unwrap().unwrap()
}

/// What is trained: a model, rows of tokens, micro batches in a step, and every how many blocks one
/// keeps only its input.
struct Case {
    model: ModelConfig,
    rows: i64,
    tokens: i64,
    accum: usize,
    every: Option<usize>,
    dtype: Dtype,
}

/// What an engine does otherwise for long rows.
#[derive(Default)]
struct LongRows {
    tiled_mlp: Option<TiledMlp>,
    sparse_attention: Option<SparseAttention>,
}

impl Case {
    fn config(&self) -> EngineConfig {
        self.config_with(&LongRows::default())
    }

    fn config_with(&self, LongRows { tiled_mlp, sparse_attention }: &LongRows) -> EngineConfig {
        let activation_checkpointing =
            self.every.map(|every| ActivationCheckpointing { every, cpu_checkpointing: false });
        EngineConfig {
            micro_batch_size: self.rows as usize,
            gradient_accumulation_steps: self.accum,
            batch_choice: dsr::config::BatchChoice::Given,
            gradient_clipping: Some(1.0),
            loss_average: LossAverage::Tokens,
            ema: None,
            outliers: OutlierConfig::default(),
            numerics: Numerics::default(),
            precision: PrecisionConfig::new(self.dtype),
            optimizer: OptimizerConfig::new(Algorithm::Adam(AdamConfig::default()), 1e-3),
            trainable: TrainableConfig::default(),
            scheduler: Schedule::Constant,
            activation_checkpointing,
            sparse_attention: sparse_attention.clone(),
            tiled_mlp: *tiled_mlp,
            zero: ZeroConfig::default(),
            mesh: MeshConfig::default(),
            seed: 1,
            monitor: MonitorConfig::default(),
        }
    }

    fn planned(&self) -> MemoryUse {
        self.planned_with(&LongRows::default())
    }

    fn planned_with(&self, long: &LongRows) -> MemoryUse {
        self.setup(&self.config_with(long), 1).plan().device
    }

    /// The training with `config` on so many replicas.
    fn setup(&self, config: &EngineConfig, replicas: usize) -> Setup {
        let outline = Rc::new(Model::outline(&self.model, Device::Cpu).unwrap());
        let outline = trained(&outline, config).unwrap();
        let optimizer = optimizer_state_bytes(&outline, config).unwrap();
        Setup::new(&outline, config, optimizer, self.tokens as u64, replicas, Device::Cpu)
    }

    /// What one optimizer step used, and its loss.
    fn counted(&self) -> (MemoryUse, f64) {
        self.counted_with(&LongRows::default())
    }

    fn counted_with(&self, long: &LongRows) -> (MemoryUse, f64) {
        let engine = self.step(self.config_with(long), ProcessGroup::single(Device::Cpu).unwrap());
        (engine.memory(), engine.last_step().unwrap().loss)
    }

    /// The engine of one of `ranks` after one optimizer step; its collectives complete at once.
    fn step_of_one(&self, config: EngineConfig, ranks: usize) -> Engine {
        self.step(config, ProcessGroup::simulated(0, ranks, Device::Cpu).unwrap())
    }

    /// An engine after one optimizer step.
    fn step(&self, config: EngineConfig, group: ProcessGroup) -> Engine {
        let model = Rc::new(Model::from_scratch(&self.model, 3, Device::Cpu).unwrap());
        let batch = batch(self.rows, self.tokens, model.facts().vocab_size);
        let mut engine = Engine::new(model, Rc::new(group), config).unwrap();
        for _ in 0..self.accum {
            let loss = engine.forward(&batch).unwrap();
            engine.backward(&loss).unwrap();
            engine.step().unwrap();
        }
        engine
    }

    /// Every kind is planned within 3 % of what is counted. Allowed beside that is a thousandth of
    /// all, for what the plan leaves out as too small.
    fn check(&self) {
        let (planned, (counted, _)) = (self.planned(), self.counted());
        let allowance = counted.peak() / 1000;
        let all = |memory: MemoryUse| memory.kinds().into_iter().chain([("all", memory.peak())]);
        for ((kind, plan), (_, count)) in all(planned).zip(all(counted)) {
            // On the CPU products of 16-bit matrices take memory of their own, which only has to fit
            // into the tolerance of the whole.
            if kind == "buffers" && self.dtype != Dtype::Fp32 {
                continue;
            }
            let Self { rows, tokens, accum, every, dtype, .. } = self;
            assert!(
                plan.abs_diff(count) as f64 <= 0.03 * count as f64 + allowance as f64,
                "{dtype:?}, {rows} x {tokens}, accum {accum}, every {every:?}, {kind}: \
                 {planned:?} is not {counted:?}"
            );
        }
    }
}

impl Case {
    /// All kinds together are planned within 3 % of what is counted.
    fn check_whole(&self) {
        self.check_whole_with(&LongRows::default());
    }

    fn check_whole_with(&self, long: &LongRows) {
        let (planned, (counted, _)) = (self.planned_with(long), self.counted_with(long));
        let off = planned.peak() as f64 / counted.peak() as f64 - 1.0;
        assert!(off.abs() <= 0.03, "every {:?}: {planned:?} is not {counted:?}", self.every);
    }
}

fn small(dropout: f64) -> ModelConfig {
    let sizes = [("n_embd", 256), ("n_layer", 4), ("n_head", 4), ("vocab_size", 5000)];
    with_dropout(gpt2(sizes.map(|(key, size)| (key, size.into()))), dropout)
}

fn with_dropout(config: ModelConfig, dropout: f64) -> ModelConfig {
    let settings = ["resid_pdrop", "embd_pdrop", "attn_pdrop"].map(|key| (key, dropout.into()));
    with(config, settings)
}

fn with<'a>(
    config: ModelConfig,
    settings: impl IntoIterator<Item = (&'a str, Value)>,
) -> ModelConfig {
    config.with(settings, "test").unwrap()
}

#[test]
fn what_is_planned_is_what_is_counted() {
    let _alone = alone();
    for dropout in [0.0, 0.1] {
        for (rows, tokens) in [(4, 160), (1, 32)] {
            for (accum, every) in [(1, None), (1, Some(1)), (2, None), (2, Some(2))] {
                Case { model: small(dropout), rows, tokens, accum, every, dtype: Dtype::Fp32 }
                    .check();
            }
        }
    }
    let models = [
        with(small(0.0), [("tie_word_embeddings", false.into())]),
        with(small(0.0), [("activation_function", "relu".into()), ("n_inner", 512.into())]),
        with(
            small(0.0),
            [("vocab_size", 100.into()), ("n_layer", 1.into()), ("resid_pdrop", 0.1.into())],
        ),
    ];
    for model in models {
        for every in [None, Some(1)] {
            let model = model.clone();
            Case { model, rows: 4, tokens: 128, accum: 1, every, dtype: Dtype::Fp32 }.check();
        }
    }
}

/// An average of the weights is a third float32 copy beside Adam's two, and counts with them.
#[test]
fn averages_of_the_weights_are_planned_as_they_are_counted() {
    let ema = "ema: true, ";
    let of = |option: &str| {
        let recipe = Recipe::new(&format!(
            r#"let model = new_model("gpt2", #{{ vocab_size: 64, n_positions: 8, n_embd: 64, n_layer: 1, n_head: 2 }});
let engine = init_engine(model, #{{ {option}micro_batch_size: 1, optimizer: #{{ type: "AdamW" }} }});
print(engine.memory().optimizer_state);"#
        ));
        recipe.prints()[0].parse::<u64>().unwrap()
    };
    assert_eq!(2 * of(ema), 3 * of(""));
    for dtype in [Dtype::Fp32, Dtype::Bf16] {
        let (model, every) = (small(0.0), None);
        let case = Case { model, rows: 1, tokens: 32, accum: 1, every, dtype };
        let config = EngineConfig { ema: Some(EmaConfig::default()), ..case.config() };
        let outline = Rc::new(Model::outline(&case.model, Device::Cpu).unwrap());
        let bytes = optimizer_state_bytes(&outline, &config).unwrap();
        let planned = Setup::new(&outline, &config, bytes, 32, 1, Device::Cpu).plan().device;
        assert_eq!(2 * planned.optimizer_state, 3 * case.planned().optimizer_state, "{dtype:?}");
    }
}

/// State in 8 bits is a code for each element and a scale for each 256, but for small parameters: a
/// quarter and a little more of two float32 averages.
#[test]
fn state_in_8_bits_is_planned_as_it_is_counted() {
    let of = |kind: &str| {
        let recipe = Recipe::new(&format!(
            r#"let model = new_model("gpt2", #{{ vocab_size: 64, n_positions: 8, n_embd: 64, n_layer: 1, n_head: 2 }});
let engine = init_engine(model, #{{ micro_batch_size: 1, optimizer: #{{ type: "{kind}" }} }});
print(engine.memory().optimizer_state);"#
        ));
        recipe.prints()[0].parse::<u64>().unwrap()
    };
    let (plain, blockwise) = (of("AdamW"), of("AdamW8bit"));
    let sizes =
        [("vocab_size", 64), ("n_positions", 8), ("n_embd", 64), ("n_layer", 1), ("n_head", 2)];
    let model = gpt2(sizes.map(|(key, size)| (key, size.into())));
    let model = Rc::new(Model::outline(&model, Device::Cpu).unwrap());
    let case =
        Case { model: small(0.0), rows: 1, tokens: 8, accum: 1, every: None, dtype: Dtype::Fp32 };
    let planned = |blockwise| {
        let mut config = case.config();
        config.optimizer.blockwise = blockwise;
        optimizer_state_bytes(&model, &config).unwrap()
    };
    assert_eq!((planned(None), planned(Some(BlockwiseConfig::default()))), (plain, blockwise));
    // The matrices are 54,272 of 55,424 elements.
    assert!(blockwise * 100 < plain * 29, "{blockwise} of {plain}");
}

/// Families of 256 channels, four layers and four heads, two of which share keys where they can.
#[test]
fn every_family_is_planned_as_it_is_counted() {
    let _alone = alone();
    let decoder = [("hidden_size", 256), ("num_hidden_layers", 4), ("num_attention_heads", 4)];
    let gated = [("num_key_value_heads", 2), ("intermediate_size", 512), ("pad_token_id", 0)];
    let windowed = [gated[0], gated[1], gated[2], ("sliding_window", 64)];
    type Sizes<'a> = &'a [(&'a str, i64)];
    let families: [(&str, Sizes, &str); 9] = [
        ("llama", &gated, "attention_dropout"),
        ("mistral", &windowed, "attention_dropout"),
        ("qwen2", &gated, "attention_dropout"),
        ("qwen3", &gated, "attention_dropout"),
        ("phi3", &gated, "resid_pdrop"),
        ("gemma3_text", &gated, "attention_dropout"),
        ("opt", &[("ffn_dim", 512)], "dropout"),
        ("bloom", &[], "hidden_dropout"),
        ("t5", &[("d_ff", 512), ("num_decoder_layers", 4)], "dropout_rate"),
    ];
    for (family, sizes, dropout_key) in families {
        for (dropout, every) in [(0.0, None), (0.1, None), (0.0, Some(1))] {
            let sizes = decoder.iter().chain(sizes).map(|&(key, size)| (key, size.into()));
            let rest = [("vocab_size", 1024.into()), (dropout_key, dropout.into())];
            let config = ModelConfig::named(family).unwrap();
            let model = config.with(sizes.chain(rest), "test").unwrap();
            println!("{family}, dropout {dropout}");
            Case { model, rows: 4, tokens: 160, accum: 1, every, dtype: Dtype::Fp32 }.check_whole();
        }
    }
}

/// Parameters and activations take half; master weights and float32 gradients come to it.
#[test]
fn sixteen_bits_are_planned_as_they_are_counted() {
    let _alone = alone();
    for (accum, every) in [(1, None), (2, Some(1))] {
        let model = small(0.0);
        Case { model, rows: 4, tokens: 160, accum, every, dtype: Dtype::Bf16 }.check();
    }
}

#[test]
fn gpt2_is_planned_as_it_is_counted() {
    let _alone = alone();
    for (model, every) in [(with_dropout(gpt2([]), 0.0), None), (gpt2([]), Some(1))] {
        Case { model, rows: 2, tokens: 128, accum: 1, every, dtype: Dtype::Fp32 }.check();
    }
}

/// More blocks that keep only their input take less memory, and the loss is the same to the bit.
#[test]
fn activation_checkpointing_takes_less_memory_for_the_same_loss() {
    let _alone = alone();
    let run = |every| {
        Case { model: small(0.1), rows: 4, tokens: 192, accum: 1, every, dtype: Dtype::Fp32 }
            .counted()
    };
    let [none, half, all] = [None, Some(2), Some(1)].map(run);
    assert_eq!((none.1, none.1), (half.1, all.1));
    assert!(half.0.peak() < none.0.peak() * 85 / 100, "{half:?} {none:?}");
    assert!(all.0.peak() < none.0.peak() * 70 / 100, "{all:?} {none:?}");
}

/// The loss in slices of the logits is that of whole logits: 1e-6, float32 sums in another order.
#[test]
fn the_loss_in_slices_is_that_of_the_whole_logits() {
    let _alone = alone();
    let config = with(small(0.0), [("vocab_size", 50_257.into()), ("n_layer", 1.into())]);
    // Two slices.
    let batch = batch(4, 160, 50_257);
    let case = Case {
        model: config.clone(),
        rows: 4,
        tokens: 160,
        accum: 1,
        every: Some(1),
        dtype: Dtype::Fp32,
    };
    let model = Rc::new(Model::from_scratch(&config, 3, Device::Cpu).unwrap());
    let group = Rc::new(ProcessGroup::single(Device::Cpu).unwrap());
    let mut engine = Engine::new(Rc::clone(&model), group, case.config()).unwrap();
    let loss = engine.forward(&batch).unwrap().double_value(&[]);
    let logits = model.logits(batch.input_ids(), &Masks::default()).unwrap();
    let whole = no_grad(|| {
        let logits = logits.narrow(1, 0, 159).reshape([-1, 50_257]);
        logits.cross_entropy_for_logits(&batch.labels().narrow(1, 1, 159).reshape([-1]))
    });
    assert_relative("loss", loss, whole.double_value(&[]), 1e-6);
}

#[test]
fn an_every_beyond_the_blocks_is_refused() {
    let _alone = alone();
    let config = Case {
        model: small(0.0),
        rows: 1,
        tokens: 8,
        accum: 1,
        every: Some(5),
        dtype: Dtype::Fp32,
    }
    .config();
    let model = Rc::new(Model::from_scratch(&small(0.0), 3, Device::Cpu).unwrap());
    let group = Rc::new(ProcessGroup::single(Device::Cpu).unwrap());
    let e = Engine::new(model, group, config).err().unwrap();
    assert_eq!(e.option_path(), Some("activation_checkpointing.every"));
}

const TRAINS: &str = r#"
let data = dataset("dsr:austen").tokenize(tokenizer("dsr:gpt2")).pack(32);
let model = new_model("gpt2", #{ n_layer: 2, n_head: 2, n_embd: 64, n_positions: 64 });
let engine = init_engine(model, #{
    micro_batch_size: 2,
    activation_checkpointing: #{ every: 2, cpu_checkpointing: true },
});
for batch in data.loader(#{ micro_batch_size: 2 }) {
    engine.backward(engine.forward(batch));
    engine.step();
    break;
}
let used = engine.memory();
let all = 0;
for kind in used.keys() { if kind != "peak" && kind != "allocator" { all += used[kind]; } }
print(all == used.peak);
print(used.parameters * 2 == used.optimizer_state);
print(used.gradients > 0 && used.activations > 0 && used.buffers > 0 && used.master_weights == 0);
"#;

#[test]
fn a_recipe_sees_what_its_engine_uses() {
    assert_eq!(Recipe::new(TRAINS).prints(), ["true", "true", "true"]);
}

/// What libtorch took of the GPU holds what the engine counted, whose blocks it rounds up.
#[test]
fn on_a_gpu_the_allocators_own_figures_stand_beside_the_engines() {
    if !cuda_is_available() {
        return println!("skipped: libtorch sees no CUDA device here");
    }
    let figures = r#"
let found = used.allocator;
print(found.max_reserved >= found.max_allocated && found.max_allocated >= used.peak);
print(found.reserved >= found.allocated && found.allocated > 0);
print(found.num_alloc_retries == 0 && found.num_ooms == 0);
"#;
    let recipe = Recipe::new(&format!("{TRAINS}{figures}"));
    let mut command = dsr(recipe.directory(), &["run", "recipe.rhai"]);
    let output = out(&command.env("DSR_DEVICE", "cuda").output().unwrap());
    assert_eq!(output.lines().collect::<Vec<_>>(), ["true"; 6]);
}

fn plan(dir: &std::path::Path, args: &[&str]) -> String {
    let args: Vec<_> = ["plan", "recipe.rhai"].iter().chain(args).copied().collect();
    out(&dsr(dir, &args).output().unwrap())
}

/// The recipe is not run further than `init_engine`, and prints nothing into the plan.
#[test]
fn a_plan_is_printed_without_training() {
    let source = TRAINS.replacen("let engine", "print(\"here\");\nlet engine", 1)
        + "\nmodel.export_hf(\"out\");";
    let recipe = Recipe::new(&source);
    let text = plan(recipe.directory(), &[]);
    assert!(text.contains("micro_batch_size 2 x 32 tokens (as the recipe makes them)"), "{text}");
    assert!(text.contains("world_size 1, on the CPU here"), "{text}");
    assert!(!text.contains("here\n"), "{text}");
    for kind in ["parameters", "gradients", "optimizer_state", "activations", "buffers"] {
        assert!(text.contains(&format!("  {kind} ")), "{kind}: {text}");
    }
    // fp32 and mixed, whole and offloaded, with and without checkpointing.
    assert_eq!(text.matches("\nfp32 ").count() + text.matches("\nbf16, ").count(), 8);
    let text = plan(recipe.directory(), &["--world-size", "4", "--gpu", "RTX 5090"]);
    assert!(text.contains("world_size 4, on RTX 5090, 31.4 GiB"), "{text}");
    assert_eq!(text.matches("\nfp32 ").count() + text.matches("\nbf16, ").count(), 24);
    assert!(!recipe.directory().join("out").exists() && !recipe.directory().join("runs").exists());
}

#[test]
fn what_cannot_be_planned_is_refused() {
    let fails = |source: &str, args: &[&str]| {
        let recipe = Recipe::new(source);
        let args: Vec<_> = ["plan", "recipe.rhai"].iter().chain(args).copied().collect();
        let output = dsr(recipe.directory(), &args).output().unwrap();
        assert!(!output.status.success());
        text(&output.stderr)
    };
    assert!(fails("print(1);", &[]).contains("trains nothing"));
    let exports = "new_model(\"gpt2\").export_hf(\"out\");";
    assert!(fails(exports, &[]).contains("`export_hf` needs weights"));
    assert!(fails(TRAINS, &["--gpu", "RTX 5091"]).contains("did you mean \"RTX 5090\"?"));
    assert!(fails(TRAINS, &["--gpu-memory", "32"]).contains("32GB"));
    let every = TRAINS.replace("every: 2", "every: 3");
    assert!(fails(&every, &[]).contains("at most the model's 2 blocks, found 3"));
    let batch =
        TRAINS.replace("micro_batch_size: 2,\n", "train_batch_size: 6, micro_batch_size: 2,\n");
    assert!(fails(&batch, &["--world-size", "2"]).contains("train_batch_size"));
}

/// Of a model on the hub, a plan fetches the config alone.
#[test]
fn a_plan_fetches_no_weights() {
    let server = HubServer::start();
    let dir = golden("gpt2-tiny-v512");
    let config = std::fs::read(dir.join("config.json")).unwrap();
    let repo = HubRepo::new([("config.json", config.as_slice())]);
    server.put("models/O/tiny", repo.large("model.safetensors", b"no weights"));
    let recipe = Recipe::new("init_engine(load_model(\"O/tiny\"), #{ micro_batch_size: 3 });");
    let cache = tempfile::tempdir().unwrap();
    let output = dsr(recipe.directory(), &["plan", "recipe.rhai", "--allow-net"])
        .env("HF_ENDPOINT", &server.url)
        .env("HF_HOME", cache.path())
        .output()
        .unwrap();
    assert!(out(&output).contains("(the model's positions"), "{}", text(&output.stdout));
    assert!(server.take_requests().iter().any(|request| request.path.ends_with("config.json")));
    assert!(server.take_storage_requests().is_empty());
}
