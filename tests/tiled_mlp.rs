//! MLPs over slices of tokens: what they compute, and what it takes.

use std::rc::Rc;

use dsr::{
    config::{ActivationCheckpointing, Dtype, EngineConfig, PrecisionConfig, TiledMlp, ZeroConfig},
    data::{Dataset, LoaderOptions},
    fs::Place,
    model::{Model, ModelConfig},
    tensor::Device,
};
use serde_json::json;

use crate::support::{
    alone,
    numbers::assert_relative,
    tiny::{config, family, init_engine, rows_of, train},
};

/// Losses and gradient norms of three steps.
fn trained(model: Rc<Model>, rows: &Dataset, plain: EngineConfig) -> Vec<(f64, f64)> {
    let options = LoaderOptions { micro_batch_size: 2, epochs: None, ..LoaderOptions::default() };
    train(&mut init_engine(model, plain), &mut rows.loader(options).unwrap(), 3)
}

/// The gradients of weights are added up slice by slice, in another order, hence 1e-5 in float32.
fn assert_curves(what: &str, found: &[(f64, f64)], expected: &[(f64, f64)]) {
    for (found, expected) in found.iter().zip(expected) {
        assert_relative(what, found.0, expected.0, 1e-5);
        assert_relative(&format!("{what} norm"), found.1, expected.1, 1e-4);
    }
}

const SLICES: [TiledMlp; 2] = [TiledMlp { shards: Some(3) }, TiledMlp { shards: None }];

/// Gated and plain MLPs, in one layer and in two, with and without biases.
#[test]
fn slices_train_as_the_whole() {
    let _alone = alone();
    let (_dir, rows) = rows_of(&[29, 17]);
    for name in ["bloom-h4", "gpt2-wide", "llama-bias", "opt-post", "phi3", "gemma3"] {
        let expected = trained(family(name), &rows, config(2, 1));
        for tiles in SLICES {
            let with = EngineConfig { tiled_mlp: Some(tiles), ..config(2, 1) };
            assert_curves(name, &trained(family(name), &rows, with), &expected);
        }
    }
}

#[test]
fn slices_go_with_checkpointing_zero_and_16_bits() {
    let _alone = alone();
    let (_dir, rows) = rows_of(&[29, 17]);
    let checkpointing = Some(ActivationCheckpointing { every: 1, cpu_checkpointing: false });
    let zero = |stage| ZeroConfig { stage, ..ZeroConfig::default() };
    let ways = [1, 2, 3].map(|stage| EngineConfig { zero: zero(stage), ..config(2, 1) });
    let again = EngineConfig { activation_checkpointing: checkpointing, ..config(2, 1) };
    for (i, plain) in ways.into_iter().chain([again]).enumerate() {
        let expected = trained(family("llama-gqa"), &rows, plain.clone());
        let with = EngineConfig { tiled_mlp: Some(SLICES[0]), ..plain };
        assert_curves(&format!("way {i}"), &trained(family("llama-gqa"), &rows, with), &expected);
    }
    // A step of bfloat16 is 2^-8.
    let plain = EngineConfig { precision: PrecisionConfig::new(Dtype::Bf16), ..config(2, 1) };
    let expected = trained(family("llama-gqa"), &rows, plain.clone());
    let with = EngineConfig { tiled_mlp: Some(SLICES[0]), ..plain };
    let found = trained(family("llama-gqa"), &rows, with);
    assert_relative("bf16", found[0].0, expected[0].0, 4e-3);
}

/// A step of one row of 2,048 tokens in a model whose MLP is wide: its activations and the peak of all kinds.
fn bytes(tiles: Option<TiledMlp>) -> (u64, u64) {
    let (_dir, rows) = rows_of(&[2048]);
    let settings = json!({
        "model_type": "llama", "hidden_size": 32, "intermediate_size": 512, "num_hidden_layers": 2,
        "num_attention_heads": 2, "vocab_size": 100, "max_position_embeddings": 2048,
    });
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), settings.to_string()).unwrap();
    let described = ModelConfig::read(Place::unguarded(dir.path())).unwrap();
    let model = Rc::new(Model::from_scratch(&described, 1, Device::Cpu).unwrap());
    let mut engine = init_engine(model, EngineConfig { tiled_mlp: tiles, ..config(1, 1) });
    let options = LoaderOptions { micro_batch_size: 1, ..LoaderOptions::default() };
    train(&mut engine, &mut rows.loader(options).unwrap(), 1);
    let memory = engine.memory();
    let activations = memory.kinds().iter().find(|(kind, _)| *kind == "activations").unwrap().1;
    (activations, memory.peak())
}

/// An MLP of 512 inner channels keeps three times as many for each token: its two products and their gate. At
/// the peak a part of them has been given back.
#[test]
fn the_inner_activations_are_those_of_one_slice() {
    let _alone = alone();
    let (whole, peak) = bytes(None);
    let (sliced, lower) = bytes(Some(TiledMlp { shards: Some(16) }));
    let inner = 2 * 3 * 2048 * 512 * 4;
    assert!(whole - sliced > inner * 8 / 10, "{whole} and {sliced}");
    assert!(peak - lower > inner * 8 / 10, "{peak} and {lower}");
}
