//! The exponential moving average of the weights: by its formula, wherever its parts are kept.

use std::{collections::BTreeMap, fs, path::Path, rc::Rc};

use dsr::{
    checkpoint::Store,
    config::{
        Dtype, EmaConfig, EngineConfig, MeshConfig, OffloadDevice, PipelineOptions,
        PrecisionConfig, TensorParallelOptions, ZeroConfig, options::Switch,
    },
    data::{Batch, LoaderOptions},
    dist::ProcessGroup,
    engine::Engine,
    fs::Place,
    run::{load_checkpoint, save_checkpoint},
    tensor::{Device, Kind, Tensor},
};

use crate::support::{
    alone,
    ranks::threads,
    stages::{GLOBAL_BATCH, train, zero},
    tiny::{config, flat, init_engine, model, rows},
};

const DECAY: f64 = 0.75;
const STEPS: u64 = 3;

/// Tensors of a file by name.
type Tensors = BTreeMap<String, Tensor>;

fn with_ema(world_size: usize) -> EngineConfig {
    let ema = EmaConfig { decay: DECAY, update_after_step: 0, warmup: Switch(None) };
    EngineConfig { ema: Some(ema), ..config(GLOBAL_BATCH / world_size, 1) }
}

fn single() -> Rc<ProcessGroup> {
    Rc::new(ProcessGroup::single(Device::Cpu).unwrap())
}

fn tensors(file: &Path) -> Tensors {
    Tensor::read_safetensors(file).unwrap().into_iter().collect()
}

/// Saves a checkpoint of all ranks.
fn save(engine: &Engine, dir: &Path) {
    match engine.group().rank() {
        0 => drop(
            save_checkpoint(engine, &Store::open(Place::unguarded(dir)), None, None, None).unwrap(),
        ),
        _ => engine.write_state(None, None, None).unwrap(),
    }
    engine.group().barrier().unwrap();
}

/// Makes one more step, and saves it.
fn step(engine: &mut Engine, dir: &Path) {
    train(engine, engine.global_step() * GLOBAL_BATCH as u64, 1);
    save(engine, dir);
}

/// Evaluates this rank's part of the rows.
fn evaluate(engine: &Engine) -> f64 {
    let (group, micro_batch_size) = (engine.group(), engine.config().micro_batch_size);
    let (rank, world_size) = (group.rank(), group.world_size());
    let options = LoaderOptions { micro_batch_size, rank, world_size, ..LoaderOptions::default() };
    let batches = rows().pack(16).unwrap().take(24).unwrap().loader(options).unwrap();
    engine.evaluate(batches, &|| false).unwrap().unwrap().loss
}

/// The file of the newest checkpoint in `dir`.
fn newest(dir: &Path, file: &str) -> Tensors {
    tensors(Store::open(Place::unguarded(dir)).latest().unwrap().join(file).path())
}

/// Trains with a checkpoint after each step, whose master weights say what the average must be;
/// returns the losses with it and without it.
fn averaged(group: &Rc<ProcessGroup>, config: EngineConfig, dir: &Path) -> (f64, f64) {
    let mut engine = Engine::new(model(0.0), Rc::clone(group), config).unwrap();
    let mut expected = Tensors::new();
    for _ in 0..STEPS {
        step(&mut engine, dir);
        for (name, weights) in newest(dir, "model.safetensors") {
            let weights = weights.to_kind(Kind::Double);
            let average = match expected.get(&name) {
                Some(average) => average * DECAY + weights * (1.0 - DECAY),
                None => weights,
            };
            expected.insert(name, average);
        }
    }
    let found = newest(dir, "ema.safetensors");
    assert_eq!(found.len(), expected.len());
    for (name, average) in &found {
        // Float32 keeps 24 bits of weights of at most 2, in each of the steps.
        let difference = (average - &expected[name]).abs().max().double_value(&[]);
        assert!(difference <= 5e-7, "{name}: {difference}");
    }
    let trained = evaluate(&engine);
    engine.begin_ema().unwrap();
    let loss = evaluate(&engine);
    // The checkpoint is that of the training, and the weights are what they were.
    let whole = |file: &str| {
        fs::read(Store::open(Place::unguarded(dir)).latest().unwrap().join(file).path()).unwrap()
    };
    let files = ["model.safetensors", "ema.safetensors", "optimizer.safetensors"];
    let before = files.map(whole);
    save(&engine, dir);
    assert!(before == files.map(whole), "another checkpoint");
    engine.end_ema().unwrap();
    assert_eq!(evaluate(&engine), trained);
    assert!(loss != trained);
    (loss, trained)
}

