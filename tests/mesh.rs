//! Meshes of ranks: pipelines beside ZeRO, with the losses of one rank.
//!
//! Ranks are threads where nothing is drawn at random. All trainings have the same rows a step.

mod adapters;
mod generation;
mod long_rows;
mod plans;
mod recipes;
mod shared_layers;
mod tied;
mod turns;

use std::{io::Write, path::Path, rc::Rc};

use dsr::{
    checkpoint::Store,
    config::{
        ActivationCheckpointing, Dtype, EngineConfig, MeshConfig, OffloadDevice, OptimizerOffload,
        PartitionMethod, PipelineOptions, PrecisionConfig, SparseAttention, TensorParallelOptions,
        TrainableConfig, ZeroConfig,
    },
    data::{Batch, DataSource, Dataset, Loader, LoaderOptions, OpenOptions},
    dist::ProcessGroup,
    engine::Engine,
    error::Code,
    fs::Place,
    model::{Model, ModelConfig},
    run::{load_checkpoint, save_checkpoint},
    tensor::Device,
};
use glob::Pattern;
use serde_json::json;

use crate::support::{
    alone,
    files::golden,
    numbers::assert_relative,
    ranks::threads,
    stages::zero,
    tiny::{config, model, rows},
};

const STEPS: usize = 3;
/// Rows of a step.
const GLOBAL_BATCH: usize = 8;

/// Stages, replicas, ranks of a layer, and the stage of ZeRO.
type Shape = (usize, usize, usize, u8);

/// Makes the settings that are not the mesh's, for each rank.
type Plain<'a> = &'a (dyn Fn() -> EngineConfig + Sync);

/// Every kind of layer: fused and separate projections, grouped heads, norms of heads, biases by position,
/// gates, an encoder.
const FAMILIES: [&str; 10] = [
    "gpt2",
    "llama-gqa",
    "qwen3",
    "phi3",
    "gemma3",
    "bloom-h4",
    "bloom-h6",
    "opt-post",
    "t5-v10",
    "t5-v11",
];

/// A model by name, without dropout.
fn named(name: &str) -> Rc<Model> {
    if name == "gpt2" {
        return model(0.0);
    }
    let dir = golden("families").join(name);
    let dropout: &[(&str, serde_json::Value)] =
        if name.starts_with("t5") { &[("dropout_rate", json!(0.0))] } else { &[] };
    let config = ModelConfig::read(Place::unguarded(&dir))
        .unwrap()
        .with(dropout.iter().cloned(), "test")
        .unwrap();
    Rc::new(Model::load(Place::unguarded(&dir), &config, Device::Cpu).unwrap())
}

/// Rows of tokens; of pairs for a model with an encoder.
fn dataset(name: &str, dir: &Path) -> Dataset {
    if name == "gpt2" {
        return rows().pack(16).unwrap();
    }
    let file = dir.join("rows.jsonl");
    let row = |i: usize| {
        let ids =
            |len: usize| (0..len).map(|t| 3 + (7 * i + 5 * t + i * t) % 50).collect::<Vec<_>>();
        // Batches of one size have padding or not.
        let length = if i % 4 == 2 { 9 } else { 12 - 2 * (i / 8 % 2) };
        match name.starts_with("t5") {
            true => json!({ "input_ids": ids(length), "labels": ids(5 + i % 2) }),
            false => json!({ "input_ids": ids(16) }),
        }
    };
    let lines: Vec<String> = (0..64).map(|i| row(i).to_string()).collect();
    // Several ranks write the same.
    let mut whole = tempfile::NamedTempFile::new_in(dir).unwrap();
    whole.write_all(lines.join("\n").as_bytes()).unwrap();
    whole.persist(&file).unwrap();
    Dataset::open(DataSource::unguarded(file.to_str().unwrap()), &OpenOptions::default()).unwrap()
}

fn loader(engine: &Engine, name: &str, dir: &Path) -> Loader {
    let mesh = engine.mesh();
    let options = LoaderOptions {
        micro_batch_size: engine.config().micro_batch_size,
        rank: mesh.place().dp,
        world_size: mesh.shape().dp,
        epochs: None,
        pad_to_multiple_of: if name.starts_with("t5") { 2 } else { 1 },
        ..LoaderOptions::default()
    };
    dataset(name, dir).loader(options).unwrap()
}

