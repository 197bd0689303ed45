//! The memory of what is as large as the scores of attention, planned and counted: biases, masks, and scores
//! that are written out.

use dsr::{config::Dtype, model::ModelConfig};

use super::{Case, with, with_dropout};
use crate::support::{alone, tiny::gpt2};

/// ALiBi's bias is made once a pass, and that of T5 once a stack, with a gradient; recomputation keeps both.
#[test]
fn biases_of_the_scores_are_planned_as_they_are_counted() {
    let _alone = alone();
    let bloom = [("hidden_size", 128), ("n_layer", 3), ("n_head", 16)];
    let t5 = [("d_model", 128), ("num_layers", 3), ("num_heads", 8), ("d_ff", 256)];
    for (family, sizes) in [("bloom", &bloom[..]), ("t5", &t5)] {
        for (rows, dtype) in [(1, Dtype::Fp32), (3, Dtype::Fp32), (1, Dtype::Bf16)] {
            for every in [None, Some(1)] {
                let sizes = sizes.iter().map(|&(key, size)| (key, size.into()));
                let config = ModelConfig::named(family).unwrap();
                let model = with(config, sizes.chain([("vocab_size", 512.into())]));
                let model = match family {
                    "t5" => with(model, [("dropout_rate", 0.0.into())]),
                    _ => model,
                };
                println!("{family}, {rows} rows, {dtype:?}, every {every:?}");
                Case { model, rows, tokens: 512, accum: 1, every, dtype }.check_whole();
            }
        }
    }
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
            Case { model, rows, tokens: 512, accum: 1, every, dtype }.check_whole();
        }
    }
}
