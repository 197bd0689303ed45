//! The update rules and the options of each.

use crate::{
    config::options::{
        Kind, OptionTable, OptionValue, Options, Value, Wrong, is_finite, option_table,
        option_words,
    },
    error::{Code, Error, Result},
};

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
    /// The decay of the averages of the gradient and of its square.
    pub betas: (f64, f64),
    /// Added to the root of the average square.
    pub eps: f64,
    /// Whether the weight decay is decoupled from the gradient, which makes it AdamW.
    pub adam_w_mode: bool,
    /// Whether the averages are corrected for their start at zero.
    pub bias_correction: bool,
}

option_table! {
    /// The options that Adam and AdamW share.
    #[derive(Debug)]
    pub(super) struct AdamOptions {
        /// the decay of the averages of the gradient and of its square
        #[option(default = (0.9, 0.999))]
        pub betas: (f64, f64),
        /// added to the root of the average square
        #[option(default = 1e-8, range = 0.0.., must = is_finite => "finite", deepspeed = "eps")]
        pub eps: f64,
        /// whether the averages are corrected for their start at zero
        #[option(default = true)]
        pub bias_correction: bool,
    }
}

option_table! {
    /// The option that makes Adam AdamW.
    #[derive(Debug)]
    pub(super) struct AdamMode {
        /// whether the weight decay is decoupled from the gradient: it is AdamW
        #[option(default = true)]
        pub adam_w_mode: bool,
    }
}

option_table! {
    /// State in 8 bits, in blocks of 256 values that share a scale (Dettmers et al. 2022), as in
    /// bitsandbytes.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct BlockwiseConfig {
        /// parameters of fewer elements keep their state in float32
        #[option(default = 4096, range = 4096..)]
        pub min_8bit_size: usize,
    }
}

option_table! {
    /// LAMB (You et al. 2020), with DeepSpeed's limits of the trust ratio.
    #[derive(Debug, Clone, Copy, PartialEq)]
    #[check(LambConfig::check)]
    pub struct LambConfig {
        /// the decay of the averages of the gradient and of its square
        #[option(default = (0.9, 0.999))]
        pub betas: (f64, f64),
        /// added to the root of the average square, or to what is under it
        #[option(default = 1e-8, range = 0.0.., must = is_finite => "finite", deepspeed = "eps")]
        pub eps: f64,
        /// whether `eps` stands under the root
        #[option(default = false, deepspeed = "eps_inside_sqrt")]
        pub eps_inside_sqrt: bool,
        /// whether the averages are corrected for their start at zero
        #[option(default = true)]
        pub bias_correction: bool,
        /// the largest trust ratio
        #[option(default = 10.0, range = 0.0.., must = is_finite => "finite", deepspeed = "max_coeff")]
        pub max_coeff: f64,
        /// the smallest trust ratio
        #[option(default = 0.01, range = 0.0.., must = is_finite => "finite", deepspeed = "min_coeff")]
        pub min_coeff: f64,
    }
}

option_table! {
    /// Lion (Chen et al. 2023).
    #[derive(Debug, Clone, Copy, PartialEq)]
    pub struct LionConfig {
        /// how much of the average is in the update, and what stays of it: as in DeepSpeed, where the
        /// paper has 0.99
        #[option(default = (0.9, 0.999))]
        pub betas: (f64, f64),
    }
}

option_table! {
    /// Stochastic gradient descent as in PyTorch.
    #[derive(Debug, Clone, Copy, PartialEq)]
    pub struct SgdConfig {
        /// what stays of the velocity; 0 is none, and no state
        #[option(default = 0.0, range = 0.0..1.0, deepspeed = "momentum")]
        pub momentum: f64,
        /// how much less than 1 of the gradient enters the velocity after the first step
        #[option(default = 0.0, range = 0.0..=1.0, deepspeed = "dampening")]
        pub dampening: f64,
        /// whether the gradient is taken where the momentum will have led
        #[option(default = false, deepspeed = "nesterov")]
        pub nesterov: bool,
    }
}

