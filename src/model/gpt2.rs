//! GPT-2's block: pre-norm attention and a two-layer MLP, each added to the residual stream.
//!
//! Radford et al. 2019, in the form and with the parameter names of Hugging Face's
//! `GPT2LMHeadModel`. The weights of linear layers are stored as transformers' `Conv1D` stores
//! them, `[in, out]`.

use super::{
    config::{Activation, Gpt2Config},
    layer::{Block, BlockContext},
    linear::Conv1d,
    profile::{ModuleProfile, Recorder, record},
    unit::{Init, ParamSpec},
    unit_gradient::Sink,
};
use crate::{error::Result, tensor::Tensor};

/// One block; its position decides the attention's scale where the config says so.
#[derive(Debug)]
pub(super) struct Gpt2Block {
    hidden: i64,
    inner: i64,
    num_heads: i64,
    epsilon: f64,
    attn_dropout: f64,
    resid_dropout: f64,
    activation: Activation,
    /// `None` is one over the square root of the head dim.
    scale: Option<f64>,
}

/// The parameters of a block by name, in the order of [`Gpt2Block::specs`].
struct Params<'a> {
    ln_1: (&'a Tensor, &'a Tensor),
    c_attn: Conv1d<'a>,
    attn_c_proj: Conv1d<'a>,
    ln_2: (&'a Tensor, &'a Tensor),
    c_fc: Conv1d<'a>,
    mlp_c_proj: Conv1d<'a>,
}

impl<'a> Params<'a> {
    fn of(params: &'a [Tensor]) -> Self {
        let pair = |index: usize| (&params[index], &params[index + 1]);
        let conv1d = |index| {
            let (weight, bias) = pair(index);
            Conv1d { weight, bias, index }
        };
        Self {
            ln_1: pair(0),
            c_attn: conv1d(2),
            attn_c_proj: conv1d(4),
            ln_2: pair(6),
            c_fc: conv1d(8),
            mlp_c_proj: conv1d(10),
        }
    }
}

impl Gpt2Block {
    /// Block `layer_idx` of the model that `config` describes.
    pub(super) fn new(config: &Gpt2Config, layer_idx: i64) -> Self {
        let head_dim = config.n_embd / config.n_head;
        let base = if config.scale_attn_weights { 1.0 / (head_dim as f64).sqrt() } else { 1.0 };
        let by_layer =
            if config.scale_attn_by_inverse_layer_idx { (layer_idx + 1) as f64 } else { 1.0 };
        let usual = config.scale_attn_weights && !config.scale_attn_by_inverse_layer_idx;
        Self {
            hidden: config.n_embd,
            inner: config.inner(),
            num_heads: config.n_head,
            epsilon: config.layer_norm_epsilon,
            attn_dropout: config.attn_pdrop,
            resid_dropout: config.resid_pdrop,
            activation: config.activation_function,
            scale: (!usual).then_some(base / by_layer),
        }
    }

    /// The parameters of block `layer_idx`, with GPT-2's initialisation: the projections into the
    /// residual stream start smaller by the square root of their number, `2 * n_layer`.
    pub(super) fn specs(config: &Gpt2Config, layer_idx: i64) -> Vec<ParamSpec> {
        let (c, inner) = (config.n_embd, config.inner());
        let std = config.initializer_range;
        let normal = Init::Normal(std);
        let residual = Init::Normal(std / (2.0 * config.n_layer as f64).sqrt());
        let spec = |name: &str, shape: &[i64], init| {
            ParamSpec::new(format!("transformer.h.{layer_idx}.{name}"), shape, init)
        };
        let conv1d = |name: &str, fan_in, fan_out, init| {
            spec(name, &[fan_in, fan_out], init).linear(fan_in, fan_out)
        };
        vec![
            spec("ln_1.weight", &[c], Init::Ones),
            spec("ln_1.bias", &[c], Init::Zeros),
            conv1d("attn.c_attn.weight", c, 3 * c, normal),
            spec("attn.c_attn.bias", &[3 * c], Init::Zeros),
            conv1d("attn.c_proj.weight", c, c, residual),
            spec("attn.c_proj.bias", &[c], Init::Zeros),
            spec("ln_2.weight", &[c], Init::Ones),
            spec("ln_2.bias", &[c], Init::Zeros),
            conv1d("mlp.c_fc.weight", c, inner, normal),
            spec("mlp.c_fc.bias", &[inner], Init::Zeros),
            conv1d("mlp.c_proj.weight", inner, c, residual),
            spec("mlp.c_proj.bias", &[c], Init::Zeros),
        ]
    }

    fn norm(&self, (weight, bias): (&Tensor, &Tensor), x: &Tensor) -> Tensor {
        x.layer_norm(weight.size().as_slice(), Some(weight), Some(bias), self.epsilon, true)
    }

