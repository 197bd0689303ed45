//! The option `optimizer` of `init_engine`: a `type`, its settings, and those of parameter groups.
//! Options of DeepSpeed's without a meaning here are refused with the reason.

use super::{
    algorithm::{
        AdagradConfig, AdamConfig, AdamMode, AdamOptions, Algorithm, BlockwiseConfig, LambConfig,
        LionConfig, MuonConfig, SgdConfig,
    },
    settings::{CommonOptions, OptimizerConfig},
};
use crate::{
    config::options::{
        Kind, OptionTable, Options, ROW, Row, Typed, Variant, is_finite, option_table,
    },
    error::{Code, Error},
};

/// The learning rates of DeepSpeed's `MuonWithAuxAdam`.
const MUON_LR: f64 = 0.02;
const MUON_ADAM_LR: f64 = 3e-4;

/// An optimizer that the map's `type` names.
struct OptimizerType {
    variant: Variant,
    lr: f64,
    weight_decay: f64,
    /// Whether its state is in 8 bits.
    is_blockwise: bool,
    read: fn(&mut Options<'_>) -> Algorithm,
}

const fn optimizer(
    names: &'static [&'static str],
    tables: &'static [&'static [Row]],
    lr: f64,
    read: fn(&mut Options<'_>) -> Algorithm,
) -> OptimizerType {
    let variant = Variant { names, tables };
    OptimizerType { variant, lr, weight_decay: 0.0, is_blockwise: false, read }
}

/// The weight decay is that of `torch.optim.AdamW`.
const ADAMW: OptimizerType = OptimizerType {
    weight_decay: 0.01,
    ..optimizer(&["AdamW"], &[AdamOptions::ROWS], 1e-3, |o| {
        Algorithm::Adam(AdamConfig::read_adamw(o))
    })
};

/// bitsandbytes' names of the optimizer and transformers' of its option `optim`.
const ADAMW_8BIT: OptimizerType = OptimizerType {
    weight_decay: 0.01,
    is_blockwise: true,
    ..optimizer(
        &["AdamW8bit", "adamw_bnb_8bit", "adamw_8bit", "bnb.optim.AdamW8bit"],
        &[AdamOptions::ROWS, BlockwiseConfig::ROWS],
        1e-3,
        |o| Algorithm::Adam(AdamConfig::read_adamw(o)),
    )
};

/// Adam's rule, in which the decay is a part of the gradient.
const ADAM_8BIT: OptimizerType = OptimizerType {
    is_blockwise: true,
    ..optimizer(
        &["Adam8bit", "bnb.optim.Adam8bit"],
        &[AdamOptions::ROWS, BlockwiseConfig::ROWS],
        1e-3,
        |o| Algorithm::Adam(AdamConfig { adam_w_mode: false, ..AdamConfig::read_adamw(o) }),
    )
};

const TYPES: &[OptimizerType] = &[
    ADAMW,
    ADAMW_8BIT,
    ADAM_8BIT,
    optimizer(&["Adam"], &[AdamMode::ROWS, AdamOptions::ROWS], 1e-3, |o| {
        Algorithm::Adam(AdamConfig::read_adam(o))
    }),
    optimizer(&["Lamb"], &[LambConfig::ROWS], 1e-3, |o| Algorithm::Lamb(LambConfig::read(o))),
    optimizer(&["Lion"], &[LionConfig::ROWS], 1e-3, |o| Algorithm::Lion(LionConfig::read(o))),
    optimizer(&["SGD"], &[SgdConfig::ROWS], 1e-3, |o| Algorithm::Sgd(SgdConfig::read(o))),
    optimizer(&["Adagrad"], &[AdagradConfig::ROWS], 1e-2, |o| {
        Algorithm::Adagrad(AdagradConfig::read(o))
    }),
    optimizer(&["Muon"], &[MuonConfig::ROWS, MuonRate::ROWS], MUON_LR, |o| {
        Algorithm::Muon(MuonConfig::read(o))
    }),
];

