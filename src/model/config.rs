//! The configuration of a GPT-2: sizes, activation, dropout.
//!
//! Names and defaults are those of `GPT2Config` in transformers; its file is `config_json.rs`'s.

use serde_json::{Map, Value};

use crate::error::{Code, Error, Result};

/// The shape of a GPT-2, and how it starts and drops out.
#[derive(Debug, Clone, PartialEq)]
pub struct Gpt2Config {
    /// Rows of the token embedding.
    pub vocab_size: i64,
    /// The longest sequence.
    pub n_positions: i64,
    /// Width of the hidden states.
    pub n_embd: i64,
    /// Number of blocks.
    pub n_layer: i64,
    /// Attention heads of a block.
    pub n_head: i64,
    /// Width inside the MLP; `None` is four times `n_embd`.
    pub n_inner: Option<i64>,
    /// The MLP's activation.
    pub activation_function: Activation,
    /// Dropout of what a block adds to the hidden states.
    pub resid_pdrop: f64,
    /// Dropout of the embedding.
    pub embd_pdrop: f64,
    /// Dropout of the attention's weights.
    pub attn_pdrop: f64,
    /// Added to the variance by the layer norms.
    pub layer_norm_epsilon: f64,
    /// Standard deviation of the weights from scratch.
    pub initializer_range: f64,
    /// Whether attention scores are divided by the root of the head's width.
    pub scale_attn_weights: bool,
    /// Whether attention scores of block `i` are also divided by `i + 1`.
    pub scale_attn_by_inverse_layer_idx: bool,
    /// Whether the head's projection is the token embedding.
    pub tie_word_embeddings: bool,
    /// The token that begins a text.
    pub bos_token_id: Option<i64>,
    /// The token that ends a text.
    pub eos_token_id: Option<i64>,
    /// Keys that mean nothing to dsr, for [`Gpt2Config::to_json`].
    pub kept: Map<String, Value>,
}

/// The activation of an MLP, named as in transformers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// GELU in its tanh approximation, written out.
    GeluNew,
    /// GELU through the error function.
    Gelu,
    /// The function of [`Activation::GeluNew`] under the name of PyTorch's kernel.
    GeluPytorchTanh,
    /// The larger of 0 and x.
    Relu,
    /// x times its logistic function, `swish` too.
    Silu,
}

impl Activation {
    /// All of them, with the names in `config.json`.
    pub(super) const NAMES: [(&str, Self); 6] = [
        ("gelu_new", Self::GeluNew),
        ("gelu", Self::Gelu),
        ("gelu_pytorch_tanh", Self::GeluPytorchTanh),
        ("relu", Self::Relu),
        ("silu", Self::Silu),
        ("swish", Self::Silu),
    ];

    /// The activation of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|&(_, activation)| activation)
    }

    /// The name in `config.json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::GeluNew => "gelu_new",
            Self::Gelu => "gelu",
            Self::GeluPytorchTanh => "gelu_pytorch_tanh",
            Self::Relu => "relu",
            Self::Silu => "silu",
        }
    }
}

impl Default for Gpt2Config {
    fn default() -> Self {
        Self {
            vocab_size: 50257,
            n_positions: 1024,
            n_embd: 768,
            n_layer: 12,
            n_head: 12,
            n_inner: None,
            activation_function: Activation::GeluNew,
            resid_pdrop: 0.1,
            embd_pdrop: 0.1,
            attn_pdrop: 0.1,
            layer_norm_epsilon: 1e-5,
            initializer_range: 0.02,
            scale_attn_weights: true,
            scale_attn_by_inverse_layer_idx: false,
            tie_word_embeddings: true,
            bos_token_id: Some(50256),
            eos_token_id: Some(50256),
            kept: Map::new(),
        }
    }
}

impl Gpt2Config {
    /// The names that [`Gpt2Config::named`] knows.
    pub const NAMES: [&str; 4] = ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"];

    /// One of the sizes that OpenAI published.
    pub fn named(name: &str) -> Option<Self> {
        let (n_embd, n_layer, n_head) = match name {
            "gpt2" => (768, 12, 12),
            "gpt2-medium" => (1024, 24, 16),
            "gpt2-large" => (1280, 36, 20),
            "gpt2-xl" => (1600, 48, 25),
            _ => return None,
        };
        Some(Self { n_embd, n_layer, n_head, ..Self::default() })
    }

    /// The width inside the MLP.
    pub fn inner(&self) -> i64 {
        self.n_inner.unwrap_or(4 * self.n_embd)
    }

    /// Number of parameters, a tied head counted once.
    pub fn num_parameters(&self) -> i64 {
        i64::try_from(self.exact_parameters()).unwrap_or(i64::MAX)
    }

    /// Checks that the sizes make a model.
    ///
    /// # Errors
    /// [`Code::ModelConfig`] with everything that is wrong; `origin` names the configuration.
    pub fn check(&self, origin: &str) -> Result<()> {
        Error::all(self.faults(origin)).map_or(Ok(()), Err)
    }

