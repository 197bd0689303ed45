//! The forms that models have on the hub: other names, files and formats of the same weights.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use dsr::fs::Place;
use dsr::tensor::{
    Device, Kind, Tensor,
    safetensors::{TensorEntry, write},
};
use serde_json::{Map, Value, json};

use super::{config, family, logits, printed, tensors};

type Tensors = BTreeMap<String, Tensor>;

/// Writes a file of tensors.
fn write_tensors(path: &Path, tensors: &Tensors) {
    let parts: Vec<_> = tensors.iter().map(|(name, t)| (name.as_str(), t, t.size())).collect();
    let entries = parts.iter().map(|(name, t, shape)| TensorEntry { name, kind: t.kind(), shape });
    write(Some(&Place::unguarded(path)), entries, |i| Ok(parts[i].1.shallow_clone())).unwrap();
}

/// Writes a model as one file.
fn write_model(dir: &Path, config: &Value, tensors: &Tensors) {
    fs::create_dir(dir).unwrap();
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    write_tensors(&dir.join("model.safetensors"), tensors);
}

/// The weights of a model.
fn weights(name: &str) -> Tensors {
    tensors(&family(name).join("model.safetensors"))
}

/// A few tokens, and for T5 those of its decoder.
fn input(name: &str) -> Value {
    let ids = [[5, 9, 300, 17, 2, 411, 64, 8], [77, 1, 250, 36, 511, 90, 3, 128]];
    match name.starts_with("t5") {
        true => json!({ "input_ids": ids, "decoder_input_ids": [[0, 7, 99], [0, 310, 4]] }),
        false => json!({ "input_ids": ids }),
    }
}

/// Says that models have the logits of the golden model, to the bit.
fn assert_same(dir: &Path, name: &str, models: &[PathBuf]) {
    let all = [&[family(name)][..], models].concat();
    let logits = logits(dir, &all, &[input(name)], None);
    for (model, found) in models.iter().zip(&logits[1..]) {
        assert!(*found == logits[0], "{} differs from {name}", model.display());
    }
}

/// The golden model with other weights has the same logits.
fn assert_same_with(name: &str, change: impl FnOnce(Tensors) -> Tensors) {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("changed");
    write_model(&model, &config(&family(name)), &change(weights(name)));
    assert_same(dir.path(), name, &[model]);
}

#[test]
fn shards_are_the_model_that_they_are_parts_of() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("shards");
    fs::create_dir(&model).unwrap();
    fs::copy(family("llama-gqa").join("config.json"), model.join("config.json")).unwrap();
    let mut first = weights("llama-gqa");
    let second = first.split_off("model.layers.1");
    let mut map = Map::new();
    for (i, shard) in [&first, &second].into_iter().enumerate() {
        let file = format!("model-{:05}-of-00002.safetensors", i + 1);
        write_tensors(&model.join(&file), shard);
        map.extend(shard.keys().map(|name| (name.clone(), json!(file))));
    }
    let index = json!({ "metadata": { "total_size": 816_896 }, "weight_map": map });
    fs::write(model.join("model.safetensors.index.json"), index.to_string()).unwrap();
    assert_same(dir.path(), "llama-gqa", &[model]);
}

/// Files of the model without its head have no prefix before the names.
#[test]
fn a_prefix_of_the_names_may_be_absent() {
    let names = [
        "llama-gqa",
        "mistral",
        "qwen2",
        "qwen3",
        "gemma3",
        "phi3",
        "opt-pre",
        "opt-post",
        "bloom-h4",
    ];
    for name in names {
        assert_same_with(name, |tensors| {
            let prefix = if name.starts_with("bloom") { "transformer." } else { "model." };
            let bare = |name: &str| name.strip_prefix(prefix).unwrap_or(name).to_owned();
            tensors.into_iter().map(|(name, tensor)| (bare(&name), tensor)).collect()
        });
    }
}

/// 16 bits become float32 exactly, so that the logits are those of the rounded weights in float32.
#[test]
fn weights_of_16_bits_are_those_that_they_stand_for() {
    for kind in [Kind::BFloat16, Kind::Half] {
        let dir = tempfile::tempdir().unwrap();
        let cast = |kinds: &[Kind]| -> Tensors {
            let cast =
                |t: &Tensor| kinds.iter().fold(t.shallow_clone(), |t, kind| t.to_kind(*kind));
            weights("llama-gqa").iter().map(|(name, t)| (name.clone(), cast(t))).collect()
        };
        let [short, long] = ["short", "long"].map(|name| dir.path().join(name));
        let mut config = config(&family("llama-gqa"));
        config["dtype"] = json!(if kind == Kind::Half { "float16" } else { "bfloat16" });
        write_model(&short, &config, &cast(&[kind]));
        config["dtype"] = "float32".into();
        write_model(&long, &config, &cast(&[kind, Kind::Float]));
        let models = [family("llama-gqa"), short, long];
        let logits = logits(dir.path(), &models, &[input("llama-gqa")], None);
        assert!(logits[1] == logits[2], "{kind:?}");
        assert!(logits[0] != logits[2], "{kind:?} rounds nothing");
    }
}

/// Buffers that old versions of transformers wrote, and weights that no module uses.
#[test]
fn what_older_files_carry_beside_the_weights_is_passed_over() {
    let floats = |shape: &[i64]| Tensor::ones(shape, (Kind::Float, Device::Cpu));
    for name in ["llama-gqa", "mistral", "qwen2"] {
        assert_same_with(name, |mut tensors| {
            for layer in 0..2 {
                let buffer = format!("model.layers.{layer}.self_attn.rotary_emb.inv_freq");
                tensors.insert(buffer, floats(&[8]));
            }
            tensors
        });
    }
    assert_same_with("gpt2-wide", |mut tensors| {
        tensors.insert("h.0.attn.bias".to_owned(), floats(&[1, 1, 128, 128]));
        tensors.insert("h.0.attn.masked_bias".to_owned(), floats(&[]));
        tensors
    });
    assert_same_with("t5-v10", |mut tensors| {
        let unused = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight";
        tensors.insert(unused.to_owned(), floats(&[32, 4]));
        tensors
    });
}