option_table! {
    /// The learning rate of Muon's own part.
    #[derive(Debug)]
    struct MuonRate {
        /// Muon's learning rate where `lr` is AdamW's
        #[option(optional, range = 0.0.., must = is_finite => "finite")]
        pub muon_lr: Option<f64>,
    }
}

/// The option.
pub(in crate::config) const OPTIMIZER_ROWS: &[Row] = &[Row {
    name: "optimizer",
    help: &["the optimizer: a map with a `type`, AdamW without one"],
    kind: || Kind::Typed(typed()),
    ..ROW
}];

/// The options of an optimizer, table by table.
pub(in crate::config) fn optimizer_tables(name: &str) -> Vec<&'static [Row]> {
    typed().tables(Some(name))
}

fn typed() -> Typed {
    Typed {
        common: &[CommonOptions::ROWS],
        variants: TYPES.iter().map(|kind| &kind.variant).collect(),
        untyped: "AdamW",
    }
}

/// An optimizer as it was written, before the scheduler is known.
pub(in crate::config) struct GivenOptimizer {
    /// With defaults where nothing was given.
    pub config: OptimizerConfig,
    /// The learning rate that the schedule scales, with its option, where it was given.
    pub(super) lr: Option<(f64, &'static str)>,
    pub(super) betas: Option<(f64, f64)>,
    pub(super) has_momentum: bool,
    pub(super) adam_lr: Option<f64>,
    pub(super) has_state_dtype: bool,
}

impl GivenOptimizer {
    /// Reads the option from its map `o`.
    pub(in crate::config) fn read(o: &mut Options<'_>) -> Self {
        let has_type = o.has("type");
        match o.variant(TYPES, |kind| &kind.variant).optional() {
            Some(kind) => Self::of(kind, o),
            None => {
                let given = Self::of(&ADAMW, o);
                if has_type {
                    // Which options there are beside AdamW's depends on the type.
                    o.accept_rest();
                }
                given
            }
        }
    }

    fn of(kind: &OptimizerType, o: &mut Options<'_>) -> Self {
        let algorithm = (kind.read)(o);
        let blockwise = kind.is_blockwise.then(|| BlockwiseConfig::read(o));
        let common = CommonOptions::read(o);
        if kind.is_blockwise {
            o.refuse(["state_dtype"], "has no place here: the state is kept in 8 bits");
        }
        if matches!(algorithm, Algorithm::Adam(_) | Algorithm::Lamb(_)) {
            refuse_amsgrad(o);
        }
        refuse_foreign(o);
        let has_cycled_betas = !matches!(algorithm, Algorithm::Muon(_)) && o.has("betas");
        let mut given = Self {
            config: OptimizerConfig {
                algorithm,
                lr: common.lr.unwrap_or(kind.lr),
                weight_decay: common.weight_decay.unwrap_or(kind.weight_decay),
                no_decay: common.no_decay,
                groups: common.groups.0,
                state_dtype: common.state_dtype,
                blockwise,
            },
            lr: common.lr.map(|lr| (lr, "lr")),
            betas: None,
            has_momentum: o.has("momentum"),
            adam_lr: None,
            has_state_dtype: o.has("state_dtype"),
        };
        given.betas = has_cycled_betas.then(|| given.config.betas());
        given.share_muons_rates(o);
        given
    }

    /// Gives `lr` to both parts of Muon; `muon_lr` and `adam_lr` override it for one of them.
    fn share_muons_rates(&mut self, o: &mut Options<'_>) {
        let Algorithm::Muon(muon) = &mut self.config.algorithm else { return };
        let MuonRate { muon_lr } = MuonRate::read(o);
        self.adam_lr = muon.adam_lr;
        if self.lr.is_some() && muon_lr.is_some() && muon.adam_lr.is_some() {
            let message = "`optimizer.lr` has no effect beside muon_lr and adam_lr";
            o.fault("lr", Code::BadValue, message);
        }
        let rest = match (self.lr, muon_lr) {
            (None, _) => Some(MUON_ADAM_LR),
            (Some((lr, _)), Some(_)) => Some(lr),
            (Some(_), None) => None,
        };
        muon.adam_lr = muon.adam_lr.or(rest);
        if let Some(lr) = muon_lr {
            (self.config.lr, self.lr) = (lr, Some((lr, "muon_lr")));
        }
    }
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
pub(in crate::config::optimizer) mod tests {
    use glob::Pattern;
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::{
        config::{
            EngineConfig,
            optimizer::{ParamGroup, StateDtype},
            options::{self, Map, Value},
        },
        error::Result,
    };

