//! The optimizers against PyTorch's own numbers (tests/golden/optimizers.py), and in an engine.

use std::{collections::BTreeMap, rc::Rc};

use dsr::{
    checkpoint::Store,
    config::{
        Dtype, EngineConfig, LossAverage, MeshConfig, MonitorConfig, Numerics, OptimizerConfig,
        OutlierConfig, PrecisionConfig, Schedule, TrainableConfig, ZeroConfig,
        optimizer::{
            AdagradConfig, AdamConfig, Algorithm, LambConfig, LionConfig, MuonConfig, NsMethod,
            ParamGroup, SgdConfig, StateDtype,
        },
    },
    data::{DataSource, Dataset, Loader, LoaderOptions, OpenOptions},
    dist::ProcessGroup,
    engine::Engine,
    error::Code,
    fs::Place,
    model::{Model, ModelConfig},
    optim::{Optimizer, OptimizerPlan, ParamLayout, Scaling, StepRates, UnitLayout, UnitTensors},
    run::{load_checkpoint, save_checkpoint},
    tensor::{Device, Kind, SafetensorsFile, Tensor},
};
use glob::Pattern;

use crate::support::{alone, files::golden, tiny::one_cycle};

/// Names, shapes, and inputs and outputs of the golden parameters.
type Param = (&'static str, &'static [i64], Option<(i64, i64)>);

const PARAMS: [Param; 3] = [
    ("a.weight", &[6, 10], Some((10, 6))),
    ("b.weight", &[10, 4], Some((4, 10))),
    ("c.bias", &[5], None),
];

/// Two units with padding between their parameters and at their ends.
fn units() -> Vec<UnitLayout> {
    let param = |i: usize, offset| {
        let (name, shape, fan_in_out) = PARAMS[i];
        ParamLayout { name: name.into(), offset, shape: shape.to_vec(), fan_in_out }
    };
    vec![
        UnitLayout { numel: 128, params: vec![param(0, 0), param(1, 64)] },
        UnitLayout { numel: 16, params: vec![param(2, 0)] },
    ]
}

/// The units' flats, where element `k` of the parameters, counted through, is `value(k)`.
fn flats(value: impl Fn(f64) -> f64) -> Vec<Tensor> {
    let mut k = 0;
    let flat = |unit: UnitLayout| {
        let flat = Tensor::zeros([unit.numel], (Kind::Float, Device::Cpu));
        for param in &unit.params {
            let values: Vec<f64> = (k..k + param.numel()).map(|k| value(k as f64)).collect();
            k += param.numel();
            flat.narrow(0, param.offset, param.numel()).copy_(&Tensor::from_slice(&values));
        }
        flat
    };
    units().into_iter().map(flat).collect()
}

fn start(k: f64) -> f64 {
    (0.7 * k + 1.0).sin()
}

fn gradient(t: f64, k: f64) -> f64 {
    (0.37 * t * (k % 17.0 + 1.0)).sin() * 0.1 * (1.0 + k % 5.0) + 0.05 * (k + t).cos()
}

/// The state of a unit before the first step.
fn state(optimizer: &Optimizer, unit: usize) -> Vec<Tensor> {
    let zeros = |(kind, numel)| Tensor::zeros([numel], (kind, Device::Cpu));
    optimizer.state_layout(unit).into_iter().map(zeros).collect()
}

/// The parameters after fifty steps, by name.
fn fifty_steps(config: &OptimizerConfig) -> BTreeMap<String, Tensor> {
    let params = flats(start);
    let plan = OptimizerPlan::new(config, &units(), None).unwrap();
    let group = ProcessGroup::single(Device::Cpu).unwrap();
    let mut optimizer = Optimizer::new(plan);
    let states: Vec<_> = (0..params.len()).map(|unit| state(&optimizer, unit)).collect();
    let twice = Scaling::of(2.0, Device::Cpu).unwrap();
    for t in 1..=50 {
        // Twice the gradient, divided by two.
        let grads: Vec<_> = flats(|k| gradient(f64::from(t), k)).iter().map(|g| g * 2.0).collect();
        let rates = StepRates { lr: config.lr, betas: config.betas() };
        let tensors = params.iter().zip(&grads).zip(&states);
        let tensors = tensors.map(|((param, grad), state)| UnitTensors { param, grad, state });
        let units: Vec<_> = tensors.enumerate().collect();
        optimizer.update(&group, &units, rates, Some(&twice)).unwrap();
        optimizer.end_step();
    }
    let mut named = BTreeMap::new();
    for (unit, flat) in units().into_iter().zip(&params) {
        for param in unit.params {
            let numel = param.numel();
            named.insert(param.name, flat.narrow(0, param.offset, numel).copy());
        }
    }
    named
}

