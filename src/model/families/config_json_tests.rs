//! Keys that the reader of `config.json` takes, refuses and keeps, family by family.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::{bloom, gemma3, gpt2, llama, mistral, opt, phi3, qwen2, qwen3, t5};
use crate::{
    config_json::{Activation, Config, Default, Table, read_file},
    error::{Code, Result},
};

type Sizes = &'static [(&'static str, &'static str)];

const FAMILIES: [(&Table, Sizes); 10] = [
    (&gpt2::TABLE, gpt2::SIZES),
    (&llama::TABLE, llama::SIZES),
    (&mistral::TABLE, mistral::SIZES),
    (&qwen2::TABLE, qwen2::SIZES),
    (&qwen3::TABLE, qwen3::SIZES),
    (&phi3::TABLE, phi3::SIZES),
    (&gemma3::TABLE, gemma3::SIZES),
    (&opt::TABLE, opt::SIZES),
    (&bloom::TABLE, bloom::SIZES),
    (&t5::TABLE, t5::SIZES),
];

fn read_as(value: &Value, table: &'static Table) -> Result<Config> {
    Config::read(value.as_object().unwrap(), table, "config.json")
}

fn read(value: Value) -> Result<Config> {
    read_as(&value, &gpt2::TABLE)
}

fn refusal_of(value: Value, table: &'static Table) -> String {
    let e = read_as(&value, table).unwrap_err();
    assert_eq!(e.code(), Code::ModelConfig);
    e.to_string()
}

fn refusal(value: Value) -> String {
    refusal_of(value, &gpt2::TABLE)
}

/// OpenAI's own file of the smallest model on the hub.
fn of_the_hub() -> Value {
    json!({
        "activation_function": "gelu_new",
        "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.1,
        "bos_token_id": 50256,
        "embd_pdrop": 0.1,
        "eos_token_id": 50256,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05,
        "model_type": "gpt2",
        "n_ctx": 1024,
        "n_embd": 768,
        "n_head": 12,
        "n_layer": 12,
        "n_positions": 1024,
        "resid_pdrop": 0.1,
        "summary_activation": null,
        "summary_first_dropout": 0.1,
        "summary_proj_to_labels": true,
        "summary_type": "cls_index",
        "summary_use_proj": true,
        "task_specific_params": {"text-generation": {"do_sample": true, "max_length": 50}},
        "vocab_size": 50257
    })
}

#[test]
fn a_file_of_the_hub_is_the_default_and_keeps_its_other_keys() {
    let config = read(of_the_hub()).unwrap();
    assert_eq!(config.kept().len(), 7);
    let json = config.to_json();
    let mut settings = json.clone();
    settings.retain(|key, _| !config.kept().contains_key(key));
    assert_eq!(settings, read(json!({})).unwrap().to_json());
    assert_eq!(json["task_specific_params"]["text-generation"]["max_length"], 50);
    assert!(json.keys().is_sorted());
    assert_eq!(Config::read(&json, &gpt2::TABLE, "again").unwrap(), config);
}

#[test]
fn every_setting_comes_back() {
    let given = json!({
        "vocab_size": 11,
        "n_positions": 12,
        "n_embd": 13,
        "n_layer": 14,
        "n_head": 13,
        "n_inner": 15,
        "activation_function": "silu",
        "resid_pdrop": 0.25,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.5,
        "layer_norm_epsilon": 1e-6,
        "initializer_range": 0.01,
        "scale_attn_weights": false,
        "scale_attn_by_inverse_layer_idx": true,
        "reorder_and_upcast_attn": true,
        "tie_word_embeddings": false,
        "bos_token_id": 1,
        "eos_token_id": null,
        "x": 1,
    });
    let config = read(given.clone()).unwrap();
    let mut json = config.to_json();
    assert_eq!(Config::read(&json, &gpt2::TABLE, "x").unwrap(), config);
    for key in ["architectures", "model_type", "dtype"] {
        assert!(json.shift_remove(key).is_some(), "{key}");
    }
    assert_eq!(Value::Object(json), given);
    assert_eq!((config.int("n_layer").unwrap(), config.number("attn_pdrop").unwrap()), (14, 0.5));
    assert_eq!(config.optional_int("n_inner").unwrap(), Some(15));
    assert_eq!(config.activation("activation_function").unwrap(), Activation::Silu);
    assert!(!config.flag("tie_word_embeddings").unwrap());
    assert_eq!(config.token("bos_token_id").unwrap(), Some(1));
    assert_eq!(config.token("eos_token_id").unwrap(), None);
}

