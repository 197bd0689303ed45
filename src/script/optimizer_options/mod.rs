//! The option `optimizer` of `init_engine`: a `type`, its settings, and those of parameter groups;
//! `fit.rs` fits it to the scheduler beside it.
//!
//! Names and defaults are DeepSpeed's, see [`crate::config::optimizer`]. What DeepSpeed accepts and
//! has no meaning here is refused with the reason.

mod fit;

use glob::Pattern;

use super::options::{Field, Options};
use crate::{
    config::{
        OptimizerConfig,
        optimizer::{
            AdagradConfig, AdamConfig, Algorithm, LambConfig, LionConfig, MuonConfig, NsMethod,
            ParamGroup, SgdConfig, StateDtype,
        },
    },
    error::{Code, Error},
};

const OPTION: &str = "optimizer";
/// The weight decay of `torch.optim.AdamW`.
const ADAMW_WEIGHT_DECAY: f64 = 0.01;
/// The learning rates of DeepSpeed's `MuonWithAuxAdam`.
const MUON_LR: f64 = 0.02;
const MUON_ADAM_LR: f64 = 3e-4;

/// Reads the options of one type of optimizer.
type Reader = fn(&mut Options<'_>) -> Given;

/// The optimizers, as the map's `type` names them.
const TYPES: &[(&str, Reader)] = &[
    ("AdamW", adamw),
    ("Adam", adam),
    ("Lamb", lamb),
    ("Lion", lion),
    ("SGD", sgd),
    ("Adagrad", adagrad),
    ("Muon", muon),
];

const STATE_DTYPES: &[(&str, StateDtype)] =
    &[("fp32", StateDtype::Fp32), ("bf16", StateDtype::Bf16)];

const NS_METHODS: &[(&str, NsMethod)] =
    &[("gram", NsMethod::Gram), ("standard", NsMethod::Standard)];

/// An optimizer as it was written, before the scheduler is known.
pub(super) struct Given {
    /// With defaults where nothing was given.
    pub(super) config: OptimizerConfig,
    /// The learning rate that the schedule scales, with its option, where it was given.
    lr: Option<(f64, &'static str)>,
    betas: Option<(f64, f64)>,
    momentum: Option<f64>,
    adam_lr: Option<f64>,
    state_dtype: Option<StateDtype>,
}

/// Reads the option from its map `o`.
pub(super) fn read(o: &mut Options<'_>) -> Given {
    let has_type = o.has("type");
    match o.choice("type", TYPES).optional() {
        Some(read) => read(o),
        None => {
            let given = adamw(o);
            if has_type {
                // Which options there are beside AdamW's depends on the type.
                o.accept_rest();
            }
            given
        }
    }
}

impl Given {
    /// An optimizer of this algorithm with the options that each type has.
    fn read(o: &mut Options<'_>, algorithm: Algorithm, lr: f64, weight_decay: f64) -> Self {
        let given = rate(o, "lr").optional();
        let state_dtype = o.choice("state_dtype", STATE_DTYPES).optional();
        refuse_foreign(o);
        let config = OptimizerConfig {
            algorithm,
            lr: given.unwrap_or(lr),
            weight_decay: rate(o, "weight_decay").or(weight_decay),
            no_decay: patterns(o, "no_decay"),
            groups: o.maps("groups", group),
            state_dtype: state_dtype.unwrap_or(StateDtype::Fp32),
        };
        Self {
            config,
            lr: given.map(|lr| (lr, "lr")),
            betas: None,
            momentum: None,
            adam_lr: None,
            state_dtype,
        }
    }
}

fn adamw(o: &mut Options<'_>) -> Given {
    adam_with(o, true, ADAMW_WEIGHT_DECAY)
}

fn adam(o: &mut Options<'_>) -> Given {
    let adam_w_mode = o.get("adam_w_mode").or(true);
    adam_with(o, adam_w_mode, 0.0)
}

fn adam_with(o: &mut Options<'_>, adam_w_mode: bool, weight_decay: f64) -> Given {
    let default = AdamConfig::default();
    refuse_amsgrad(o);
    let betas = betas(o);
    let config = AdamConfig {
        betas: betas.unwrap_or(default.betas),
        eps: rate(o, "eps").or(default.eps),
        adam_w_mode,
        bias_correction: o.get("bias_correction").or(default.bias_correction),
    };
    Given { betas, ..Given::read(o, Algorithm::Adam(config), 1e-3, weight_decay) }
}

fn lamb(o: &mut Options<'_>) -> Given {
    let default = LambConfig::default();
    refuse_amsgrad(o);
    let betas = betas(o);
    let config = LambConfig {
        betas: betas.unwrap_or(default.betas),
        eps: rate(o, "eps").or(default.eps),
        eps_inside_sqrt: o.get("eps_inside_sqrt").or(default.eps_inside_sqrt),
        bias_correction: o.get("bias_correction").or(default.bias_correction),
        max_coeff: rate(o, "max_coeff").or(default.max_coeff),
        min_coeff: rate(o, "min_coeff").or(default.min_coeff),
    };
    if config.min_coeff > config.max_coeff {
        let LambConfig { min_coeff, max_coeff, .. } = config;
        let message = format!("min_coeff {min_coeff} is more than max_coeff {max_coeff}");
        o.fault("min_coeff", Code::BadValue, message);
    }
    Given { betas, ..Given::read(o, Algorithm::Lamb(config), 1e-3, 0.0) }
}

fn lion(o: &mut Options<'_>) -> Given {
    let betas = betas(o);
    let config = LionConfig { betas: betas.unwrap_or(LionConfig::default().betas) };
    Given { betas, ..Given::read(o, Algorithm::Lion(config), 1e-3, 0.0) }
}

fn sgd(o: &mut Options<'_>) -> Given {
    let default = SgdConfig::default();
    let momentum = o.get("momentum").range(0.0..1.0).optional();
    let config = SgdConfig {
        momentum: momentum.unwrap_or(default.momentum),
        dampening: o.get("dampening").range(0.0..=1.0).or(default.dampening),
        nesterov: o.get("nesterov").or(default.nesterov),
    };
    Given { momentum, ..Given::read(o, Algorithm::Sgd(config), 1e-3, 0.0) }
}

fn adagrad(o: &mut Options<'_>) -> Given {
    let config = AdagradConfig { eps: rate(o, "eps").or(AdagradConfig::default().eps) };
    Given::read(o, Algorithm::Adagrad(config), 1e-2, 0.0)
}

/// `lr` is the rate of both parts; `muon_lr` and `adam_lr` override it for one of them.
fn muon(o: &mut Options<'_>) -> Given {
    let default = MuonConfig::default();
    let momentum = o.get("momentum").range(0.0..1.0).optional();
    let (muon_lr, adam_lr) = (rate(o, "muon_lr").optional(), rate(o, "adam_lr").optional());
    let config = MuonConfig {
        momentum: momentum.unwrap_or(default.momentum),
        nesterov: o.get("nesterov").or(default.nesterov),
        ns_steps: o.get("ns_steps").range(1..=99).or(default.ns_steps),
        ns_method: o.choice("ns_method", NS_METHODS).or(default.ns_method),
        adam_lr,
        betas: betas(o).unwrap_or(default.betas),
        eps: rate(o, "eps").or(default.eps),
    };
    let mut given = Given::read(o, Algorithm::Muon(config), MUON_LR, 0.0);
    if given.lr.is_some() && muon_lr.is_some() && adam_lr.is_some() {
        let message = "`optimizer.lr` has no effect beside muon_lr and adam_lr";
        o.fault("lr", Code::BadValue, message);
    }
    let rest = match (given.lr, muon_lr) {
        (None, _) => Some(MUON_ADAM_LR),
        (Some((lr, _)), Some(_)) => Some(lr),
        (Some(_), None) => None,
    };
    given.config.algorithm = Algorithm::Muon(MuonConfig { adam_lr: adam_lr.or(rest), ..config });
    given.adam_lr = adam_lr;
    if let Some(lr) = muon_lr {
        (given.config.lr, given.lr) = (lr, Some((lr, "muon_lr")));
    }
    Given { momentum, ..given }
}

/// One of `groups`.
fn group(o: &mut Options<'_>) -> ParamGroup {
    if !o.has("params") {
        let message = format!("`{}` is required and missing", o.path("params"));
        o.fault("params", Code::Missing, message);
    }
    let group = ParamGroup {
        params: patterns(o, "params"),
        lr: rate(o, "lr").optional(),
        weight_decay: rate(o, "weight_decay").optional(),
    };
    if !o.has("lr") && !o.has("weight_decay") {
        let message = "a parameter group without `lr` or `weight_decay` changes nothing";
        o.fault("params", Code::BadValue, message);
    }
    group
}

/// A list of patterns of parameter names.
fn patterns(o: &mut Options<'_>, key: &'static str) -> Vec<Pattern> {
    let texts: Vec<String> = o.get(key).or(Vec::new());
    let mut patterns = Vec::new();
    for (i, text) in texts.iter().enumerate() {
        match Pattern::new(text) {
            Ok(pattern) => patterns.push(pattern),
            Err(e) => {
                let key = format!("{key}[{i}]");
                let message = format!("`{}` is no pattern: {}", o.path(&key), e.msg);
                o.fault(&key, Code::BadValue, message);
            }
        }
    }
    patterns
}

/// A finite number, 0 or more.
fn rate<'o>(o: &'o mut Options<'_>, key: &'static str) -> Field<'o, f64> {
    o.get(key).range(0.0..).check(|number: &f64| number.is_finite(), "finite")
}

