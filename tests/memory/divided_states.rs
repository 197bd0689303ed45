//! The memory of a rank whose states are divided (ZeRO's stages 2 and 3), planned and counted: of one
//! rank, whose collectives complete at once.

use dsr::{
    config::{Dtype, EngineConfig, ZeroConfig},
    engine::MemoryUse,
};

use super::{Case, small};
use crate::support::{alone, tiny::llama_with_many_tokens};

const RANKS: usize = 2;

/// All kinds together within 3 %, and each within 3 % but for a hundredth of all. Gradients count with
/// activations: of moments with nearly as many bytes either may be the highest, and the kernels of the
/// machine decide which.
fn check(name: &str, case: &Case, zero: &ZeroConfig) {
    let config = EngineConfig { zero: zero.clone(), ..case.config() };
    let planned = case.setup(&config, RANKS).plan().device;
    let counted = case.step_of_one(config, RANKS).memory();
    let kinds = |memory: MemoryUse| {
        let MemoryUse { parameters, master_weights, gradients, optimizer_state, .. } = memory;
        [
            ("parameters", parameters),
            ("master weights", master_weights),
            ("optimizer state", optimizer_state),
            ("the rest", gradients + memory.activations + memory.buffers),
        ]
    };
    let check = |kind, plan: u64, count: u64, allowance| {
        assert!(
            plan.abs_diff(count) as f64 <= 0.03 * count as f64 + allowance as f64,
            "{name}, {:?}, every {:?}, accum {}, {zero:?}, {kind}: {planned:?} is not {counted:?}",
            case.dtype,
            case.every,
            case.accum,
        );
    };
    check("all", planned.peak(), counted.peak(), 0);
    for ((kind, plan), (_, count)) in kinds(planned).into_iter().zip(kinds(counted)) {
        check(kind, plan, count, counted.peak() / 100);
    }
}

/// A collective that completes at once holds no buffer of its own, so that nothing overlaps here.
fn zero(stage: u8, stage3_prefetch_bucket_size: u64, stays_whole: u64) -> ZeroConfig {
    ZeroConfig {
        stage,
        overlap_comm: Some(false),
        stage3_prefetch_bucket_size,
        stage3_param_persistence_threshold: stays_whole,
        ..ZeroConfig::default()
    }
}

#[test]
fn divided_states_are_planned_as_they_are_counted() {
    let _alone = alone();
    let ahead = [zero(3, 1_000_000, 0), zero(3, 50_000_000, 100_000)];
    let stages = [zero(1, 0, 0), zero(2, 0, 0), zero(3, 0, 0)];
    for (name, model) in [("GPT-2", small(0.0)), ("LLaMA", llama_with_many_tokens())] {
        for (dtype, accum, every) in [
            (Dtype::Fp32, 1, None),
            (Dtype::Fp32, 1, Some(1)),
            (Dtype::Bf16, 1, Some(1)),
            (Dtype::Bf16, 2, None),
        ] {
            let case = Case { model: model.clone(), rows: 4, tokens: 64, accum, every, dtype };
            stages.iter().chain(&ahead).for_each(|zero| check(name, &case, zero));
        }
    }
}
