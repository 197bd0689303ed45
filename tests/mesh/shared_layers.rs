//! Ranks that share layers: attention by heads, MLP by inner activations, embedding and head by rows of
//! the vocabulary, and with `sequence_parallel` the tokens between.

use std::rc::Rc;

use dsr::{
    config::{
        ActivationCheckpointing, Dtype, EngineConfig, MeshConfig, PrecisionConfig,
        TensorParallelOptions,
    },
    data::LoaderOptions,
    dist::ProcessGroup,
    engine::Engine,
    error::{Code, Error},
    fs::Place,
    model::{LossFunction, Model},
    tensor::{Device, IGNORE_INDEX, Reduction, SafetensorsFile, Tensor},
};
use serde_json::json;

use super::{FAMILIES, Shape, curves, loader, named, of_shape, steps};
use crate::support::{
    alone,
    numbers::assert_relative,
    ranks::threads,
    tiny::{config, gpt2, rows_of},
};

/// Sums in another order: 1e-5 for the losses, and 1e-4 for the norm, in float32.
fn assert_near(name: &str, found: &[(f64, f64)], expected: &[(f64, f64)]) {
    assert_eq!(found.len(), expected.len());
    for (found, wanted) in found.iter().zip(expected) {
        assert_relative(name, found.0, wanted.0, 1e-5);
        assert_relative(&format!("{name} norm"), found.1, wanted.1, 1e-4);
    }
}

/// The settings of a training whose ranks have parts of the tokens.
fn in_parts() -> EngineConfig {
    let plain = config(1, 1);
    let tensor_parallel = TensorParallelOptions { sequence_parallel: true, autotp_size: 2 };
    EngineConfig { mesh: MeshConfig { tensor_parallel, ..plain.mesh }, ..plain }
}

#[test]
fn ranks_that_share_layers_train_as_one_does() {
    let _alone = alone();
    for name in FAMILIES {
        let expected = curves(name, (1, 1, 1, 0), &|| config(1, 1));
        assert_near(name, &curves(name, (1, 1, 2, 0), &|| config(1, 1)), &expected);
        let name_in_parts = format!("{name}, tokens in parts");
        assert_near(&name_in_parts, &curves(name, (1, 1, 2, 0), &in_parts), &expected);
    }
}

/// With pipelines, replicas, every stage of ZeRO, recomputation, and in bfloat16, which rounds in other
/// places (2e-3).
#[test]
fn parts_of_tokens_go_with_every_mesh() {
    let _alone = alone();
    let checkpointing = Some(ActivationCheckpointing { every: 1, cpu_checkpointing: true });
    let again = || EngineConfig { activation_checkpointing: checkpointing, ..in_parts() };
    for name in ["gpt2", "llama-gqa", "t5-v11"] {
        let expected = curves(name, (1, 1, 1, 0), &|| config(1, 1));
        for shape in [(1, 2, 2, 1), (1, 2, 2, 3), (2, 1, 2, 0), (2, 2, 2, 2)] {
            let what = format!("{name} {shape:?}");
            assert_near(&what, &curves(name, shape, &in_parts), &expected);
        }
        assert_near(name, &curves(name, (2, 1, 2, 0), &again), &expected);
        let bf16 = || EngineConfig { precision: PrecisionConfig::new(Dtype::Bf16), ..in_parts() };
        for (found, wanted) in curves(name, (1, 1, 2, 0), &bf16).iter().zip(&expected) {
            assert_relative(&format!("{name} bf16"), found.0, wanted.0, 2e-3);
        }
    }
}

/// A loss of a recipe's own has the logits of all ranks, and its gradient reaches each rank's rows.
#[test]
fn a_loss_of_its_own_sees_all_logits() {
    let _alone = alone();
    let train = |group: &Rc<ProcessGroup>, shape: Shape, plain: &EngineConfig| {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::new(named("gpt2"), Rc::clone(group), of_shape(shape, plain));
        let mut engine = engine.unwrap();
        engine.set_loss(LossFunction::new(|logits: &Tensor, targets: &Tensor| {
            let (vocab, targets) = (logits.size()[2], targets.reshape([-1]));
            let logits = logits.reshape([-1, vocab]);
            let none = None::<&Tensor>;
            Ok(logits.cross_entropy_loss(&targets, none, Reduction::Mean, IGNORE_INDEX, 0.1))
        }));
        let mut loader = loader(&engine, "gpt2", dir.path());
        steps(&mut engine, &mut loader, 3)
    };
    let expected = threads(1, |group| train(group, (1, 1, 1, 0), &config(1, 1))).remove(0);
    for plain in [&|| config(1, 1), &in_parts as &(dyn Fn() -> EngineConfig + Sync)] {
        let found = threads(2, |group| train(group, (1, 1, 2, 0), &plain())).remove(0);
        assert_near("label smoothing", &found, &expected);
    }
}

