//! LoRA and DoRA against values that peft computed (tests/golden/README.md), and what goes with them.

use std::{
    fs,
    path::{Path, PathBuf},
    rc::Rc,
};

use dsr::{
    checkpoint::Store,
    config::{
        ActivationCheckpointing, Dtype, EngineConfig, LoraOptions, PrecisionConfig, TargetModules,
    },
    data::{DataSource, Dataset, Loader, LoaderOptions, OpenOptions},
    dist::ProcessGroup,
    engine::{
        Engine,
        plan::{Setup, optimizer_state_bytes},
    },
    fs::Place,
    model::{Masks, Model, ModelConfig},
    run::{load_checkpoint, save_checkpoint},
    tensor::{Device, Kind, SafetensorsFile, Tensor},
};
use serde_json::{Value, json};

use crate::support::{
    alone,
    files::golden,
    numbers::{assert_relative, floats},
    ranks::threads,
    stages::{self, GLOBAL_BATCH, zero},
    tiny::{self, config, train},
};

const ADAPTERS: [&str; 7] = [
    "gpt2-all",
    "gpt2-cattn",
    "llama-all",
    "llama-dora",
    "llama-qv",
    "llama-rslora",
    "llama-savehead",
];

fn load(dir: impl AsRef<Path>) -> Rc<Model> {
    let config = ModelConfig::read(Place::unguarded(dir.as_ref())).unwrap();
    Rc::new(Model::load(Place::unguarded(dir.as_ref()), &config, Device::Cpu).unwrap())
}

fn family(name: &str) -> PathBuf {
    golden(&format!("families/{name}"))
}

/// The base of a golden adapter.
fn base(adapter: &str) -> Rc<Model> {
    match adapter.starts_with("gpt2") {
        true => load(golden("gpt2-tiny-v512")),
        false => load(family("llama-gqa")),
    }
}

fn file_of(adapter: &str, end: &str) -> PathBuf {
    golden(&format!("adapters/{adapter}.{end}"))
}

fn init_engine(model: &Rc<Model>, config: EngineConfig) -> Engine {
    tiny::init_engine(Rc::clone(model), config)
}

fn logits(model: &Model, ids: &Tensor) -> Tensor {
    model.logits(ids, &Masks::default()).unwrap()
}

fn most(a: &Tensor, b: &Tensor) -> f64 {
    (a - b).abs().max().double_value(&[])
}

fn tensor(file: &SafetensorsFile, name: &str) -> Tensor {
    let tensor = Tensor::zeros(file.shape(name).unwrap(), (Kind::Float, Device::Cpu));
    file.copy_into(name, &tensor).unwrap();
    tensor
}

