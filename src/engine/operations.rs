//! The operations of a training step in libtorch, as a list under review: on a GPU each is a
//! launch, and each read of a number stops the host until the device has done all before it.

use std::{fmt::Write, rc::Rc};

use super::{Engine, config};
use crate::{
    bridge::operations::operations,
    config::{Dtype, EngineConfig, PrecisionConfig},
    data::{Batch, batch_of},
    dist::ProcessGroup,
    model::{Model, ModelConfig},
    tensor::Device,
};

/// The read of a number from a device.
const READ: &str = "aten::_local_scalar_dense";

/// Three blocks, so that what is done once a block can be told from what is done once.
fn named(family: &str, settings: &[(&str, i64)]) -> ModelConfig {
    let sizes = [("vocab_size", 70), ("hidden_size", 32), ("num_hidden_layers", 3)];
    let settings = sizes.iter().chain(settings).map(|&(key, value)| (key, value.into()));
    ModelConfig::named(family).unwrap().with(settings, "test").unwrap()
}

/// Attention without dropout, for which the CPU has a fused kernel as CUDA has with it.
fn gpt2() -> ModelConfig {
    let attention = [("attn_pdrop", 0.0.into())];
    named("gpt2", &[("n_positions", 6), ("n_head", 2)]).with(attention, "test").unwrap()
}

/// With heads that share keys and values.
fn llama() -> ModelConfig {
    let heads = [("num_attention_heads", 4), ("num_key_value_heads", 2)];
    named("llama", &[heads[0], heads[1], ("intermediate_size", 64)])
}

fn engine(model: &ModelConfig, dtype: Dtype) -> Engine {
    let config = EngineConfig {
        micro_batch_size: 2,
        gradient_accumulation_steps: 2,
        precision: PrecisionConfig::new(dtype),
        ..config(None)
    };
    let group = Rc::new(ProcessGroup::single(Device::Cpu).unwrap());
    let model = Rc::new(Model::from_scratch(model, 4, Device::Cpu).unwrap());
    Engine::new(model, group, config).unwrap()
}

/// Two full rows.
fn batch() -> Batch {
    batch_of(&[vec![1, 2, 3, 4, 5, 6], vec![9, 8, 7, 6, 5, 4]])
}

/// The operations of the phases of the engine's second step, of two micro batches each.
fn second_step(model: &ModelConfig, dtype: Dtype) -> Vec<(&'static str, Vec<String>)> {
    let (mut engine, batch) = (engine(model, dtype), batch());
    let mut listed = Vec::new();
    for micro_step in 0..4 {
        let (loss, forward) = operations(|| engine.forward(&batch).unwrap()).unwrap();
        let ((), backward) = operations(|| engine.backward(&loss).unwrap()).unwrap();
        let (_, step) = operations(|| engine.step().unwrap()).unwrap();
        match micro_step {
            2 => listed.extend([("first forward", forward), ("first backward", backward)]),
            3 => listed.extend([
                ("second forward", forward),
                ("second backward", backward),
                ("step", step),
            ]),
            _ => {}
        }
    }
    listed
}

/// Whether it moves data: on a GPU it is a launch.
fn is_launch(operation: &str) -> bool {
    !["view ", "aten::empty", "aten::resize_", "aten::set_"]
        .iter()
        .any(|p| operation.starts_with(p))
}

fn counted(operations: &[String]) -> Vec<(usize, &str)> {
    let mut counts: Vec<(usize, &str)> = Vec::new();
    for operation in operations {
        match counts.iter_mut().find(|(_, known)| known == operation) {
            Some((count, _)) => *count += 1,
            None => counts.push((1, operation)),
        }
    }
    counts
}

/// Each operation with its number, phase by phase.
fn report(model: &ModelConfig, dtype: Dtype) -> String {
    let mut text = String::new();
    let (mut all, mut launches) = (0, 0);
    for (phase, operations) in second_step(model, dtype) {
        let launched = operations.iter().filter(|operation| is_launch(operation)).count();
        writeln!(text, "\n{phase}: {} operations, {launched} launches", operations.len()).unwrap();
        for (count, operation) in counted(&operations) {
            writeln!(text, "{count:5} {operation}").unwrap();
        }
        (all, launches) = (all + operations.len(), launches + launched);
    }
    format!("{all} operations, {launches} launches\n{text}")
}

fn snapshot(model: &ModelConfig, dtype: Dtype, name: &str) {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../../tests/operations");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(name, report(model, dtype)));
}

/// A training step asks the device for no single number; what it must know comes in one copy, after
/// the optimizer.
#[test]
fn the_device_is_asked_for_no_number() {
    for (model, dtype) in [(gpt2(), Dtype::Fp32), (gpt2(), Dtype::Bf16), (llama(), Dtype::Bf16)] {
        for (phase, operations) in second_step(&model, dtype) {
            let reads = operations.iter().filter(|operation| operation.starts_with(READ)).count();
            assert_eq!(reads, 0, "{phase}: {operations:#?}");
        }
    }
}

#[test]
fn the_operations_of_a_step_in_float32() {
    snapshot(&gpt2(), Dtype::Fp32, "fp32");
}

#[test]
fn the_operations_of_a_step_in_bfloat16() {
    snapshot(&gpt2(), Dtype::Bf16, "bf16");
}

#[test]
fn the_operations_of_a_step_of_a_llama() {
    snapshot(&llama(), Dtype::Bf16, "llama");
}