/// The largest difference from PyTorch's parameters.
fn distance(config: &OptimizerConfig, name: &str) -> f64 {
    let text = std::fs::read_to_string(golden("optimizers.json")).unwrap();
    let values: serde_json::Value = serde_json::from_str(&text).unwrap();
    let distances = fifty_steps(config).into_iter().map(|(param, found)| {
        let expected: Vec<f64> = serde_json::from_value(values[name][&param].clone()).unwrap();
        (found - Tensor::from_slice(&expected)).abs().max().double_value(&[])
    });
    distances.fold(0.0, f64::max)
}

fn adam(adam_w_mode: bool) -> Algorithm {
    Algorithm::Adam(AdamConfig { betas: (0.9, 0.95), adam_w_mode, ..AdamConfig::default() })
}

fn with_decay(algorithm: Algorithm, lr: f64) -> OptimizerConfig {
    OptimizerConfig { weight_decay: 0.1, ..OptimizerConfig::new(algorithm, lr) }
}

fn sgd(momentum: f64, dampening: f64, nesterov: bool) -> OptimizerConfig {
    with_decay(Algorithm::Sgd(SgdConfig { momentum, dampening, nesterov }), 0.05)
}

fn patterns(texts: &[&str]) -> Vec<Pattern> {
    texts.iter().map(|text| Pattern::new(text).unwrap()).collect()
}

/// Values of about 1 in float32, fifty steps in another order of arithmetic: 1e-5.
#[test]
fn fifty_steps_are_pytorchs() {
    let groups = OptimizerConfig {
        no_decay: patterns(&["*.bias"]),
        groups: vec![ParamGroup { params: patterns(&["a.*"]), lr: Some(0.03), weight_decay: None }],
        ..with_decay(Algorithm::Adam(AdamConfig::default()), 0.01)
    };
    for (name, config) in [
        ("adam", with_decay(adam(false), 0.01)),
        ("adamw", with_decay(adam(true), 0.01)),
        ("adamw_groups", groups),
        ("sgd", sgd(0.0, 0.0, false)),
        ("sgd_momentum", sgd(0.9, 0.2, false)),
        ("sgd_nesterov", sgd(0.9, 0.0, true)),
        ("adagrad", with_decay(Algorithm::Adagrad(AdagradConfig::default()), 0.05)),
    ] {
        let distance = distance(&config, name);
        assert!(distance < 1e-5, "{name}: {distance}");
    }
}

fn muon(nesterov: bool, ns_method: NsMethod) -> OptimizerConfig {
    let muon = MuonConfig { nesterov, ns_method, adam_lr: Some(0.003), ..MuonConfig::default() };
    with_decay(Algorithm::Muon(muon), 0.02)
}

/// With PyTorch's iteration in float32 too, 1e-4: it multiplies the rounding of small singular
/// values by up to 3.4^5. With PyTorch's bfloat16, 8 bits for each of fifty updates of at most
/// 0.02 times sqrt(2.5), which differ by chance: 0.05 where the parameters move by 0.5.
#[test]
fn fifty_steps_of_muon_are_pytorchs() {
    for method in [NsMethod::Standard, NsMethod::Gram] {
        for (name, nesterov, tolerance) in
            [("muon", true, 1e-4), ("muon_plain", false, 1e-4), ("muon_bf16", true, 0.05)]
        {
            let distance = distance(&muon(nesterov, method), name);
            assert!(distance < tolerance, "{name}, {method:?}: {distance}");
        }
    }
}

/// `Conv1D` stores `[in, out]`: a transposed matrix with the same inputs and outputs is updated by
/// the transposed update.
#[test]
fn muon_does_not_depend_on_how_a_matrix_is_stored() {
    let step = |shape: [i64; 2], grad: &Tensor| {
        let param = ParamLayout {
            name: "w".into(),
            offset: 0,
            shape: shape.to_vec(),
            fan_in_out: Some((4, 10)),
        };
        let unit = UnitLayout { numel: 40, params: vec![param] };
        let plan = OptimizerPlan::new(&muon(true, NsMethod::Gram), &[unit], None).unwrap();
        let group = ProcessGroup::single(Device::Cpu).unwrap();
        let optimizer = Optimizer::new(plan);
        let flat = Tensor::zeros([40], (Kind::Float, Device::Cpu));
        let rates = StepRates { lr: 0.02, betas: (0.95, 0.0) };
        let (grad, state) = (grad.reshape([-1]), state(&optimizer, 0));
        let tensors = UnitTensors { param: &flat, grad: &grad, state: &state };
        optimizer.update(&group, &[(0, tensors)], rates, None).unwrap();
        flat.view(shape)
    };
    let grad = flats(start)[0].narrow(0, 0, 40).view([10, 4]);
    let (stored, transposed) = (step([10, 4], &grad), step([4, 10], &grad.tr().contiguous()));
    assert!(stored.abs().max().double_value(&[]) > 1e-3);
    // The same sums in another order, float32.
    assert!(stored.allclose(&transposed.tr(), 1e-5, 1e-6, false));
}