/// Thirty steps: losses within 2e-5, the trained adapter within 1e-4, its logits and those of the
/// merged model within 1e-4.
#[test]
fn thirty_steps_are_those_of_peft() {
    let _alone = alone();
    for name in ADAPTERS {
        let values: Value =
            serde_json::from_slice(&fs::read(file_of(name, "json")).unwrap()).unwrap();
        let model = base(name).load_adapter(Place::unguarded(file_of(name, "init"))).unwrap();
        let mut plain = config(2, 4);
        plain.optimizer.lr = 5e-3;
        let mut engine = init_engine(&model, plain);
        let curve = train(&mut engine, &mut tiny::loader(2), 30);
        let (losses, norms) = (floats(&values["losses"]), floats(&values["grad_norms"]));
        for (step, (loss, norm)) in curve.into_iter().enumerate() {
            let off = (loss - losses[step]).abs();
            assert!(off <= 2e-5, "{name}, step {step}: the loss is off by {off:.1e}");
            assert_relative(&format!("{name}, step {step}, norm"), norm, norms[step], 1e-4);
        }
        let model = engine.model();
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("adapter");
        model.export_adapter(Some(&Place::unguarded(&out))).unwrap();
        let open = |dir: &Path| {
            SafetensorsFile::open(Place::unguarded(dir.join("adapter_model.safetensors"))).unwrap()
        };
        let (found, expected) = (open(&out), open(&file_of(name, "final")));
        assert_eq!(found.names(), expected.names());
        for param in found.names() {
            let off = most(&tensor(&found, &param), &tensor(&expected, &param));
            assert!(off <= 1e-4, "{name}, {param}: off by {off:.1e}");
        }
        let ids: Vec<i64> = values["fixed_batch"]["input_ids"][0]
            .as_array()
            .unwrap()
            .iter()
            .map(|id| id.as_i64().unwrap())
            .collect();
        let ids = Tensor::from_slice(&ids).unsqueeze(0);
        let file =
            SafetensorsFile::open(Place::unguarded(file_of(name, "logits.safetensors"))).unwrap();
        let expected = tensor(&file, "final").reshape([1, ids.size()[1], -1]);
        let merged = model.merged(true).unwrap();
        let again = base(name).load_adapter(Place::unguarded(&*out)).unwrap();
        let exported = dir.path().join("merged");
        model.export_hf(Place::unguarded(&*exported), None).unwrap();
        let models = [model, &again, &merged, &load(&exported)];
        for (i, model) in models.into_iter().enumerate() {
            let off = most(&logits(model, &ids), &expected);
            assert!(off <= 1e-4, "{name}, model {i}: off by {off:.1e}");
        }
        for (param, sums) in values["merged_param_sums"].as_object().unwrap() {
            let Some((_, value)) = merged.named_params().find(|(known, _)| known == param) else {
                assert_eq!(param, "lm_head.weight");
                continue;
            };
            let sums = floats(sums);
            let off = (value.sum(Kind::Double).double_value(&[]) - sums[0]).abs();
            assert!(off <= 1e-3 + 2e-6 * sums[1], "{name}, {param}: off by {off:.1e}");
        }
        // The base has not changed under the adapter.
        model.without_adapter(|| assert!(logits(model, &ids).equal(&logits(&base(name), &ids))));
    }
}

fn all_linear() -> LoraOptions {
    let target_modules = Some(TargetModules::AllLinear);
    LoraOptions { r: 4, target_modules, ..LoraOptions::default() }
}

fn rows_for(model: &Model) -> Loader {
    let file = match model.facts().is_seq2seq() {
        true => golden("families/pairs-v512.parquet"),
        false => golden("tokens-v512.parquet"),
    };
    let rows =
        Dataset::open(DataSource::unguarded(file.to_str().unwrap()), &OpenOptions::default())
            .unwrap();
    let options = LoaderOptions { micro_batch_size: 2, epochs: None, ..LoaderOptions::default() };
    rows.loader(options).unwrap()
}

/// Each family learns by an adapter of all its linear layers, which loads again and merges.
#[test]
fn every_family_has_adapters() {
    let _alone = alone();
    let names = [
        "bloom-h4",
        "gemma3",
        "gpt2-wide",
        "llama-bias",
        "mistral",
        "opt-post",
        "opt-pre",
        "phi3",
        "qwen2",
        "qwen3",
        "t5-v10",
        "t5-v11",
    ];
    for name in names {
        for use_dora in [false, true] {
            let model = load(family(name)).lora(&LoraOptions { use_dora, ..all_linear() }).unwrap();
            let mut plain = config(2, 1);
            plain.optimizer.lr = 1e-2;
            let mut engine = init_engine(&model, plain);
            let curve = train(&mut engine, &mut rows_for(&model), 12);
            let mean = |curve: &[(f64, f64)]| curve.iter().map(|(loss, _)| loss).sum::<f64>();
            assert!(mean(&curve[9..]) < mean(&curve[..3]), "{name}: {curve:?}");
            let dir = tempfile::tempdir().unwrap();
            let out = dir.path().join("adapter");
            let model = engine.model();
            model.export_adapter(Some(&Place::unguarded(&out))).unwrap();
            let again = load(family(name)).load_adapter(Place::unguarded(&*out)).unwrap();
            let ids = Tensor::from_slice(&[5i64, 17, 300, 2]).unsqueeze(0);
            let masks = || match model.facts().is_seq2seq() {
                true => Masks::default().with_decoder(Some(ids.shallow_clone())),
                false => Masks::default(),
            };
            let logits = |model: &Model| model.logits(&ids, &masks()).unwrap();
            assert!(logits(model).equal(&logits(&again)), "{name}");
            let off = most(&logits(model), &logits(&again.merged(false).unwrap()));
            assert!(off <= 2e-4, "{name}: merged is off by {off:.1e}");
        }
    }
}

