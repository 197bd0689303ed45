//! Qwen 3 (Yang et al. 2025): Llama with norms of each head's queries and keys.

use super::{
    decoder::{Decoder, NAMES, ORIGINAL_POSITIONS},
    family::Family,
};
use crate::{
    config_json::{Config, Default, Key, KeyKind, Table},
    error::Result,
    model::architecture::Architecture,
};

pub(super) static FAMILY: Family = Family { table: &TABLE, sizes: SIZES, describe, names: NAMES };

pub(super) static TABLE: Table = Table {
    model_type: "qwen3",
    architecture: "Qwen3ForCausalLM",
    keys: &[
        Key::size("vocab_size", 151_936),
        Key::size("hidden_size", 4096),
        Key::size("intermediate_size", 22016),
        Key::layers("num_hidden_layers", 32),
        Key::size("num_attention_heads", 32),
        Key::new("num_key_value_heads", KeyKind::OptionalSize, Default::Int(32)),
        Key::size("head_dim", 128),
        Key::activation("hidden_act", "silu"),
        Key::size("max_position_embeddings", 32768),
        Key::non_negative("initializer_range", 0.02),
        Key::positive("rms_norm_eps", 1e-6),
        Key::optional_positive("rope_theta"),
        Key::structure("rope_scaling"),
        Key::structure("rope_parameters"),
        ORIGINAL_POSITIONS,
        Key::flag("attention_bias", false),
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
    refused: &[],
};

pub(super) const SIZES: &[(&str, &str)] = &[(
    "qwen3-0.6b",
    r#"{"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
            "num_attention_heads": 16, "num_key_value_heads": 8, "max_position_embeddings":
            40960, "sliding_window": null, "rope_theta": 1000000.0, "tie_word_embeddings": true,
            "bos_token_id": 151643, "eos_token_id": 151645}"#,
)];

fn describe(c: &Config) -> Result<Architecture> {
    let (decoder, bias) = (Decoder::new(c)?, c.flag("attention_bias")?);
    let layers = decoder.qwen_layers()?;
    Decoder { qkv_bias: bias, out_bias: bias, has_qk_norm: true, layers, ..decoder }.describe()
}