/// State in bfloat16 leads nearly where that in float32 does: its relative error of 2^-8 in each
/// step is not in the mean, so that fifty steps of 0.01 differ by less than 0.05, a tenth of the
/// way. Adagrad's sum grows by less and less, which rounding to the nearest would drop.
#[test]
fn state_in_bfloat16_leads_to_the_same_place() {
    let _alone = alone();
    for config in [
        with_decay(adam(true), 0.01),
        sgd(0.9, 0.0, false),
        with_decay(Algorithm::Adagrad(AdagradConfig::default()), 0.05),
        with_decay(Algorithm::Lamb(LambConfig::default()), 0.01),
        muon(true, NsMethod::Gram),
    ] {
        let bf16 = OptimizerConfig { state_dtype: StateDtype::Bf16, ..config.clone() };
        let (exact, rounded) = (fifty_steps(&config), fifty_steps(&bf16));
        let mut most = 0.0f64;
        for (name, exact) in &exact {
            most = most.max((exact - &rounded[name]).abs().max().double_value(&[]));
        }
        assert!(most > 0.0 && most < 0.05, "{config:?}: {most}");
    }
}

fn engine_config(optimizer: OptimizerConfig) -> EngineConfig {
    EngineConfig {
        micro_batch_size: 1,
        gradient_accumulation_steps: 1,
        numerics: Numerics::default(),
        precision: PrecisionConfig::new(Dtype::Fp32),
        batch_choice: dsr::config::BatchChoice::Given,
        gradient_clipping: Some(1.0),
        loss_average: LossAverage::Tokens,
        ema: None,
        outliers: OutlierConfig::default(),
        optimizer,
        trainable: TrainableConfig::default(),
        scheduler: Schedule::Constant,
        activation_checkpointing: None,
        sparse_attention: None,
        tiled_mlp: None,
        zero: ZeroConfig::default(),
        mesh: MeshConfig::default(),
        seed: 1,
        monitor: MonitorConfig::default(),
    }
}

/// An engine for the golden model, which has no dropout.
fn try_engine(config: EngineConfig) -> dsr::error::Result<Engine> {
    let dir = golden("gpt2-tiny-v512");
    let model = Model::load(
        Place::unguarded(&dir),
        &ModelConfig::read(Place::unguarded(&dir)).unwrap(),
        Device::Cpu,
    )
    .unwrap();
    let group = Rc::new(ProcessGroup::single(Device::Cpu).unwrap());
    Engine::new(Rc::new(model), group, config)
}

fn engine(optimizer: OptimizerConfig) -> Engine {
    try_engine(engine_config(optimizer)).unwrap()
}

fn loader() -> Loader {
    let path = golden("tokens-v512.parquet");
    let rows =
        Dataset::open(DataSource::unguarded(path.to_str().unwrap()), &OpenOptions::default())
            .unwrap();
    let options = LoaderOptions { micro_batch_size: 1, ..LoaderOptions::default() };
    rows.loader(options).unwrap()
}

/// The losses of so many steps.
fn train(engine: &mut Engine, loader: &mut Loader, steps: usize) -> Vec<f64> {
    let step = |_| {
        let batch = loader.next_batch().unwrap().unwrap();
        let loss = engine.forward(&batch).unwrap();
        engine.backward(&loss).unwrap();
        assert!(engine.step().unwrap());
        engine.last_step().unwrap().loss
    };
    (0..steps).map(step).collect()
}

/// Every optimizer, some of them with groups or with state in bfloat16.
fn every_optimizer() -> Vec<OptimizerConfig> {
    let lamb = Algorithm::Lamb(LambConfig::default());
    let grouped = |config: OptimizerConfig| OptimizerConfig {
        no_decay: patterns(&["*.bias", "*ln_*"]),
        groups: vec![ParamGroup {
            params: patterns(&["*wte*"]),
            lr: Some(config.lr / 2.0),
            weight_decay: Some(0.0),
        }],
        ..config
    };
    let bf16 = |config| OptimizerConfig { state_dtype: StateDtype::Bf16, ..config };
    vec![
        with_decay(adam(true), 1e-3),
        bf16(grouped(with_decay(adam(true), 1e-3))),
        with_decay(adam(false), 1e-3),
        grouped(with_decay(lamb, 5e-3)),
        with_decay(Algorithm::Lion(LionConfig::default()), 1e-4),
        sgd(0.0, 0.0, false),
        bf16(sgd(0.9, 0.1, false)),
        with_decay(Algorithm::Adagrad(AdagradConfig::default()), 1e-3),
        grouped(muon(true, NsMethod::Gram)),
        bf16(muon(true, NsMethod::Standard)),
    ]
}

