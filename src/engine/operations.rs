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

/// Three blocks, so that what is done once a block can be told from what is done once. Attention
/// without dropout, for which the CPU has a fused kernel as CUDA has with it.
fn engine(dtype: Dtype) -> Engine {
    let settings = [
        ("vocab_size", 70.into()),
        ("n_positions", 6.into()),
        ("n_embd", 32.into()),
        ("n_layer", 3.into()),
        ("n_head", 2.into()),
        ("attn_pdrop", 0.0.into()),
    ];
    let model = ModelConfig::named("gpt2").unwrap().with(settings, "test").unwrap();
    let config = EngineConfig {
        micro_batch_size: 2,
        gradient_accumulation_steps: 2,
        precision: PrecisionConfig::new(dtype),
        ..config(None)
    };
    let group = Rc::new(ProcessGroup::single(Device::Cpu).unwrap());
    let model = Rc::new(Model::from_scratch(&model, 4, Device::Cpu).unwrap());
    Engine::new(model, group, config).unwrap()
}

/// Two full rows.
fn batch() -> Batch {
    batch_of(&[vec![1, 2, 3, 4, 5, 6], vec![9, 8, 7, 6, 5, 4]])
}

/// The operations of the phases of the engine's second step, of two micro batches each.
fn second_step(dtype: Dtype) -> Vec<(&'static str, Vec<String>)> {
    let (mut engine, batch) = (engine(dtype), batch());
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
fn report(dtype: Dtype) -> String {
    let mut text = String::new();
    let (mut all, mut launches) = (0, 0);
    for (phase, operations) in second_step(dtype) {
        let launched = operations.iter().filter(|operation| is_launch(operation)).count();
        writeln!(text, "\n{phase}: {} operations, {launched} launches", operations.len()).unwrap();
        for (count, operation) in counted(&operations) {
            writeln!(text, "{count:5} {operation}").unwrap();
        }
        (all, launches) = (all + operations.len(), launches + launched);
    }
    format!("{all} operations, {launches} launches\n{text}")
}

fn snapshot(dtype: Dtype, name: &str) {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../../tests/operations");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(name, report(dtype)));
}

/// A training step asks the device for no single number; what it must know comes in one copy, after
/// the optimizer.
#[test]
fn the_device_is_asked_for_no_number() {
    for dtype in [Dtype::Fp32, Dtype::Bf16] {
        for (phase, operations) in second_step(dtype) {
            let reads = operations.iter().filter(|operation| operation.starts_with(READ)).count();
            assert_eq!(reads, 0, "{phase}: {operations:#?}");
        }
    }
}

#[test]
fn the_operations_of_a_step_in_float32() {
    snapshot(Dtype::Fp32, "fp32");
}

#[test]
fn the_operations_of_a_step_in_bfloat16() {
    snapshot(Dtype::Bf16, "bf16");
}
