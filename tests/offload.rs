//! Offloading: the same training, to the bit, with its state in files.

use std::{path::Path, rc::Rc};

use dsr::{
    checkpoint::Store,
    config::{Dtype, EngineConfig, OffloadDevice, OptimizerOffload, PrecisionConfig, ZeroConfig},
    data::LoaderOptions,
    dist::ProcessGroup,
    engine::{
        Engine, MemoryUse,
        plan::{Setup, optimizer_state_bytes},
    },
    error::Code,
    fs::Place,
    generation::{Prompt, Sampling, generate},
    model::Model,
    run::{load_checkpoint, save_checkpoint},
    tensor::Device,
};

use crate::support::{
    alone,
    program::{dsr, out},
    ranks,
    recipe::{Recipe, places},
    stages::{in_16_bits, small_shape, train, trainings, zero},
    tiny::{config, model, rows},
};

fn single() -> Rc<ProcessGroup> {
    Rc::new(ProcessGroup::single(Device::Cpu).unwrap())
}

/// `zero` with the optimizer's state in a file of `dir`, and at stage 3 the parameters too.
fn offloaded(zero: ZeroConfig, dir: &Path) -> ZeroConfig {
    let offload_param = match zero.stage {
        3 => OffloadDevice::Nvme,
        _ => OffloadDevice::None,
    };
    let nvme_path = Some(dir.to_path_buf());
    ZeroConfig { offload_optimizer: OffloadDevice::Nvme.into(), offload_param, nvme_path, ..zero }
}

/// `zero` with half of the optimizer's state in a file of `dir`.
fn half_offloaded(zero: ZeroConfig, dir: &Path) -> ZeroConfig {
    let offload_optimizer = OptimizerOffload { device: OffloadDevice::Nvme, ratio: 0.5 };
    ZeroConfig { offload_optimizer, nvme_path: Some(dir.to_path_buf()), ..zero }
}

/// Every training of `support/stages.rs` with and without offload, on one rank of `group`.
fn no_bit_changes(group: &Rc<ProcessGroup>) {
    let dir = tempfile::tempdir().unwrap();
    for (name, config) in trainings(group.world_size()) {
        // Offloaded parameters have float32 masters elsewhere.
        let most_stage = if name == "bf16 weights" { 2 } else { 3 };
        for stage in 1..=most_stage {
            let curve = |zero| {
                let config = EngineConfig { zero, ..config.clone() };
                let mut engine = Engine::new(model(0.0), Rc::clone(group), config).unwrap();
                let curve = train(&mut engine, 0, 2);
                assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "a file is seen");
                curve
            };
            let plain = zero(stage, name == "fp32");
            let here = curve(plain.clone());
            let there = curve(offloaded(plain.clone(), dir.path()));
            assert_eq!(here, there, "{name}, stage {stage}");
            assert_eq!(here, curve(half_offloaded(plain, dir.path())), "half {name}, {stage}");
        }
    }
}

#[test]
fn no_bit_changes_with_the_place_of_the_state_on_one_rank() {
    let _alone = alone();
    no_bit_changes(&single());
}

#[test]
fn no_bit_changes_with_the_place_of_the_state_on_two_ranks() {
    let _alone = alone();
    ranks::threads(2, no_bit_changes);
}

/// Host memory is another place only beside a GPU.
#[test]
fn offload_to_the_host_is_what_it_is_on_a_machine_without_a_gpu() {
    let _alone = alone();
    let run = |offload: OffloadDevice| {
        let zero = ZeroConfig {
            offload_optimizer: offload.into(),
            offload_param: offload,
            ..zero(3, true)
        };
        let config = EngineConfig { zero, ..config(12, 1) };
        let mut engine = Engine::new(model(0.0), single(), config).unwrap();
        (train(&mut engine, 0, 2), engine.memory())
    };
    assert_eq!(run(OffloadDevice::Cpu), run(OffloadDevice::None));
}