/// A transformers config may hold these beside GPT2Config's own.
#[test]
fn harmless_keys_are_kept() {
    let keys = [
        "use_cache",
        "pad_token_id",
        "sep_token_id",
        "unk_token_id",
        "cls_token_id",
        "mask_token_id",
        "decoder_start_token_id",
        "tie_encoder_decoder",
        "tie_last_hidden_states",
        "output_hidden_states",
        "output_attentions",
        "output_past",
        "return_dict",
        "is_decoder",
        "is_encoder_decoder",
        "chunk_size_feed_forward",
        "id2label",
        "label2id",
        "num_labels",
        "problem_type",
        "finetuning_task",
        "tokenizer_class",
        "gradient_checkpointing",
        "torchscript",
        "use_bfloat16",
        "prefix",
        "predict_special_tokens",
        "n_special",
        "summary_type",
        "max_length",
        "min_length",
        "top_k",
        "temperature",
        "attn_implementation",
    ];
    let map: Map<_, _> = keys.iter().map(|&key| (key.to_owned(), json!(1))).collect();
    assert_eq!(Config::read(&map, &gpt2::TABLE, "x").unwrap().kept(), &map);
}

#[test]
fn an_export_does_not_repeat_the_history_and_code_of_the_source() {
    let config = read(json!({
        "architectures": ["GPT2Model"],
        "torch_dtype": "float16",
        "auto_map": {"AutoModel": "code.Model"},
        "_name_or_path": "gpt2",
        "transformers_version": "4.0.0",
        "reorder_and_upcast_attn": false,
    }));
    let json = config.unwrap().to_json();
    assert_eq!(json["architectures"], json!(["GPT2LMHeadModel"]));
    assert_eq!(json["dtype"], "float32");
    assert_eq!(json["reorder_and_upcast_attn"], false);
    for key in ["torch_dtype", "auto_map", "_name_or_path", "transformers_version"] {
        assert!(!json.contains_key(key), "{key}");
    }
}

#[test]
fn a_misspelt_key_is_refused_and_a_foreign_one_kept() {
    let e = read(json!({"n_layr": 2, "n_heads": 2, "comment": "mine"})).unwrap_err();
    assert_eq!(e.to_string(), "config.json: unknown key n_layr\nconfig.json: unknown key n_heads");
    assert_eq!(e.hints(), ["did you mean n_layer? if not, remove the key"]);
    assert_eq!(read(json!({"comment": "mine"})).unwrap().kept()["comment"], "mine");
}

#[test]
fn the_aliases_of_transformers_are_understood() {
    let config =
        read(json!({"hidden_size": 64, "num_attention_heads": 4, "n_embd": 64.0})).unwrap();
    assert_eq!((config.int("n_embd").unwrap(), config.int("n_head").unwrap()), (64, 4));
    assert!(!config.to_json().contains_key("hidden_size"));
    assert_eq!(
        refusal(json!({"hidden_size": 64, "n_embd": 768})),
        "config.json: n_embd is 768 and hidden_size is 64: they mean the same"
    );
}

#[test]
fn all_faults_are_told_at_once() {
    let text = refusal(json!({
        "n_layer": "12",
        "n_embd": 768.5,
        "attn_pdrop": null,
        "tie_word_embeddings": 1,
        "eos_token_id": "end",
        "activation_function": "gelu_newer",
        "add_cross_attention": true,
        "quantization_config": {"bits": 4},
    }));
    assert_eq!(text.lines().count(), 8, "{text}");
    for expected in [
        "config.json: n_layer must be an integer, got \"12\"",
        "config.json: attn_pdrop must be a number, got null",
        "config.json: eos_token_id must be a token id, a list of token ids or null, got \"end\"",
        "config.json: activation_function must be one of gelu_new, gelu, ",
        "config.json: add_cross_attention is true, which dsr does not support: dsr's GPT-2",
    ] {
        assert!(text.contains(expected), "{expected}\n{text}");
    }
}

