//! bf16 and fp16 against values that PyTorch computed (tests/golden/README.md), and what happens
//! when numbers are not finite.

use std::rc::Rc;

use dsr::{
    checkpoint::Store,
    config::{
        Dtype, DynamicLossScale, EngineConfig, LossScale, OptimizerConfig, PrecisionConfig,
        optimizer::{Algorithm, LambConfig},
    },
    data::{DataSource, Dataset, Loader, LoaderOptions, OpenOptions},
    dist::ProcessGroup,
    engine::{Engine, StepOutcome},
    error::{Code, Error},
    fs::Place,
    model::{FlatUnit, Model, ModelConfig},
    run::{load_checkpoint, save_checkpoint},
    tensor::{Device, Kind, Tensor},
};
use serde_json::Value;

use crate::support::{
    alone,
    files::golden,
    numbers::{assert_relative, floats},
    stages::bf16_weights,
    tiny::{config, flat, init_engine, loader, model},
};

fn with_precision(precision: PrecisionConfig) -> EngineConfig {
    EngineConfig { precision, ..config(2, 4) }
}

/// fp16 whose scale starts at two to the power of `initial_scale_power`, as in the golden runs.
fn fp16(initial_scale_power: u32) -> PrecisionConfig {
    let scale = DynamicLossScale {
        initial_scale_power,
        loss_scale_window: 8,
        ..DynamicLossScale::default()
    };
    PrecisionConfig {
        grad_accum_dtype: Dtype::Fp16,
        loss_scale: LossScale::Dynamic(scale),
        ..PrecisionConfig::new(Dtype::Fp16)
    }
}

fn steps(
    engine: &mut Engine,
    loader: &mut Loader,
    count: usize,
) -> Result<Vec<StepOutcome>, Error> {
    let mut outcomes = Vec::new();
    while outcomes.len() < count {
        let batch = loader.next_batch()?.unwrap();
        let loss = engine.forward(&batch)?;
        engine.backward(&loss)?;
        if engine.step()? {
            outcomes.push(engine.last_step().unwrap());
        }
    }
    Ok(outcomes)
}

/// Thirty steps have PyTorch's losses (2e-3: 16-bit kernels round differently), and exactly its
/// loss scales and skipped steps.
#[test]
fn thirty_steps_in_16_bits_have_pytorchs_losses_scales_and_skips() {
    let _alone = alone();
    let bf16 = PrecisionConfig::new(Dtype::Bf16);
    let cases = [
        ("bf16-accfp32", bf16),
        ("bf16-accbf16", PrecisionConfig { grad_accum_dtype: Dtype::Bf16, ..bf16 }),
        ("fp16", fp16(16)),
        ("fp16-scale32", fp16(32)),
    ];
    for (name, precision) in cases {
        let text = std::fs::read_to_string(golden(&format!("gpt2-tiny-v512.{name}.json"))).unwrap();
        let expected: Value = serde_json::from_str(&text).unwrap();
        let mut engine = init_engine(model(0.0), with_precision(precision));
        let outcomes = steps(&mut engine, &mut loader(2), 30).unwrap();
        let losses = floats(&expected["losses"]);
        for (i, outcome) in outcomes.iter().enumerate() {
            assert_relative(&format!("{name}: loss {i}"), outcome.loss, losses[i], 2e-3);
        }
        let skipped: Vec<Value> =
            outcomes.iter().map(|outcome| outcome.skipped.is_some().into()).collect();
        assert_eq!(skipped, *expected["skipped"].as_array().unwrap(), "{name}");
        let scales: Vec<_> = outcomes.iter().map(|o| o.loss_scale.unwrap_or(1.0)).collect();
        assert_eq!(scales, floats(&expected["loss_scales"]), "{name}");
    }
}

/// With gradients accumulated in float32, the default, fp16 stays as near.
#[test]
fn fp16_with_float32_accumulation_has_pytorchs_losses() {
    let _alone = alone();
    let text = std::fs::read_to_string(golden("gpt2-tiny-v512.fp32.json")).unwrap();
    let expected: Value = serde_json::from_str(&text).unwrap();
    for loss_scale in [LossScale::Static(1024.0), LossScale::Dynamic(DynamicLossScale::default())] {
        let precision = PrecisionConfig { loss_scale, ..PrecisionConfig::new(Dtype::Fp16) };
        let mut engine = init_engine(model(0.0), with_precision(precision));
        for (i, outcome) in steps(&mut engine, &mut loader(2), 10).unwrap().iter().enumerate() {
            let (loss, norm) = (floats(&expected["losses"])[i], floats(&expected["grad_norms"])[i]);
            assert_relative(&format!("{loss_scale:?}: loss {i}"), outcome.loss, loss, 2e-3);
            assert_relative(&format!("{loss_scale:?}: norm {i}"), outcome.grad_norm, norm, 1e-2);
        }
    }
}