/// A checkpoint does not know where the state was.
#[test]
fn a_checkpoint_goes_on_where_the_state_is_elsewhere() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let engine = |share| {
        let zero = zero(3, true);
        let zero = match share {
            0 => zero,
            50 => half_offloaded(zero, dir.path()),
            _ => offloaded(zero, dir.path()),
        };
        let precision = PrecisionConfig::new(Dtype::Bf16);
        let config = EngineConfig { zero, precision, ..config(12, 1) };
        Engine::new(model(0.0), single(), config).unwrap()
    };
    let expected = train(&mut engine(0), 0, 4);
    for (saves, loads) in [(0, 100), (100, 0), (50, 0), (0, 50), (50, 100)] {
        let store = tempfile::tempdir().unwrap();
        let store = Store::open(Place::unguarded(store.path()));
        let mut first = engine(saves);
        train(&mut first, 0, 2);
        save_checkpoint(&first, &store, None, None, None).unwrap();
        drop(first);
        let mut second = engine(loads);
        load_checkpoint(&mut second, None, store.latest().unwrap()).unwrap();
        assert_eq!(train(&mut second, 24, 2), expected[2..], "{saves} {loads}");
    }
}

/// Of 16 bytes of each parameter in mixed precision with gradients in 16 bits, 12 go with the
/// optimizer and 2 with the parameters. What stays of them are three units of the optimizer's state
/// and, of the parameters, the units that are used. A plan knows it within 3 %.
#[test]
fn memory_is_what_is_in_use() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let shape = small_shape(256);
    let run = |zero: ZeroConfig| {
        let model = Rc::new(Model::from_scratch(&shape, 1, Device::Cpu).unwrap());
        let sizes = model.units().iter().map(|unit| unit.padded_numel() as u64);
        let (all, largest) = (sizes.clone().sum::<u64>(), sizes.clone().max().unwrap());
        let stays = sizes.filter(|&n| n <= zero.stage3_param_persistence_threshold).sum::<u64>();
        let config = in_16_bits(zero);
        let state = optimizer_state_bytes(&model, &config).unwrap();
        let tokens = rows().loader(LoaderOptions::default()).unwrap().next_batch().unwrap();
        let tokens = tokens.unwrap().input_ids().size()[1] as u64;
        let plan = Setup::new(&model, &config, state, tokens, 1, Device::Cpu).plan();
        let mut engine = Engine::new(model, single(), config).unwrap();
        train(&mut engine, 0, 1);
        let (planned, counted) = (plan.device.peak(), engine.memory().peak());
        println!("peak, bytes: planned {planned}, counted {counted}");
        assert!(counted.abs_diff(planned) * 100 <= 3 * counted, "{plan:?} {:?}", engine.memory());
        ((all, stays), largest, engine.memory(), plan)
    };
    let ((all, stays), unit, whole, plan) = run(zero(3, false));
    assert_eq!(plan.disk, 0);
    assert_eq!(whole.master_weights + whole.optimizer_state, 12 * all);
    let optimizer_only =
        ZeroConfig { offload_param: OffloadDevice::None, ..offloaded(zero(3, false), dir.path()) };
    let (.., half, plan) = run(optimizer_only);
    assert_eq!((plan.disk, plan.host), (12 * all, 0));
    let MemoryUse { parameters, master_weights, optimizer_state, .. } = half;
    assert_eq!((parameters, master_weights), (2 * all, 0));
    assert!(optimizer_state <= 3 * (12 * unit + 16_384), "{half:?}");
    let (.., part, plan) = run(half_offloaded(zero(3, false), dir.path()));
    assert!((4 * all..8 * all).contains(&plan.disk), "{plan:?}");
    // The units that stay have their state with the model.
    assert_eq!(part.master_weights, 4 * (all - plan.disk / 12));
    let (.., least, plan) = run(offloaded(zero(3, false), dir.path()));
    // Small units stay whole.
    assert_eq!((plan.disk, plan.host), (14 * all - 2 * stays, 0));
    println!("{all} parameters, bytes: {whole:?}\n{half:?}\n{least:?}");
    // One that is used, and one that is read or written.
    assert!(least.parameters <= 2 * (2 * unit + 8192), "{least:?}");
    assert_eq!(least.master_weights, 0);
    assert!(3 * least.peak() < whole.peak(), "{least:?}");
}