#[test]
fn values_are_checked_and_another_model_is_named() {
    let sizes = refusal(json!({"n_layer": 0, "n_head": -1, "n_inner": i64::MAX}));
    assert_eq!(sizes.lines().count(), 3, "{sizes}");
    assert!(sizes.starts_with("config.json: n_layer must be from 1 to 10000, got 0\n"), "{sizes}");
    assert_eq!(
        refusal(json!({
            "resid_pdrop": 2,
            "attn_pdrop": 1.0,
            "embd_pdrop": -0.1,
            "layer_norm_epsilon": 0.0,
            "initializer_range": -1,
            "bos_token_id": -2,
        })),
        "config.json: resid_pdrop must be at least 0 and below 1, got 2\n\
         config.json: embd_pdrop must be at least 0 and below 1, got -0.1\n\
         config.json: attn_pdrop must be at least 0 and below 1, got 1\n\
         config.json: layer_norm_epsilon must be positive, got 0\n\
         config.json: initializer_range must be 0 or more, got -1\n\
         config.json: bos_token_id must be a token id or null, got -2"
    );
    assert!(refusal(json!({"n_layer": u64::MAX})).contains("n_layer must be an integer"));
    assert_eq!(
        refusal(json!({"model_type": "llama", "n_layer": "x"})),
        "config.json describes a model of the type \"llama\"; dsr supports \"gpt2\""
    );
    assert!(refusal(json!({"model_type": "x".repeat(1000)})).len() < 200);
}

#[test]
fn keys_that_change_a_model_are_refused_unless_they_are_off() {
    let off = json!({
        "pretraining_tp": 1,
        "residual_multiplier": 1.0,
        "num_local_experts": 0,
        "partial_rotary_factor": 1,
        "no_rope_layers": [1, 1],
        "layer_types": ["full_attention", "full_attention"],
        "position_embedding_type": "rope",
        "resid_pdrop": 0.0,
        "rope_interleaved": false,
        "sliding_window": null,
        "quantization_config": {},
        "pruned_heads": {},
        "mlp_only_layers": [],
    });
    let config = read_as(&off, &llama::TABLE).unwrap();
    assert_eq!(Value::Object(config.kept().clone()), off);
    let on = json!({
        "pretraining_tp": 2,
        "residual_multiplier": 0.22,
        "num_local_experts": 8,
        "partial_rotary_factor": 0.5,
        "no_rope_layers": [1, 0],
        "layer_types": ["full_attention", "sliding_attention"],
        "rope_interleaved": true,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "parallel_attn": true,
    });
    let text = refusal_of(on.clone(), &llama::TABLE);
    for (line, key) in text.lines().zip(on.as_object().unwrap().keys()) {
        assert!(line.starts_with(&format!("config.json: {key} is ")), "{line}");
        assert!(line.contains(", which dsr does not support: "), "{line}");
    }
    assert_eq!(text.lines().count(), 10, "{text}");
    assert!(read_as(&json!({"sliding_window": 4096}), &mistral::TABLE).is_ok());
    assert!(read_as(&json!({"attention_bias": true}), &qwen2::TABLE).is_ok());
}

