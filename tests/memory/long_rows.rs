//! The memory of what long rows need, planned and counted.

use dsr::{
    config::{Dtype, SparseAttention, TiledMlp},
    model::ModelConfig,
};

use super::{Case, LongRows, scores::check, with_dropout};
use crate::support::{alone, tiny::gpt2};

/// A window takes memory of its own where rows are long, whether it divides them or not, and whether heads of
/// keys and values are fewer.
#[test]
fn a_sliding_window_is_planned_as_it_is_counted() {
    let _alone = alone();
    let sizes = [("hidden_size", 256), ("num_hidden_layers", 4), ("intermediate_size", 512)];
    let heads = |kv_heads| [("num_attention_heads", 4), ("num_key_value_heads", kv_heads)];
    for (window, every, rows, kv_heads, dtype) in [
        (160, None, 2, 2, Dtype::Fp32),
        (192, None, 2, 2, Dtype::Fp32),
        (160, Some(1), 2, 2, Dtype::Fp32),
        (192, Some(1), 1, 2, Dtype::Fp32),
        (192, None, 1, 4, Dtype::Fp32),
        (192, Some(1), 1, 4, Dtype::Fp32),
        (192, Some(1), 2, 4, Dtype::Fp32),
        (160, Some(1), 2, 2, Dtype::Bf16),
        (192, Some(1), 2, 4, Dtype::Bf16),
    ] {
        let vocabulary = [("vocab_size", 1024), ("sliding_window", window)];
        let all = [&sizes[..], &heads(kv_heads), &vocabulary].concat();
        let sizes = all.into_iter().map(|(key, size)| (key, size.into()));
        let model = ModelConfig::named("mistral").unwrap().with(sizes, "test").unwrap();
        println!(
            "window {window}, every {every:?}, {rows} rows, {kv_heads} heads of keys, {dtype:?}"
        );
        check(&Case { model, rows, tokens: 640, accum: 1, every, dtype });
    }
}

/// The layers of a kind share a table of angles, and those of Gemma 3 are of two kinds.
#[test]
fn tables_of_angles_are_planned_as_they_are_counted() {
    let _alone = alone();
    let sizes = [("hidden_size", 64), ("num_hidden_layers", 6), ("intermediate_size", 128)];
    let heads = [("num_attention_heads", 1), ("num_key_value_heads", 1), ("head_dim", 256)];
    let kinds = [("vocab_size", 256), ("sliding_window", 1024), ("sliding_window_pattern", 6)];
    let sizes = [sizes, heads, kinds].concat().into_iter().map(|(key, size)| (key, size.into()));
    let model = ModelConfig::named("gemma3_text").unwrap().with(sizes, "test").unwrap();
    check(&Case { model, rows: 1, tokens: 1024, accum: 1, every: Some(1), dtype: Dtype::Fp32 });
}

/// MLPs in slices, gated and plain, and the layout of an encoder, whose scores are written out.
#[test]
fn what_long_rows_take_is_planned_as_it_is_counted() {
    let _alone = alone();
    let decoder = [("hidden_size", 256), ("num_hidden_layers", 4), ("num_attention_heads", 4)];
    let tiles = |shards| LongRows {
        tiled_mlp: Some(TiledMlp { shards: Some(shards) }),
        ..LongRows::default()
    };
    let sparse = SparseAttention { block: 32, ..SparseAttention::default() };
    let layout = || LongRows { sparse_attention: Some(sparse.clone()), ..LongRows::default() };
    let cases = [
        ("llama", [("intermediate_size", 1024), ("num_key_value_heads", 2)], tiles(4)),
        ("opt", [("ffn_dim", 1024), ("max_position_embeddings", 512)], tiles(8)),
        ("t5", [("d_ff", 512), ("num_decoder_layers", 4)], layout()),
    ];
    for (family, sizes, long) in cases {
        for every in [None, Some(1)] {
            let sizes = decoder.iter().chain(&sizes).map(|&(key, size)| (key, size.into()));
            let dropout = if family == "t5" { "dropout_rate" } else { "attention_dropout" };
            let rest = [("vocab_size", 1024.into()), (dropout, 0.0.into())];
            let config = ModelConfig::named(family).unwrap();
            let model = config.with(sizes.chain(rest), "test").unwrap();
            let case = Case { model, rows: 2, tokens: 320, accum: 1, every, dtype: Dtype::Fp32 };
            println!("{family}");
            case.check_whole_with(&long);
        }
    }
}

/// Slices of the logits in 16 bits: the gradient of each is added to that in float32.
#[test]
fn slices_of_the_logits_are_planned_as_they_are_counted() {
    let _alone = alone();
    let sizes = [("n_embd", 128), ("n_layer", 2), ("n_head", 4), ("vocab_size", 30_000)];
    let model = with_dropout(gpt2(sizes.map(|(key, size)| (key, size.into()))), 0.0);
    Case { model, rows: 2, tokens: 512, accum: 1, every: None, dtype: Dtype::Bf16 }.check_whole();
}