    /// Causal self-attention of `x` `[B, T, C]`, before its dropout.
    fn attention(&self, p: &Params<'_>, x: &Tensor, context: BlockContext<'_>) -> Result<Tensor> {
        let &[b, t, c] = x.size().as_slice() else { unreachable!("hidden states are [B, T, C]") };
        let (recorder, sink) = (context.recorder, context.sink);
        let qkv = record(recorder, "c_attn", || p.c_attn.forward(x, sink))?;
        // One split, whose gradient is one concatenation; [B, T, C] to [B, H, T, D]
        let mut parts = qkv.split(c, 2).into_iter();
        let mut heads = || {
            let part = parts.next().expect("three times C in parts of C are three");
            part.view([b, t, self.num_heads, -1]).transpose(1, 2)
        };
        let (q, mut k, mut v) = (heads(), heads(), heads());
        if let Some(key_values) = context.key_values {
            (k, v) = key_values.append(&k, &v);
        }
        let past = k.size()[2] - t;
        // Without a mask: every query sees the keys up to its own place. A single query after a
        // cache sees all keys.
        let mask = match context.attention_mask {
            Some(mask) => Some(mask.shallow_clone()),
            None if past > 0 && t > 1 => Some(causal_mask(t, past, x)),
            None => None,
        };
        let is_causal = mask.is_none() && t > 1;
        let dropout = if context.train { self.attn_dropout } else { 0.0 };
        let y = Tensor::scaled_dot_product_attention(
            &q, &k, &v, mask, dropout, is_causal, self.scale, false,
        );
        let y = y.transpose(1, 2).reshape([b, t, c]);
        record(recorder, "c_proj", || p.attn_c_proj.forward(&y, sink))
    }

    /// The two-layer network on `x` `[B, T, C]`, before its dropout.
    fn mlp(
        &self,
        p: &Params<'_>,
        x: &Tensor,
        (recorder, sink): (Option<&Recorder>, Option<&Sink>),
    ) -> Result<Tensor> {
        let inner = record(recorder, "c_fc", || p.c_fc.forward(x, sink))?;
        let inner = record(recorder, "act", || self.activate(&inner));
        record(recorder, "c_proj", || p.mlp_c_proj.forward(&inner, sink))
    }

    fn activate(&self, x: &Tensor) -> Tensor {
        match self.activation {
            Activation::GeluNew | Activation::GeluPytorchTanh => x.gelu("tanh"),
            Activation::Gelu => x.gelu("none"),
            Activation::Relu => x.relu(),
            Activation::Silu => x.silu(),
        }
    }
}

impl Block for Gpt2Block {
    fn forward(&self, params: &[Tensor], x: &Tensor, context: BlockContext<'_>) -> Result<Tensor> {
        let p = Params::of(params);
        let drop_p = if context.train { self.resid_dropout } else { 0.0 };
        let (recorder, sink) = (context.recorder, context.sink);
        let normed = record(recorder, "ln_1", || self.norm(p.ln_1, x));
        let attended = record(recorder, "attn", || self.attention(&p, &normed, context))?;
        let x = x + dropout(attended, drop_p);
        let normed = record(recorder, "ln_2", || self.norm(p.ln_2, &x));
        let fed = record(recorder, "mlp", || self.mlp(&p, &normed, (recorder, sink)))?;
        Ok(&x + dropout(fed, drop_p))
    }

    fn profile(&self, rows: i64, tokens: i64) -> Option<ModuleProfile> {
        let (n, c, inner) = (rows * tokens, self.hidden, self.inner);
        let conv1d = |name, shape| ModuleProfile::linear(name, "Conv1D", n, shape, true);
        // Every query with every key, and every weight with every value.
        let attention_macs = (2 * n * tokens * c) as u64;
        let attention = ModuleProfile {
            macs: attention_macs,
            flops: 2 * attention_macs,
            ..ModuleProfile::new("attn", "Attention")
        };
        let activation = ModuleProfile {
            flops: (n * inner) as u64,
            ..ModuleProfile::new("act", self.activation.name())
        };
        let mlp = vec![conv1d("c_fc", (c, inner)), activation, conv1d("c_proj", (inner, c))];
        Some(ModuleProfile::new("", "Block").with(vec![
            ModuleProfile::layer_norm("ln_1", n, c),
            attention.with(vec![conv1d("c_attn", (c, 3 * c)), conv1d("c_proj", (c, c))]),
            ModuleProfile::layer_norm("ln_2", n, c),
            ModuleProfile::new("mlp", "Mlp").with(mlp),
        ]))
    }
}

fn dropout(x: Tensor, p: f64) -> Tensor {
    if p > 0.0 { x.dropout(p, true) } else { x }
}

/// Whether query `i` of `t` sees key `j` of `past + t`, bool `[T, past + T]`.
fn causal_mask(t: i64, past: i64, like: &Tensor) -> Tensor {
    let ones = Tensor::ones([t, past + t], (crate::tensor::Kind::Bool, like.device()));
    ones.tril(past)
}