fn betas(o: &mut Options<'_>) -> Option<(f64, f64)> {
    let betas = o.get::<Vec<f64>>("betas").optional()?;
    if let &[a, b] = betas.as_slice()
        && (0.0..1.0).contains(&a)
        && (0.0..1.0).contains(&b)
    {
        return Some((a, b));
    }
    let message =
        format!("`optimizer.betas` must be two numbers from 0 to below 1, found {betas:?}");
    o.fault("betas", Code::BadValue, message);
    None
}

fn refuse_amsgrad(o: &mut Options<'_>) {
    if o.has("amsgrad") && o.get("amsgrad").or(false) {
        o.fault("amsgrad", Code::BadValue, "AMSGrad is not supported, as in DeepSpeed");
    }
}

/// Options of DeepSpeed's that have another place here, or none.
fn refuse_foreign(o: &mut Options<'_>) {
    let foreign = [
        ("max_grad_norm", "is no option of an optimizer", "give init_engine gradient_clipping"),
        (
            "torch_adam",
            "has no effect: the kernels are always libtorch's, which are PyTorch's",
            "leave it out",
        ),
        ("fp32_optimizer_states", "has another name", "write state_dtype: \"fp32\" or \"bf16\""),
    ];
    for (key, why, hint) in foreign {
        if o.has(key) {
            o.raw(key);
            let message = format!("`{}` {why}", o.path(key));
            let fault = Error::new(Code::BadValue, message).option(key).hint(hint);
            o.check::<()>(Err(fault));
        }
    }
}

