//! LoRA's settings, under peft's names.

use super::options::{Kind, OptionValue, Value, Wrong, is_finite, option_table};

option_table! {
    /// The settings of LoRA (Hu et al. 2021), under peft's names.
    #[derive(Debug, Clone)]
    pub struct LoraOptions {
        /// the rank: columns of the first matrix and rows of the second
        #[option(default = 8, range = 1..=65_536)]
        pub r: i64,
        /// what is added is multiplied with this over `r`
        #[option(default = 8.0, must = is_finite => "finite")]
        pub lora_alpha: f64,
        /// the dropout of the input of the first matrix
        #[option(default = 0.0, range = 0.0..1.0)]
        pub lora_dropout: f64,
        /// the linear layers, by the last parts of their names, or "all-linear" for all but the head;
        /// by default those of the queries and values
        #[option(optional)]
        pub target_modules: Option<TargetModules>,
        /// whether what is added is multiplied with `lora_alpha` over the root of `r`
        #[option(default = false)]
        pub use_rslora: bool,
        /// whether each output has a trained magnitude (DoRA)
        #[option(default = false)]
        pub use_dora: bool,
        /// modules that are trained as they are, by the last parts of their names: "lm_head"
        #[option(default = Vec::new())]
        pub modules_to_save: Vec<String>,
        /// the seed of the first matrices; the second ones are 0
        #[option(default = 42)]
        pub seed: u64,
    }
}

/// The linear layers that an adapter is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetModules {
    /// All but the projection to the vocabulary.
    AllLinear,
    /// Those whose names end so.
    Named(Vec<String>),
}

/// peft's word for [`TargetModules::AllLinear`].
const ALL_LINEAR: &str = "all-linear";

impl Default for TargetModules {
    fn default() -> Self {
        Self::Named(Vec::new())
    }
}

impl OptionValue for TargetModules {
    fn read(value: &Value) -> Result<Self, Wrong> {
        match value {
            Value::Text(text) if text == ALL_LINEAR => Ok(Self::AllLinear),
            Value::List(_) => Vec::<String>::read(value).map(Self::Named),
            _ => Err(Wrong::kind("a list of names, or \"all-linear\"", value)),
        }
    }

    fn kind() -> Kind {
        Kind::Or(Box::new(Kind::Words(vec![ALL_LINEAR])), Box::new(Kind::List))
    }
}