    pub(in crate::config::optimizer) fn read(options: Json) -> Result<EngineConfig> {
        let Value::Map(mut map) = options.into() else { panic!("a map") };
        map.insert("micro_batch_size".to_owned(), Value::Int(1));
        options::read("init_engine", &map, |o| EngineConfig::read(o, 1, |_| None))
    }

    fn optimizer(map: Json) -> OptimizerConfig {
        read(json!({ "optimizer": map })).unwrap().optimizer
    }

    /// Option and message of each fault.
    pub(in crate::config::optimizer) fn messages(error: &Error) -> Vec<(String, String)> {
        let fault = |e: &Error| {
            let option = e.option_path().unwrap_or_default();
            (option.trim_start_matches("optimizer.").to_owned(), e.message().to_owned())
        };
        std::iter::once(error).chain(error.others()).map(fault).collect()
    }

    /// The options at fault.
    fn faults(map: Json) -> Vec<String> {
        let error = read(json!({ "optimizer": map })).unwrap_err();
        messages(&error).into_iter().map(|(option, _)| option).collect()
    }

    #[test]
    fn defaults_are_deepspeeds_and_adamws_are_pytorchs() {
        let default = |algorithm, lr| OptimizerConfig::new(algorithm, lr);
        assert_eq!(optimizer(json!({})), OptimizerConfig::default());
        assert_eq!(optimizer(json!({ "type": "adamw" })).weight_decay, 0.01);
        let adam = AdamConfig::default();
        assert_eq!(optimizer(json!({ "type": "Adam" })), default(Algorithm::Adam(adam), 1e-3));
        for (name, algorithm, lr) in [
            ("Lamb", Algorithm::Lamb(LambConfig::default()), 1e-3),
            ("Lion", Algorithm::Lion(LionConfig::default()), 1e-3),
            ("SGD", Algorithm::Sgd(SgdConfig::default()), 1e-3),
            ("Adagrad", Algorithm::Adagrad(AdagradConfig::default()), 1e-2),
        ] {
            assert_eq!(optimizer(json!({ "type": name })), default(algorithm, lr));
        }
    }

    #[test]
    fn state_in_8_bits_goes_by_the_names_of_bitsandbytes_and_transformers() {
        let blockwise = |min_8bit_size| Some(BlockwiseConfig { min_8bit_size });
        for name in ["AdamW8bit", "adamw_bnb_8bit", "adamw_8bit", "bnb.optim.AdamW8bit"] {
            let found = optimizer(json!({ "type": name }));
            let expected =
                OptimizerConfig { blockwise: blockwise(4096), ..OptimizerConfig::default() };
            assert_eq!((found.name(), &found), ("AdamW8bit", &expected));
        }
        let found = optimizer(json!({ "type": "Adam8bit", "min_8bit_size": 16384 }));
        assert_eq!((found.name(), found.blockwise), ("Adam8bit", blockwise(16384)));
        let wrong = json!({ "type": "AdamW8bit", "min_8bit_size": 64, "state_dtype": "bf16" });
        assert_eq!(faults(wrong), ["min_8bit_size", "state_dtype"]);
        assert_eq!(faults(json!({ "type": "AdamW", "min_8bit_size": 4096 })), ["min_8bit_size"]);
    }