/// A pass fetches each layer once for all texts of a batch. Beside the layer that is used there is the
/// one that is read ahead, and the buffer into which the first was read: on a GPU both buffers are the
/// host's. An engine that begins has four numbers for each parameter of one layer.
#[test]
fn a_model_on_disk_generates_with_two_layers_in_memory() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let prompt =
        |i: i64| Prompt { tokens: (0..=2 * i).map(|j| (i + 7 * j) % 1000).collect(), seed: 0 };
    let prompts: Vec<Prompt> = (0..16).map(prompt).collect();
    let sampling = Sampling { max_new_tokens: 5, logprobs: true, ..Sampling::default() };
    let run = |zero| {
        let model = Rc::new(Model::from_scratch(&small_shape(256), 1, Device::Cpu).unwrap());
        let sizes = model.units().iter().map(|unit| 4 * unit.numel() as u64);
        let (all, layer) = (sizes.clone().sum::<u64>(), sizes.max().unwrap());
        let engine = Engine::new(model, single(), EngineConfig { zero, ..config(1, 1) }).unwrap();
        let texts = generate(engine.model(), &prompts, &sampling, &[], &mut ()).unwrap();
        (texts, all, layer, engine.memory())
    };
    let on_disk = |ahead| ZeroConfig {
        stage3_prefetch_bucket_size: ahead,
        ..offloaded(zero(3, false), dir.path())
    };
    let (expected, all, layer, _) = run(ZeroConfig::default());
    let (texts, .., everything) = run(on_disk(1 << 40));
    assert!(texts == expected, "to the bit");
    assert!(everything.parameters > all - 2 * layer, "all that is read ahead counts");
    let (texts, .., least) = run(on_disk(layer / 4));
    assert!(texts == expected, "to the bit");
    println!("bytes: all {all}, a layer {layer}, {least:?}, with all ahead {everything:?}");
    assert!(least.peak() <= 4 * layer + layer / 10, "{least:?} {layer}");
}

const TRAINING: &str = r#"
let model = new_model("gpt2", #{ n_layer: 2, n_embd: 32, n_head: 2, n_positions: 64 });
let engine = init_engine(model, #{
    micro_batch_size: 2,
    optimizer: #{ type: "AdamW", lr: 1e-3 },
    precision: "bf16",
    zero: ZERO,
});
let words = tokenizer("dsr:gpt2");
let rows = dataset("dsr:austen").tokenize(words).pack(32);
for batch in rows.loader(#{ micro_batch_size: 2 }) {
    let loss = engine.forward(batch);
    engine.backward(loss);
    if engine.step() && engine.global_step == 3 { break; }
}
print(engine.evaluate(rows.take(5)).loss);
print(generate(model, words, "It is", #{ max_new_tokens: 5, temperature: 0.0 }));
model.export_hf("export");
"#;

#[test]
fn a_recipe_trains_evaluates_generates_and_exports_from_disk() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("nvme")).unwrap();
    let run = |zero: &str| {
        std::fs::write(dir.path().join("r.rhai"), TRAINING.replace("ZERO", zero)).unwrap();
        let said = out(&dsr(dir.path(), &["run", "r.rhai"]).output().unwrap());
        (said, std::fs::read(dir.path().join("export/model.safetensors")).unwrap())
    };
    let offload = r#"#{ stage: 3, offload_optimizer: "nvme", offload_param: "nvme",
        nvme_path: "nvme", stage3_param_persistence_threshold: 100 }"#;
    let (here, there) = (run("#{ stage: 0 }"), run(offload));
    assert!(here == there, "{} {}", here.0, there.0);
    assert_eq!(std::fs::read_dir(dir.path().join("nvme")).unwrap().count(), 0);
}

#[test]
fn an_offload_that_cannot_happen_is_an_error() {
    let fails = |zero: &str| {
        let recipe = Recipe::new(&TRAINING.replace("ZERO", zero));
        let failure = recipe.fails();
        let messages = failure.faults.iter().map(|fault| fault.error.message().to_owned());
        (places(&failure)[0].0, messages.collect::<Vec<_>>())
    };
    let (code, messages) = fails(r#"#{ offload_optimizer: "nvme" }"#);
    assert_eq!(code, Code::BadValue);
    assert_eq!(
        messages,
        [
            "`zero.offload_optimizer` \"nvme\" needs `zero.nvme_path`",
            "`zero.offload_optimizer` \"nvme\" needs stage 1 or more, and the stage is 0",
        ]
    );
    let (code, messages) =
        fails(r#"#{ stage: 1, offload_optimizer: "nvme", nvme_path: "nowhere/nvme" }"#);
    assert_eq!(code, Code::Io);
    assert!(messages[0].contains("nowhere/nvme"), "{messages:?}");
}