/// A model, one of its tensors, and the names that files have it under once more.
const TWICE: &[(&str, &str, &[&str])] = &[
    ("llama-tied-llama3", "model.embed_tokens.weight", &["lm_head.weight"]),
    ("qwen2", "model.embed_tokens.weight", &["lm_head.weight"]),
    ("gemma3", "model.embed_tokens.weight", &["lm_head.weight"]),
    ("opt-pre", "model.decoder.embed_tokens.weight", &["lm_head.weight"]),
    ("opt-post", "model.decoder.embed_tokens.weight", &["lm_head.weight"]),
    ("bloom-h4", "transformer.word_embeddings.weight", &["lm_head.weight"]),
    ("t5-v10", "shared.weight", &["lm_head.weight", "encoder.embed_tokens.weight"]),
    ("t5-v11", "shared.weight", &["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]),
];

#[test]
fn a_tied_weight_may_be_there_twice() {
    for (name, source, copies) in TWICE {
        assert_same_with(name, |mut tensors| {
            for copy in *copies {
                let tensor = tensors[*source].shallow_clone();
                tensors.insert((*copy).to_owned(), tensor);
            }
            tensors
        });
    }
}

/// One config as transformers 4 and as transformers 5 write it.
#[test]
fn configs_of_transformers_4_and_5_are_one_model() {
    let dir = tempfile::tempdir().unwrap();
    let changed = |name: &str, change: &dyn Fn(&mut Map<String, Value>)| {
        let mut config = config(&family(name));
        change(config.as_object_mut().unwrap());
        let model = dir.path().join(name);
        write_model(&model, &config, &weights(name));
        assert_same(dir.path(), name, &[model]);
    };
    changed("llama-gqa", &|config| {
        config.remove("rope_parameters");
        config.remove("dtype");
        config.insert("rope_theta".to_owned(), json!(10000.0));
        config.insert("rope_scaling".to_owned(), Value::Null);
        config.insert("torch_dtype".to_owned(), json!("float32"));
    });
    changed("llama-tied-llama3", &|config| {
        let mut rope = config.remove("rope_scaling").unwrap();
        rope["rope_theta"] = config.remove("rope_theta").unwrap();
        // These positions may stand outside of the object.
        let original = rope.as_object_mut().unwrap().remove("original_max_position_embeddings");
        config.insert("original_max_position_embeddings".to_owned(), original.unwrap());
        config.insert("rope_parameters".to_owned(), rope);
    });
    // Both stand beside a head of its own, which is neither tied nor scaled.
    changed("t5-v11", &|config| {
        config.insert("tie_word_embeddings".to_owned(), json!(true));
        config.insert("scale_decoder_outputs".to_owned(), json!(false));
    });
}

/// What would change the arithmetic and is not known is an error that says what it is: the last of
/// each case.
#[test]
fn configs_that_are_not_understood_are_refused_by_name() {
    let spiral = json!({ "rope_type": "spiral", "rope_theta": 1e4 });
    let cases = [
        ("llama-gqa", "rope_interleaved", json!(true), "rope_interleaved"),
        ("llama-gqa", "num_experts", json!(4), "num_experts"),
        ("llama-gqa", "hidden_act", json!("swoosh"), "swoosh"),
        ("llama-gqa", "rope_parameters", spiral, "spiral"),
        ("llama-tied-llama3", "rope_scaling", json!({ "type": "spiral", "factor": 2.0 }), "spiral"),
        ("llama-gqa", "quantization_config", json!({ "bits": 4 }), "quantization_config"),
        ("llama-gqa", "model_type", json!("mamba"), "mamba"),
        ("llama-gqa", "is_causal", json!(false), "is_causal"),
        ("llama-gqa", "pad_token_id", json!(512), "pad_token_id"),
        ("llama-tied-llama3", "original_max_position_embeddings", json!(64), "it is 64"),
        ("gemma3", "rope_scaling", json!({ "type": "linear", "factor": 2.0 }), "beside"),
        ("gemma3", "_sliding_window_pattern", json!(2), "_sliding_window_pattern"),
        ("gemma3", "attn_logit_softcapping", json!(30.0), "attn_logit_softcapping"),
        ("gemma3", "use_bidirectional_attention", json!(true), "use_bidirectional_attention"),
        ("t5-v11", "feed_forward_proj", json!("gated-swoosh"), "gated-swoosh"),
    ];
    let dir = tempfile::tempdir().unwrap();
    for (i, (name, key, value, _)) in cases.iter().enumerate() {
        let mut config = config(&family(name));
        config[*key] = value.clone();
        write_model(&dir.path().join(i.to_string()), &config, &weights(name));
    }
    let text = format!(
        "for i in 0..{} {{
            try {{ load_model(i.to_string()); print(\"it is loaded\"); }}
            catch (e) {{ print(`${{e.code}} ${{e.message}}`); }}
        }}",
        cases.len()
    );
    let printed = printed(dir.path(), &text, &[]);
    assert_eq!(printed.len(), cases.len(), "{printed:?}");
    for ((name, key, value, said), line) in cases.iter().zip(&printed) {
        let is_refused = line.starts_with("E701") && line.contains(said);
        assert!(is_refused, "{name} with {key} {value}: {line}");
    }
}
