//! The memory of ranks that share layers, planned and counted: of one rank, whose collectives complete at
//! once.

use dsr::{
    config::{Dtype, EngineConfig, MeshConfig, TensorParallelOptions, ZeroConfig},
    engine::{MemoryUse, plan_stages::stages},
    model::ModelConfig,
};

use super::{Case, small, with};
use crate::support::{alone, tiny::llama_with_many_tokens};

/// How the ranks are put together: how many share a layer, replicas, and ZeRO's stage.
#[derive(Debug, Clone, Copy)]
struct Shape {
    tp: usize,
    sequence_parallel: bool,
    dp: usize,
    zero: u8,
}

fn config(case: &Case, shape: Shape) -> EngineConfig {
    let Shape { tp: autotp_size, sequence_parallel, zero: stage, .. } = shape;
    let tensor_parallel = TensorParallelOptions { autotp_size, sequence_parallel };
    EngineConfig {
        mesh: MeshConfig { tensor_parallel, ..MeshConfig::default() },
        // A collective that completes at once holds no buffer of its own, so that nothing overlaps here.
        zero: ZeroConfig { stage, overlap_comm: Some(false), ..ZeroConfig::default() },
        ..case.config()
    }
}

fn planned(case: &Case, shape: Shape) -> MemoryUse {
    let config = config(case, shape);
    stages(&case.setup(&config, shape.dp), &config).unwrap()[0].memory.device
}

fn counted(case: &Case, shape: Shape) -> MemoryUse {
    let engine = case.step_of_one(config(case, shape), shape.tp * shape.dp);
    assert_eq!(engine.last_step().unwrap().skipped, None, "{shape:?}");
    engine.memory()
}

/// All kinds together within 3 %, and of GPT-2 each kind too, but for a thousandth of all. Activations and
/// buffers count together: of moments with as many bytes, of which one has let go of a tensor that another has not
/// made yet, either is the highest.
fn check(name: &str, case: &Case, shape: Shape) {
    let (planned, counted) = (planned(case, shape), counted(case, shape));
    let allowance = counted.peak() / 1000;
    let all = |memory: MemoryUse| {
        let MemoryUse { parameters, gradients, optimizer_state, activations, buffers, .. } = memory;
        [
            ("parameters", parameters),
            ("gradients", gradients),
            ("optimizer_state", optimizer_state),
            ("activations and buffers", activations + buffers),
            ("all", memory.peak()),
        ]
    };
    let first = if name.starts_with("GPT-2") { 0 } else { 4 };
    for ((kind, plan), (_, count)) in all(planned).into_iter().zip(all(counted)).skip(first) {
        assert!(
            plan.abs_diff(count) as f64 <= 0.03 * count as f64 + allowance as f64,
            "{name}, {shape:?}, every {:?}, accum {}, {kind}: {planned:?} is not {counted:?}",
            case.every,
            case.accum,
        );
    }
}

#[test]
fn shared_layers_are_planned_as_they_are_counted() {
    let _alone = alone();
    let alone = Shape { tp: 2, sequence_parallel: false, dp: 1, zero: 0 };
    let in_parts = Shape { sequence_parallel: true, ..alone };
    let t5 = [("d_model", 128), ("num_layers", 3), ("num_heads", 8), ("d_ff", 256)];
    let t5 = with(ModelConfig::named("t5").unwrap(), t5.map(|(key, size)| (key, size.into())));
    let models = [
        ("GPT-2", small(0.0), 0, (4, 160)),
        ("GPT-2", small(0.1), 1, (4, 160)),
        ("LLaMA", llama_with_many_tokens(), 0, (4, 160)),
        ("T5", with(t5, [("vocab_size", 512.into()), ("dropout_rate", 0.into())]), 0, (1, 512)),
    ];
    for (name, model, dropout, (rows, tokens)) in models {
        let divided = [1, 2, 3].map(|zero| Shape { dp: 2, zero, ..alone });
        for shape in [alone, in_parts].into_iter().chain(divided) {
            for (accum, every) in [(1, None), (1, Some(1)), (2, Some(2))] {
                let model = model.clone();
                let case = Case { model, rows, tokens, accum, every, dtype: Dtype::Fp32 };
                check(&format!("{name}, dropout 0.{dropout}"), &case, shape);
            }
        }
    }
    let four = Shape { tp: 4, ..in_parts };
    let case =
        Case { model: small(0.0), rows: 4, tokens: 160, accum: 1, every: None, dtype: Dtype::Fp32 };
    check("GPT-2", &case, four);
}
