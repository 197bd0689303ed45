//! Mistral (Jiang et al. 2023): Llama with a window on attention.

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
    model_type: "mistral",
    architecture: "MistralForCausalLM",
    keys: &[
        Key::size("vocab_size", 32000),
        Key::size("hidden_size", 4096),
        Key::size("intermediate_size", 14336),
        Key::layers("num_hidden_layers", 32),
        Key::size("num_attention_heads", 32),
        Key::new("num_key_value_heads", KeyKind::OptionalSize, Default::Int(8)),
        Key::optional_size("head_dim"),
        Key::activation("hidden_act", "silu"),
        Key::size("max_position_embeddings", 131_072),
        Key::non_negative("initializer_range", 0.02),
        Key::positive("rms_norm_eps", 1e-6),
        Key::optional_positive("rope_theta"),
        Key::structure("rope_scaling"),
        Key::structure("rope_parameters"),
        ORIGINAL_POSITIONS,
        Key::new("sliding_window", KeyKind::OptionalSize, Default::Int(4096)),
        Key::probability("attention_dropout", 0.0),
        Key::flag("tie_word_embeddings", false),
        Key::token("bos_token_id", Some(1)),
        Key::tokens("eos_token_id", Some(2)),
        Key::token("pad_token_id", None),
    ],
    aliases: &[],
    refused: WINDOW_KEYS,
};

pub(super) const SIZES: &[(&str, &str)] =
    &[("mistral-7b", r#"{"max_position_embeddings": 32768, "rms_norm_eps": 1e-05}"#)];

fn describe(c: &Config) -> Result<Architecture> {
    let window = c.optional_int("sliding_window")?;
    let decoder = Decoder::new(c)?;
    Decoder { layers: decoder.layers_with(|_| window)?, ..decoder }.describe()
}
