//! Parameters that are frozen.

use std::{path::Path, rc::Rc};

use dsr::{
    checkpoint::Store,
    config::{
        ActivationCheckpointing, Dtype, EngineConfig, PrecisionConfig, TrainableConfig,
        optimizer::ParamGroup,
    },
    dist::ProcessGroup,
    engine::{
        Engine,
        plan::{Setup, optimizer_state_bytes},
        trained,
    },
    fs::Place,
    model::{Model, ModelConfig},
    run::{load_checkpoint, save_checkpoint},
    tensor::{Device, Tensor},
};
use glob::Pattern;

use crate::support::{
    alone,
    files::golden,
    numbers::assert_relative,
    ranks::threads,
    stages::{GLOBAL_BATCH, train, zero},
    tiny::{config, model},
};

#[track_caller]
fn alike(found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    for (i, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        assert_relative(&format!("value {i}"), found, expected, tolerance);
    }
}

fn patterns(texts: &[&str]) -> Vec<Pattern> {
    texts.iter().map(|text| Pattern::new(text).unwrap()).collect()
}

/// Embeddings, one block and all biases.
const FROZEN: [&str; 4] = ["*wte*", "*wpe*", "*.h.0.*", "*.bias"];

fn freezing(texts: &[&str], config: EngineConfig) -> EngineConfig {
    let trainable = TrainableConfig { freeze: patterns(texts), ..TrainableConfig::default() };
    EngineConfig { trainable, ..config }
}

fn single() -> Rc<ProcessGroup> {
    Rc::new(ProcessGroup::single(Device::Cpu).unwrap())
}

fn param(model: &Model, name: &str) -> Tensor {
    model.make_whole().unwrap();
    let found = model.named_params().find(|(known, _)| *known == name).unwrap();
    found.1.detach().copy()
}

const OF_FROZEN: [&str; 2] = ["transformer.wte.weight", "transformer.h.2.attn.c_attn.bias"];
const OF_TRAINED: &str = "transformer.h.2.attn.c_attn.weight";

/// A frozen parameter is one whose learning rate is 0, without its part of the norm.
#[test]
fn frozen_parameters_stay_and_the_others_learn_as_they_would() {
    let _alone = alone();
    let plain = EngineConfig { gradient_clipping: None, ..config(4, 2) };
    let mut slow = plain.clone();
    slow.optimizer.groups =
        vec![ParamGroup { params: patterns(&FROZEN), lr: Some(0.0), weight_decay: None }];
    let mut expected = Engine::new(model(0.0), single(), slow).unwrap();
    let losses = |curve: Vec<(f64, f64)>| curve.into_iter().map(|(loss, _)| loss);
    let expected_losses: Vec<_> = losses(train(&mut expected, 0, 3)).collect();
    for every in [None, Some(1)] {
        let activation_checkpointing =
            every.map(|every| ActivationCheckpointing { every, cpu_checkpointing: false });
        let config = EngineConfig { activation_checkpointing, ..freezing(&FROZEN, plain.clone()) };
        let mut engine = Engine::new(model(0.0), single(), config).unwrap();
        let found: Vec<_> = losses(train(&mut engine, 0, 3)).collect();
        alike(&found, &expected_losses, 1e-6);
        let before = model(0.0);
        for name in OF_FROZEN {
            assert!(param(engine.model(), name).equal(&param(&before, name)), "{name}");
        }
        let [found, expected] = [engine.model(), expected.model()].map(|m| param(m, OF_TRAINED));
        assert!(!expected.equal(&param(&before, OF_TRAINED)));
        assert!(found.allclose(&expected, 1e-5, 1e-7, false));
    }
}

