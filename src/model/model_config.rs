//! The settings of a model of any kind.

use serde_json::{Map, Value, json};

use super::{
    config::Gpt2Config,
    footprint::{Footprint, Workload},
};

/// What kind of model it is, with its settings.
#[derive(Debug, Clone, PartialEq)]
pub enum ModelConfig {
    /// GPT-2.
    Gpt2(Gpt2Config),
    /// One whose layers its maker wrote.
    Custom(CustomConfig),
}

/// What is known of a model whose layers its maker wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CustomConfig {
    /// Rows of logits: ids are below.
    pub vocab_size: i64,
    /// The most tokens of a row.
    pub n_positions: i64,
    /// The names of its layers, from the first.
    pub layers: Vec<String>,
    /// Elements of each layer's parameter unit, padding included.
    pub(super) unit_sizes: Vec<u64>,
}

impl ModelConfig {
    /// Rows of logits: ids are below.
    pub fn vocab_size(&self) -> i64 {
        match self {
            Self::Gpt2(config) => config.vocab_size,
            Self::Custom(config) => config.vocab_size,
        }
    }

    /// The most tokens of a row.
    pub fn n_positions(&self) -> i64 {
        match self {
            Self::Gpt2(config) => config.n_positions,
            Self::Custom(config) => config.n_positions,
        }
    }

    /// The settings of a GPT-2; `None` of any other model.
    pub fn gpt2(&self) -> Option<&Gpt2Config> {
        match self {
            Self::Gpt2(config) => Some(config),
            Self::Custom(_) => None,
        }
    }

    /// The settings as a `config.json` has them. That of a model whose layers its maker wrote says
    /// what the weights beside it are of, and is read by no one.
    pub fn to_json(&self) -> Map<String, Value> {
        match self {
            Self::Gpt2(config) => config.to_json(),
            Self::Custom(CustomConfig { vocab_size, n_positions, layers, .. }) => {
                let all: [(&str, Value); 4] = [
                    ("model_type", json!("dsr_custom")),
                    ("vocab_size", json!(vocab_size)),
                    ("n_positions", json!(n_positions)),
                    ("layers", json!(layers)),
                ];
                all.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
            }
        }
    }

    /// Elements of each parameter unit, padding included, in the order of the forward pass.
    pub fn unit_sizes(&self) -> Vec<u64> {
        match self {
            Self::Gpt2(config) => config.unit_sizes(),
            Self::Custom(config) => config.unit_sizes.clone(),
        }
    }

    /// Whether the projection to the vocabulary is the token embedding.
    pub fn is_tied(&self) -> bool {
        self.gpt2().is_some_and(|config| config.tie_word_embeddings)
    }

    /// What the layers hold for `workload`: at least nothing, where it is not known.
    pub fn footprint(&self, workload: Workload) -> Footprint {
        self.gpt2().map_or_else(Footprint::default, |config| config.footprint(workload))
    }
}

impl From<Gpt2Config> for ModelConfig {
    fn from(config: Gpt2Config) -> Self {
        Self::Gpt2(config)
    }
}
