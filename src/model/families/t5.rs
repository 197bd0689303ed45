//! T5 v1.0 and v1.1, Flan too (Raffel et al. 2020): an encoder and a decoder that attends to it, with a bias
//! by relative position in place of positions.

use super::family::Family;
use crate::{
    config_json::{Activation, Config, Default, Key, KeyKind, Table},
    error::Result,
    model::{
        architecture::{Architecture, LayerSpec, ModelInfo, Prediction, WeightNames},
        modules::{
            Attention, Block, Branch, DecoderStart, Embed, Embedding, Gate, Head, Linear, Mlp,
            Norm, Position, Projections, RelativeBias,
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
        prefix: "",
        aliases: &[
            ("encoder.embed_tokens.weight", EMBEDDING),
            ("decoder.embed_tokens.weight", EMBEDDING),
            ("lm_head.weight", EMBEDDING),
        ],
        // Old files have a table in each decoder's attention to the encoder, which nothing uses.
        buffers: &[".EncDecAttention.relative_attention_bias.weight"],
    },
};

const EMBEDDING: &str = "shared.weight";

const FEED_FORWARD: &[&str] = &["relu", "gated-gelu", "gelu", "gated-relu", "gated-silu", "silu"];

pub(super) static TABLE: Table = Table {
    model_type: "t5",
    architecture: "T5ForConditionalGeneration",
    keys: &[
        Key::size("vocab_size", 32128),
        Key::size("d_model", 512),
        Key::size("d_kv", 64),
        Key::size("d_ff", 2048),
        Key::layers("num_layers", 6),
        Key::new("num_decoder_layers", KeyKind::Layers, Default::Same("num_layers")),
        Key::size("num_heads", 8),
        Key::size("relative_attention_num_buckets", 32),
        Key::size("relative_attention_max_distance", 128),
        Key::probability("dropout_rate", 0.1),
        Key::positive("layer_norm_epsilon", 1e-6),
        Key::non_negative("initializer_factor", 1.0),
        Key::new("feed_forward_proj", KeyKind::OneOf(FEED_FORWARD), Default::Text("relu")),
        // Older files tell these of `feed_forward_proj`, too; transformers takes them where they differ.
        Key::structure("dense_act_fn"),
        Key::structure("is_gated_act"),
        Key::new("scale_decoder_outputs", KeyKind::OptionalFlag, Default::Absent),
        Key::flag("is_encoder_decoder", true),
        Key::flag("tie_word_embeddings", true),
        Key::token("bos_token_id", None),
        Key::tokens("eos_token_id", Some(1)),
        Key::token("pad_token_id", Some(0)),
        Key::new("decoder_start_token_id", KeyKind::Token, Default::Same("pad_token_id")),
    ],
    aliases: &[
        ("hidden_size", "d_model"),
        ("num_attention_heads", "num_heads"),
        ("num_hidden_layers", "num_layers"),
        ("head_dim", "d_kv"),
    ],
    refused: &[],
};

pub(super) const SIZES: &[(&str, &str)] = &[
    ("t5-small", "{}"),
    ("t5-base", r#"{"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12}"#),
    ("t5-large", r#"{"d_model": 1024, "d_ff": 4096, "num_layers": 24, "num_heads": 16}"#),
    (
        "flan-t5-small",
        r#"{"d_ff": 1024, "num_layers": 8, "num_heads": 6, "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": false}"#,
    ),
    (
        "flan-t5-base",
        r#"{"d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12,
            "feed_forward_proj": "gated-gelu", "tie_word_embeddings": false}"#,
    ),
];

/// The two stacks of blocks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stack {
    Encoder,
    Decoder,
}

fn describe(c: &Config) -> Result<Architecture> {
    check(c)?;
    let (width, vocab) = (c.int("d_model")?, c.int("vocab_size")?);
    let (encoder, decoder) = (c.int("num_layers")?, c.int("num_decoder_layers")?);
    let dropout = c.number("dropout_rate")?;
    let (is_tied, is_scaled) = tied_and_scaled(c)?;
    let init = Init::Normal(c.number("initializer_factor")?);
    let mut b = LayerBuilder::new("");
    let tokens = Embedding::new(&mut b, EMBEDDING, (vocab, width), init);
    let embed = Embed { dropout, ..Embed::new(tokens) };
    let mut all = vec![LayerSpec::new("shared", b, embed)];
    for i in 0..encoder {
        all.push(block(c, Stack::Encoder, i)?);
    }
    let mut b = LayerBuilder::new("");
    let norm = norm_of(c, &mut b, "encoder.final_layer_norm")?;
    let tokens = Embedding::borrowed(&mut b, EMBEDDING, (vocab, width));
    all.push(LayerSpec::new("decoder.start", b, DecoderStart { norm, tokens, dropout }));
    for i in 0..decoder {
        all.push(block(c, Stack::Decoder, i)?);
    }
    let mut b = LayerBuilder::new("");
    let norm = norm_of(c, &mut b, "decoder.final_layer_norm")?;
    let projection = match is_tied {
        true => b.borrow(EMBEDDING),
        false => b.add_of_tokens("lm_head.weight", (vocab, width), init),
    };
    let head = Head {
        scale: is_scaled.then(|| (width as f64).powf(-0.5)),
        dropout,
        is_decoder: true,
        ..Head::new(Some(norm), projection, (vocab, width))
    };
    all.push(LayerSpec::new("head", b, head));
    let summary = format!(
        "{encoder} and {decoder} layers of {width} x {} heads, vocabulary {vocab}{}",
        c.int("num_heads")?,
        if is_tied { ", tied head" } else { "" },
    );
    let start = c.token("decoder_start_token_id")?.unwrap_or(0);
    let objective = Prediction::Seq2Seq { decoder_start_token_id: start };
    let facts = ModelInfo { objective, ..c.facts(FAMILY.names, summary)? };
    Ok(Architecture { layers: all, facts })
}

fn check(c: &Config) -> Result<()> {
    let mut faults = Vec::new();
    if !c.flag("is_encoder_decoder")? {
        faults.push(
            "is_encoder_decoder must be true: dsr has no T5 that is an encoder alone".to_owned(),
        );
    }
    let vocab = c.int("vocab_size")?;
    for key in ["decoder_start_token_id", "pad_token_id"] {
        if let Some(id) = c.token(key)?.filter(|&id| id >= vocab) {
            faults.push(format!("{key} is {id}, and vocab_size {vocab}: the decoder is given it"));
        }
    }
    let (buckets, distance) =
        (c.int("relative_attention_num_buckets")?, c.int("relative_attention_max_distance")?);
    if buckets < 4 || buckets % 2 != 0 || distance <= buckets / 2 {
        faults.push(format!(
            "relative_attention_num_buckets must be an even number from 4, and \
             relative_attention_max_distance above half of it, got {buckets} and {distance}"
        ));
    }
    // Older files say the same twice.
    let (activation, is_gated) = feed_forward(c)?;
    let gated = c.value("is_gated_act")?;
    if gated.as_bool().is_some_and(|gated| gated != is_gated) {
        faults.push("is_gated_act differs from feed_forward_proj".to_owned());
    }
    let act = c.value("dense_act_fn")?;
    if let Some(name) = act.as_str()
        && Activation::named(name) != Some(activation)
    {
        faults.push(format!("dense_act_fn is {name}, and feed_forward_proj means another"));
    }
    c.refuse(faults)
}

/// Whether the head is the embedding, and whether its input is scaled.
fn tied_and_scaled(c: &Config) -> Result<(bool, bool)> {
    let is_tied = c.flag("tie_word_embeddings")?;
    Ok((is_tied, c.optional_flag("scale_decoder_outputs")?.unwrap_or(is_tied)))
}

/// The activation, and whether it gates.
fn feed_forward(c: &Config) -> Result<(Activation, bool)> {
    let name = c.text("feed_forward_proj")?;
    let (act, is_gated) = match name.strip_prefix("gated-") {
        Some(act) => (act, true),
        None => (name, false),
    };
    // transformers takes this name for GELU in its tanh approximation.
    let act = if name == "gated-gelu" { "gelu_new" } else { act };
    let activation = Activation::named(act).ok_or_else(|| c.internal("feed_forward_proj"))?;
    Ok((activation, is_gated))
}

fn norm_of(c: &Config, b: &mut LayerBuilder, name: &str) -> Result<Norm> {
    let sizes = (c.int("d_model")?, c.number("layer_norm_epsilon")?);
    Ok(Norm::rms_from(b, name, sizes, c.number("initializer_factor")?))
}

fn block(c: &Config, stack: Stack, i: i64) -> Result<LayerSpec> {
    let width = c.int("d_model")?;
    let is_decoder = stack == Stack::Decoder;
    let side = if is_decoder { "decoder" } else { "encoder" };
    let mut b = LayerBuilder::new(format!("{side}.block.{i}"));
    let attention = attention(c, &mut b, ("layer.0.SelfAttention", is_decoder), false)?;
    let heads = c.int("num_heads")?;
    let init = Init::Normal(c.number("initializer_factor")? * (width as f64).powf(-0.5));
    let relative = match i {
        0 => Some(RelativeBias::new(
            &mut b,
            "layer.0.SelfAttention.relative_attention_bias.weight",
            (c.int("relative_attention_num_buckets")?, heads),
            (c.int("relative_attention_max_distance")?, !is_decoder),
            init,
        )),
        _ => None,
    };
    let norm = norm_of(c, &mut b, "layer.0.layer_norm")?;
    let cross = match is_decoder {
        true => {
            let attention = self::attention(c, &mut b, ("layer.1.EncDecAttention", false), true)?;
            let norm = norm_of(c, &mut b, "layer.1.layer_norm")?;
            Some((Branch::before(norm), attention))
        }
        false => None,
    };
    let at = if is_decoder { "layer.2" } else { "layer.1" };
    let mlp = mlp(c, &mut b, at)?;
    let mlp_norm = norm_of(c, &mut b, &format!("{at}.layer_norm"))?;
    let block = Block {
        relative,
        cross,
        dropout: c.number("dropout_rate")?,
        is_decoder,
        ..Block::new(width, (Branch::before(norm), attention), (Branch::before(mlp_norm), mlp))
    };
    Ok(LayerSpec::new(format!("{side}.{i}"), b, block).block())
}

/// An attention, whose weights start as T5's do, since its scores are not scaled.
fn attention(
    c: &Config,
    b: &mut LayerBuilder,
    (name, is_causal): (&str, bool),
    is_cross: bool,
) -> Result<Attention> {
    let (width, heads, head_dim) = (c.int("d_model")?, c.int("num_heads")?, c.int("d_kv")?);
    let (inner, factor) = (heads * head_dim, c.number("initializer_factor")?);
    let init = |fan: i64| Init::Normal(factor * (fan as f64).powf(-0.5));
    let mut layer = |part: &str, shape: (i64, i64), init: Init| {
        Linear::new(b, &format!("{name}.{part}"), shape, false, init)
    };
    let (q, k, v) = (
        layer("q", (width, inner), init(width * head_dim)),
        layer("k", (width, inner), init(width)),
        layer("v", (width, inner), init(width)),
    );
    let out = layer("o", (inner, width), init(inner));
    let (name, projections, position) = match is_cross {
        true => ("cross_attn", Projections::Cross(q, k, v), Position::None),
        false => ("self_attn", Projections::Apart(q, k, v), Position::Carried),
    };
    Ok(Attention {
        position,
        scale: Some(1.0),
        is_causal,
        dropout: c.number("dropout_rate")?,
        ..Attention::new(name, projections, out, (heads, head_dim))
    })
}

fn mlp(c: &Config, b: &mut LayerBuilder, at: &str) -> Result<Mlp> {
    let (width, inner) = (c.int("d_model")?, c.int("d_ff")?);
    let factor = c.number("initializer_factor")?;
    let (activation, is_gated) = feed_forward(c)?;
    let mut layer = |part: &str, (inputs, outputs): (i64, i64)| {
        let init = Init::Normal(factor * (inputs as f64).powf(-0.5));
        Linear::new(b, &format!("{at}.DenseReluDense.{part}"), (inputs, outputs), false, init)
    };
    let (gate, up) = match is_gated {
        true => (Gate::Layer(layer("wi_0", (width, inner))), layer("wi_1", (width, inner))),
        false => (Gate::None, layer("wi", (width, inner))),
    };
    Ok(Mlp {
        gate,
        up,
        down: layer("wo", (inner, width)),
        activation,
        dropout: c.number("dropout_rate")?,
    })
}