/// With dropout a layer that runs again draws the same masks.
#[test]
fn recomputation_and_resumption_repeat_the_dropout_of_adapters() {
    let _alone = alone();
    for use_dora in [false, true] {
        let run = |every: Option<usize>| {
            let options = LoraOptions { lora_dropout: 0.3, use_dora, ..all_linear() };
            let model = tiny::model(0.0).lora(&options).unwrap();
            let activation_checkpointing =
                every.map(|every| ActivationCheckpointing { every, cpu_checkpointing: false });
            let mut engine =
                init_engine(&model, EngineConfig { activation_checkpointing, ..config(2, 2) });
            train(&mut engine, &mut tiny::loader(2), 3)
        };
        assert_eq!(run(None), run(Some(1)));
    }
}

/// Two steps and a checkpoint, or two steps more from it.
fn checkpoint(
    group: &Rc<ProcessGroup>,
    (stage, dtype): (u8, Dtype),
    dir: &Path,
    saves: bool,
) -> Vec<(f64, f64)> {
    let plain = config(GLOBAL_BATCH / group.world_size(), 1);
    let precision = PrecisionConfig::new(dtype);
    let config = EngineConfig { zero: zero(stage, true), precision, ..plain };
    let options =
        LoraOptions { lora_dropout: 0.1, modules_to_save: vec!["ln_f".to_owned()], ..all_linear() };
    let model = tiny::model(0.0).lora(&options).unwrap();
    let mut engine = Engine::new(model, Rc::clone(group), config).unwrap();
    let store = Store::open(Place::unguarded(dir));
    if !saves {
        load_checkpoint(&mut engine, None, store.latest().unwrap()).unwrap();
        return stages::train(&mut engine, 2 * GLOBAL_BATCH as u64, 2);
    }
    let curve = stages::train(&mut engine, 0, 2);
    if group.rank() == 0 {
        save_checkpoint(&engine, &store, None, None, None).unwrap();
        return [curve, stages::train(&mut engine, 2 * GLOBAL_BATCH as u64, 2)].concat();
    }
    engine.write_state(None, None, None).unwrap();
    [curve, stages::train(&mut engine, 2 * GLOBAL_BATCH as u64, 2)].concat()
}

/// A checkpoint has the adapter and its optimizer alone, and goes on to the bit on as many ranks.
#[test]
fn a_checkpoint_is_of_the_adapter_and_goes_on_to_the_bit() {
    let _alone = alone();
    for (ranks, stage, dtype) in
        [(1, 0, Dtype::Fp32), (1, 0, Dtype::Bf16), (2, 1, Dtype::Fp32), (2, 3, Dtype::Bf16)]
    {
        let dir = tempfile::tempdir().unwrap();
        let run = |saves| {
            let way = (stage, dtype);
            threads(ranks, |group| checkpoint(group, way, dir.path(), saves)).remove(0)
        };
        let whole = run(true);
        // The generator of dropout is one for all threads, so that two of them disturb each other.
        let again = run(false);
        if ranks == 1 {
            assert_eq!(again, whole[2..]);
        }
        let saved = Store::open(Place::unguarded(dir.path())).latest().unwrap();
        let names: Vec<String> = fs::read_dir(saved.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert!(names.iter().any(|name| name == "adapter_model.safetensors"), "{names:?}");
        assert!(!names.iter().any(|name| name == "model.safetensors"), "{names:?}");
    }
}

#[test]
fn a_checkpoint_of_another_base_is_refused() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let of = |seed| {
        let config =
            tiny::gpt2([("n_layer", 2.into()), ("n_embd", 16.into()), ("n_head", 2.into())]);
        let model = Rc::new(Model::from_scratch(&config, seed, Device::Cpu).unwrap());
        init_engine(&model.lora(&all_linear()).unwrap(), config_of_one())
    };
    let store = Store::open(Place::unguarded(dir.path()));
    save_checkpoint(&of(1), &store, None, None, None).unwrap();
    let saved = || store.latest().unwrap();
    load_checkpoint(&mut of(1), None, saved()).unwrap();
    let e = load_checkpoint(&mut of(2), None, saved()).unwrap_err();
    assert!(e.to_string().contains("is of an adapter of another base"), "{e}");
}