option_table! {
    /// Adagrad (Duchi et al. 2011).
    #[derive(Debug, Clone, Copy, PartialEq)]
    pub struct AdagradConfig {
        /// added to the root of the sum of squares
        #[option(default = 1e-10, range = 0.0.., must = is_finite => "finite", deepspeed = "eps")]
        pub eps: f64,
    }
}

option_table! {
    /// Muon (Jordan et al. 2024) for the matrices of the blocks, and AdamW for the rest.
    #[derive(Debug, Clone, Copy, PartialEq)]
    pub struct MuonConfig {
        /// what stays of the average gradient
        #[option(default = 0.95, range = 0.0..1.0, deepspeed = "momentum")]
        pub momentum: f64,
        /// whether the update goes from the gradient towards the average
        #[option(default = true)]
        pub nesterov: bool,
        /// iterations of Newton-Schulz
        #[option(default = 5, range = 1..=99)]
        pub ns_steps: u32,
        /// how they are computed: on the small Gram matrix, or on the matrix itself
        #[option(default = NsMethod::Gram, deepspeed = "ns_method")]
        pub ns_method: NsMethod,
        /// AdamW's learning rate where `lr` is Muon's; 3e-4 without either
        #[option(optional, range = 0.0.., must = is_finite => "finite")]
        pub adam_lr: Option<f64>,
        /// AdamW's betas
        #[option(default = (0.9, 0.95))]
        pub betas: (f64, f64),
        /// AdamW's eps
        #[option(default = 1e-10, range = 0.0.., must = is_finite => "finite", deepspeed = "eps")]
        pub eps: f64,
    }
}

option_words! {
    /// How Newton-Schulz iterations are computed; the results differ by rounding alone.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum NsMethod {
        /// On the small Gram matrix, which is less work for a matrix that is not square.
        Gram = "gram",
        /// On the matrix itself.
        Standard = "standard",
    }
}

/// Two betas: numbers from 0 to below 1.
impl OptionValue for (f64, f64) {
    fn read(value: &Value) -> std::result::Result<Self, Wrong> {
        let betas = Vec::<f64>::read(value)?;
        match *betas {
            [a, b] if (0.0..1.0).contains(&a) && (0.0..1.0).contains(&b) => Ok((a, b)),
            _ => {
                let wrong = Wrong::value("two numbers from 0 to below 1", value);
                Err(wrong.shown(format!("{betas:?}")))
            }
        }
    }

    fn kind() -> Kind {
        Kind::List
    }

    fn shown(&self) -> Option<String> {
        Some(format!("[{}, {}]", self.0, self.1))
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
}

impl AdamConfig {
    /// Adam, or AdamW, with these options.
    pub(super) fn new(adam_w_mode: bool, options: &AdamOptions) -> Self {
        let AdamOptions { betas, eps, bias_correction } = *options;
        Self { betas, eps, adam_w_mode, bias_correction }
    }

    /// AdamW.
    pub(super) fn read_adamw(o: &mut Options<'_>) -> Self {
        Self::new(true, &AdamOptions::read(o))
    }

    /// Adam, which is AdamW unless `adam_w_mode` is false.
    pub(super) fn read_adam(o: &mut Options<'_>) -> Self {
        let mode = AdamMode::read(o);
        Self::new(mode.adam_w_mode, &AdamOptions::read(o))
    }
}

impl LambConfig {
    fn check(&self) -> Result<()> {
        let Self { min_coeff, max_coeff, .. } = *self;
        if min_coeff <= max_coeff {
            return Ok(());
        }
        let message = format!("min_coeff {min_coeff} is more than max_coeff {max_coeff}");
        Err(Error::new(Code::BadValue, message).option("min_coeff"))
    }
}

impl Default for AdamConfig {
    fn default() -> Self {
        Self::new(true, &AdamOptions::default())
    }
}