/// Gradients, masters and averages exist for what is trained alone, and nothing is kept of the layers
/// below.
#[test]
fn what_is_frozen_takes_its_parameters_memory_alone() {
    let _alone = alone();
    let memory = |config: EngineConfig| {
        let precision = PrecisionConfig::new(Dtype::Bf16);
        let mut engine =
            Engine::new(model(0.0), single(), EngineConfig { precision, ..config }).unwrap();
        train(&mut engine, 0, 1);
        (engine.model().num_trainable_params(), engine.memory())
    };
    let (all, whole) = memory(config(GLOBAL_BATCH, 1));
    let below = ["*wte*", "*wpe*", "*.h.0.*", "*.h.1.*", "*.h.2.*"];
    let (some, part) = memory(freezing(&below, config(GLOBAL_BATCH, 1)));
    let block = 12 * 128 * 128 + 13 * 128;
    assert_eq!((all - some, some), (all - block - 2 * 128, block + 2 * 128));
    assert_eq!(part.parameters, whole.parameters);
    // Each of the block's four matrices begins at a multiple of 256 elements.
    let is_padded = |bytes: u64, each: u64| (each * some..each * (some + 4 * 256)).contains(&bytes);
    assert!(is_padded(part.master_weights, 4), "{part:?}");
    assert!(is_padded(part.optimizer_state, 8), "{part:?}");
    assert!(2 * part.peak() < whole.peak());
    let config = freezing(&below, config(GLOBAL_BATCH, 1));
    let config = EngineConfig { precision: PrecisionConfig::new(Dtype::Bf16), ..config };
    let outline = Model::outline(
        &ModelConfig::read(Place::unguarded(golden("gpt2-tiny-v512"))).unwrap(),
        Device::Cpu,
    );
    let outline = trained(&Rc::new(outline.unwrap()), &config).unwrap();
    let state = optimizer_state_bytes(&outline, &config).unwrap();
    let planned = Setup::new(&outline, &config, state, 16, 1, Device::Cpu).plan().device;
    let (planned, counted) = (planned.peak() as f64, part.peak() as f64);
    assert!((planned / counted - 1.0).abs() < 0.03, "{planned} is not {counted}");
}

/// Steps and a checkpoint, or as many steps more from it.
fn checkpoint(group: &Rc<ProcessGroup>, stage: u8, dir: &Path, saves: bool) -> Vec<(f64, f64)> {
    let plain = config(GLOBAL_BATCH / group.world_size(), 1);
    let config = EngineConfig { zero: zero(stage, true), ..freezing(&FROZEN, plain) };
    let mut engine = Engine::new(model(0.0), Rc::clone(group), config).unwrap();
    let store = Store::open(Place::unguarded(dir));
    if !saves {
        load_checkpoint(&mut engine, None, store.latest().unwrap()).unwrap();
        return train(&mut engine, 2 * GLOBAL_BATCH as u64, 2);
    }
    let curve = train(&mut engine, 0, 2);
    if group.rank() == 0 {
        save_checkpoint(&engine, &store, None, None, None).unwrap();
    } else {
        engine.write_state(None, None, None).unwrap();
    }
    curve
}

/// Float32 on ranks that add in another order: 1e-5.
#[test]
fn stages_and_resumptions_go_on_as_one_rank_does() {
    let _alone = alone();
    let plain = freezing(&FROZEN, config(GLOBAL_BATCH, 1));
    let mut engine = Engine::new(model(0.0), single(), plain).unwrap();
    let expected = train(&mut engine, 0, 4);
    let flat = |curve: &[(f64, f64)]| -> Vec<f64> {
        curve.iter().flat_map(|&(loss, norm)| [loss, norm]).collect()
    };
    for (saving, loading) in [((1, 0), (2, 3)), ((2, 3), (2, 1)), ((2, 2), (1, 0))] {
        let dir = tempfile::tempdir().unwrap();
        let run = |(ranks, stage): (usize, u8), saves| {
            threads(ranks, |group| checkpoint(group, stage, dir.path(), saves)).remove(0)
        };
        let mut found = run(saving, true);
        found.extend(run(loading, false));
        alike(&flat(&found), &flat(&expected), 1e-5);
    }
}

#[test]
fn patterns_that_cannot_be_meant_are_refused() {
    let _alone = alone();
    let refusal = |trainable: TrainableConfig| {
        let config = EngineConfig { trainable, ..config(1, 1) };
        Engine::new(model(0.0), single(), config).err().unwrap().to_string()
    };
    let none = TrainableConfig::default;
    let nothing = refusal(TrainableConfig { freeze: patterns(&["*wtf*"]), ..none() });
    assert!(nothing.contains("no parameter of the model has a name like \"*wtf*\""), "{nothing}");
    let all = refusal(TrainableConfig { freeze: patterns(&["*"]), ..none() });
    assert!(all.contains("`freeze` names all parameters"), "{all}");
    let both =
        TrainableConfig { freeze: patterns(&["*.bias"]), trainable: patterns(&["*.ln_f.*"]) };
    let both = refusal(both);
    assert!(both.contains("transformer.ln_f.bias is named by `freeze` and by `trainable`"));
}
