//! Llama (Touvron et al. 2023), and the many models of its form.

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
    model_type: "llama",
    architecture: "LlamaForCausalLM",
    keys: &[
        Key::size("vocab_size", 32000),
        Key::size("hidden_size", 4096),
        Key::size("intermediate_size", 11008),
        Key::layers("num_hidden_layers", 32),
        Key::size("num_attention_heads", 32),
        Key::new("num_key_value_heads", KeyKind::Size, Default::Same("num_attention_heads")),
        Key::optional_size("head_dim"),
        Key::activation("hidden_act", "silu"),
        Key::size("max_position_embeddings", 2048),
        Key::non_negative("initializer_range", 0.02),
        Key::positive("rms_norm_eps", 1e-6),
        Key::optional_positive("rope_theta"),
        Key::structure("rope_scaling"),
        Key::structure("rope_parameters"),
        ORIGINAL_POSITIONS,
        Key::flag("attention_bias", false),
        Key::flag("mlp_bias", false),
        Key::probability("attention_dropout", 0.0),
        Key::flag("tie_word_embeddings", false),
        Key::token("bos_token_id", Some(1)),
        Key::tokens("eos_token_id", Some(2)),
        Key::token("pad_token_id", None),
    ],
    aliases: &[],
    refused: &[Refused::unless(
        "pretraining_tp",
        &[Neutral::Number(1.0)],
        "dsr computes a linear layer in one piece",
    )],
};

pub(super) const SIZES: &[(&str, &str)] = &[
    ("llama-7b", "{}"),
    (
        "llama-3.2-1b",
        r#"{"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192,
            "num_hidden_layers": 16, "num_key_value_heads": 8, "head_dim": 64,
            "max_position_embeddings": 131072, "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
            "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3"},
            "tie_word_embeddings": true, "bos_token_id": 128000, "eos_token_id": 128001}"#,
    ),
    (
        "llama-3.1-8b",
        r#"{"vocab_size": 128256, "intermediate_size": 14336, "num_key_value_heads": 8,
            "max_position_embeddings": 131072, "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
            "rope_scaling": {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3"}, "bos_token_id":
            128000, "eos_token_id": 128001}"#,
    ),
    (
        "smollm2-135m",
        r#"{"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
            "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
            "max_position_embeddings": 8192, "initializer_range": 0.041666666666666664,
            "rms_norm_eps": 1e-05, "rope_theta": 100000.0, "tie_word_embeddings": true,
            "bos_token_id": 0, "eos_token_id": 0}"#,
    ),
    (
        "tinyllama-1.1b",
        r#"{"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
            "num_key_value_heads": 4, "rms_norm_eps": 1e-05}"#,
    ),
];

fn describe(c: &Config) -> Result<Architecture> {
    let (bias, mlp_bias) = (c.flag("attention_bias")?, c.flag("mlp_bias")?);
    Decoder { qkv_bias: bias, out_bias: bias, mlp_bias, ..Decoder::new(c)? }.describe()
}
