//! The memory of a rank whose states are divided (ZeRO's stages 2 and 3), planned and counted: of one
//! rank, whose collectives complete at once.

use std::rc::Rc;

use dsr::{
    config::{Dtype, EngineConfig, ZeroConfig},
    dist::ProcessGroup,
    engine::{
        Engine, MemoryUse,
        plan::{Setup, optimizer_state_bytes},
        trained,
    },
    model::{Model, ModelConfig},
    tensor::Device,
};

use super::{Case, batch, small};
use crate::support::alone;

const RANKS: usize = 2;

fn planned(case: &Case, config: &EngineConfig) -> MemoryUse {
    let outline = Rc::new(Model::outline(&case.model, Device::Cpu).unwrap());
    let outline = trained(&outline, config).unwrap();
    let state = optimizer_state_bytes(&outline, config).unwrap();
    Setup::new(&outline, config, state, case.tokens as u64, RANKS, Device::Cpu).plan().device
}

fn counted(case: &Case, config: EngineConfig) -> MemoryUse {
    let model = Rc::new(Model::from_scratch(&case.model, 3, Device::Cpu).unwrap());
    let batch = batch(case.rows, case.tokens, model.facts().vocab_size);
    let group = Rc::new(ProcessGroup::simulated(0, RANKS, Device::Cpu).unwrap());
    let mut engine = Engine::new(model, group, config).unwrap();
    for _ in 0..case.accum {
        let loss = engine.forward(&batch).unwrap();
        engine.backward(&loss).unwrap();
        engine.step().unwrap();
    }
    engine.memory()
}

/// All kinds together within 3 %, and each within 3 % but for a hundredth of all: of moments with nearly
/// as many bytes either may be the highest.
fn check(name: &str, case: &Case, zero: &ZeroConfig) {
    let config = EngineConfig { zero: zero.clone(), ..case.config() };
    let (planned, counted) = (planned(case, &config), counted(case, config));
    let kinds = |memory: MemoryUse| {
        let MemoryUse { parameters, master_weights, gradients, optimizer_state, .. } = memory;
        [
            ("parameters", parameters),
            ("master weights", master_weights),
            ("gradients", gradients),
            ("optimizer state", optimizer_state),
            ("activations and buffers", memory.activations + memory.buffers),
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

fn llama() -> ModelConfig {
    let sizes = [
        ("hidden_size", 256),
        ("num_hidden_layers", 4),
        ("num_attention_heads", 4),
        ("num_key_value_heads", 2),
        ("intermediate_size", 512),
        ("vocab_size", 5000),
    ];
    let shape = ModelConfig::named("llama").unwrap();
    shape.with(sizes.map(|(key, size)| (key, size.into())), "test").unwrap()
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
    for (name, model) in [("GPT-2", small(0.0)), ("LLaMA", llama())] {
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