/// Losses and norms of so many steps more.
fn steps(engine: &mut Engine, loader: &mut Loader, count: usize) -> Vec<(f64, f64)> {
    let mut next = || Ok(loader.next_batch()?.map(Rc::new));
    let mut step = |_| {
        let outcome = engine.train_batch::<Rc<Batch>>(&mut next, &mut ()).unwrap().unwrap();
        (outcome.loss, outcome.grad_norm)
    };
    (0..count).map(&mut step).collect()
}

/// The same micro batches of two rows for each replica, whatever the stages.
fn of_shape((stages, replicas, autotp_size, stage): Shape, plain: &EngineConfig) -> EngineConfig {
    let micro_batch_size = 2;
    let pipeline = PipelineOptions { stages, ..PipelineOptions::default() };
    let TensorParallelOptions { sequence_parallel, .. } = plain.mesh.tensor_parallel;
    let tensor_parallel = TensorParallelOptions { autotp_size, sequence_parallel };
    EngineConfig {
        micro_batch_size,
        gradient_accumulation_steps: GLOBAL_BATCH / micro_batch_size / replicas,
        mesh: MeshConfig { pipeline, tensor_parallel },
        zero: zero(stage, true),
        ..plain.clone()
    }
}

fn curve(group: &Rc<ProcessGroup>, name: &str, shape: Shape, plain: Plain<'_>) -> Vec<(f64, f64)> {
    let dir = tempfile::tempdir().unwrap();
    let mut engine = Engine::new(named(name), Rc::clone(group), of_shape(shape, &plain())).unwrap();
    let mut loader = loader(&engine, name, dir.path());
    steps(&mut engine, &mut loader, STEPS)
}

/// The curves of a mesh, which all of its ranks have alike.
fn curves(name: &str, shape: Shape, plain: Plain<'_>) -> Vec<(f64, f64)> {
    let all = threads(shape.0 * shape.1 * shape.2, |group| curve(group, name, shape, plain));
    assert!(all.iter().all(|one| *one == all[0]), "the ranks of {shape:?} disagree");
    all.into_iter().next().unwrap()
}

/// A pipeline makes the same operations as one rank, and sums in the same order: its losses are those
/// of as many replicas to the bit. A tied weight is summed over two stages, each of which has added up
/// its micro batches before: there the losses are equal to 1e-6.
#[test]
fn a_pipeline_has_the_losses_of_one_rank() {
    let _alone = alone();
    let plain = || config(1, 1);
    for (name, is_tied) in [("llama-gqa", false), ("gpt2", true)] {
        for replicas in [1, 2] {
            for stage in if replicas == 1 { 0..=0 } else { 0..=3 } {
                let expected = curves(name, (1, replicas, 1, stage), &plain);
                for stages in [2, 3] {
                    let shape = (stages, replicas, 1, stage);
                    let found = curves(name, shape, &plain);
                    if !is_tied {
                        assert_eq!(found, expected, "{name} {shape:?}");
                        continue;
                    }
                    for (found, wanted) in found.iter().zip(&expected) {
                        assert_relative(&format!("{name} {shape:?}"), found.0, wanted.0, 1e-6);
                        assert_relative(&format!("{name} {shape:?} norm"), found.1, wanted.1, 1e-4);
                    }
                }
            }
        }
    }
}

/// An encoder's output and the biases of the stacks cross the boundaries too, and the embedding is
/// used by three layers.
#[test]
fn t5_goes_through_a_pipeline() {
    let _alone = alone();
    let plain = || config(1, 1);
    for name in ["t5-v10", "t5-v11"] {
        let expected = curves(name, (1, 1, 1, 0), &plain);
        for shape in [(2, 1, 1, 0), (4, 1, 1, 0), (3, 2, 1, 2)] {
            let found = curves(name, shape, &plain);
            for (found, wanted) in found.iter().zip(&expected) {
                assert_relative(&format!("{name} {shape:?}"), found.0, wanted.0, 1e-5);
                assert_relative(&format!("{name} {shape:?} norm"), found.1, wanted.1, 1e-4);
            }
        }
    }
}

