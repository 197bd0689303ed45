//! Phi-3 (Abdin et al. 2024): Llama with one layer for queries, keys and values, and one for gate and up.

use super::{
    decoder::{Decoder, NAMES, ORIGINAL_POSITIONS, WINDOW_KEYS},
    family::Family,
};
use crate::{
    config_json::{Config, Default, Key, KeyKind, Table},
    error::Result,
    model::architecture::Architecture,
};

pub(super) static FAMILY: Family = Family { table: &TABLE, sizes: SIZES, describe, names: NAMES };

pub(super) static TABLE: Table = Table {
    model_type: "phi3",
    architecture: "Phi3ForCausalLM",
    keys: &[
        Key::size("vocab_size", 32064),
        Key::size("hidden_size", 3072),
        Key::size("intermediate_size", 8192),
        Key::layers("num_hidden_layers", 32),
        Key::size("num_attention_heads", 32),
        Key::new("num_key_value_heads", KeyKind::Size, Default::Same("num_attention_heads")),
        Key::new("head_dim", KeyKind::OptionalSize, Default::Absent),
        Key::activation("hidden_act", "silu"),
        Key::probability("resid_pdrop", 0.0),
        Key::probability("embd_pdrop", 0.0),
        Key::probability("attention_dropout", 0.0),
        Key::size("max_position_embeddings", 4096),
        ORIGINAL_POSITIONS,
        Key::non_negative("initializer_range", 0.02),
        Key::positive("rms_norm_eps", 1e-5),
        Key::optional_positive("rope_theta"),
        Key::structure("rope_scaling"),
        Key::structure("rope_parameters"),
        Key::optional_positive("partial_rotary_factor"),
        Key::optional_size("sliding_window"),
        Key::flag("tie_word_embeddings", false),
        Key::token("bos_token_id", Some(1)),
        Key::tokens("eos_token_id", Some(32000)),
        Key::token("pad_token_id", Some(32000)),
    ],
    aliases: &[],
    refused: WINDOW_KEYS,
};

pub(super) const SIZES: &[(&str, &str)] = &[("phi-3-mini", r#"{"sliding_window": 2047}"#)];

fn describe(c: &Config) -> Result<Architecture> {
    let window = c.optional_int("sliding_window")?;
    let decoder = Decoder {
        partial_rotary_factor: c.optional_number("partial_rotary_factor")?,
        may_turn_partly: true,
        // The class of transformers has this number, and passes over one inside of the frequencies.
        original_max_positions: Some(4096),
        activation: c.activation("hidden_act")?,
        ..Decoder::without_layers(c)?
    };
    Decoder {
        is_fused: true,
        layers: decoder.layers_with(|_| window)?,
        embedding_dropout: c.number("embd_pdrop")?,
        dropout: c.number("resid_pdrop")?,
        ..decoder
    }
    .describe()
}