#[cfg(test)]
mod tests {
    use rhai::Map;

    use super::*;
    use crate::{
        config::EngineConfig,
        error::Result,
        script::{Callback, engine_options},
    };

    pub(super) fn read(source: &str) -> Result<EngineConfig> {
        let map: Map = rhai::Engine::new().eval(source).unwrap();
        engine_options::read(&map, 1, |_| -> Result<Callback> { panic!("no function here") })
            .map(|options| options.config)
    }

    fn optimizer(map: &str) -> OptimizerConfig {
        read(&format!("#{{ micro_batch_size: 1, optimizer: {map} }}")).unwrap().optimizer
    }

    /// Option and message of each fault.
    pub(super) fn messages(error: &Error) -> Vec<(String, String)> {
        let fault = |e: &Error| {
            let option = e.option_path().unwrap_or_default();
            (option.trim_start_matches("optimizer.").to_owned(), e.message().to_owned())
        };
        std::iter::once(error).chain(error.others()).map(fault).collect()
    }

    /// The options at fault.
    fn faults(map: &str) -> Vec<String> {
        let error = read(&format!("#{{ micro_batch_size: 1, optimizer: {map} }}")).unwrap_err();
        messages(&error).into_iter().map(|(option, _)| option).collect()
    }

    #[test]
    fn defaults_are_deepspeeds_and_adamws_are_pytorchs() {
        let default = |algorithm, lr| OptimizerConfig::new(algorithm, lr);
        assert_eq!(optimizer("#{}"), OptimizerConfig::default());
        assert_eq!(optimizer(r#"#{ type: "adamw" }"#).weight_decay, 0.01);
        let adam = AdamConfig::default();
        assert_eq!(optimizer(r#"#{ type: "Adam" }"#), default(Algorithm::Adam(adam), 1e-3));
        for (name, algorithm, lr) in [
            ("Lamb", Algorithm::Lamb(LambConfig::default()), 1e-3),
            ("Lion", Algorithm::Lion(LionConfig::default()), 1e-3),
            ("SGD", Algorithm::Sgd(SgdConfig::default()), 1e-3),
            ("Adagrad", Algorithm::Adagrad(AdagradConfig::default()), 1e-2),
        ] {
            assert_eq!(optimizer(&format!("#{{ type: \"{name}\" }}")), default(algorithm, lr));
        }
    }

    #[test]
    fn every_option_arrives() {
        let found = optimizer(
            r##"#{ type: "Adam", adam_w_mode: false, bias_correction: false, betas: [0.8, 0.9],
                eps: 1e-6, lr: 0.1, weight_decay: 0.2, amsgrad: false, state_dtype: "bf16",
                no_decay: ["*.bias"],
                groups: [#{ params: ["*wte*", "*wpe*"], lr: 1 }, #{ params: ["*h.0*"], weight_decay: 0 }] }"##,
        );
        let pattern = |text| Pattern::new(text).unwrap();
        let adam =
            AdamConfig { betas: (0.8, 0.9), eps: 1e-6, adam_w_mode: false, bias_correction: false };
        let expected = OptimizerConfig {
            weight_decay: 0.2,
            no_decay: vec![pattern("*.bias")],
            groups: vec![
                ParamGroup {
                    params: vec![pattern("*wte*"), pattern("*wpe*")],
                    lr: Some(1.0),
                    weight_decay: None,
                },
                ParamGroup { params: vec![pattern("*h.0*")], lr: None, weight_decay: Some(0.0) },
            ],
            state_dtype: StateDtype::Bf16,
            ..OptimizerConfig::new(Algorithm::Adam(adam), 0.1)
        };
        assert_eq!(found, expected);
        let lamb = LambConfig {
            max_coeff: 2.0,
            min_coeff: 0.5,
            eps_inside_sqrt: true,
            ..LambConfig::default()
        };
        let found =
            optimizer(r#"#{ type: "Lamb", max_coeff: 2, min_coeff: 0.5, eps_inside_sqrt: true }"#);
        assert_eq!(found.algorithm, Algorithm::Lamb(lamb));
        let sgd = SgdConfig { momentum: 0.9, dampening: 0.0, nesterov: true };
        let found = optimizer(r#"#{ type: "SGD", momentum: 0.9, nesterov: true }"#);
        assert_eq!(found.algorithm, Algorithm::Sgd(sgd));
    }

    #[test]
    fn muon_has_two_rates() {
        for (given, muon, adam) in [
            ("", 0.02, Some(3e-4)),
            ("lr: 0.1", 0.1, None),
            ("muon_lr: 0.1", 0.1, Some(3e-4)),
            ("adam_lr: 0.1", 0.02, Some(0.1)),
            ("lr: 0.1, muon_lr: 0.5", 0.5, Some(0.1)),
            ("lr: 0.1, adam_lr: 0.5", 0.1, Some(0.5)),
            ("muon_lr: 0.1, adam_lr: 0.5", 0.1, Some(0.5)),
        ] {
            let found = optimizer(&format!("#{{ type: \"Muon\", {given} }}"));
            let Algorithm::Muon(config) = found.algorithm else { panic!("{found:?}") };
            assert_eq!((found.lr, config.adam_lr), (muon, adam), "{given}");
        }
        assert_eq!(faults(r#"#{ type: "Muon", lr: 1, muon_lr: 1, adam_lr: 1 }"#), ["lr"]);
        let found = faults(r#"#{ type: "Muon", ns_steps: 0, ns_method: "svd", momentum: 1 }"#);
        assert_eq!(found, ["momentum", "ns_steps", "ns_method"]);
    }

    #[test]
    fn what_a_type_does_not_have_is_refused() {
        assert_eq!(faults(r#"#{ type: "Lion", eps: 1e-8 }"#), ["eps"]);
        assert_eq!(faults(r#"#{ type: "SGD", betas: [0.9, 0.99] }"#), ["betas"]);
        assert_eq!(faults(r#"#{ type: "AdamW", adam_w_mode: false }"#), ["adam_w_mode"]);
        assert_eq!(faults(r#"#{ type: "Lamb", min_coeff: 11 }"#), ["min_coeff"]);
        assert_eq!(faults(r#"#{ lr: 1.0 / 0.0 }"#), ["lr"]);
        let none =
            faults(r#"#{ type: "SGD", nesterov: true, dampening: 0.1, state_dtype: "bf16" }"#);
        assert_eq!(none, ["dampening", "nesterov", "state_dtype"]);
        let both = faults(r#"#{ type: "SGD", momentum: 0.9, nesterov: true, dampening: 0.1 }"#);
        assert_eq!(both, ["nesterov"]);
    }

    #[test]
    fn deepspeeds_options_without_a_place_are_refused_with_the_reason() {
        let source = r#"#{ micro_batch_size: 1, optimizer: #{ type: "Adam", amsgrad: true,
            max_grad_norm: 1, torch_adam: true, fp32_optimizer_states: false } }"#;
        let error = read(source).unwrap_err();
        let found: Vec<_> = messages(&error).into_iter().map(|(option, _)| option).collect();
        assert_eq!(found, ["amsgrad", "max_grad_norm", "torch_adam", "fp32_optimizer_states"]);
        assert_eq!(error.others()[0].hints(), ["give init_engine gradient_clipping"]);
    }

    #[test]
    fn mistakes_in_groups_have_their_places() {
        let found = faults(
            r#"#{ no_decay: ["[a"], groups: [#{ lr: 1 }, #{ params: ["a"] }, 3,
                #{ params: ["b"], lr: -1, decay: 0 }, #{ params: "c", lr: 1 }] }"#,
        );
        assert_eq!(
            found,
            [
                "no_decay[0]",
                "groups[0].params",
                "groups[1].params",
                "groups[2]",
                "groups[3].lr",
                "groups[3].decay",
                "groups[4].params",
            ]
        );
        assert_eq!(faults("#{ groups: #{} }"), ["groups"]);
    }
}