/// What else a training can be: precisions, recomputation, a cut by layers. The micro batches are the
/// same, so are the bits.
#[test]
fn precisions_and_recomputation_go_with_a_pipeline() {
    let _alone = alone();
    let with = |dtype| EngineConfig { precision: PrecisionConfig::new(dtype), ..config(1, 1) };
    let checkpointing = Some(ActivationCheckpointing { every: 1, cpu_checkpointing: true });
    let ways: [Plain<'_>; 3] = [&|| with(Dtype::Bf16), &|| with(Dtype::Fp16), &|| EngineConfig {
        activation_checkpointing: checkpointing,
        ..config(1, 1)
    }];
    for plain in ways {
        let expected = curves("llama-gqa", (1, 1, 1, 0), plain);
        assert_eq!(curves("llama-gqa", (2, 1, 1, 0), plain), expected);
    }
}

/// Block-sparse attention, whose heads differ, goes with shared layers, pipelines, ZeRO and recomputation.
#[test]
fn block_sparse_attention_goes_with_every_mesh() {
    let _alone = alone();
    let sparse = |options: SparseAttention| {
        move || EngineConfig { sparse_attention: Some(options.clone()), ..config(1, 1) }
    };
    let fixed = SparseAttention {
        block: 3,
        num_local_blocks: Some(2),
        num_different_global_patterns: Some(2),
        different_layout_per_head: true,
        ..SparseAttention::default()
    };
    let checkpointing = Some(ActivationCheckpointing { every: 1, cpu_checkpointing: true });
    for name in ["gpt2", "llama-gqa", "bloom-h4"] {
        let plain = sparse(fixed.clone());
        let expected = curves(name, (1, 1, 1, 0), &plain);
        assert_ne!(expected, curves(name, (1, 1, 1, 0), &|| config(1, 1)), "{name} is dense");
        let recomputed = || EngineConfig { activation_checkpointing: checkpointing, ..plain() };
        // A pass without a graph multiplies few rows in another order.
        let again = curves(name, (1, 1, 1, 0), &recomputed);
        for (found, wanted) in again.iter().zip(&expected) {
            assert_relative(&format!("{name} recomputed"), found.0, wanted.0, 1e-6);
        }
        for shape in [(1, 1, 2, 0), (1, 2, 2, 3), (2, 1, 1, 0)] {
            let found = curves(name, shape, &plain);
            for (found, wanted) in found.iter().zip(&expected) {
                assert_relative(&format!("{name} {shape:?}"), found.0, wanted.0, 1e-5);
                assert_relative(&format!("{name} {shape:?} norm"), found.1, wanted.1, 1e-4);
            }
        }
    }
}

/// All three at once, with every stage of ZeRO.
#[test]
fn pipelines_replicas_and_shared_layers_go_together() {
    let _alone = alone();
    let plain = || config(1, 1);
    for name in ["gpt2", "llama-gqa"] {
        let expected = curves(name, (1, 1, 1, 0), &plain);
        for shape in [(1, 2, 2, 1), (1, 2, 2, 3), (2, 1, 2, 0), (2, 2, 2, 2), (2, 2, 2, 3)] {
            let found = curves(name, shape, &plain);
            for (found, wanted) in found.iter().zip(&expected) {
                assert_relative(&format!("{name} {shape:?}"), found.0, wanted.0, 1e-5);
                assert_relative(&format!("{name} {shape:?} norm"), found.1, wanted.1, 1e-4);
            }
        }
    }
}

