//! Block-sparse attention in models: what they compute, and what it takes.

use std::rc::Rc;

use dsr::{
    checkpoint::Store,
    config::{Dtype, EngineConfig, PrecisionConfig, SparseAttention, SparseMode},
    data::{DataSource, Dataset, LoaderOptions, OpenOptions},
    engine::Engine,
    fs::Place,
    model::{Model, ModelConfig},
    run::{load_checkpoint, save_checkpoint},
    tensor::Device,
};
use serde_json::json;

use crate::support::{
    alone,
    files::golden,
    numbers::assert_relative,
    tiny::{config, family, init_engine, rows_of, train},
};

fn fixed(block: usize) -> SparseAttention {
    SparseAttention { block, num_local_blocks: Some(2), ..SparseAttention::default() }
}

/// Losses and gradient norms of three steps over all rows.
fn trained(name: &str, rows: &Dataset, plain: EngineConfig) -> Vec<(f64, f64)> {
    let count = rows.count().unwrap() as usize;
    let options =
        LoaderOptions { micro_batch_size: count, epochs: None, ..LoaderOptions::default() };
    let plain = EngineConfig { micro_batch_size: count, ..plain };
    train(&mut init_engine(family(name), plain), &mut rows.loader(options).unwrap(), 3)
}

fn assert_curves(what: &str, found: &[(f64, f64)], expected: &[(f64, f64)], tolerance: f64) {
    for (found, expected) in found.iter().zip(expected) {
        assert_relative(what, found.0, expected.0, tolerance);
        assert_relative(&format!("{what} norm"), found.1, expected.1, 20.0 * tolerance);
    }
}

const CAUSAL: [&str; 8] =
    ["bloom-h4", "bloom-h6", "gpt2-wide", "llama-gqa", "opt-post", "phi3", "qwen2", "qwen3"];

/// A dense layout trains every causal family as dense attention does, and a sparse one otherwise: with ALiBi and
/// rows of several lengths too.
#[test]
fn a_dense_layout_trains_as_dense_attention() {
    let _alone = alone();
    let (_dir, rows) = rows_of(&[29, 17, 23]);
    for name in CAUSAL {
        let expected = trained(name, &rows, config(1, 1));
        let with = |options| EngineConfig { sparse_attention: Some(options), ..config(1, 1) };
        let dense = SparseAttention { mode: SparseMode::Dense, ..fixed(4) };
        let dense = SparseAttention { num_local_blocks: None, ..dense };
        assert_curves(name, &trained(name, &rows, with(dense)), &expected, 1e-5);
        let sparse = trained(name, &rows, with(fixed(4)));
        assert!((sparse[0].0 - expected[0].0).abs() > 1e-5, "{name} is dense");
    }
}

/// A model without a longest row has rows that are shorter than the options want blocks: of one block here, in
/// which each token sees all before it.
#[test]
fn rows_may_be_short_where_a_model_has_no_longest() {
    let _alone = alone();
    let (_dir, rows) = rows_of(&[5, 8, 7]);
    let expected = trained("bloom-h4", &rows, config(1, 1));
    let options =
        SparseAttention { mode: SparseMode::BigBird, block: 8, ..SparseAttention::default() };
    let sparse = EngineConfig { sparse_attention: Some(options), ..config(1, 1) };
    assert_curves("bloom-h4", &trained("bloom-h4", &rows, sparse), &expected, 1e-5);
}

/// In 16 bits the losses are those of float32 to their rounding, a step of bfloat16 being 2^-8 and of float16
/// 2^-11.
#[test]
fn sparse_attention_trains_in_16_bits() {
    let _alone = alone();
    let (_dir, rows) = rows_of(&[29, 17, 23]);
    let with = |dtype| EngineConfig {
        sparse_attention: Some(fixed(4)),
        precision: PrecisionConfig::new(dtype),
        ..config(1, 1)
    };
    for name in ["llama-gqa", "bloom-h4"] {
        let expected = trained(name, &rows, with(Dtype::Fp32));
        for (dtype, tolerance) in [(Dtype::Bf16, 4e-3), (Dtype::Fp16, 2e-3)] {
            let found = trained(name, &rows, with(dtype));
            assert_relative(name, found[0].0, expected[0].0, tolerance);
        }
    }
}