/// Six steps are three, a checkpoint, another engine and three more, to the bit; and the loss falls.
#[test]
fn every_optimizer_resumes_to_the_bit() {
    let _alone = alone();
    for config in every_optimizer() {
        let mut whole = engine(config.clone());
        let straight = train(&mut whole, &mut loader(), 6);
        assert!(straight[5] < straight[0], "{config:?}: {straight:?}");

        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(Place::unguarded(dir.path()));
        let (mut first, mut rows) = (engine(config.clone()), loader());
        let mut losses = train(&mut first, &mut rows, 3);
        save_checkpoint(&first, &store, None, Some(&rows), None).unwrap();
        let (mut second, mut rows) = (engine(config.clone()), loader());
        load_checkpoint(&mut second, Some(&mut rows), store.latest().unwrap()).unwrap();
        losses.extend(train(&mut second, &mut rows, 3));
        assert_eq!(straight, losses, "{config:?}");
        for ((name, a), (_, b)) in whole.model().named_params().zip(second.model().named_params()) {
            assert!(a.equal(b), "{config:?}: {name}");
        }
    }
}

/// The names in a checkpoint, with the dtype of the state.
fn saved_state(config: OptimizerConfig) -> (Vec<String>, Kind) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(Place::unguarded(dir.path()));
    let mut engine = engine(config);
    train(&mut engine, &mut loader(), 1);
    save_checkpoint(&engine, &store, None, None, None).unwrap();
    let path = store.latest().unwrap().join("optimizer.safetensors");
    let file = SafetensorsFile::open(&path).unwrap();
    let names = file.names();
    let kind = names.first().map_or(Kind::Float, |name| file.kind(name).unwrap());
    (names, kind)
}

#[test]
fn a_checkpoint_has_the_state_by_name_in_float32() {
    let _alone = alone();
    let bf16 = OptimizerConfig { state_dtype: StateDtype::Bf16, ..muon(true, NsMethod::Standard) };
    let (names, kind) = saved_state(bf16);
    assert_eq!(kind, Kind::Float);
    let has = |name: &str| names.iter().any(|n| n == name);
    assert!(has("momentum_buffer.transformer.h.0.attn.c_attn.weight"));
    assert!(!has("exp_avg.transformer.h.0.attn.c_attn.weight"));
    assert!(has("exp_avg_sq.transformer.wte.weight") && has("exp_avg.transformer.h.3.ln_1.bias"));
    assert!(saved_state(sgd(0.0, 0.0, false)).0.is_empty());
    let sums = saved_state(with_decay(Algorithm::Adagrad(AdagradConfig::default()), 0.01)).0;
    assert!(sums.iter().all(|name| name.starts_with("sum.transformer.")));
}

#[test]
fn a_checkpoint_of_another_optimizer_is_refused() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(Place::unguarded(dir.path()));
    let first = engine(with_decay(adam(true), 1e-3));
    save_checkpoint(&first, &store, None, None, None).unwrap();
    let mut lamb = engine(with_decay(Algorithm::Lamb(LambConfig::default()), 1e-3));
    let e = load_checkpoint(&mut lamb, None, store.latest().unwrap()).unwrap_err();
    assert_eq!(e.code(), Code::Checkpoint);
    assert!(e.message().ends_with("has the state of AdamW, and the engine's optimizer is Lamb"));
    // Settings of the same optimizer may change, the dtype of the state among them.
    let bf16 = OptimizerConfig { state_dtype: StateDtype::Bf16, ..with_decay(adam(true), 1e-4) };
    load_checkpoint(&mut engine(bf16), None, store.latest().unwrap()).unwrap();
}

/// The momentum is cycled where it is no beta; without any there is nothing to cycle.
#[test]
fn one_cycle_sets_the_momentum() {
    let _alone = alone();
    let still = Some((0.7, 0.7));
    let run = |momentum, scheduler| {
        let config = EngineConfig { scheduler, ..engine_config(sgd(momentum, 0.0, false)) };
        train(&mut try_engine(config).unwrap(), &mut loader(), 3)
    };
    assert_eq!(run(0.2, one_cycle(1e-2, still)), run(0.7, one_cycle(1e-2, None)));
    assert_ne!(run(0.2, one_cycle(1e-2, still)), run(0.2, one_cycle(1e-2, None)));
    let without =
        EngineConfig { scheduler: one_cycle(1e-2, still), ..engine_config(sgd(0.0, 0.0, false)) };
    let e = try_engine(without).map(drop).unwrap_err();
    assert_eq!(e.option_path(), Some("scheduler.cycle_momentum"));
}