/// In every format, and where the states are in files.
#[test]
fn the_average_is_that_of_the_master_weights() {
    let _alone = alone();
    let swap = tempfile::tempdir().unwrap();
    let nvme = ZeroConfig {
        offload_optimizer: OffloadDevice::Nvme.into(),
        nvme_path: Some(swap.path().to_path_buf()),
        ..zero(2, false)
    };
    for dtype in [Dtype::Fp32, Dtype::Bf16, Dtype::Fp16] {
        let losses = [ZeroConfig::default(), nvme.clone()].map(|zero| {
            let dir = tempfile::tempdir().unwrap();
            let precision = PrecisionConfig::new(dtype);
            averaged(&single(), EngineConfig { precision, zero, ..with_ema(1) }, dir.path())
        });
        assert_eq!(losses[0], losses[1], "{dtype:?}: the place of the states makes a difference");
    }
}

/// To the bit, as the stages are on two ranks, in float32 and in bfloat16.
#[test]
fn the_stages_have_the_same_average() {
    let _alone = alone();
    for dtype in [Dtype::Fp32, Dtype::Bf16] {
        let of_stage = |stage: u8| {
            let dir = tempfile::tempdir().unwrap();
            let losses = threads(2, |group| {
                let precision = PrecisionConfig::new(dtype);
                let config = EngineConfig { precision, zero: zero(stage, true), ..with_ema(2) };
                averaged(group, config, dir.path())
            });
            assert_eq!(losses[0], losses[1]);
            losses[0]
        };
        let expected = of_stage(0);
        (1..=3).for_each(|stage| assert_eq!(of_stage(stage), expected, "{dtype:?}, stage {stage}"));
    }
}

/// The model has the averages themselves while they are in use.
#[test]
fn a_model_in_float32_has_the_averages() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let mut engine = init_engine(model(0.0), with_ema(1));
    step(&mut engine, dir.path());
    step(&mut engine, dir.path());
    let weights = flat(engine.model());
    let averages = newest(dir.path(), "ema.safetensors");
    engine.begin_ema().unwrap();
    for (name, param) in engine.model().named_params() {
        assert_eq!(*param, averages[name], "{name}");
    }
    engine.end_ema().unwrap();
    assert_eq!(flat(engine.model()), weights);
}

/// From `saved` ranks and stage to others: to the bit where they are the same, else to the 1e-5 that the
/// order of sums makes.
#[test]
fn a_checkpoint_goes_on_with_its_average() {
    let _alone = alone();
    let ways = [((1, 0), (1, 0)), ((2, 2), (2, 2)), ((2, 3), (1, 0)), ((1, 1), (2, 3))];
    for (saved, resumed) in ways {
        let run = |(ranks, stage): (usize, u8), from: Option<&Path>, steps: u64| {
            let dir = tempfile::tempdir().unwrap();
            threads(ranks, |group| {
                let config = EngineConfig { zero: zero(stage, false), ..with_ema(ranks) };
                let mut engine = Engine::new(model(0.0), Rc::clone(group), config).unwrap();
                if let Some(from) = from {
                    let latest = Store::open(Place::unguarded(from)).latest().unwrap();
                    assert_eq!(load_checkpoint(&mut engine, None, latest).unwrap(), [""; 0]);
                }
                (0..steps).for_each(|_| step(&mut engine, dir.path()));
            });
            dir
        };
        let first = run(saved, None, 2);
        let (second, whole) = (run(resumed, Some(first.path()), 2), run(saved, None, 4));
        let [found, expected] = [&second, &whole].map(|dir| newest(dir.path(), "ema.safetensors"));
        for (name, average) in &found {
            let difference = (average - &expected[name]).abs().max().double_value(&[]);
            let most = if saved == resumed { 0.0 } else { 1e-5 };
            assert!(difference <= most, "{saved:?} {resumed:?} {name}: {difference}");
        }
    }
}