#[test]
fn a_skipped_step_changes_nothing_but_the_count() {
    let _alone = alone();
    let mut engine = init_engine(model(0.0), with_precision(fp16(32)));
    let mut loader = loader(2);
    let (before, lr) = (flat(engine.model()), engine.lr().unwrap());
    let outcome = steps(&mut engine, &mut loader, 1).unwrap()[0];
    assert!(outcome.skipped.is_some() && !outcome.grad_norm.is_finite());
    assert_eq!((engine.global_step(), engine.skipped_steps()), (1, 1));
    assert_eq!(engine.lr().unwrap(), lr);
    assert_eq!(before, flat(engine.model()));
    let dir = tempfile::tempdir().unwrap();
    engine.write_state(Some(&Place::unguarded(dir.path())), None, None).unwrap();
    let state: Value =
        serde_json::from_str(&std::fs::read_to_string(dir.path().join("state.json")).unwrap())
            .unwrap();
    assert_eq!(state["applied_steps"], 0);
}

/// The overflow at the lowest scale names the parameter and keeps the rows.
#[test]
fn an_overflow_at_the_lowest_scale_stops_with_all_that_is_known() {
    let _alone = alone();
    let mut precision = fp16(32);
    let LossScale::Dynamic(scale) = &mut precision.loss_scale else { unreachable!() };
    scale.min_loss_scale = 2f64.powi(32);
    let mut engine = init_engine(model(0.0), with_precision(precision));
    let mut loader = loader(2);
    let dir = tempfile::tempdir().unwrap();
    engine.save_bad_batches(Place::unguarded(dir.path()));
    let before = flat(engine.model());
    // The first is waited for: hysteresis is 2.
    let e = steps(&mut engine, &mut loader, 2).unwrap_err();
    assert_eq!(e.code(), Code::Diverged);
    assert_eq!(
        e.message(),
        "a gradient is not finite, with the loss scale at its minimum, 4294967296, at step 2"
    );
    let hints = e.hints().join("\n");
    assert!(hints.contains("is the gradient of transformer."), "{hints}");
    assert!(hints.contains("the last losses: 6.26"), "{hints}");
    assert!(hints.contains("rows 8..10 of epoch 0; rows 10..12 of epoch 0"), "{hints}");
    assert_eq!(before, flat(engine.model()));
    let path = dir.path().join("bad-batch-step-2.arrow");
    let rows =
        Dataset::open(DataSource::unguarded(path.to_str().unwrap()), &OpenOptions::default())
            .unwrap();
    let options = LoaderOptions { micro_batch_size: 8, ..LoaderOptions::default() };
    let rows = rows.loader(options).unwrap().next_batch().unwrap().unwrap().rows().unwrap();
    let numbers: Vec<_> = rows.iter().map(|row| row["row"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (8..16).collect::<Vec<_>>());
}

/// Of the micro batches of a step, the rows of the one with the bad loss are kept.
#[test]
fn a_loss_that_is_not_finite_keeps_the_rows_of_its_micro_batch() {
    let _alone = alone();
    let mut engine = init_engine(model(0.0), with_precision(PrecisionConfig::new(Dtype::Bf16)));
    let mut loader = loader(2);
    for micro_step in 0..4 {
        let batch = loader.next_batch().unwrap().unwrap();
        let wpe = engine.model().named_params().nth(1).unwrap().1.detach();
        let keep = wpe.copy();
        if micro_step == 2 {
            let _ = wpe.get(0).fill_(f64::NAN);
        }
        let loss = engine.forward(&batch).unwrap();
        wpe.shallow_clone().copy_(&keep);
        engine.backward(&loss).unwrap();
    }
    let e = engine.step().unwrap_err();
    assert_eq!(e.message(), "the loss is NaN at step 1");
    assert!(
        e.hints().iter().any(|hint| hint == "the batch: rows 4..6 of epoch 0"),
        "{:?}",
        e.hints()
    );
}

/// Weights, averages and the loss scale go on to the bit.
#[test]
fn a_resumed_run_in_16_bits_goes_on_to_the_bit() {
    let _alone = alone();
    for precision in [fp16(18), bf16_weights()] {
        let start = || (init_engine(model(0.1), with_precision(precision)), loader(2));
        let (mut engine, mut data) = start();
        let mut whole = steps(&mut engine, &mut data, 6).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(Place::unguarded(dir.path()));
        save_checkpoint(&engine, &store, None, Some(&data), None).unwrap();
        let rest = steps(&mut engine, &mut data, 6).unwrap();
        whole.extend(&rest);
        let overflows = whole.iter().any(|outcome| outcome.skipped.is_some());
        assert_eq!(overflows, precision.dtype == Dtype::Fp16, "fp16 needs an overflow");
        let (mut resumed, mut data) = start();
        load_checkpoint(&mut resumed, Some(&mut data), store.latest().unwrap()).unwrap();
        assert_eq!(steps(&mut resumed, &mut data, 6).unwrap(), rest);
        assert_eq!(flat(resumed.model()), flat(engine.model()));
        assert_eq!(resumed.skipped_steps(), engine.skipped_steps());
    }
}

/// Steps that rounding to the nearest would lose move the weights as those of float32 master weights do:
/// the changes of all weights agree with those of float32, of which they are an unbiased rounding.
#[test]
fn weights_without_masters_take_steps_smaller_than_their_format() {
    let _alone = alone();
    let moved = |precision| {
        let mut few = with_precision(precision);
        few.optimizer.lr = 1e-6;
        let mut engine = init_engine(model(0.0), few);
        let before = flat(engine.model()).to_kind(Kind::Double);
        steps(&mut engine, &mut loader(2), 20).unwrap();
        flat(engine.model()).to_kind(Kind::Double) - before
    };
    let (stochastic, exact) = (moved(bf16_weights()), moved(PrecisionConfig::new(Dtype::Fp32)));
    let nearest = moved(PrecisionConfig::new(Dtype::Bf16));
    // The part of the way of float32 that the weights have come.
    let share = |found: &Tensor| {
        (found * &exact).sum(Kind::Double).double_value(&[])
            / (&exact * &exact).sum(Kind::Double).double_value(&[])
    };
    let (stochastic, nearest) = (share(&stochastic), share(&nearest));
    assert!((stochastic - 1.0).abs() < 0.1, "{stochastic} of the way, nearest {nearest}");
}

/// What is kept of a weight: two bytes, without the float32 copy.
#[test]
fn weights_without_masters_take_two_bytes_and_are_refused_where_they_cannot_be() {
    let _alone = alone();
    let mut engine = init_engine(model(0.0), with_precision(bf16_weights()));
    steps(&mut engine, &mut loader(2), 1).unwrap();
    let used = engine.memory();
    assert_eq!(used.master_weights, 0);
    let numel: i64 = engine.model().units().iter().map(FlatUnit::padded_numel).sum();
    assert_eq!(used.parameters, 2 * numel as u64);
    let lamb = OptimizerConfig::new(Algorithm::Lamb(LambConfig::default()), 1e-3);
    let config = EngineConfig { optimizer: lamb, ..with_precision(bf16_weights()) };
    let group = Rc::new(ProcessGroup::single(Device::Cpu).unwrap());
    let e = Engine::new(model(0.0), group, config).err().unwrap();
    assert_eq!(e.option_path(), Some("precision.master_weights"));
}

/// A checkpoint holds float32, whatever the run computed in, and another precision goes on with it.
#[test]
fn a_checkpoint_does_not_depend_on_the_precision() {
    let _alone = alone();
    let (mut engine, mut data) =
        (init_engine(model(0.0), with_precision(PrecisionConfig::new(Dtype::Bf16))), loader(2));
    steps(&mut engine, &mut data, 3).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(Place::unguarded(dir.path()));
    let checkpoint = save_checkpoint(&engine, &store, None, Some(&data), None).unwrap();
    let next = steps(&mut engine, &mut data, 1).unwrap()[0].loss;
    for precision in [PrecisionConfig::new(Dtype::Fp32), fp16(10)] {
        let (mut other, mut data) = (init_engine(model(0.0), with_precision(precision)), loader(2));
        load_checkpoint(&mut other, Some(&mut data), Place::unguarded(&checkpoint)).unwrap();
        let loss = steps(&mut other, &mut data, 1).unwrap()[0].loss;
        assert_relative("the loss after the checkpoint", loss, next, 2e-3);
    }
    // It loads as a model whose weights are the masters, which bf16 would have rounded.
    let loaded = Model::load(
        Place::unguarded(&checkpoint),
        &ModelConfig::read(Place::unguarded(&checkpoint)).unwrap(),
        Device::Cpu,
    );
    let loaded = flat(&loaded.unwrap());
    let rounded = loaded.to_kind(Kind::BFloat16).to_kind(Kind::Float);
    assert_ne!(loaded, rounded);
}

/// A trained model's own parameters have the format of its precision, in an export too.
#[test]
fn an_export_has_the_models_format() {
    let _alone = alone();
    let model: Rc<Model> = model(0.0);
    let engine = init_engine(model.clone(), with_precision(PrecisionConfig::new(Dtype::Bf16)));
    assert_eq!(model.units()[0].params()[0].kind(), Kind::BFloat16);
    let dir = tempfile::tempdir().unwrap();
    engine.model().export_hf(Place::unguarded(dir.path().join("out")), None).unwrap();
    let config = std::fs::read_to_string(dir.path().join("out/config.json")).unwrap();
    assert!(config.contains("\"dtype\": \"bfloat16\""), "{config}");
    let back = Model::load(
        Place::unguarded(dir.path().join("out")),
        &ModelConfig::read(Place::unguarded(dir.path().join("out"))).unwrap(),
        Device::Cpu,
    );
    assert_eq!(flat(&back.unwrap()), flat(&model).to_kind(Kind::Float));
}