/// Each of several texts in a row has the layout from its own start on.
#[test]
fn packed_rows_train_as_the_texts_one_by_one() {
    let _alone = alone();
    let (_dir, rows) = rows_of(&[29, 17, 23, 5, 31, 12]);
    let packed = rows.pack_documents(48).unwrap();
    assert!(packed.count().unwrap() < 6);
    for name in ["bloom-h4", "gpt2-wide", "llama-gqa"] {
        let plain = EngineConfig { sparse_attention: Some(fixed(3)), ..config(1, 1) };
        let expected = trained(name, &rows, plain.clone());
        assert_curves(name, &trained(name, &packed, plain), &expected, 1e-5);
    }
}

/// A new model of a family, of two layers and two heads that share their keys, with more settings.
fn small(family: &str, more: serde_json::Value) -> Rc<Model> {
    let mut settings = json!({
        "model_type": family, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 100,
        "pad_token_id": 0, "max_position_embeddings": 16384,
    });
    let all = settings.as_object_mut().unwrap();
    all.extend(more.as_object().unwrap().clone());
    if family == "phi3" {
        all.remove("head_dim");
    }
    let config_file = tempfile::tempdir().unwrap();
    std::fs::write(config_file.path().join("config.json"), settings.to_string()).unwrap();
    let described = ModelConfig::read(Place::unguarded(config_file.path())).unwrap();
    Rc::new(Model::from_scratch(&described, 1, Device::Cpu).unwrap())
}

/// A window in pieces trains as one with a mask, with layers that see all between those with a window too. A
/// dropout that drops nothing has the mask.
#[test]
fn a_sliding_window_trains_as_masked_attention() {
    let _alone = alone();
    let (_dir, rows) = rows_of(&[700, 531]);
    let pattern = json!({ "sliding_window": 150, "sliding_window_pattern": 2 });
    let some = json!({ "sliding_window": 150, "use_sliding_window": true, "max_window_layers": 1 });
    let window = json!({ "sliding_window": 150 });
    for (family, settings) in
        [("mistral", &window), ("phi3", &window), ("gemma3_text", &pattern), ("qwen2", &some)]
    {
        let trained = |dropout: f64| {
            let mut settings = settings.clone();
            settings["attention_dropout"] = dropout.into();
            let options =
                LoaderOptions { micro_batch_size: 2, epochs: None, ..LoaderOptions::default() };
            let mut engine = init_engine(small(family, settings), config(2, 1));
            train(&mut engine, &mut rows.loader(options).unwrap(), 3)
        };
        assert_curves(family, &trained(0.0), &trained(1e-12), 1e-5);
    }
}

/// What is held of a step of one row of so many tokens: activations, and the peak of all kinds.
fn bytes(tokens: i64, sparse: Option<SparseAttention>) -> (u64, u64) {
    bytes_of(small("llama", json!({})), tokens, sparse)
}

fn bytes_of(model: Rc<Model>, tokens: i64, sparse: Option<SparseAttention>) -> (u64, u64) {
    let (_dir, rows) = rows_of(&[tokens as usize]);
    let plain = EngineConfig { sparse_attention: sparse, ..config(1, 1) };
    let mut engine: Engine = init_engine(model, plain);
    let options = LoaderOptions { micro_batch_size: 1, ..LoaderOptions::default() };
    train(&mut engine, &mut rows.loader(options).unwrap(), 1);
    let memory = engine.memory();
    let activations = memory.kinds().iter().find(|(kind, _)| *kind == "activations").unwrap().1;
    (activations, memory.peak())
}

/// Twice the tokens take twice the bytes.
#[test]
fn bytes_of_activations_are_a_line() {
    let _alone = alone();
    let window = SparseAttention {
        mode: SparseMode::LocalSlidingWindow,
        block: 64,
        num_sliding_window_blocks: Some(7),
        ..SparseAttention::default()
    };
    let [short, middle, long] =
        [4096, 8192, 16384].map(|tokens| bytes(tokens, Some(window.clone())));
    assert_line([short, middle, long]);
    let model = || small("mistral", json!({ "sliding_window": 512 }));
    assert_line([4096, 8192, 16384].map(|tokens| bytes_of(model(), tokens, None)));
}