#[test]
fn all_kinds_of_values_are_read() {
    let given = json!({"eos_token_id": [1, 106.0], "sliding_window": 512.0, "num_layers": 1});
    let e = read_as(&given, &gemma3::TABLE).unwrap_err();
    assert!(e.to_string().contains("eos_token_id must be a token id, a list of token ids or null"));
    let config = read_as(&json!({"eos_token_id": [1, 106]}), &gemma3::TABLE).unwrap();
    assert_eq!(config.tokens("eos_token_id").unwrap(), [1, 106]);
    assert_eq!(config.token("eos_token_id").unwrap(), Some(1));
    let given = json!({"sliding_window": 512.0, "rope_theta": 10000, "hidden_act": "swish"});
    let json = read_as(&given, &mistral::TABLE).unwrap().to_json();
    assert_eq!(json["sliding_window"].to_string(), "512");
    assert_eq!(json["rope_theta"].to_string(), "10000.0");
    assert_eq!(json["hidden_act"], "silu");
    assert!(!json.contains_key("rope_scaling"));
    let text = refusal_of(
        json!({
            "feed_forward_proj": "gated-relu2",
            "scale_decoder_outputs": 1,
            "is_encoder_decoder": null,
            "num_decoder_layers": "x",
        }),
        &t5::TABLE,
    );
    assert_eq!(
        text,
        "config.json: num_decoder_layers must be an integer, got \"x\"\n\
         config.json: feed_forward_proj must be one of relu, gated-gelu, gelu, gated-relu, \
         gated-silu, silu, got \"gated-relu2\"\n\
         config.json: scale_decoder_outputs must be true, false or null, got 1\n\
         config.json: is_encoder_decoder must be true or false, got null"
    );
    let config = read_as(&json!({"feed_forward_proj": "gated-gelu"}), &t5::TABLE).unwrap();
    assert_eq!(config.text("feed_forward_proj").unwrap(), "gated-gelu");
    assert_eq!(config.optional_flag("scale_decoder_outputs").unwrap(), None);
    // Where the key is there, null is Python's None: not scaled.
    let config = read_as(&json!({"scale_decoder_outputs": null}), &t5::TABLE).unwrap();
    assert_eq!(config.optional_flag("scale_decoder_outputs").unwrap(), Some(false));
    assert!(config.value("is_gated_act").unwrap().is_null());
}

#[test]
fn a_key_that_the_table_does_not_have_is_a_mistake_of_dsr() {
    let config = read(json!({})).unwrap();
    assert_eq!(config.int("hidden_size").unwrap_err().code(), Code::Internal);
    assert_eq!(config.int("n_inner").unwrap_err().code(), Code::Internal);
    assert_eq!(config.flag("n_layer").unwrap_err().code(), Code::Internal);
    assert_eq!(Config::from_text("[]", &gpt2::TABLE, "x").unwrap_err().code(), Code::Internal);
}

#[test]
fn settings_follow_one_another_and_are_overridden() {
    let with = |config: &Config, overrides: Value| {
        let entries = overrides.as_object().unwrap().clone();
        config.with(entries.into_iter().collect(), "new_model")
    };
    let base = read_as(&json!({"num_layers": 4, "comment": 1}), &t5::TABLE).unwrap();
    assert_eq!(base.int("num_decoder_layers").unwrap(), 4);
    assert_eq!(base.token("decoder_start_token_id").unwrap(), Some(0));
    let more = with(&base, json!({"num_hidden_layers": 6, "num_decoder_layers": null})).unwrap();
    assert_eq!((more.int("num_layers").unwrap(), more.int("num_decoder_layers").unwrap()), (6, 6));
    assert_eq!(more.kept()["comment"], 1);
    let apart = with(&base, json!({"num_decoder_layers": 2})).unwrap();
    let apart = with(&apart, json!({"num_layers": 8})).unwrap();
    assert_eq!(apart.int("num_decoder_layers").unwrap(), 2);
    let e = with(&base, json!({"num_layer": 8, "zzz": 1})).unwrap_err();
    assert_eq!(e.code(), Code::UnknownOption);
    assert_eq!(
        e.to_string(),
        "new_model: a model of the type \"t5\" has no setting num_layer\n\
         new_model: a model of the type \"t5\" has no setting zzz"
    );
    assert_eq!(e.hints(), ["did you mean num_layers?"]);
    let e = with(&base, json!({"num_layers": 8, "num_hidden_layers": 9})).unwrap_err();
    assert!(
        e.to_string().ends_with("num_layers is 8 and num_hidden_layers is 9: they mean the same")
    );
    let e = with(&base, json!({"d_model": "x"})).unwrap_err();
    assert_eq!(e.to_string(), "new_model: d_model must be an integer, got \"x\"");
    assert_eq!(with(&base, json!({})).unwrap(), base);
}