    #[test]
    fn every_option_arrives() {
        let found = optimizer(
            json!({ "type": "Adam", "adam_w_mode": false, "bias_correction": false, "betas": [0.8, 0.9],
                "eps": 1e-6, "lr": 0.1, "weight_decay": 0.2, "amsgrad": false, "state_dtype": "bf16",
                "no_decay": ["*.bias"],
                "groups": [{ "params": ["*wte*", "*wpe*"], "lr": 1 }, { "params": ["*h.0*"], "weight_decay": 0 }] }),
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
        let found = optimizer(
            json!({ "type": "Lamb", "max_coeff": 2, "min_coeff": 0.5, "eps_inside_sqrt": true }),
        );
        assert_eq!(found.algorithm, Algorithm::Lamb(lamb));
        let sgd = SgdConfig { momentum: 0.9, dampening: 0.0, nesterov: true };
        let found = optimizer(json!({ "type": "SGD", "momentum": 0.9, "nesterov": true }));
        assert_eq!(found.algorithm, Algorithm::Sgd(sgd));
    }

    #[test]
    fn muon_has_two_rates() {
        for (given, muon, adam) in [
            (json!({}), 0.02, Some(3e-4)),
            (json!({ "lr": 0.1 }), 0.1, None),
            (json!({ "muon_lr": 0.1 }), 0.1, Some(3e-4)),
            (json!({ "adam_lr": 0.1 }), 0.02, Some(0.1)),
            (json!({ "lr": 0.1, "muon_lr": 0.5 }), 0.5, Some(0.1)),
            (json!({ "lr": 0.1, "adam_lr": 0.5 }), 0.1, Some(0.5)),
            (json!({ "muon_lr": 0.1, "adam_lr": 0.5 }), 0.1, Some(0.5)),
        ] {
            let mut map = given.clone();
            map["type"] = json!("Muon");
            let found = optimizer(map);
            let Algorithm::Muon(config) = found.algorithm else { panic!("{found:?}") };
            assert_eq!((found.lr, config.adam_lr), (muon, adam), "{given}");
        }
        assert_eq!(faults(json!({ "type": "Muon", "lr": 1, "muon_lr": 1, "adam_lr": 1 })), ["lr"]);
        let found =
            faults(json!({ "type": "Muon", "ns_steps": 0, "ns_method": "svd", "momentum": 1 }));
        assert_eq!(found, ["momentum", "ns_steps", "ns_method"]);
    }

    #[test]
    fn what_a_type_does_not_have_is_refused() {
        assert_eq!(faults(json!({ "type": "Lion", "eps": 1e-8 })), ["eps"]);
        assert_eq!(faults(json!({ "type": "SGD", "betas": [0.9, 0.99] })), ["betas"]);
        assert_eq!(faults(json!({ "type": "AdamW", "adam_w_mode": false })), ["adam_w_mode"]);
        assert_eq!(faults(json!({ "type": "Lamb", "min_coeff": 11 })), ["min_coeff"]);
        let infinite = Map::from([("lr".to_owned(), Value::Float(f64::INFINITY))]);
        assert!(options::read("f", &infinite, GivenOptimizer::read).is_err());
        let none = faults(
            json!({ "type": "SGD", "nesterov": true, "dampening": 0.1, "state_dtype": "bf16" }),
        );
        assert_eq!(none, ["dampening", "nesterov", "state_dtype"]);
        let both =
            faults(json!({ "type": "SGD", "momentum": 0.9, "nesterov": true, "dampening": 0.1 }));
        assert_eq!(both, ["nesterov"]);
    }

    #[test]
    fn deepspeeds_options_without_a_place_are_refused_with_the_reason() {
        let error =
            read(json!({ "optimizer": { "type": "Adam", "amsgrad": true, "max_grad_norm": 1,
            "torch_adam": true, "fp32_optimizer_states": false } }))
            .unwrap_err();
        let found: Vec<_> = messages(&error).into_iter().map(|(option, _)| option).collect();
        assert_eq!(found, ["amsgrad", "max_grad_norm", "torch_adam", "fp32_optimizer_states"]);
        assert_eq!(error.others()[0].hints(), ["give init_engine gradient_clipping"]);
    }

    #[test]
    fn mistakes_in_groups_have_their_places() {
        let found =
            faults(json!({ "no_decay": ["[a"], "groups": [{ "lr": 1 }, { "params": ["a"] }, 3,
                { "params": ["b"], "lr": -1, "decay": 0 }, { "params": "c", "lr": 1 }] }));
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
        assert_eq!(faults(json!({ "groups": {} })), ["groups"]);
    }
}
