//! The engine against values that PyTorch and transformers computed (tests/golden/README.md), and
//! against itself.

use std::rc::Rc;

use dsr::{
    checkpoint::Store,
    config::{
        ActivationCheckpointing, EngineConfig, LossAverage, Schedule,
        schedule::{Cosine, HuggingFaceSchedule, LrFunction},
    },
    data::{DataSource, Dataset, LoaderOptions, OpenOptions},
    dist::ProcessGroup,
    engine::Engine,
    error::Code,
    fs::Place,
    model::{Masks, Model, ModelConfig},
    run::{load_checkpoint, save_checkpoint},
    tensor::{Device, Kind},
};
use serde_json::Value;

use crate::support::{
    alone,
    files::golden,
    numbers::{assert_relative, floats},
    tiny::{adamw, config, flat, gpt2, init_engine, loader, model, one_cycle, rows, train},
};

fn expected() -> Value {
    let text = std::fs::read_to_string(golden("gpt2-tiny-v512.fp32.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// However the global batch of eight rows is cut, thirty steps have PyTorch's losses (2e-5),
/// gradient norms (2e-4) and parameter sums (2e-4 of the sum of absolute values): float32 on two
/// machines with different kernels.
#[test]
fn thirty_steps_have_pytorchs_losses_however_the_batch_is_cut() {
    let _alone = alone();
    let expected = expected();
    for (micro, accum) in [(8, 1), (4, 2), (2, 4), (1, 8)] {
        let mut engine = init_engine(model(0.0), config(micro, accum));
        let mut loader = loader(micro);
        let mut outcomes = Vec::new();
        for step in 1..=30 {
            outcomes.extend(train(&mut engine, &mut loader, 1));
            if let Some(sums) = expected.get(format!("param_sums_after_{step}")) {
                check_sums(engine.model(), sums, step);
            }
        }
        let losses = floats(&expected["losses"]);
        let norms = floats(&expected["grad_norms"]);
        for (i, (loss, norm)) in outcomes.iter().enumerate() {
            assert_relative(&format!("{micro}x{accum}: loss {i}"), *loss, losses[i], 2e-5);
            assert_relative(&format!("{micro}x{accum}: norm {i}"), *norm, norms[i], 2e-4);
        }
    }
}

fn check_sums(model: &Model, sums: &Value, step: usize) {
    for (name, param) in model.named_params() {
        let [sum, abs_sum] = floats(&sums[name])[..] else { panic!("{name} has two sums") };
        let found = param.sum(Kind::Double).double_value(&[]);
        let off = (found - sum).abs() / abs_sum;
        assert!(off <= 2e-4, "step {step}, {name}: {found} is not {sum}");
    }
}

/// On a GPU the same thirty steps: its kernels sum in another order, hence 2e-4 and 2e-3.
#[test]
fn thirty_steps_on_a_gpu_have_pytorchs_losses() {
    let _alone = alone();
    if !dsr::tensor::cuda_is_available() {
        return println!("skipped: libtorch sees no CUDA device here");
    }
    let device = Device::Cuda(0);
    let dir = golden("gpt2-tiny-v512");
    let model = Model::load(
        Place::unguarded(&dir),
        &ModelConfig::read(Place::unguarded(&dir)).unwrap(),
        device,
    )
    .unwrap();
    let group = Rc::new(ProcessGroup::single(device).unwrap());
    let mut engine = Engine::new(Rc::new(model), group, config(2, 4)).unwrap();
    let options =
        LoaderOptions { micro_batch_size: 2, epochs: None, device, ..LoaderOptions::default() };
    let outcomes = train(&mut engine, &mut rows().loader(options).unwrap(), 30);
    let expected = expected();
    let (losses, norms) = (floats(&expected["losses"]), floats(&expected["grad_norms"]));
    for (i, (loss, norm)) in outcomes.iter().enumerate() {
        assert_relative(&format!("loss {i}"), *loss, losses[i], 2e-4);
        assert_relative(&format!("norm {i}"), *norm, norms[i], 2e-3);
    }
}

/// transformers' logits of the first two rows: mean and absolute mean, float32.
#[test]
fn logits_are_those_of_transformers() {
    let _alone = alone();
    let expected = &expected()["logits_first_micro"];
    let batch = loader(2).next_batch().unwrap().unwrap();
    let logits = model(0.0).logits(batch.input_ids(), &Masks::default()).unwrap();
    let shape: Vec<i64> =
        expected["shape"].as_array().unwrap().iter().map(|n| n.as_i64().unwrap()).collect();
    assert_eq!(logits.size(), shape);
    let mean = logits.mean(Kind::Double).double_value(&[]);
    let scale = logits.abs().mean(Kind::Double).double_value(&[]);
    let off = (mean - expected["mean"].as_f64().unwrap()).abs() / scale;
    assert!(off < 1e-6, "{off}");
}

#[test]
fn an_exported_model_is_the_same_to_the_bit() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("export");
    let original = model(0.0);
    original.export_hf(Place::unguarded(&target), None).unwrap();
    let again = Model::load(
        Place::unguarded(&target),
        &ModelConfig::read(Place::unguarded(&target)).unwrap(),
        Device::Cpu,
    )
    .unwrap();
    assert!(flat(&original).equal(&flat(&again)));
    let batch = loader(2).next_batch().unwrap().unwrap();
    let logits = |m: &Model| m.logits(batch.input_ids(), &Masks::default()).unwrap();
    assert!(logits(&original).equal(&logits(&again)));
}

/// With dropout: a recomputed block draws the masks that it drew before.
#[test]
fn activation_checkpointing_changes_nothing() {
    let _alone = alone();
    let run = |activation_checkpointing| {
        let config = EngineConfig { activation_checkpointing, ..config(2, 2) };
        let mut engine = init_engine(model(0.1), config);
        let outcomes = train(&mut engine, &mut loader(2), 5);
        (outcomes, flat(engine.model()))
    };
    let kept = run(None);
    // Every block, every second one, and with the inputs in host memory.
    for (every, cpu_checkpointing) in [(1, false), (2, false), (1, true)] {
        let recomputed = run(Some(ActivationCheckpointing { every, cpu_checkpointing }));
        assert_eq!(kept.0, recomputed.0);
        assert!(kept.1.equal(&recomputed.1));
    }
}

#[test]
fn dropout_is_reproducible_by_its_seed() {
    let _alone = alone();
    let losses = |seed| {
        let mut engine = init_engine(model(0.1), EngineConfig { seed, ..config(2, 1) });
        train(&mut engine, &mut loader(2), 2)
    };
    assert_eq!(losses(1), losses(1));
    assert_ne!(losses(1), losses(2));
}

/// Twenty steps are ten, a checkpoint, another process's engine and ten more: data order,
/// dropout and schedule included.
#[test]
fn a_resumed_run_is_the_same_to_the_bit() {
    let _alone = alone();
    let scheduler = Schedule::HuggingFace(HuggingFaceSchedule::Cosine(Cosine {
        total_num_steps: 20,
        warmup_num_steps: 5,
        cos_min_ratio: 0.1,
        num_cycles: 0.5,
    }));
    let config = || EngineConfig { scheduler: scheduler.clone(), ..config(2, 2) };
    let shuffled = || {
        let options =
            LoaderOptions { micro_batch_size: 2, epochs: None, ..LoaderOptions::default() };
        rows().shuffle(7).unwrap().loader(options).unwrap()
    };
    let mut whole = init_engine(model(0.1), config());
    let straight = train(&mut whole, &mut shuffled(), 20);

    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(Place::unguarded(dir.path().join("checkpoints")));
    let (mut first, mut loader) = (init_engine(model(0.1), config()), shuffled());
    let mut outcomes = train(&mut first, &mut loader, 10);
    save_checkpoint(&first, &store, None, Some(&loader), None).unwrap();
    // What happens after the checkpoint leaves no trace in it.
    train(&mut first, &mut loader, 2);

    let (mut second, mut loader) = (init_engine(model(0.1), config()), shuffled());
    load_checkpoint(&mut second, Some(&mut loader), store.latest().unwrap()).unwrap();
    assert_eq!(second.global_step(), 10);
    outcomes.extend(train(&mut second, &mut loader, 10));
    assert_eq!(straight, outcomes);
    assert!(flat(whole.model()).equal(&flat(second.model())));
}

/// OneCycle's betas go to AdamW: cycled around a momentum that does not move, training is that with
/// these betas; the cycled one is another.
#[test]
fn one_cycle_sets_the_betas_of_adamw() {
    let _alone = alone();
    let run = |betas, momentum| {
        let plain = config(2, 1);
        let optimizer = adamw(betas);
        let scheduler = one_cycle(1e-3, momentum);
        let mut engine = init_engine(model(0.0), EngineConfig { optimizer, scheduler, ..plain });
        train(&mut engine, &mut loader(2), 4)
    };
    let still = run((0.5, 0.6), Some((0.8, 0.8)));
    assert_eq!(still, run((0.8, 0.99), None));
    assert_ne!(still, run((0.5, 0.6), Some((0.8, 0.9))));
}

#[test]
fn a_schedules_function_that_fails_leaves_the_step_to_be_done() {
    let _alone = alone();
    let good = Rc::new(std::cell::Cell::new(false));
    let asked = Rc::clone(&good);
    let rate = move |_| Ok(if asked.get() { 1e-3 } else { -1.0 });
    let scheduler = Schedule::Function(LrFunction::new(rate));
    let mut engine = init_engine(model(0.0), EngineConfig { scheduler, ..config(2, 1) });
    let loss = engine.forward(&loader(2).next_batch().unwrap().unwrap()).unwrap();
    engine.backward(&loss).unwrap();
    assert_eq!(engine.step().unwrap_err().code(), Code::BadValue);
    assert_eq!((engine.global_step(), engine.micro_step()), (0, 1));
    good.set(true);
    assert!(engine.step().unwrap());
    assert_eq!(engine.last_step().unwrap().lr, 1e-3);
}

#[test]
fn a_checkpoint_of_another_model_changes_nothing() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(Place::unguarded(dir.path()));
    let small = |n_layer| {
        let sizes = [("n_positions", 128), ("n_embd", 16), ("n_layer", n_layer), ("n_head", 2)];
        let sizes = sizes.into_iter().chain([("vocab_size", 512)]);
        let config = gpt2(sizes.map(|(key, size)| (key, size.into())));
        init_engine(
            Rc::new(Model::from_scratch(&config, 5, Device::Cpu).unwrap()),
            self::config(2, 1),
        )
    };
    save_checkpoint(&small(2), &store, None, None, None).unwrap();
    let mut other = small(1);
    let before = flat(other.model());
    let e = load_checkpoint(&mut other, None, store.latest().unwrap()).unwrap_err();
    assert_eq!(e.code(), Code::Checkpoint);
    assert!(e.message().contains("transformer.h.1.ln_1.weight is too much"), "{e}");
    assert!(before.equal(&flat(other.model())));
    let mut same = small(2);
    let e = load_checkpoint(&mut same, Some(&mut loader(2)), store.latest().unwrap()).unwrap_err();
    assert!(e.message().contains("holds no place in the data"), "{e}");
}

/// Padding is no target and, on the left, is not attended to: a row gives the same loss alone as
/// beside padding.
#[test]
fn padding_does_not_count() {
    let _alone = alone();
    let batch = |rows: &str| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.jsonl");
        std::fs::write(&path, rows).unwrap();
        let rows =
            Dataset::open(DataSource::unguarded(path.to_str().unwrap()), &OpenOptions::default())
                .unwrap();
        let options = LoaderOptions { micro_batch_size: 2, ..LoaderOptions::default() };
        rows.loader(options).unwrap().next_batch().unwrap().unwrap()
    };
    let loss = |rows: &str| {
        let mut engine = init_engine(model(0.0), config(2, 1));
        let loss = engine.forward(&batch(rows)).unwrap();
        engine.backward(&loss).unwrap();
        engine.step().unwrap();
        let last = engine.last_step().unwrap();
        (last.loss, last.grad_norm, last.tokens)
    };
    let alone = loss(r#"{"input_ids": [5, 6, 7, 8]}"#);
    let padded = loss(r#"{"input_ids": [5, 6, 7, 8, 0, 0], "attention_mask": [1, 1, 1, 1, 0, 0]}"#);
    assert_relative("loss", padded.0, alone.0, 1e-6);
    assert_relative("gradient norm", padded.1, alone.1, 1e-5);
    assert_eq!((alone.2, padded.2), (4, 4));
}

/// Eight rows of which some are padded, on either side, and one has no target, cut in every way and
/// recomputed or not: losses and parameters of five steps agree within 1e-5, float32 sums in another
/// order.
#[test]
fn padded_rows_train_alike_however_the_batch_is_cut() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.jsonl");
    let row = |r: usize| {
        let real = [16, 3, 9, 16, 1, 12, 7, 16][r];
        let ids: Vec<usize> = (0..16).map(|t| (r * 37 + t * 11) % 512).collect();
        let is_real = |t: usize| if r.is_multiple_of(2) { t < real } else { t >= 16 - real };
        let mask: Vec<u8> = (0..16).map(|t| is_real(t).into()).collect();
        serde_json::json!({ "input_ids": ids, "attention_mask": mask }).to_string()
    };
    std::fs::write(&path, (0..8).map(row).collect::<Vec<_>>().join("\n")).unwrap();
    let rows =
        Dataset::open(DataSource::unguarded(path.to_str().unwrap()), &OpenOptions::default())
            .unwrap();
    let run = |micro_batch_size, accum, every: Option<usize>| {
        let activation_checkpointing =
            every.map(|every| ActivationCheckpointing { every, cpu_checkpointing: false });
        let config = EngineConfig { activation_checkpointing, ..config(micro_batch_size, accum) };
        let mut engine = init_engine(model(0.0), config);
        let options = LoaderOptions { micro_batch_size, epochs: None, ..LoaderOptions::default() };
        let outcomes = train(&mut engine, &mut rows.loader(options).unwrap(), 5);
        (outcomes, flat(engine.model()))
    };
    let whole = run(8, 1, None);
    for (micro, accum, every) in [(4, 2, None), (2, 4, Some(1)), (1, 8, None)] {
        let cut = run(micro, accum, every);
        for ((loss, norm), (whole_loss, whole_norm)) in cut.0.iter().zip(&whole.0) {
            assert_relative(&format!("{micro}x{accum}: loss"), *loss, *whole_loss, 1e-5);
            assert_relative(&format!("{micro}x{accum}: norm"), *norm, *whole_norm, 1e-5);
        }
        let off = (&cut.1 - &whole.1).abs().max().double_value(&[]);
        let largest = whole.1.abs().max().double_value(&[]);
        // Adam divides by the size of a gradient, which makes the rounding of the smallest larger.
        assert!(off <= 5e-5 * largest, "{micro}x{accum}: parameters are off by {off}");
    }
}

/// Two micro batches of one row each, with three targets and with one: the mean over the four
/// targets, or DeepSpeed's mean of the two means.
#[test]
fn losses_are_averaged_over_tokens_or_over_micro_batches() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.jsonl");
    let rows = r#"{"input_ids": [5, 6, 7, 8], "labels": [5, 6, 7, 8]}
{"input_ids": [9, 3, 2, 1], "labels": [-100, 3, -100, -100]}"#;
    std::fs::write(&path, rows).unwrap();
    let rows =
        Dataset::open(DataSource::unguarded(path.to_str().unwrap()), &OpenOptions::default())
            .unwrap();
    let run = |loss_average| {
        let mut engine = init_engine(model(0.0), EngineConfig { loss_average, ..config(1, 2) });
        let mut micro_losses = Vec::new();
        for batch in rows.loader(LoaderOptions::default()).unwrap() {
            let loss = engine.forward(&batch.unwrap()).unwrap();
            engine.backward(&loss).unwrap();
            engine.step().unwrap();
            micro_losses.push(loss.double_value(&[]));
        }
        (engine.last_step().unwrap(), micro_losses)
    };
    let (tokens, means) = run(LossAverage::Tokens);
    let (micro_batches, _) = run(LossAverage::MicroBatches);
    assert_relative("tokens", tokens.loss, (3.0 * means[0] + means[1]) / 4.0, 1e-6);
    assert_relative("micro batches", micro_batches.loss, (means[0] + means[1]) / 2.0, 1e-6);
    assert!((tokens.grad_norm / micro_batches.grad_norm - 1.0).abs() > 1e-3);
    // Equal micro batches have no difference.
    let equal = |loss_average| {
        let mut engine = init_engine(model(0.0), EngineConfig { loss_average, ..config(2, 2) });
        train(&mut engine, &mut loader(2), 2)
    };
    let pairs = equal(LossAverage::Tokens).into_iter().zip(equal(LossAverage::MicroBatches));
    for ((loss, norm), (micro_loss, micro_norm)) in pairs {
        assert_relative("loss", micro_loss, loss, 1e-6);
        assert_relative("norm", micro_norm, norm, 1e-5);
    }
}

