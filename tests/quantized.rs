//! Adapters over quantized bases.

use std::{
    path::{Path, PathBuf},
    rc::Rc,
};

use dsr::{
    checkpoint::Store,
    config::{
        ActivationCheckpointing, Dtype, EngineConfig, LoraOptions, OffloadDevice, PrecisionConfig,
        Quantization, QuantizedFormat, TargetModules, ZeroConfig,
    },
    dist::ProcessGroup,
    engine::{
        Engine,
        plan::{Setup, optimizer_state_bytes},
    },
    fs::Place,
    model::{Masks, Model, ModelConfig},
    run::{load_checkpoint, save_checkpoint},
    tensor::{Device, Tensor},
};

use crate::support::{
    alone,
    files::golden,
    ranks::threads,
    stages::{self, GLOBAL_BATCH, zero},
    tiny::{self, config},
};

const NF4: Quantization = Quantization::of_blocks(QuantizedFormat::Nf4 { double_quant: false });
const DOUBLE: Quantization = Quantization::of_blocks(QuantizedFormat::Nf4 { double_quant: true });
const INT8: Quantization = Quantization::of_blocks(QuantizedFormat::Int8);
/// All formats, and each kind of matrix.
const ALL: [Quantization; 5] = [
    NF4,
    DOUBLE,
    INT8,
    Quantization { embeddings: true, ..NF4 },
    Quantization { embeddings: true, ..INT8 },
];

fn load(dir: impl AsRef<Path>) -> Model {
    let config = ModelConfig::read(Place::unguarded(dir.as_ref())).unwrap();
    Model::load(Place::unguarded(dir.as_ref()), &config, Device::Cpu).unwrap()
}

fn lora(model: Model) -> Rc<Model> {
    let target_modules = Some(TargetModules::AllLinear);
    let options = LoraOptions { r: 4, target_modules, ..LoraOptions::default() };
    Rc::new(model).lora(&options).unwrap()
}

/// A golden base quantized, and a directory with the float32 weights that its codes stand for.
struct Bases {
    quantization: Quantization,
    dir: PathBuf,
    written: tempfile::TempDir,
}

impl Bases {
    fn new(name: &str, quantization: Quantization) -> Self {
        let (dir, written) = (golden(name), tempfile::tempdir().unwrap());
        let bases = Self { quantization, dir, written };
        bases
            .quantized()
            .export_hf(Place::unguarded(bases.written.path().join("base")), None)
            .unwrap();
        bases
    }

    fn quantized(&self) -> Model {
        load(&self.dir).quantized(self.quantization).unwrap()
    }

    fn dequantized(&self) -> Model {
        load(self.written.path().join("base"))
    }
}

fn curve(model: Model, group: &Rc<ProcessGroup>, config: EngineConfig) -> Vec<(f64, f64)> {
    let mut engine = Engine::new(lora(model), Rc::clone(group), config).unwrap();
    stages::train(&mut engine, 0, 5)
}

fn assert_same(what: &str, found: &[(f64, f64)], expected: &[(f64, f64)]) {
    assert_eq!(found.len(), expected.len());
    for (step, (found, expected)) in found.iter().zip(expected).enumerate() {
        // The same values in the same operations on one rank; ranks add in another order.
        let off = (found.0 - expected.0).abs().max((found.1 - expected.1).abs());
        assert!(off <= 1e-6, "{what}, step {step}: off by {off:.1e}");
    }
}

#[test]
fn training_over_codes_is_training_over_the_weights_that_they_stand_for() {
    let _alone = alone();
    for name in ["gpt2-tiny-v512", "families/llama-gqa"] {
        for quantization in ALL {
            let bases = Bases::new(name, quantization);
            for dtype in [Dtype::Fp32, Dtype::Bf16] {
                let config = || {
                    let precision = PrecisionConfig::new(dtype);
                    EngineConfig { precision, ..config(GLOBAL_BATCH, 1) }
                };
                let run = |model: &(dyn Fn() -> Model + Sync)| {
                    threads(1, |group| curve(model(), group, config())).remove(0)
                };
                let found = run(&|| bases.quantized());
                let expected = run(&|| bases.dequantized());
                assert_same(&format!("{name} {quantization:?} {dtype:?}"), &found, &expected);
            }
        }
    }
}

/// Codes are shared out and offloaded as parameters are, and dequantized where they were gathered.
#[test]
fn every_stage_trains_over_codes_as_one_rank_does() {
    let _alone = alone();
    let dir = golden("gpt2-tiny-v512");
    let run = |ranks: usize, zero: ZeroConfig, checkpointed: bool| {
        let config = || {
            let activation_checkpointing = checkpointed.then(ActivationCheckpointing::default);
            let zero = zero.clone();
            EngineConfig { zero, activation_checkpointing, ..config(GLOBAL_BATCH / ranks, 1) }
        };
        let all = Quantization { embeddings: true, ..DOUBLE };
        let model = || load(&dir).quantized(all).unwrap();
        threads(ranks, |group| {
            // Of a file: threads of a process would draw from one generator.
            let adapter = golden("adapters/gpt2-all.init");
            let model = Rc::new(model()).load_adapter(Place::unguarded(adapter)).unwrap();
            let mut engine = Engine::new(model, Rc::clone(group), config()).unwrap();
            stages::train(&mut engine, 0, 5)
        })
        .remove(0)
    };
    let expected = run(1, zero(0, true), false);
    let files = tempfile::tempdir().unwrap();
    let offloaded = |device| ZeroConfig {
        offload_param: device,
        nvme_path: Some(files.path().to_path_buf()),
        ..zero(3, true)
    };
    for (what, ranks, zero, checkpointed) in [
        ("checkpointed", 1, zero(0, true), true),
        ("stage 2", 2, zero(2, true), false),
        ("stage 3", 2, zero(3, true), false),
        ("stage 3, whole units", 2, zero(3, false), true),
        ("stage 3 on three ranks", 3, zero(3, true), false),
        ("in host memory", 2, offloaded(OffloadDevice::Cpu), false),
        ("on disk", 2, offloaded(OffloadDevice::Nvme), true),
    ] {
        assert_same(what, &run(ranks, zero, checkpointed), &expected);
    }
}