/// The state on disk, and precisions and recomputation with shared layers: 16 bits are rounded in other
/// places.
#[test]
fn offload_and_precisions_go_with_a_mesh() {
    let _alone = alone();
    let disk = tempfile::tempdir().unwrap();
    let away = |shape: Shape| {
        let zero = ZeroConfig {
            offload_optimizer: OptimizerOffload { device: OffloadDevice::Nvme, ratio: 0.5 },
            offload_param: OffloadDevice::Nvme,
            nvme_path: Some(disk.path().to_owned()),
            ..zero(shape.3, true)
        };
        move || EngineConfig { zero: zero.clone(), ..of_shape(shape, &config(1, 1)) }
    };
    let train = |group: &Rc<ProcessGroup>, config: EngineConfig| {
        let dir = tempfile::tempdir().unwrap();
        let mut engine = Engine::new(named("gpt2"), Rc::clone(group), config).unwrap();
        let mut loader = loader(&engine, "gpt2", dir.path());
        steps(&mut engine, &mut loader, STEPS)
    };
    let expected = curves("gpt2", (1, 1, 1, 0), &|| config(1, 1));
    for shape in [(2, 1, 1, 3), (1, 1, 2, 3), (2, 2, 1, 3)] {
        let make = away(shape);
        let found = threads(shape.0 * shape.1 * shape.2, |group| train(group, make())).remove(0);
        for (found, wanted) in found.iter().zip(&expected) {
            assert_relative(&format!("{shape:?}"), found.0, wanted.0, 1e-5);
        }
    }
    let checkpointing = Some(ActivationCheckpointing { every: 1, cpu_checkpointing: false });
    let ways: [(Plain<'_>, f64); 2] = [
        (&|| EngineConfig { precision: PrecisionConfig::new(Dtype::Bf16), ..config(1, 1) }, 2e-3),
        (&|| EngineConfig { activation_checkpointing: checkpointing, ..config(1, 1) }, 1e-5),
    ];
    for (plain, tolerance) in ways {
        let found = curves("gpt2", (2, 1, 2, 0), plain);
        for (found, wanted) in found.iter().zip(&expected) {
            assert_relative("2 x 1 x 2", found.0, wanted.0, tolerance);
        }
    }
}

/// Each boundary carries a flow and its gradient for each micro batch, and nothing else once the
/// sizes are known.
#[test]
fn a_boundary_carries_flows_and_gradients_alone() {
    let _alone = alone();
    let sent = threads(3, |group| {
        let dir = tempfile::tempdir().unwrap();
        let config = of_shape((3, 1, 1, 0), &config(1, 1));
        let mut engine = Engine::new(named("llama-gqa"), Rc::clone(group), config).unwrap();
        let mut loader = loader(&engine, "llama-gqa", dir.path());
        steps(&mut engine, &mut loader, 1);
        let mesh = Rc::clone(engine.mesh());
        let bytes = || {
            let forward = mesh.next().map_or(0, |link| link.forward.traffic().send.bytes);
            let backward = mesh.previous().map_or(0, |link| link.backward.traffic().send.bytes);
            (forward, backward)
        };
        let before = bytes();
        steps(&mut engine, &mut loader, 1);
        let after = bytes();
        let width = engine.model().facts().config["hidden_size"].as_u64().unwrap();
        (after.0 - before.0, after.1 - before.1, width)
    });
    let (rows, tokens, size, micro_batches) = (2, 16, 4, 4);
    let flow = |width| rows * tokens * width * size * micro_batches;
    for (stage, (forward, backward, width)) in sent.into_iter().enumerate() {
        assert_eq!(forward, if stage < 2 { flow(width) } else { 0 });
        assert_eq!(backward, if stage > 0 { flow(width) } else { 0 });
    }
}

/// The single calls and what a pipeline cannot have are refused with the numbers.
#[test]
fn what_a_pipeline_cannot_do_is_refused() {
    threads(2, |group| {
        let dir = tempfile::tempdir().unwrap();
        let config = of_shape((2, 1, 1, 0), &config(1, 1));
        let mut engine = Engine::new(named("gpt2"), Rc::clone(group), config.clone()).unwrap();
        let mut loader = loader(&engine, "gpt2", dir.path());
        let batch = loader.next_batch().unwrap().unwrap();
        let e = engine.forward(&batch).unwrap_err();
        assert_eq!(e.code(), Code::CallOrder);
        assert_eq!(e.message(), "engine.forward is for one stage, and the pipeline has 2");
        let refused = |stages| {
            let pipeline = PipelineOptions { stages, partition_method: PartitionMethod::Uniform };
            let config =
                EngineConfig { mesh: MeshConfig { pipeline, ..config.mesh }, ..config.clone() };
            Engine::new(named("gpt2"), Rc::clone(group), config).err().unwrap().message().to_owned()
        };
        assert_eq!(refused(3), "the number of ranks, 2, is not a multiple of `pipeline.stages` 3");
        let other = Engine::new(Rc::clone(engine.model()), Rc::clone(group), self::config(2, 1));
        let message = other.err().unwrap().message().to_owned();
        assert_eq!(
            message,
            "the model belongs to an engine whose ranks have parts of it: a pipeline's stages, or shares of layers"
        );
    });
}

/// Two steps and a checkpoint, or two steps more from it.
fn checkpoint(
    group: &Rc<ProcessGroup>,
    (name, plain): (&str, Plain<'_>),
    shape: Shape,
    (dir, saves): (&Path, bool),
) -> Vec<(f64, f64)> {
    let config = of_shape(shape, &plain());
    let mut engine = Engine::new(named(name), Rc::clone(group), config).unwrap();
    let mut loader = loader(&engine, name, dir);
    let store = Store::open(Place::unguarded(dir.join("checkpoints")));
    if !saves {
        load_checkpoint(&mut engine, Some(&mut loader), store.latest().unwrap()).unwrap();
        return steps(&mut engine, &mut loader, 2);
    }
    let curve = steps(&mut engine, &mut loader, 2);
    if group.rank() == 0 {
        save_checkpoint(&engine, &store, None, Some(&loader), None).unwrap();
    } else {
        engine.write_state(None, None, None).unwrap();
    }
    curve
}

/// Each turn is a mesh that saves a checkpoint and one that goes on from it, as if nothing had been.
fn assert_goes_on(name: &str, plain: Plain<'_>, turns: &[(Shape, Shape)]) {
    let dir = tempfile::tempdir().unwrap();
    let whole = |group: &Rc<ProcessGroup>| {
        let config = of_shape((1, 1, 1, 0), &plain());
        let mut engine = Engine::new(named(name), Rc::clone(group), config).unwrap();
        let mut loader = loader(&engine, name, dir.path());
        steps(&mut engine, &mut loader, 4)
    };
    let expected = threads(1, whole).remove(0).split_off(2);
    for &(saved, resumed) in turns {
        let dir = tempfile::tempdir().unwrap();
        let run = |shape: Shape, saves| {
            threads(shape.0 * shape.1 * shape.2, |group| {
                checkpoint(group, (name, plain), shape, (dir.path(), saves))
            })
        };
        run(saved, true);
        for curve in run(resumed, false) {
            for (found, wanted) in curve.iter().zip(&expected) {
                let what = format!("{name} {saved:?} {resumed:?}");
                assert_relative(&what, found.0, wanted.0, 1e-5);
                assert_relative(&format!("{what} norm"), found.1, wanted.1, 1e-4);
            }
        }
    }
}

/// A checkpoint is by parameter: it goes from any mesh to any other.
#[test]
fn a_checkpoint_goes_from_any_mesh_to_any_other() {
    let _alone = alone();
    let turns = [
        ((2, 2, 1, 3), (1, 1, 1, 0)),
        ((1, 2, 1, 2), (4, 1, 1, 0)),
        ((4, 1, 1, 0), (2, 2, 1, 1)),
        ((2, 1, 1, 0), (1, 2, 1, 3)),
        ((1, 1, 1, 0), (1, 1, 2, 0)),
        ((2, 1, 2, 0), (1, 2, 1, 1)),
        ((1, 2, 2, 3), (2, 1, 2, 0)),
    ];
    assert_goes_on("gpt2", &|| config(1, 1), &turns);
}

/// So do frozen parameters, of which each rank reads its part: rows of the vocabulary, columns of a block, the
/// table of T5's biases.
#[test]
fn frozen_parameters_go_from_any_mesh_to_any_other() {
    let _alone = alone();
    let turns =
        [((1, 1, 2, 0), (1, 1, 2, 0)), ((1, 1, 1, 0), (1, 2, 2, 3)), ((2, 1, 2, 0), (1, 1, 1, 0))];
    for (name, patterns) in [
        ("gpt2", &["*wte*", "*.h.0.*"][..]),
        ("t5-v10", &["shared*", "*relative_attention_bias*"][..]),
    ] {
        let freeze = || patterns.iter().map(|text| Pattern::new(text).unwrap()).collect();
        let frozen = || EngineConfig {
            trainable: TrainableConfig { freeze: freeze(), ..TrainableConfig::default() },
            ..config(1, 1)
        };
        assert_goes_on(name, &frozen, &turns);
    }
}
