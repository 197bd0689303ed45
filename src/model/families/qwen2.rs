//! Qwen 2 and 2.5 (Yang et al. 2024): Llama with biases in queries, keys and values.

use super::{
    decoder::{Decoder, NAMES, ORIGINAL_POSITIONS},
    family::Family,
};
use crate::{
    config_json::{Config, Default, Key, KeyKind, Neutral, Refused, Table},
    error::Result,
    model::architecture::Architecture,
};

pub(super) static FAMILY: Family = Family { table: &TABLE, sizes: SIZES, describe, names: NAMES };

pub(super) static TABLE: Table = Table {
    model_type: "qwen2",
    architecture: "Qwen2ForCausalLM",
    keys: &[
        Key::size("vocab_size", 151_936),
        Key::size("hidden_size", 4096),
        Key::size("intermediate_size", 22016),
        Key::layers("num_hidden_layers", 32),
        Key::size("num_attention_heads", 32),
        Key::new("num_key_value_heads", KeyKind::OptionalSize, Default::Int(32)),
        Key::new("head_dim", KeyKind::OptionalSize, Default::Absent),
        Key::activation("hidden_act", "silu"),
        Key::size("max_position_embeddings", 32768),
        Key::non_negative("initializer_range", 0.02),
        Key::positive("rms_norm_eps", 1e-6),
        Key::optional_positive("rope_theta"),
        Key::structure("rope_scaling"),
        Key::structure("rope_parameters"),
        ORIGINAL_POSITIONS,
        Key::flag("use_sliding_window", false),
        Key::new("sliding_window", KeyKind::OptionalSize, Default::Int(4096)),
        Key::new("max_window_layers", KeyKind::Count, Default::Int(28)),
        Key::structure("layer_types"),
        Key::probability("attention_dropout", 0.0),
        Key::flag("tie_word_embeddings", false),
        Key::token("bos_token_id", None),
        Key::tokens("eos_token_id", None),
        Key::token("pad_token_id", None),
    ],
    aliases: &[],
    refused: &[Refused::unless(
        "attention_bias",
        &[Neutral::True],
        "Qwen 2 always has biases in its queries, keys and values, and nowhere else",
    )],
};

pub(super) const SIZES: &[(&str, &str)] = &[
    (
        "qwen2.5-0.5b",
        r#"{"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
            "num_attention_heads": 14, "num_key_value_heads": 2, "max_window_layers": 24,
            "sliding_window": 32768, "rope_theta": 1000000.0, "tie_word_embeddings": true,
            "bos_token_id": 151643, "eos_token_id": 151643}"#,
    ),
    (
        "qwen2.5-1.5b",
        r#"{"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
            "num_attention_heads": 12, "num_key_value_heads": 2, "max_position_embeddings":
            131072, "sliding_window": 131072, "rope_theta": 1000000.0, "tie_word_embeddings":
            true, "bos_token_id": 151643, "eos_token_id": 151643}"#,
    ),
];

fn describe(c: &Config) -> Result<Architecture> {
    let decoder = Decoder::new(c)?;
    let layers = decoder.qwen_layers()?;
    Decoder { qkv_bias: true, layers, ..decoder }.describe()
}