/// Two stages, and two ranks of each layer, have the average of one rank, to the 1e-5 that the order
/// of sums makes.
#[test]
fn a_mesh_has_the_average_of_one_rank() {
    let _alone = alone();
    let of_mesh = |stages: usize, autotp_size: usize| {
        let dir = tempfile::tempdir().unwrap();
        threads(stages * autotp_size, |group| {
            let pipeline = PipelineOptions { stages, ..PipelineOptions::default() };
            let tensor_parallel =
                TensorParallelOptions { autotp_size, ..TensorParallelOptions::default() };
            let mesh = MeshConfig { pipeline, tensor_parallel };
            let (micro_batch_size, gradient_accumulation_steps) = (2, 2);
            let config =
                EngineConfig { mesh, micro_batch_size, gradient_accumulation_steps, ..with_ema(1) };
            let mut engine = Engine::new(model(0.0), Rc::clone(group), config).unwrap();
            let epochs = None;
            let options = LoaderOptions { micro_batch_size, epochs, ..LoaderOptions::default() };
            let mut loader = rows().pack(16).unwrap().loader(options).unwrap();
            let mut next = || Ok(loader.next_batch()?.map(Rc::new));
            for _ in 0..STEPS {
                engine.train_batch::<Rc<Batch>>(&mut next, &mut ()).unwrap().unwrap();
            }
            save(&engine, dir.path());
        });
        newest(dir.path(), "ema.safetensors")
    };
    let expected = of_mesh(1, 1);
    for (stages, ranks) in [(2, 1), (1, 2)] {
        let found = of_mesh(stages, ranks);
        assert_eq!(found.len(), expected.len());
        for (name, average) in &found {
            let difference = (average - &expected[name]).abs().max().double_value(&[]);
            assert!(difference <= 1e-5, "{stages} stages, {ranks} ranks: {name}: {difference}");
        }
    }
}

/// An engine that keeps no average goes on from a checkpoint that has one, and the reverse; both are told.
/// The new average begins with the checkpoint's weights.
#[test]
fn a_checkpoint_with_another_average_is_told() {
    let _alone = alone();
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let configs = [with_ema(1), EngineConfig { ema: None, ..with_ema(1) }];
    for (config, dir) in configs.iter().zip(&dirs) {
        step(&mut init_engine(model(0.0), config.clone()), dir.path());
    }
    let told = |config: &EngineConfig, dir: &tempfile::TempDir| {
        let mut engine = init_engine(model(0.0), config.clone());
        let latest = Store::open(Place::unguarded(dir.path())).latest().unwrap();
        let warnings = load_checkpoint(&mut engine, None, latest).unwrap();
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        (engine, warnings[0].clone())
    };
    let (mut engine, warning) = told(&configs[0], &dirs[1]);
    assert!(
        warning.starts_with("warning: the checkpoint has no average of the weights"),
        "{warning}"
    );
    let weights = flat(engine.model());
    engine.begin_ema().unwrap();
    assert_eq!(flat(engine.model()), weights);
    let (_, warning) = told(&configs[1], &dirs[0]);
    assert!(
        warning.starts_with("warning: the checkpoint has an average of the weights"),
        "{warning}"
    );
}