#[test]
fn calls_out_of_order_are_refused_and_do_no_harm() {
    let _alone = alone();
    let (mut engine, mut loader) = (init_engine(model(0.0), config(2, 2)), loader(2));
    assert_eq!(engine.step().unwrap_err().code(), Code::CallOrder);
    let batch = loader.next_batch().unwrap().unwrap();
    let old = engine.forward(&batch).unwrap();
    let loss = engine.forward(&batch).unwrap();
    assert_eq!(engine.backward(&old).unwrap_err().code(), Code::CallOrder, "an older loss");
    engine.backward(&loss).unwrap();
    assert_eq!(engine.backward(&loss).unwrap_err().code(), Code::CallOrder, "a second time");
    assert!(!engine.step().unwrap());
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(
        engine.write_state(Some(&Place::unguarded(dir.path())), None, None).unwrap_err().code(),
        Code::CallOrder
    );
    let loss = engine.forward(&batch).unwrap();
    engine.backward(&loss).unwrap();
    assert_eq!(engine.forward(&batch).unwrap_err().code(), Code::CallOrder, "step is due");
    assert!(engine.step().unwrap());
    assert_eq!(engine.global_step(), 1);
}

#[test]
fn a_loss_that_is_not_finite_leaves_the_parameters_as_they_were() {
    let _alone = alone();
    let (mut engine, mut loader) = (init_engine(model(0.0), config(2, 1)), loader(2));
    train(&mut engine, &mut loader, 1);
    let batch = loader.next_batch().unwrap().unwrap();
    let (_, first) = engine.model().named_params().next().unwrap();
    let id = batch.input_ids().int64_value(&[0, 0]);
    let _ = first.detach().get(id).fill_(f64::NAN);
    let before = flat(engine.model());
    let loss = engine.forward(&batch).unwrap();
    engine.backward(&loss).unwrap();
    let e = engine.step().unwrap_err();
    assert_eq!(e.code(), Code::Diverged);
    assert_eq!(e.message(), "the loss is NaN at step 2");
    assert!(before.isclose(&flat(engine.model()), 0.0, 0.0, true).all().int64_value(&[]) == 1);
    assert_eq!(engine.global_step(), 1);
}