/// Each is twice the one before.
fn assert_line([short, middle, long]: [(u64, u64); 3]) {
    for ((activations, peak), (more, higher)) in [(short, middle), (middle, long)] {
        assert_relative("activations", more as f64, 2.0 * activations as f64, 0.02);
        assert!(higher as f64 <= 2.02 * peak as f64, "{peak} and {higher}");
    }
}

/// Keys that a model has learned to look at, and others afterwards, are told apart.
#[test]
fn a_checkpoint_of_another_layout_is_told() {
    let _alone = alone();
    let (_dir, rows) = rows_of(&[40, 33]);
    let engine = |sparse: Option<SparseAttention>| {
        init_engine(family("llama-gqa"), EngineConfig { sparse_attention: sparse, ..config(2, 1) })
    };
    let options = LoaderOptions { micro_batch_size: 2, epochs: None, ..LoaderOptions::default() };
    let mut first = engine(Some(fixed(8)));
    train(&mut first, &mut rows.loader(options).unwrap(), 1);
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(Place::unguarded(dir.path().join("checkpoints")));
    save_checkpoint(&first, &store, None, None, None).unwrap();
    let warnings =
        |sparse| load_checkpoint(&mut engine(sparse), None, store.latest().unwrap()).unwrap();
    assert!(warnings(Some(fixed(8))).is_empty());
    let [other] = &warnings(Some(fixed(16)))[..] else { panic!("one warning") };
    assert!(
        other.contains("had mode \"fixed\", block 8")
            && other.contains("has mode \"fixed\", block 16"),
        "{other}"
    );
    let [dense] = &warnings(None)[..] else { panic!("one warning") };
    assert!(dense.ends_with("the engine has all keys"), "{dense}");
}

/// Rows of pairs, shorter and longer than a block.
fn pairs(lengths: &[(usize, usize)]) -> (tempfile::TempDir, Dataset) {
    let dir = tempfile::tempdir().unwrap();
    let row = |(i, &(from, to)): (usize, &(usize, usize))| {
        let ids = |len: usize| (0..len).map(|t| (i * 31 + t * 7) % 97 + 1).collect::<Vec<_>>();
        json!({ "input_ids": ids(from), "labels": ids(to) }).to_string()
    };
    let lines: Vec<String> = lengths.iter().enumerate().map(row).collect();
    let path = dir.path().join("rows.jsonl");
    std::fs::write(&path, lines.join("\n")).unwrap();
    let rows =
        Dataset::open(DataSource::unguarded(path.to_str().unwrap()), &OpenOptions::default())
            .unwrap();
    (dir, rows)
}

fn t5(name: &str) -> Rc<Model> {
    let dir = golden(&format!("families/{name}"));
    let config = ModelConfig::read(Place::unguarded(&*dir))
        .unwrap()
        .with([("dropout_rate", 0.0.into())], "test");
    Rc::new(Model::load(Place::unguarded(&*dir), &config.unwrap(), Device::Cpu).unwrap())
}

/// The encoder of T5 has the layout to both sides, with the gradient of its bias: a dense layout trains as
/// dense attention, padding included, and a sparse one otherwise.
#[test]
fn an_encoder_has_the_layout_to_both_sides() {
    let _alone = alone();
    let (_dir, rows) = pairs(&[(29, 9), (17, 5)]);
    for name in ["t5-v10", "t5-v11"] {
        let trained = |sparse: Option<SparseAttention>| {
            let options =
                LoaderOptions { micro_batch_size: 2, epochs: None, ..LoaderOptions::default() };
            let plain = EngineConfig { sparse_attention: sparse, ..config(2, 1) };
            train(&mut init_engine(t5(name), plain), &mut rows.loader(options).unwrap(), 3)
        };
        let expected = trained(None);
        let dense = SparseAttention { mode: SparseMode::Dense, ..fixed(4) };
        let dense = SparseAttention { num_local_blocks: None, ..dense };
        assert_curves(name, &trained(Some(dense)), &expected, 1e-5);
        let sparse = trained(Some(fixed(4)));
        assert!((sparse[0].0 - expected[0].0).abs() > 1e-6, "{name} is dense");
        assert!(sparse[2].0 < sparse[0].0, "{name} learns");
    }
}