    pub(super) fn faults(&self, origin: &str) -> Vec<Error> {
        let mut faults = Vec::new();
        let mut fault = |text: String| faults.push(Error::new(Code::ModelConfig, text));
        let sizes = [
            ("vocab_size", self.vocab_size, MOST_WIDE),
            ("n_positions", self.n_positions, MOST_WIDE),
            ("n_embd", self.n_embd, MOST_WIDE),
            ("n_layer", self.n_layer, MOST_LAYERS),
            ("n_head", self.n_head, MOST_WIDE),
            ("n_inner", self.n_inner.unwrap_or(1), MOST_WIDE),
        ];
        for (key, size, most) in sizes {
            if !(1..=most).contains(&size) {
                fault(format!("{origin}: {key} must be from 1 to {most}, got {size}"));
            }
        }
        if self.n_embd > 0 && self.n_head > 0 && self.n_embd % self.n_head != 0 {
            let (n_embd, n_head) = (self.n_embd, self.n_head);
            fault(format!("{origin}: n_embd {n_embd} must be divisible by n_head {n_head}"));
        }
        let probabilities = [
            ("resid_pdrop", self.resid_pdrop),
            ("embd_pdrop", self.embd_pdrop),
            ("attn_pdrop", self.attn_pdrop),
        ];
        for (key, p) in probabilities {
            if !(0.0..1.0).contains(&p) {
                fault(format!("{origin}: {key} must be at least 0 and below 1, got {p}"));
            }
        }
        let epsilon = self.layer_norm_epsilon;
        if !(epsilon.is_finite() && epsilon > 0.0) {
            fault(format!("{origin}: layer_norm_epsilon must be positive, got {epsilon}"));
        }
        let std = self.initializer_range;
        if !(std.is_finite() && std >= 0.0) {
            fault(format!("{origin}: initializer_range must be 0 or more, got {std}"));
        }
        for (key, id) in [("bos_token_id", self.bos_token_id), ("eos_token_id", self.eos_token_id)]
        {
            if let Some(id) = id.filter(|&id| id < 0) {
                fault(format!("{origin}: {key} must be a token id or null, got {id}"));
            }
        }
        if faults.is_empty() && self.exact_parameters() > MOST_PARAMETERS {
            let count = self.exact_parameters();
            let text = format!("{origin}: a model of {count} parameters is beyond any machine");
            faults.push(Error::new(Code::ModelConfig, text));
        }
        faults
    }

    fn exact_parameters(&self) -> i128 {
        let [v, p, c, l] = [self.vocab_size, self.n_positions, self.n_embd, self.n_layer];
        let [v, p, c, l] = [v, p, c, l].map(i128::from);
        let inner = self.n_inner.map_or(4 * c, i128::from);
        let attention = 4 * c * c + 4 * c;
        let mlp = 2 * c * inner + inner + c;
        let norms = 4 * c;
        let heads = if self.tie_word_embeddings { 1 } else { 2 };
        heads * v * c + p * c + l * (attention + mlp + norms) + 2 * c
    }
}

/// Bounds that no real model reaches and no product of which overflows.
const MOST_WIDE: i64 = 1 << 24;
const MOST_LAYERS: i64 = 10_000;
/// Weights, gradients and moments of this many still have fewer bytes than an i64 counts.
const MOST_PARAMETERS: i128 = 1 << 50;

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(config: &Gpt2Config) -> String {
        config.check("x").unwrap_err().to_string()
    }

    /// The counts that OpenAI's weights have.
    #[test]
    fn the_published_sizes_have_the_published_parameters() {
        let counts =
            Gpt2Config::NAMES.map(|name| Gpt2Config::named(name).unwrap().num_parameters());
        assert_eq!(counts, [124_439_808, 354_823_168, 774_030_080, 1_557_611_200]);
        assert_eq!(Gpt2Config::named("gpt3"), None);
        assert_eq!(Gpt2Config::named("gpt2"), Some(Gpt2Config::default()));
    }

    #[test]
    fn what_is_no_model_is_refused() {
        let usual = Gpt2Config::default;
        assert!(usual().check("x").is_ok());
        let n_head = Gpt2Config { n_head: 7, ..usual() };
        assert_eq!(faults(&n_head), "x: n_embd 768 must be divisible by n_head 7");
        let sizes = Gpt2Config { n_layer: 0, n_head: -1, n_inner: Some(i64::MAX), ..usual() };
        let text = faults(&sizes);
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(text.starts_with("x: n_layer must be from 1 to 10000, got 0\n"), "{text}");
        let numbers = Gpt2Config {
            attn_pdrop: 1.0,
            embd_pdrop: f64::NAN,
            layer_norm_epsilon: 0.0,
            initializer_range: f64::INFINITY,
            bos_token_id: Some(-1),
            ..usual()
        };
        assert_eq!(faults(&numbers).lines().count(), 5, "{}", faults(&numbers));
    }

    #[test]
    fn sizes_that_overflow_are_refused() {
        let m = MOST_WIDE;
        let absurd =
            Gpt2Config { n_embd: m, n_head: m, n_layer: MOST_LAYERS, ..Default::default() };
        assert!(faults(&absurd).ends_with("parameters is beyond any machine"));
        let wide = Gpt2Config { n_embd: i64::MAX, vocab_size: i64::MAX, ..Default::default() };
        assert_eq!(faults(&wide).lines().count(), 3);
        assert_eq!(wide.num_parameters(), i64::MAX);
    }
}