/// Keys of files on the hub that no table has.
#[test]
fn keys_of_the_hub_are_kept_by_every_family() {
    let given = json!({
        "n_ctx": 1024,
        "unk_token_id": 0,
        "sep_token_id": null,
        "is_llama_config": true,
        "rope_interleaved": false,
        "transformers.js_config": {"dtype": "q4"},
        "unsloth_fixed": true,
        "use_cache": true,
        "use_mrope": false,
        "_attn_implementation_autoset": true,
        "cache_implementation": "hybrid",
        "boi_token_index": 255_999,
        "eod_token_id": 3,
        "activation_dropout": 0.0,
        "prefix": "</s>",
        "attention_softmax_in_fp32": true,
        "bias_dropout_fusion": true,
        "masked_softmax_fusion": true,
        "offset_alibi": 100,
        "seq_length": 2048,
        "skip_bias_add": true,
        "interpolate_factor": 1,
        "full_attn_mod": 1,
        "lm_head_bias": false,
        "classifier_dropout": 0.0,
        "num_beams": 4,
        "output_past": true,
        "tie_encoder_decoder": false,
        "task_specific_params": {},
        "model_max_length": 4096,
    });
    for (table, _) in FAMILIES {
        let config = read_as(&given, table).unwrap();
        assert_eq!(Value::Object(config.kept().clone()), given, "{}", table.model_type);
        for (key, off) in [("head_dim", json!(null)), ("max_window_layers", json!(28))] {
            let map = [(key.to_owned(), off)].into_iter().collect();
            let read = Config::read(&map, table, "x");
            // T5 and Qwen 3 have a width of the heads, and no null for it.
            let is_fine =
                key != "head_dim" || !matches!(table.model_type, "t5" | "qwen3" | "gemma3_text");
            assert_eq!(read.is_ok(), is_fine, "{} {key}", table.model_type);
        }
    }
}

#[test]
fn files_that_transformers_wrote_are_read_and_come_back() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/families");
    let mut count = 0;
    for entry in std::fs::read_dir(root).unwrap() {
        let dir = entry.unwrap().path();
        if !dir.is_dir() {
            continue;
        }
        count += 1;
        let (map, origin) = read_file(&dir).unwrap();
        let (table, _) =
            FAMILIES.into_iter().find(|(t, _)| t.model_type == map["model_type"]).unwrap();
        let config = Config::read(&map, table, &origin).unwrap();
        let json = config.to_json();
        assert_eq!(Config::read(&json, table, "again").unwrap(), config);
        for (key, value) in map {
            let is_history = key == "transformers_version" || key == "torch_dtype";
            let key = table.canonical(&key).unwrap_or(&key);
            assert!(
                is_history || json.get(key).unwrap_or(&Value::Null) == &value,
                "{origin}: {key}"
            );
        }
    }
    assert!(count >= 10, "{count}");
}

#[test]
fn tables_are_whole() {
    for (table, sizes) in FAMILIES {
        let family = table.model_type;
        let config = Config::read(&Map::new(), table, family).unwrap();
        for key in table.keys {
            assert!(config.value(key.name).is_ok(), "{family}: {}", key.name);
            assert_eq!(table.keys.iter().filter(|other| other.name == key.name).count(), 1);
            if let Default::Same(other) = key.default {
                assert!(table.key(other).is_some(), "{family}: {other}");
            }
        }
        for (alias, key) in table.aliases {
            assert!(table.key(alias).is_none() && table.key(key).is_some(), "{family}: {alias}");
        }
        for refused in table.refused {
            assert!(table.canonical(refused.key).is_none(), "{family}: {}", refused.key);
        }
        for (name, text) in sizes {
            let config = Config::from_text(text, table, name).unwrap();
            assert!(config.kept().is_empty(), "{name}");
            assert_eq!(Config::read(&config.to_json(), table, name).unwrap(), config);
        }
    }
}

#[test]
fn a_file_has_a_bounded_number_of_keys() {
    let read = |keys: usize| {
        let map = (0..keys).map(|i| (format!("task_{i}"), json!(i))).collect();
        Config::read(&map, &gpt2::TABLE, "config.json").map(|config| config.kept().len())
    };
    assert_eq!(read(4096).unwrap(), 4096);
    let e = read(4097).unwrap_err();
    assert_eq!(e.message(), "config.json has 4097 keys; at most 4096 are read");
}