/// An adapter's two files say the same, as peft holds too, and of the types that peft has.
#[test]
fn settings_that_its_tensors_contradict_are_refused() {
    let written = golden("adapters/llama-all.init");
    let dir = tempfile::tempdir().unwrap();
    fs::copy(
        written.join("adapter_model.safetensors"),
        dir.path().join("adapter_model.safetensors"),
    )
    .unwrap();
    let text = fs::read_to_string(written.join("adapter_config.json")).unwrap();
    let config: Value = serde_json::from_str(&text).unwrap();
    let with = |key: &str, value: Value| {
        let mut config = config.clone();
        config[key] = value;
        fs::write(dir.path().join("adapter_config.json"), config.to_string()).unwrap();
        base("llama-all").load_adapter(Place::unguarded(dir.path()))
    };
    let (rank, dropout) = (config["r"].as_i64().unwrap(), config["lora_dropout"].clone());
    with("r", rank.into()).unwrap();
    let e = with("r", (2 * rank).into()).unwrap_err();
    assert!(e.message().contains(&format!("has rank {rank}")), "{e}");
    let e = with("lora_dropout", 2.0.into()).unwrap_err();
    assert!(e.message().contains("lora_dropout must be"), "{e}");
    with("lora_dropout", dropout).unwrap();
    for (key, value, fault) in [
        ("modules_to_save", json!(["nowhere"]), "modules_to_save: the model has no module"),
        ("modules_to_save", json!("lm_head"), "modules_to_save must be a list of names"),
        ("use_dora", json!("yes"), "use_dora must be true or false, found \"yes\""),
    ] {
        let e = with(key, value).unwrap_err();
        let file = dir.path().join("adapter_config.json").display().to_string();
        assert!(e.message().starts_with(&format!("{file}: {fault}")), "{e}");
        with(key, config[key].clone()).unwrap();
    }
}

fn config_of_one() -> EngineConfig {
    config(1, 1)
}

/// A LLaMA with an adapter of rank 8 beside the same trained whole: gradients, masters and averages of
/// the adapter alone, and a plan that counts what the
/// frozen linear layers could keep of their inputs: up to 10 % more than is counted.
#[test]
fn an_adapter_takes_less_than_half_of_the_memory() {
    let _alone = alone();
    let shape = tiny::llama();
    let whole = Rc::new(Model::from_scratch(&shape, 1, Device::Cpu).unwrap());
    let adapted = |model: Rc<Model>| model.lora(&LoraOptions::default()).unwrap();
    let states = |model: &Rc<Model>| {
        let mut engine = init_engine(model, config(1, 1));
        train(&mut engine, &mut tiny::loader(1), 1);
        let used = engine.memory();
        let peak = used.peak();
        (peak, peak - used.activations - used.buffers)
    };
    let (_, full) = states(&whole);
    let model = adapted(Rc::new(Model::from_scratch(&shape, 1, Device::Cpu).unwrap()));
    let (counted, lora) = states(&model);
    assert!((lora as f64) < 0.45 * full as f64, "{lora} of {full}");
    let outline = adapted(Rc::new(Model::outline(&shape, Device::Cpu).unwrap()));
    let state = optimizer_state_bytes(&outline, &config(1, 1)).unwrap();
    let planned = Setup::new(&outline, &config(1, 1), state, 128, 1, Device::Cpu).plan();
    let off = planned.device.peak() as f64 / counted as f64 - 1.0;
    assert!((-0.03..0.1).contains(&off), "planned {:?}, counted {counted}: {off}", planned.device);
}
