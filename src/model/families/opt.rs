//! OPT (Zhang et al. 2022): learned positions from 2 on, ReLU, norms before each part or after it.

use super::family::Family;
use crate::{
    config_json::{Config, Default, Key, KeyKind, Neutral, Refused, Table},
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
        prefix: "model.",
        aliases: &[("lm_head.weight", EMBEDDING)],
        buffers: &[],
    },
};

const EMBEDDING: &str = "model.decoder.embed_tokens.weight";

/// The epsilon of all norms, PyTorch's own.
const EPSILON: f64 = 1e-5;

pub(super) static TABLE: Table = Table {
    model_type: "opt",
    architecture: "OPTForCausalLM",
    keys: &[
        Key::size("vocab_size", 50272),
        Key::size("hidden_size", 768),
        Key::layers("num_hidden_layers", 12),
        Key::size("num_attention_heads", 12),
        Key::size("ffn_dim", 3072),
        Key::size("max_position_embeddings", 2048),
        Key::new("word_embed_proj_dim", KeyKind::Size, Default::Same("hidden_size")),
        Key::flag("do_layer_norm_before", true),
        Key::flag("_remove_final_layer_norm", false),
        Key::flag("enable_bias", true),
        Key::flag("layer_norm_elementwise_affine", true),
        Key::activation("activation_function", "relu"),
        Key::probability("dropout", 0.1),
        Key::probability("attention_dropout", 0.0),
        Key::non_negative("init_std", 0.02),
        Key::flag("tie_word_embeddings", true),
        Key::token("bos_token_id", Some(2)),
        Key::tokens("eos_token_id", Some(2)),
        Key::token("pad_token_id", Some(1)),
    ],
    aliases: &[],
    refused: &[Refused::unless(
        "layerdrop",
        &[Neutral::Number(0.0)],
        "dsr trains all layers in every step",
    )],
};

pub(super) const SIZES: &[(&str, &str)] = &[
    ("opt-125m", "{}"),
    (
        "opt-350m",
        r#"{"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "ffn_dim":
            4096, "word_embed_proj_dim": 512, "do_layer_norm_before": false}"#,
    ),
    (
        "opt-1.3b",
        r#"{"hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 32, "ffn_dim":
            8192}"#,
    ),
];

fn describe(c: &Config) -> Result<Architecture> {
    let (width, vocab) = (c.int("hidden_size")?, c.int("vocab_size")?);
    let (narrow, positions) = (c.int("word_embed_proj_dim")?, c.int("max_position_embeddings")?);
    let (layers, heads) = (c.int("num_hidden_layers")?, c.int("num_attention_heads")?);
    if width % heads != 0 {
        let text = format!("hidden_size {width} must be divisible by num_attention_heads {heads}");
        return Err(c.refusal(vec![text]));
    }
    let init = Init::Normal(c.number("init_std")?);
    let mut b = LayerBuilder::new("model.decoder");
    let padded = init.padded(c.padding_idx()?);
    let tokens = Embedding::new(&mut b, "embed_tokens.weight", (vocab, narrow), padded);
    let places = Positions::opt(&mut b, "embed_positions.weight", (positions, width), init);
    let projection =
        (narrow != width).then(|| Linear::new(&mut b, "project_in", (narrow, width), false, init));
    // OPT drops nothing out here.
    let embed = Embed { positions: Some(places), projection, ..Embed::new(tokens) };
    let mut all = vec![LayerSpec::new("embed_tokens", b, embed)];
    for i in 0..layers {
        all.push(block(c, i, init)?);
    }
    let mut b = LayerBuilder::new("");
    let has_norm = c.flag("do_layer_norm_before")? && !c.flag("_remove_final_layer_norm")?;
    let norm = match has_norm {
        true => Some(norm(c, &mut b, "model.decoder.final_layer_norm")?),
        false => None,
    };
    let out = (narrow != width)
        .then(|| Linear::new(&mut b, "model.decoder.project_out", (width, narrow), false, init));
    let projection = c.projection(&mut b, EMBEDDING, (vocab, narrow), init)?;
    let head = Head { narrow: out, ..Head::new(norm, projection, (vocab, narrow)) };
    all.push(LayerSpec::new("head", b, head));
    let summary = c.summary(layers, (width, heads), &format!("{positions} positions"))?;
    let facts = ModelInfo { max_positions: Some(positions), ..c.facts(FAMILY.names, summary)? };
    Ok(Architecture { layers: all, facts })
}

fn norm(c: &Config, b: &mut LayerBuilder, name: &str) -> Result<Norm> {
    let width = c.int("hidden_size")?;
    Ok(match c.flag("layer_norm_elementwise_affine")? {
        true => Norm::layer(b, name, width, EPSILON),
        false => Norm::bare_layer(name, width, EPSILON),
    })
}

fn block(c: &Config, i: i64, init: Init) -> Result<LayerSpec> {
    let (width, heads) = (c.int("hidden_size")?, c.int("num_attention_heads")?);
    let (inner, has_bias) = (c.int("ffn_dim")?, c.flag("enable_bias")?);
    let mut b = LayerBuilder::new(format!("model.decoder.layers.{i}"));
    let mut layer =
        |name: &str, shape: (i64, i64)| Linear::new(&mut b, name, shape, has_bias, init);
    let projections = Projections::Apart(
        layer("self_attn.q_proj", (width, width)),
        layer("self_attn.k_proj", (width, width)),
        layer("self_attn.v_proj", (width, width)),
    );
    let out = layer("self_attn.out_proj", (width, width));
    let (up, down) = (layer("fc1", (width, inner)), layer("fc2", (inner, width)));
    let branch = |norm: Norm, is_before: bool| match is_before {
        true => Branch::before(norm),
        false => Branch { of_sum: Some(norm), ..Branch::default() },
    };
    let is_before = c.flag("do_layer_norm_before")?;
    let attention_norm = norm(c, &mut b, "self_attn_layer_norm")?;
    let mlp_norm = norm(c, &mut b, "final_layer_norm")?;
    let attention = Attention {
        dropout: c.number("attention_dropout")?,
        ..Attention::new("self_attn", projections, out, (heads, width / heads))
    };
    let mlp = Mlp {
        gate: Gate::None,
        up,
        down,
        activation: c.activation("activation_function")?,
        dropout: 0.0,
    };
    let attention = (branch(attention_norm, is_before), attention);
    let block = Block::new(width, attention, (branch(mlp_norm, is_before), mlp));
    let block = Block { dropout: c.number("dropout")?, ..block };
    Ok(LayerSpec::new(format!("layers.{i}"), b, block).block())
}
