//! GPT-2 (Radford et al. 2019), in the form and with the parameter names of Hugging Face's
//! `GPT2LMHeadModel`: pre-norm blocks, learned positions, weights stored `[in, out]`.

use super::family::Family;
use crate::{
    config_json::{Config, Key, Refused, Table},
    error::Result,
    model::{
        architecture::{Architecture, LayerSpec, ModelInfo, WeightNames},
        modules::{
            Attention, Block, Branch, Embed, Embedding, Gate, Head, Linear, Mlp, Norm, Positions,
            Projections,
        },
        param_spec::Init,
        params::LayerBuilder,
    },
};

pub(super) static FAMILY: Family = Family {
    table: &TABLE,
    sizes: SIZES,
    describe,
    names: WeightNames {
        prefix: "transformer.",
        aliases: &[("lm_head.weight", EMBEDDING)],
        buffers: &[".attn.bias", ".attn.masked_bias"],
    },
};

const EMBEDDING: &str = "transformer.wte.weight";

pub(super) static TABLE: Table = Table {
    model_type: "gpt2",
    architecture: "GPT2LMHeadModel",
    keys: &[
        Key::size("vocab_size", 50257),
        Key::size("n_positions", 1024),
        Key::size("n_embd", 768),
        Key::layers("n_layer", 12),
        Key::size("n_head", 12),
        Key::optional_size("n_inner"),
        Key::activation("activation_function", "gelu_new"),
        Key::probability("resid_pdrop", 0.1),
        Key::probability("embd_pdrop", 0.1),
        Key::probability("attn_pdrop", 0.1),
        Key::positive("layer_norm_epsilon", 1e-5),
        Key::non_negative("initializer_range", 0.02),
        Key::flag("scale_attn_weights", true),
        Key::flag("scale_attn_by_inverse_layer_idx", false),
        Key::flag("reorder_and_upcast_attn", false),
        Key::flag("tie_word_embeddings", true),
        Key::token("bos_token_id", Some(50256)),
        Key::tokens("eos_token_id", Some(50256)),
    ],
    aliases: &[
        ("max_position_embeddings", "n_positions"),
        ("hidden_size", "n_embd"),
        ("num_hidden_layers", "n_layer"),
        ("num_attention_heads", "n_head"),
    ],
    refused: &[Refused::new("add_cross_attention", "dsr's GPT-2 has no encoder beside it")],
};

pub(super) const SIZES: &[(&str, &str)] = &[
    ("gpt2", "{}"),
    ("gpt2-medium", r#"{"n_embd": 1024, "n_layer": 24, "n_head": 16}"#),
    ("gpt2-large", r#"{"n_embd": 1280, "n_layer": 36, "n_head": 20}"#),
    ("gpt2-xl", r#"{"n_embd": 1600, "n_layer": 48, "n_head": 25}"#),
];

fn describe(c: &Config) -> Result<Architecture> {
    let (width, vocab) = (c.int("n_embd")?, c.int("vocab_size")?);
    let (positions, layers) = (c.int("n_positions")?, c.int("n_layer")?);
    let heads = c.int("n_head")?;
    if width % heads != 0 {
        return Err(c.refusal(vec![format!("n_embd {width} must be divisible by n_head {heads}")]));
    }
    let init = Init::Normal(c.number("initializer_range")?);
    let mut all = Vec::new();
    let mut b = LayerBuilder::new("transformer");
    let tokens = Embedding::new(&mut b, "wte.weight", (vocab, width), init);
    let positions_of = Positions::new(&mut b, "wpe.weight", (positions, width), init);
    let (positions_of, dropout) = (Some(positions_of), c.number("embd_pdrop")?);
    let embed = Embed { positions: positions_of, dropout, ..Embed::new(tokens) };
    all.push(LayerSpec::new("embedding", b, embed));
    for i in 0..layers {
        all.push(block(c, i)?);
    }
    let mut b = LayerBuilder::new("");
    let norm = Norm::layer(&mut b, "transformer.ln_f", width, c.number("layer_norm_epsilon")?);
    let projection = c.projection(&mut b, EMBEDDING, (vocab, width), init)?;
    let head = Head::new(Some(norm), projection, (vocab, width));
    all.push(LayerSpec::new("head", b, head));
    let summary = c.summary(layers, (width, heads), &format!("{positions} positions"))?;
    let facts = ModelInfo { max_positions: Some(positions), ..c.facts(FAMILY.names, summary)? };
    Ok(Architecture { layers: all, facts })
}

/// Block `i`, with GPT-2's initialisation: the projections into the residual stream start smaller by the
/// square root of their number, `2 * n_layer`.
fn block(c: &Config, i: i64) -> Result<LayerSpec> {
    let (width, heads) = (c.int("n_embd")?, c.int("n_head")?);
    let inner = c.optional_int("n_inner")?.unwrap_or(4 * width);
    let std = c.number("initializer_range")?;
    let init = Init::Normal(std);
    let residual = Init::Normal(std / (2.0 * c.int("n_layer")? as f64).sqrt());
    let epsilon = c.number("layer_norm_epsilon")?;
    let mut b = LayerBuilder::new(format!("transformer.h.{i}"));
    let ln_1 = Norm::layer(&mut b, "ln_1", width, epsilon);
    let qkv = Linear::conv1d(&mut b, "attn.c_attn", (width, 3 * width), init);
    let out = Linear::conv1d(&mut b, "attn.c_proj", (width, width), residual);
    let shape = (heads, width / heads);
    let attention = Attention {
        scale: scale(c, i)?,
        dropout: c.number("attn_pdrop")?,
        ..Attention::new("attn", Projections::InParts(qkv), out, shape)
    };
    let ln_2 = Norm::layer(&mut b, "ln_2", width, epsilon);
    let mlp = Mlp {
        gate: Gate::None,
        up: Linear::conv1d(&mut b, "mlp.c_fc", (width, inner), init),
        down: Linear::conv1d(&mut b, "mlp.c_proj", (inner, width), residual),
        activation: c.activation("activation_function")?,
        dropout: 0.0,
    };
    let parts = ((Branch::before(ln_1), attention), (Branch::before(ln_2), mlp));
    let block = Block { dropout: c.number("resid_pdrop")?, ..Block::new(width, parts.0, parts.1) };
    Ok(LayerSpec::new(format!("h.{i}"), b, block).block())
}

/// The factor of the scores in block `i`, unless it is the usual.
fn scale(c: &Config, i: i64) -> Result<Option<f64>> {
    let head_dim = (c.int("n_embd")? / c.int("n_head")?) as f64;
    let (by_width, by_layer) =
        (c.flag("scale_attn_weights")?, c.flag("scale_attn_by_inverse_layer_idx")?);
    let base = if by_width { 1.0 / head_dim.sqrt() } else { 1.0 };
    let divisor = if by_layer { (i + 1) as f64 } else { 1.0 };
    Ok((!by_width || by_layer).then_some(base / divisor))
}