/// Of each micro batch two sums of a block go forward and two back over the ranks that share it, one of
/// the embedding and one of the head, as a ring sends them, and two numbers for each target. Where ranks
/// have parts of the tokens, each sum is a gathering and a scattering, what attention and MLP gathered is
/// gathered once more for the backward pass, and the gradients of what all have are summed at the step.
#[test]
fn shared_layers_send_four_sums_a_block() {
    let _alone = alone();
    let sent = |plain: fn() -> EngineConfig| {
        threads(2, |group| {
            let dir = tempfile::tempdir().unwrap();
            let config = of_shape((1, 1, 2, 0), &plain());
            let mut engine = Engine::new(named("llama-gqa"), Rc::clone(group), config).unwrap();
            let mut loader = loader(&engine, "llama-gqa", dir.path());
            steps(&mut engine, &mut loader, 1);
            let config = &engine.model().facts().config;
            let sizes = ["hidden_size", "num_hidden_layers"].map(|key| config[key].as_u64());
            (engine.mesh().tp().traffic().total().bytes, sizes.map(Option::unwrap))
        })
    };
    let (rows, tokens, size, micro_batches, ranks) = (2, 16, 4, 4, 2);
    let ring = |bytes: u64| bytes * 2 * (ranks - 1) / ranks;
    for plain in [(|| config(1, 1)) as fn() -> EngineConfig, in_parts] {
        let in_parts = plain().mesh.tensor_parallel.sequence_parallel;
        for (bytes, [width, blocks]) in sent(plain) {
            let sum = ring(rows * tokens * width * size);
            let targets = 2 * rows * (tokens - 1) * size * (ranks - 1);
            let step = if in_parts { ring((2 * blocks + 1) * width * size) } else { 0 };
            // Two gatherings are as much as a sum.
            let sums = if in_parts { 5 * blocks + 2 } else { 4 * blocks + 2 };
            let expected = (sums * sum + targets) * micro_batches + step;
            assert_eq!(bytes, expected, "tokens in parts: {in_parts}");
        }
    }
}

/// A small GPT-2 of four heads with so many tokens.
fn of_vocabulary(vocab_size: i64) -> Rc<Model> {
    let settings = [("n_embd", 32), ("n_layer", 2), ("n_head", 4), ("n_positions", 16)];
    let settings = settings.into_iter().chain([("vocab_size", vocab_size)]);
    let settings = settings.map(|(key, value)| (key, json!(value)));
    let undropped = ["attn_pdrop", "embd_pdrop", "resid_pdrop"].map(|key| (key, json!(0.0)));
    Rc::new(Model::from_scratch(&gpt2(settings.chain(undropped)), 5, Device::Cpu).unwrap())
}

/// Ranks have equally many rows, of which the last has zeros for those that are missing: with 517 tokens
/// and 4 ranks 130 each, 127 in the last. What is written has 517 rows.
#[test]
fn a_vocabulary_need_not_divide() {
    let _alone = alone();
    let train = |group: &Rc<ProcessGroup>, shape: Shape, plain: EngineConfig| {
        let dir = tempfile::tempdir().unwrap();
        let config = of_shape(shape, &plain);
        let mut engine = Engine::new(of_vocabulary(517), Rc::clone(group), config).unwrap();
        let mut loader = loader(&engine, "gpt2", dir.path());
        let curve = steps(&mut engine, &mut loader, 3);
        let unit = &engine.model().all_units()[0];
        let at = unit.names().position(|name| name == "transformer.wte.weight").unwrap();
        let exported = dir.path().join("exported");
        let written = (group.rank() == 0).then(|| {
            engine.model().export_hf(Place::unguarded(&exported), None).unwrap();
            let file = SafetensorsFile::open(Place::unguarded(exported.join("model.safetensors")));
            file.unwrap().shape("transformer.wte.weight").unwrap()
        });
        if written.is_none() {
            engine.model().attend_export().unwrap();
        }
        (curve, unit.specs()[at].shape[0], written)
    };
    let (expected, ..) = threads(1, |group| train(group, (1, 1, 1, 0), config(1, 1))).remove(0);
    for (shape, rows) in [((1, 1, 2, 0), 259), ((1, 1, 4, 0), 130), ((1, 2, 2, 3), 259)] {
        for plain in [(|| config(1, 1)) as fn() -> EngineConfig, in_parts] {
            let ranks = threads(shape.1 * shape.2, |group| train(group, shape, plain()));
            for (curve, here, written) in ranks {
                assert_near(&format!("{shape:?}"), &curve, &expected);
                assert_eq!(here, rows);
                assert!(written.is_none_or(|shape| shape == [517, 32]));
            }
        }
    }
}

fn refused(group: &Rc<ProcessGroup>, model: Rc<Model>, autotp_size: usize) -> Error {
    let plain = config(1, 1);
    let tensor_parallel = TensorParallelOptions { autotp_size, ..TensorParallelOptions::default() };
    let mesh = MeshConfig { tensor_parallel, ..plain.mesh };
    Engine::new(model, Rc::clone(group), EngineConfig { mesh, ..plain }).err().unwrap()
}

/// What cannot be divided is refused with the numbers.
#[test]
fn what_cannot_be_divided_is_refused() {
    threads(4, |group| {
        let e = refused(group, of_vocabulary(5), 4);
        assert_eq!(
            e.message(),
            "`tensor_parallel.autotp_size` 4 leaves a rank no row of a vocabulary of 5"
        );
    });
    threads(2, |group| {
        let config = of_shape((1, 1, 2, 0), &in_parts());
        let mut engine = Engine::new(named("llama-gqa"), Rc::clone(group), config).unwrap();
        let (_rows, dataset) = rows_of(&[3, 3]);
        let options = LoaderOptions { micro_batch_size: 2, ..LoaderOptions::default() };
        let batch = dataset.loader(options.clone()).unwrap().next_batch().unwrap().unwrap();
        let e = engine.forward(&batch).unwrap_err();
        assert_eq!(e.code(), Code::Shape);
        assert_eq!(
            e.message(),
            "rows of 3 tokens are no multiple of `tensor_parallel.autotp_size` 2, among whose ranks \
             `sequence_parallel` divides them"
        );
        let padded = LoaderOptions { pad_to_multiple_of: 2, ..options };
        let batch = dataset.loader(padded).unwrap().next_batch().unwrap().unwrap();
        assert_eq!(batch.input_ids().size(), [2, 4]);
        let loss = engine.forward(&batch).unwrap();
        engine.backward(&loss).unwrap();
    });
}
