//! An optimizer with its settings, and the options that every optimizer has.

use glob::Pattern;

use super::algorithm::{
    AdamConfig, Algorithm, BlockwiseConfig, LambConfig, LionConfig, MuonConfig, SgdConfig,
};
use crate::{
    config::options::{
        Kind, OptionValue, Options, Tables, Value, Wrong, is_finite, option_table, option_words,
    },
    error::Code,
};

/// An optimizer with its settings.
#[derive(Debug, Clone, PartialEq)]
pub struct OptimizerConfig {
    /// The update rule.
    pub algorithm: Algorithm,
    /// The learning rate that the schedule scales.
    pub lr: f64,
    /// The decay of parameters for which no group says anything else.
    pub weight_decay: f64,
    /// Names of parameters that do not decay: a group with a weight decay of 0.
    pub no_decay: Vec<Pattern>,
    /// Settings of some parameters.
    pub groups: Vec<ParamGroup>,
    /// How the state is kept.
    pub state_dtype: StateDtype,
    /// The state of large parameters in 8 bits; `None` keeps all as `state_dtype` says.
    pub blockwise: Option<BlockwiseConfig>,
}

option_table! {
    /// Settings of the parameters with these names.
    ///
    /// Two groups may name the same parameter as long as they do not give it different values of one
    /// setting: no order among groups decides anything.
    #[derive(Debug, Clone, PartialEq)]
    #[check_map(ParamGroup::check)]
    pub struct ParamGroup {
        /// patterns of Hugging Face names: `*`, `?` and `[...]`, where `*` goes over dots too
        #[option(required)]
        pub params: Vec<Pattern>,
        /// their learning rate where the rest has the optimizer's; the schedule scales both
        #[option(optional, range = 0.0.., must = is_finite => "finite")]
        pub lr: Option<f64>,
        /// their weight decay
        #[option(optional, range = 0.0.., must = is_finite => "finite")]
        pub weight_decay: Option<f64>,
    }
}

option_words! {
    /// The dtype of the state between two steps. The arithmetic is always that of float32.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum StateDtype {
        /// float32.
        Fp32 = "fp32",
        /// bfloat16, rounded stochastically, in half the memory.
        Bf16 = "bf16",
    }
}

option_table! {
    /// The options that every optimizer has.
    #[derive(Debug)]
    pub(super) struct CommonOptions {
        /// the learning rate that the scheduler scales: 1e-3, Adagrad's 1e-2. Muon's `lr` is the rate of
        /// both its parts, 0.02 and AdamW's 3e-4 without it
        #[option(optional, range = 0.0.., must = is_finite => "finite")]
        pub lr: Option<f64>,
        /// the decay of the parameters that no group gives another: AdamW's 0.01, 0 for the others. It
        /// covers all parameters, as in PyTorch
        #[option(optional, range = 0.0.., must = is_finite => "finite")]
        pub weight_decay: Option<f64>,
        /// patterns of the names of parameters that do not decay
        #[option(default = Vec::new())]
        pub no_decay: Vec<Pattern>,
        /// settings of some parameters
        #[option(default = Tables(Vec::new()))]
        pub groups: Tables<ParamGroup>,
        /// how the state is kept between two steps; "bf16" is rounded stochastically, in half the memory
        #[option(default = StateDtype::Fp32)]
        pub state_dtype: StateDtype,
    }
}

impl OptionValue for Pattern {
    fn read(value: &Value) -> Result<Self, Wrong> {
        Self::new(&String::read(value)?).map_err(|e| {
            Wrong::value("a pattern", value).shown(format!("{}: {}", value.describe(), e.msg))
        })
    }

    fn kind() -> Kind {
        Kind::Text
    }

    fn shown(&self) -> Option<String> {
        self.as_str().to_owned().shown()
    }
}

impl ParamGroup {
    fn check(&self, o: &mut Options<'_>) {
        if !o.has("lr") && !o.has("weight_decay") {
            let message = "a parameter group without `lr` or `weight_decay` changes nothing";
            o.fault("params", Code::BadValue, message);
        }
    }
}

impl OptimizerConfig {
    /// An optimizer with this learning rate, without decay or groups, its state in float32.
    pub fn new(algorithm: Algorithm, lr: f64) -> Self {
        Self {
            algorithm,
            lr,
            weight_decay: 0.0,
            no_decay: Vec::new(),
            groups: Vec::new(),
            state_dtype: StateDtype::Fp32,
            blockwise: None,
        }
    }

    /// The name by which checkpoints and descriptions know the optimizer.
    pub fn name(&self) -> &'static str {
        match (self.blockwise, &self.algorithm) {
            (Some(_), Algorithm::Adam(AdamConfig { adam_w_mode: true, .. })) => "AdamW8bit",
            (Some(_), Algorithm::Adam(_)) => "Adam8bit",
            (_, algorithm) => algorithm.name(),
        }
    }

    /// The betas that a schedule may cycle; a momentum counts as the first of them.
    pub fn betas(&self) -> (f64, f64) {
        match self.algorithm {
            Algorithm::Adam(AdamConfig { betas, .. })
            | Algorithm::Lamb(LambConfig { betas, .. })
            | Algorithm::Lion(LionConfig { betas }) => betas,
            Algorithm::Sgd(SgdConfig { momentum, .. })
            | Algorithm::Muon(MuonConfig { momentum, .. }) => (momentum, 0.0),
            Algorithm::Adagrad(_) => (0.0, 0.0),
        }
    }
}

/// AdamW with PyTorch's defaults.
impl Default for OptimizerConfig {
    fn default() -> Self {
        Self { weight_decay: 0.01, ..Self::new(Algorithm::Adam(AdamConfig::default()), 1e-3) }
    }
}
