//! The optimizers and their settings, under DeepSpeed's names and with its defaults.
//!
//! | type | lr | weight_decay | defaults of |
//! |---|---|---|---|
//! | AdamW | 1e-3 | 0.01 | `torch.optim.AdamW` |
//! | Adam | 1e-3 | 0 | DeepSpeed's `FusedAdam`: AdamW's rule unless `adam_w_mode` is false |
//! | Lamb | 1e-3 | 0 | DeepSpeed's `FusedLamb` |
//! | Lion | 1e-3 | 0 | DeepSpeed's `FusedLion` |
//! | SGD | 1e-3 | 0 | `torch.optim.SGD`, to which DeepSpeed hands the options |
//! | Adagrad | 1e-2 | 0 | `torch.optim.Adagrad`, and DeepSpeed's `DeepSpeedCPUAdagrad` |
//! | Muon | 0.02 and 3e-4 | 0 | DeepSpeed's `MuonWithAuxAdam` |
//!
//! The other defaults stand at the settings of each.

use glob::Pattern;

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
}

/// Settings of the parameters with these names.
///
/// Two groups may name the same parameter as long as they do not give it different values of one
/// setting: no order among groups decides anything.
#[derive(Debug, Clone, PartialEq)]
pub struct ParamGroup {
    /// Patterns of Hugging Face names: `*`, `?` and `[...]`, where `*` goes over dots too.
    pub params: Vec<Pattern>,
    /// Their learning rate where the rest has [`OptimizerConfig::lr`]; the schedule scales both.
    pub lr: Option<f64>,
    /// Their weight decay.
    pub weight_decay: Option<f64>,
}

/// The dtype of the state between two steps. The arithmetic is always that of float32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateDtype {
    /// float32.
    Fp32,
    /// bfloat16, rounded stochastically, in half the memory.
    Bf16,
}

/// The update rules.
#[derive(Debug, Clone, PartialEq)]
pub enum Algorithm {
    /// Adam and AdamW.
    Adam(AdamConfig),
    /// LAMB.
    Lamb(LambConfig),
    /// Lion.
    Lion(LionConfig),
    /// Stochastic gradient descent, with momentum if it has some.
    Sgd(SgdConfig),
    /// Adagrad.
    Adagrad(AdagradConfig),
    /// Muon for hidden matrices, and AdamW for the rest.
    Muon(MuonConfig),
}

/// Adam (Kingma and Ba 2015), or AdamW (Loshchilov and Hutter 2019).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamConfig {
    /// The decay of the averages of the gradient and of its square; 0.9 and 0.999.
    pub betas: (f64, f64),
    /// Added to the root of the average square; 1e-8.
    pub eps: f64,
    /// Whether the weight decay is decoupled from the gradient, which makes it AdamW; true.
    pub adam_w_mode: bool,
    /// Whether the averages are corrected for their start at zero; true.
    pub bias_correction: bool,
}

/// LAMB (You et al. 2020), with DeepSpeed's limits of the trust ratio.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LambConfig {
    /// The decay of the averages of the gradient and of its square; 0.9 and 0.999.
    pub betas: (f64, f64),
    /// Added to the root of the average square, or to what is under it; 1e-8.
    pub eps: f64,
    /// Whether `eps` stands under the root; false.
    pub eps_inside_sqrt: bool,
    /// Whether the averages are corrected for their start at zero; true.
    pub bias_correction: bool,
    /// The largest trust ratio; 10.
    pub max_coeff: f64,
    /// The smallest trust ratio; 0.01.
    pub min_coeff: f64,
}

/// Lion (Chen et al. 2023).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LionConfig {
    /// How much of the average is in the update, and what stays of it; 0.9 and 0.999 as in
    /// DeepSpeed (the paper has 0.99).
    pub betas: (f64, f64),
}

/// Stochastic gradient descent as in PyTorch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SgdConfig {
    /// What stays of the velocity; 0 is none, and no state; 0.
    pub momentum: f64,
    /// How much less than 1 of the gradient enters the velocity after the first step; 0.
    pub dampening: f64,
    /// Whether the gradient is taken where the momentum will have led; false.
    pub nesterov: bool,
}

/// Adagrad (Duchi et al. 2011).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdagradConfig {
    /// Added to the root of the sum of squares; 1e-10.
    pub eps: f64,
}

/// Muon (Jordan et al. 2024), with AdamW for what is no hidden matrix.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MuonConfig {
    /// What stays of the average gradient; 0.95.
    pub momentum: f64,
    /// Whether the update goes from the gradient towards the average; true.
    pub nesterov: bool,
    /// Iterations of Newton-Schulz, fewer than 100; 5.
    pub ns_steps: u32,
    /// How they are computed; [`NsMethod::Gram`].
    pub ns_method: NsMethod,
    /// AdamW's learning rate where [`OptimizerConfig::lr`] is Muon's; `None` is the same.
    pub adam_lr: Option<f64>,
    /// AdamW's betas; 0.9 and 0.95.
    pub betas: (f64, f64),
    /// AdamW's eps; 1e-10.
    pub eps: f64,
}

/// How Newton-Schulz iterations are computed; the results differ by rounding alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NsMethod {
    /// On the small Gram matrix, which is less work for a matrix that is not square.
    Gram,
    /// On the matrix itself.
    Standard,
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
        }
    }

    /// What a schedule may cycle: the betas, or the momentum as the first of them.
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

impl Algorithm {
    /// The name by which checkpoints and descriptions know it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Adam(AdamConfig { adam_w_mode: true, .. }) => "AdamW",
            Self::Adam(_) => "Adam",
            Self::Lamb(_) => "Lamb",
            Self::Lion(_) => "Lion",
            Self::Sgd(_) => "SGD",
            Self::Adagrad(_) => "Adagrad",
            Self::Muon(_) => "Muon",
        }
    }

    /// The option under which a schedule's momentum would be given; `None` where there is none.
    pub fn momentum_option(&self) -> Option<&'static str> {
        match self {
            Self::Adam(_) | Self::Lamb(_) | Self::Lion(_) => Some("betas"),
            Self::Sgd(_) | Self::Muon(_) => Some("momentum"),
            Self::Adagrad(_) => None,
        }
    }
}

impl Default for AdamConfig {
    fn default() -> Self {
        Self { betas: (0.9, 0.999), eps: 1e-8, adam_w_mode: true, bias_correction: true }
    }
}

impl Default for LambConfig {
    fn default() -> Self {
        Self {
            betas: (0.9, 0.999),
            eps: 1e-8,
            eps_inside_sqrt: false,
            bias_correction: true,
            max_coeff: 10.0,
            min_coeff: 0.01,
        }
    }
}

impl Default for LionConfig {
    fn default() -> Self {
        Self { betas: (0.9, 0.999) }
    }
}

impl Default for SgdConfig {
    fn default() -> Self {
        Self { momentum: 0.0, dampening: 0.0, nesterov: false }
    }
}

impl Default for AdagradConfig {
    fn default() -> Self {
        Self { eps: 1e-10 }
    }
}

impl Default for MuonConfig {
    fn default() -> Self {
        Self {
            momentum: 0.95,
            nesterov: true,
            ns_steps: 5,
            ns_method: NsMethod::Gram,
            adam_lr: None,
            betas: (0.9, 0.95),
            eps: 1e-10,
        }
    }
}
