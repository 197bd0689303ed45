//! The memory of what is as large as the scores of attention, planned and counted: biases, masks, and scores
//! that are written out.

use std::rc::Rc;

use dsr::{config::Dtype, engine::plan_stages::stages as planned_stages, model::ModelConfig};

use super::{Case, Device, Model, Setup, with, with_dropout};
use crate::support::{alone, tiny::gpt2};

/// All kinds together within 1 %; in 16 bits within 6 %, since products of 16-bit matrices take memory of their
/// own on a CPU, which differs from one processor to another.
pub(super) fn check(case: &Case) {
    let tolerance = if case.dtype == Dtype::Fp32 { 0.01 } else { 0.06 };
    let (planned, (counted, _)) = (case.planned(), case.counted());
    let off = planned.peak() as f64 / counted.peak() as f64 - 1.0;
    println!("{off:.4}");
    assert!(off.abs() <= tolerance, "{planned:?} is not {counted:?}");
}

/// ALiBi's bias is made once a pass, and that of T5 once a stack, with a gradient; recomputation keeps both.
#[test]
fn biases_of_the_scores_are_planned_as_they_are_counted() {
    let _alone = alone();
    let bloom = [("hidden_size", 128), ("n_layer", 3), ("n_head", 16)];
    let t5 = |heads| [("d_model", 128), ("num_layers", 3), ("num_heads", heads), ("d_ff", 256)];
    let models =
        [("bloom", &bloom[..], 0.0), ("t5", &t5(8), 0.0), ("t5", &t5(2), 0.0), ("t5", &t5(2), 0.1)];
    for (family, sizes, dropout) in models {
        for (rows, dtype) in [(1, Dtype::Fp32), (3, Dtype::Fp32), (1, Dtype::Bf16)] {
            for every in [None, Some(1)] {
                let sizes = sizes.iter().map(|&(key, size)| (key, size.into()));
                let config = ModelConfig::named(family).unwrap();
                let model = with(config, sizes.chain([("vocab_size", 512.into())]));
                let model = match family {
                    "t5" => with(model, [("dropout_rate", dropout.into())]),
                    _ => model,
                };
                println!("{family}, dropout {dropout}, {rows} rows, {dtype:?}, every {every:?}");
                check(&Case { model, rows, tokens: 512, accum: 1, every, dtype });
            }
        }
    }
}

/// On a GPU the flash kernel alone shares heads of keys and values. It is for 16 bits: in float32 each head of
/// queries keeps its own, as if the model shared none.
#[test]
fn on_a_gpu_the_flash_kernel_alone_shares_heads() {
    let kept = |kv_heads: i64, dtype| {
        let sizes = [("hidden_size", 256), ("num_hidden_layers", 4), ("num_attention_heads", 4)];
        let sizes =
            sizes.into_iter().chain([("num_key_value_heads", kv_heads), ("vocab_size", 64)]);
        let model = ModelConfig::named("llama").unwrap();
        let model = with(model, sizes.map(|(key, size)| (key, size.into())));
        let case = Case { model, rows: 4, tokens: 128, accum: 1, every: None, dtype };
        let outline = Rc::new(Model::outline(&case.model, Device::Cpu).unwrap());
        let tokens = case.tokens as u64;
        Setup::new(&outline, &case.config(), 0, tokens, 1, Device::Cuda(0))
            .plan()
            .device
            .activations
    };
    assert_eq!(kept(2, Dtype::Fp32), kept(4, Dtype::Fp32));
    assert!(kept(2, Dtype::Bf16) < kept(4, Dtype::Bf16));
}

/// A stage of a pipeline behind the layer that makes the bias is given it, for each pass under way.
#[test]
fn a_stage_is_given_the_bias_of_its_scores() {
    let sizes = [("d_model", 64), ("num_layers", 4), ("num_heads", 8), ("d_ff", 64)];
    let stages = |tokens: i64| {
        let sizes = sizes.iter().map(|&(key, size)| (key, size.into()));
        let config = ModelConfig::named("t5").unwrap();
        let model = with(config, sizes.chain([("vocab_size", 64.into())]));
        let case = Case { model, rows: 1, tokens, accum: 4, every: None, dtype: Dtype::Fp32 };
        let mut config = case.config();
        config.mesh.pipeline.stages = 4;
        planned_stages(&case.setup(&config, 1), &config).unwrap()
    };
    // The first cut is between blocks of the encoder: hidden states and the bias are sent for each of four
    // micro batches, in float32. What else is sent does not depend on the tokens.
    let flows = |tokens: u64| 4 * 4 * (64 * tokens + 8 * tokens * tokens);
    let [short, long] = [64, 128].map(|tokens| stages(tokens)[0].sent.pp);
    assert_eq!(long - short, flows(128) - flows(64));
}

/// With dropout of its weights attention on a CPU writes the scores out, in float32 also for a model in 16 bits.
#[test]
fn scores_that_are_written_out_are_planned_as_they_are_counted() {
    let _alone = alone();
    for dtype in [Dtype::Fp32, Dtype::Bf16, Dtype::Fp16] {
        for (rows, every) in [(1, None), (2, None), (1, Some(1))] {
            let sizes = [("n_embd", 128), ("n_layer", 2), ("n_head", 8), ("vocab_size", 512)];
            let model = with_dropout(gpt2(sizes.map(|(key, size)| (key, size.into()))), 0.1);
            println!("{rows} rows, {dtype:?}, every {every:?}");
            check(&Case { model, rows, tokens: 512, accum: 1, every, dtype });
        }
    }
}

/// Queries and keys have norms, and heads are wider than the model. In 16 bits these norms compute in float32.
#[test]
fn norms_of_wide_heads_are_planned_as_they_are_counted() {
    let _alone = alone();
    for dtype in [Dtype::Fp32, Dtype::Bf16] {
        for every in [None, Some(1)] {
            let sizes =
                [("hidden_size", 128), ("num_hidden_layers", 2), ("intermediate_size", 256)];
            let heads = [("num_attention_heads", 4), ("num_key_value_heads", 2), ("head_dim", 128)];
            let sizes = sizes.into_iter().chain(heads).map(|(key, size)| (key, size.into()));
            let config = ModelConfig::named("qwen3").unwrap();
            let model = with(config, sizes.chain([("vocab_size", 512.into())]));
            println!("{dtype:?}, every {every:?}");
            check(&Case { model, rows: 3, tokens: 512, accum: 1, every, dtype });
        }
    }
}
