//! BLOOM (BigScience 2022): ALiBi in place of positions, a norm of the embedding, one layer for queries,
//! keys and values, head by head.

use super::family::Family;
use crate::{
    config_json::{Activation, Config, Key, Refused, Table},
    error::Result,
    model::{
        architecture::{Architecture, LayerSpec, WeightNames},
        modules::{
            Attention, Block, Branch, Embed, Embedding, Gate, Head, Linear, Mlp, Norm, Position,
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
        buffers: &[],
    },
};

const EMBEDDING: &str = "transformer.word_embeddings.weight";

pub(super) static TABLE: Table = Table {
    model_type: "bloom",
    architecture: "BloomForCausalLM",
    keys: &[
        Key::size("vocab_size", 250_880),
        Key::size("hidden_size", 64),
        Key::layers("n_layer", 2),
        Key::size("n_head", 8),
        Key::flag("apply_residual_connection_post_layernorm", false),
        Key::probability("hidden_dropout", 0.0),
        Key::probability("attention_dropout", 0.0),
        Key::positive("layer_norm_epsilon", 1e-5),
        Key::non_negative("initializer_range", 0.02),
        Key::flag("slow_but_exact", false),
        Key::size("pretraining_tp", 1),
        Key::flag("tie_word_embeddings", true),
        Key::token("bos_token_id", Some(1)),
        Key::tokens("eos_token_id", Some(2)),
        Key::token("pad_token_id", None),
    ],
    aliases: &[
        ("n_embed", "hidden_size"),
        ("num_hidden_layers", "n_layer"),
        ("num_attention_heads", "n_head"),
    ],
    refused: &[Refused::new("n_inner", "BLOOM's MLP is four times as wide as its hidden states")],
};

pub(super) const SIZES: &[(&str, &str)] = &[
    ("bloom-560m", r#"{"hidden_size": 1024, "n_layer": 24, "n_head": 16, "pad_token_id": 3}"#),
    ("bloom-1b1", r#"{"hidden_size": 1536, "n_layer": 24, "n_head": 16, "pad_token_id": 3}"#),
];

fn describe(c: &Config) -> Result<Architecture> {
    let (width, vocab) = (c.int("hidden_size")?, c.int("vocab_size")?);
    let (layers, heads) = (c.int("n_layer")?, c.int("n_head")?);
    if width % heads != 0 {
        return Err(
            c.refusal(vec![format!("hidden_size {width} must be divisible by n_head {heads}")])
        );
    }
    if c.flag("slow_but_exact")? && c.int("pretraining_tp")? > 1 {
        let text = "slow_but_exact with pretraining_tp above 1 leaves out biases in transformers: \
                    remove slow_but_exact";
        return Err(c.refusal(vec![text.to_owned()]));
    }
    let (init, epsilon) =
        (Init::Normal(c.number("initializer_range")?), c.number("layer_norm_epsilon")?);
    let mut b = LayerBuilder::new("transformer");
    let tokens = Embedding::new(&mut b, "word_embeddings.weight", (vocab, width), init);
    let norm = Norm::layer(&mut b, "word_embeddings_layernorm", width, epsilon);
    let embed = Embed { norm: Some(norm), ..Embed::new(tokens) };
    let mut all = vec![LayerSpec::new("word_embeddings", b, embed)];
    for i in 0..layers {
        all.push(block(c, i, init)?);
    }
    let mut b = LayerBuilder::new("");
    let norm = Norm::layer(&mut b, "transformer.ln_f", width, epsilon);
    let projection = c.projection(&mut b, EMBEDDING, (vocab, width), init)?;
    let head = Head::new(Some(norm), projection, (vocab, width));
    all.push(LayerSpec::new("head", b, head));
    let summary = c.summary(layers, (width, heads), "ALiBi")?;
    Ok(Architecture { layers: all, facts: c.facts(FAMILY.names, summary)? })
}

fn block(c: &Config, i: i64, init: Init) -> Result<LayerSpec> {
    let (width, heads) = (c.int("hidden_size")?, c.int("n_head")?);
    let epsilon = c.number("layer_norm_epsilon")?;
    let adds_to_norm = c.flag("apply_residual_connection_post_layernorm")?;
    let mut b = LayerBuilder::new(format!("transformer.h.{i}"));
    let branch = |norm: Norm| Branch { adds_to_norm, ..Branch::before(norm) };
    let input_norm = Norm::layer(&mut b, "input_layernorm", width, epsilon);
    let layer = |b: &mut LayerBuilder, name: &str, shape: (i64, i64)| {
        Linear::new(b, name, shape, true, init)
    };
    let qkv = layer(&mut b, "self_attention.query_key_value", (width, 3 * width));
    let out = layer(&mut b, "self_attention.dense", (width, width));
    let shape = (heads, width / heads);
    let attention = Attention {
        position: Position::Alibi,
        dropout: c.number("attention_dropout")?,
        ..Attention::new("self_attention", Projections::ByHeads(qkv), out, shape)
    };
    let mlp_norm = Norm::layer(&mut b, "post_attention_layernorm", width, epsilon);
    let mlp = Mlp {
        gate: Gate::None,
        up: layer(&mut b, "mlp.dense_h_to_4h", (width, 4 * width)),
        down: layer(&mut b, "mlp.dense_4h_to_h", (4 * width, width)),
        // BLOOM's gelu is the approximation by tanh.
        activation: Activation::GeluPytorchTanh,
        dropout: 0.0,
    };
    let block = Block::new(width, (branch(input_norm), attention), (branch(mlp_norm), mlp));
    let block = Block { dropout: c.number("hidden_dropout")?, ..block };
    Ok(LayerSpec::new(format!("h.{i}"), b, block).block())
}
