//! Gemma 3 (Gemma Team 2025), its models of text: norms before and after each part, embeddings that are
//! scaled, and windows on most layers, with rotary positions of their own.

use std::rc::Rc;

use super::{
    decoder::{Decoder, LayerPositions, NAMES},
    family::Family,
};
use crate::{
    config_json::{Config, Default, Key, KeyKind, Neutral, Refused, Table},
    error::Result,
    model::{architecture::Architecture, modules::Rotary},
    rope::{Rope, RopeContext},
};

pub(super) static FAMILY: Family = Family { table: &TABLE, sizes: SIZES, describe, names: NAMES };

pub(super) static TABLE: Table = Table {
    model_type: "gemma3_text",
    architecture: "Gemma3ForCausalLM",
    keys: &[
        Key::size("vocab_size", 262_208),
        Key::size("hidden_size", 2304),
        Key::size("intermediate_size", 9216),
        Key::layers("num_hidden_layers", 26),
        Key::size("num_attention_heads", 8),
        Key::size("num_key_value_heads", 4),
        Key::size("head_dim", 256),
        Key::activation("hidden_activation", "gelu_pytorch_tanh"),
        Key::size("max_position_embeddings", 131_072),
        Key::non_negative("initializer_range", 0.02),
        Key::positive("rms_norm_eps", 1e-6),
        Key::optional_positive("rope_theta"),
        Key::structure("rope_scaling"),
        Key::structure("rope_parameters"),
        Key::positive("rope_local_base_freq", 10_000.0),
        Key::flag("attention_bias", false),
        Key::probability("attention_dropout", 0.0),
        Key::size("query_pre_attn_scalar", 256),
        Key::new("sliding_window", KeyKind::OptionalSize, Default::Int(4096)),
        Key::size("sliding_window_pattern", 6),
        Key::structure("layer_types"),
        Key::flag("tie_word_embeddings", true),
        Key::token("bos_token_id", Some(2)),
        Key::tokens("eos_token_id", Some(1)),
        Key::token("pad_token_id", Some(0)),
    ],
    aliases: &[],
    refused: &[
        // transformers writes it, and does not read it.
        Refused::unless(
            "_sliding_window_pattern",
            &[Neutral::Number(6.0)],
            "transformers passes over it: write sliding_window_pattern or layer_types",
        ),
        Refused::new("attn_logit_softcapping", "dsr's attention does not cap its scores"),
        Refused::new("final_logit_softcapping", "dsr's logits are not capped"),
        Refused::new("use_bidirectional_attention", "dsr's Gemma 3 reads from left to right"),
    ],
};

pub(super) const SIZES: &[(&str, &str)] = &[
    (
        "gemma-3-270m",
        r#"{"vocab_size": 262144, "hidden_size": 640, "intermediate_size": 2048,
            "num_hidden_layers": 18, "num_attention_heads": 4, "num_key_value_heads": 1,
            "max_position_embeddings": 32768, "sliding_window": 512}"#,
    ),
    (
        "gemma-3-1b",
        r#"{"vocab_size": 262144, "hidden_size": 1152, "intermediate_size": 6912,
            "num_attention_heads": 4, "num_key_value_heads": 1, "max_position_embeddings":
            32768, "sliding_window": 512}"#,
    ),
];

fn describe(c: &Config) -> Result<Architecture> {
    let bias = c.flag("attention_bias")?;
    let scalar = c.int("query_pre_attn_scalar")? as f64;
    let width = c.int("hidden_size")? as f64;
    Decoder {
        is_gemma: true,
        qkv_bias: bias,
        out_bias: bias,
        has_qk_norm: true,
        activation: c.activation("hidden_activation")?,
        scale: Some(scalar.powf(-0.5)),
        embedding_scale: Some(width.sqrt()),
        layers: layers(c)?,
        ..Decoder::without_layers(c)?
    }
    .describe()
}

/// The positions and the window of each layer: every sixth sees all, the others a window.
fn layers(c: &Config) -> Result<Vec<LayerPositions>> {
    let (full, local) = ropes(c)?;
    let (full, local) = (Rc::new(Rotary::new(full)), Rc::new(Rotary::new(local)));
    let (window, pattern) = (c.optional_int("sliding_window")?, c.int("sliding_window_pattern")?);
    let types = c.layer_types(|i| (i + 1) % pattern != 0)?;
    let place = |is_sliding: &bool| match is_sliding {
        true => LayerPositions { rotary: Rc::clone(&local), window },
        false => LayerPositions { rotary: Rc::clone(&full), window: None },
    };
    Ok(types.iter().map(place).collect())
}

/// The frequencies of layers that see all, and of those with a window.
fn ropes(c: &Config) -> Result<(Rope, Rope)> {
    let context = |theta: f64, given: Option<f64>| -> Result<RopeContext> {
        Ok(RopeContext {
            head_dim: c.int("head_dim")?,
            default_theta: theta,
            theta: given,
            partial_rotary_factor: None,
            max_positions: c.int("max_position_embeddings")?,
            original_max_positions: None,
        })
    };
    let local_theta = c.number("rope_local_base_freq")?;
    let (scaling, parameters) = (c.value("rope_scaling")?, c.value("rope_parameters")?);
    let by_type = |name: &str| parameters.get(name);
    let theta = c.optional_number("rope_theta")?;
    let full = match by_type("full_attention") {
        Some(given) => {
            // A base inside of the object wins.
            let context = context(theta.unwrap_or(1e6), None)?;
            Rope::read("rope_parameters.full_attention", Some(given), &context)
        }
        None => Rope::read("rope_scaling", Some(scaling), &context(1e6, theta)?),
    };
    let local = match by_type("sliding_attention") {
        Some(given) => Rope::read(
            "rope_parameters.sliding_attention",
            Some(given),
            &context(local_theta, None)?,
        ),
        None => Rope::read("rope_scaling", None, &context(local_theta, None)?),
    };
    let mut faults = Vec::new();
    if !parameters.is_null() && !scaling.is_null() {
        faults.push("rope_scaling stands beside rope_parameters: remove one of them".to_owned());
    }
    if !parameters.is_null() && by_type("full_attention").is_none() {
        faults.push("rope_parameters must have full_attention and sliding_attention".to_owned());
    }
    for name in ["full_attention", "sliding_attention"] {
        if by_type(name).and_then(|rope| rope.get("truncate")) == Some(&false.into()) {
            faults.push(format!(
                "rope_parameters.{name}: truncate must be true, as transformers takes it to be here"
            ));
        }
    }
    let mut read =
        |rope: Result<Rope, Vec<String>>| rope.map_err(|found| faults.extend(found)).ok();
    let both = read(full).zip(read(local));
    c.refuse(faults)?;
    both.ok_or_else(|| c.internal("rope_parameters"))
}