#[test]
fn what_runs_without_an_engine_sees_the_values_of_the_codes() {
    for quantization in ALL {
        sees_values(&Bases::new("families/llama-gqa", quantization));
    }
}

fn sees_values(bases: &Bases) {
    let ids = Tensor::from_slice(&[5i64, 17, 300, 2]).unsqueeze(0);
    let logits = |model: &Model| model.logits(&ids, &Masks::default()).unwrap();
    let expected = logits(&bases.dequantized());
    assert!(logits(&bases.quantized()).equal(&expected));
    let dora = LoraOptions { use_dora: true, ..LoraOptions::default() };
    let adapted = |model: Model| logits(&Rc::new(model).lora(&dora).unwrap());
    // The magnitudes of DoRA are those of the values, too.
    assert!(adapted(bases.quantized()).equal(&adapted(bases.dequantized())));
    let merged = lora(bases.quantized()).merged(false).unwrap();
    assert_eq!(merged.quantization(), None);
    // An adapter that was not trained adds zeros.
    assert!(logits(&merged).equal(&expected));
}

#[test]
fn a_checkpoint_goes_on_to_the_bit_over_the_same_codes_alone() {
    let _alone = alone();
    let written = tempfile::tempdir().unwrap();
    let store = Store::open(Place::unguarded(written.path()));
    let engine = |quantization: Option<Quantization>| {
        let model = load(golden("gpt2-tiny-v512"));
        let model = match quantization {
            Some(quantization) => model.quantized(quantization).unwrap(),
            None => model,
        };
        tiny::init_engine(lora(model), config(GLOBAL_BATCH, 1))
    };
    let mut first = engine(Some(NF4));
    stages::train(&mut first, 0, 2);
    save_checkpoint(&first, &store, None, None, None).unwrap();
    let expected = stages::train(&mut first, 2 * GLOBAL_BATCH as u64, 2);
    let saved = || store.latest().unwrap();
    let mut again = engine(Some(NF4));
    load_checkpoint(&mut again, None, saved()).unwrap();
    assert_eq!(stages::train(&mut again, 2 * GLOBAL_BATCH as u64, 2), expected);
    for other in [None, Some(DOUBLE), Some(INT8), Some(ALL[3])] {
        let e = load_checkpoint(&mut engine(other), None, saved()).unwrap_err();
        let expected = match other {
            None => "this base was not quantized".to_owned(),
            Some(other) => format!("this base was quantized to {}", other.name()),
        };
        assert!(e.to_string().contains(&expected), "{other:?}: {e}");
    }
}

/// What the plan counts, and how many bytes a weight of the blocks takes: half of one and a scale for
/// 64 in NF4, one and a scale for an output in int8.
#[test]
fn the_plan_knows_the_bytes_of_codes() {
    let _alone = alone();
    let shape = tiny::llama();
    let config = config(1, 1);
    let [nf4, double, int8] = [NF4, DOUBLE, INT8].map(|quantization| {
        let model = Model::from_scratch(&shape, 1, Device::Cpu).unwrap();
        let mut engine =
            tiny::init_engine(lora(model.quantized(quantization).unwrap()), config.clone());
        tiny::train(&mut engine, &mut tiny::loader(1), 1);
        let counted = engine.memory().peak();
        let outline = Model::outline(&shape, Device::Cpu).unwrap();
        let outline = lora(outline.quantized(quantization).unwrap());
        let state = optimizer_state_bytes(&outline, &config).unwrap();
        let planned = Setup::new(&outline, &config, state, 128, 1, Device::Cpu).plan().device;
        // As for any adapter: what frozen linear layers could keep of their inputs is counted in.
        let off = planned.peak() as f64 / counted as f64 - 1.0;
        assert!(
            (-0.03..0.1).contains(&off),
            "{quantization:?}: planned {planned:?}, counted {counted}"
        );
        let quantized = outline.units().iter().filter(|unit| unit.quantization().is_some());
        let (bytes, weights) = quantized
            .fold((0, 0), |(bytes, weights), unit| (bytes + unit.bytes(), weights + unit.numel()));
        8.0 * bytes as f64 / weights as f64
    });
    assert!((4.5..4.51).contains(&nf4), "{nf4} bits");
    assert!((4.127..4.14).contains(&double), "{double} bits");
    assert!((8.0..8.2).contains(&int8), "{int8} bits");
}
