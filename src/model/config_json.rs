//! GPT-2's `config.json`: read strictly, written for transformers.
//!
//! A key that changes what the model computes is honoured or refused. What merely describes
//! (summaries, labels, versions, whatever a file of the hub may hold) is kept and written back,
//! unless its name is so close to a known one that it must be a misspelling: passing over that
//! would train another model.

use std::path::Path;

use serde_json::{Map, Value};

use super::config::{Activation, Gpt2Config};
use crate::{
    config::suggest::nearest,
    error::{Code, Error, Result},
    fs,
};

/// The file's name in a model's directory.
pub(super) const FILE_NAME: &str = "config.json";
/// What the file calls the model.
const MODEL_TYPE: &str = "gpt2";

impl Gpt2Config {
    /// The names of the settings in `config.json`.
    pub const KEYS: [&str; 17] = [
        "vocab_size",
        "n_positions",
        "n_embd",
        "n_layer",
        "n_head",
        "n_inner",
        "activation_function",
        "resid_pdrop",
        "embd_pdrop",
        "attn_pdrop",
        "layer_norm_epsilon",
        "initializer_range",
        "scale_attn_weights",
        "scale_attn_by_inverse_layer_idx",
        "tie_word_embeddings",
        "bos_token_id",
        "eos_token_id",
    ];

    /// Reads a `config.json`, or the one in a directory.
    ///
    /// # Errors
    /// [`Code::ModelConfig`] with everything that is wrong with it; [`Code::Io`] when it cannot be
    /// read.
    pub fn read(dir_or_file: &Path) -> Result<Self> {
        let is_dir = dir_or_file.is_dir();
        let path = if is_dir { dir_or_file.join(FILE_NAME) } else { dir_or_file.to_path_buf() };
        if !path.exists() {
            let what = format!("no {FILE_NAME} at {}", dir_or_file.display());
            return Err(Error::new(Code::ModelConfig, what)
                .hint(format!("a model is a directory with {FILE_NAME} and model.safetensors")));
        }
        let origin = path.display().to_string();
        match serde_json::from_slice(&fs::read(&path)?) {
            Ok(Value::Object(map)) => Self::from_json(&map, &origin),
            Ok(_) => bail!(Code::ModelConfig, "{origin} must hold one JSON object"),
            Err(e) => bail!(Code::ModelConfig, "{origin} is not valid JSON: {e}"),
        }
    }

    /// Reads the content of a `config.json`; `origin` names it in errors.
    ///
    /// # Errors
    /// [`Code::ModelConfig`] with everything that is wrong with it.
    pub fn from_json(map: &Map<String, Value>, origin: &str) -> Result<Self> {
        if let Some(other) = map.get("model_type").filter(|&value| value != MODEL_TYPE) {
            bail!(
                Code::ModelConfig,
                "{origin} describes a model of the type {}; dsr supports \"{MODEL_TYPE}\"",
                brief(other)
            );
        }
        let mut reader = Reader { map, origin, faults: Vec::new() };
        let mut config = reader.fields();
        reader.refuse_unsupported();
        config.kept = reader.others();
        if reader.faults.is_empty() {
            reader.faults = config.faults(origin);
        }
        Error::all(reader.faults).map_or(Ok(config), Err)
    }

    /// The content of a `config.json` for `GPT2LMHeadModel`, with float32 weights beside it.
    pub fn to_json(&self) -> Map<String, Value> {
        let mut map = self.kept.clone();
        let entries: [(&str, Value); 20] = [
            ("architectures", vec!["GPT2LMHeadModel"].into()),
            ("model_type", MODEL_TYPE.into()),
            ("dtype", "float32".into()),
            ("vocab_size", self.vocab_size.into()),
            ("n_positions", self.n_positions.into()),
            ("n_embd", self.n_embd.into()),
            ("n_layer", self.n_layer.into()),
            ("n_head", self.n_head.into()),
            ("n_inner", self.n_inner.into()),
            ("activation_function", self.activation_function.name().into()),
            ("resid_pdrop", self.resid_pdrop.into()),
            ("embd_pdrop", self.embd_pdrop.into()),
            ("attn_pdrop", self.attn_pdrop.into()),
            ("layer_norm_epsilon", self.layer_norm_epsilon.into()),
            ("initializer_range", self.initializer_range.into()),
            ("scale_attn_weights", self.scale_attn_weights.into()),
            ("scale_attn_by_inverse_layer_idx", self.scale_attn_by_inverse_layer_idx.into()),
            ("tie_word_embeddings", self.tie_word_embeddings.into()),
            ("bos_token_id", self.bos_token_id.into()),
            ("eos_token_id", self.eos_token_id.into()),
        ];
        map.extend(entries.map(|(key, value)| (key.to_owned(), value)));
        map.sort_keys();
        map
    }
}

/// The names that transformers lets stand for its own, `GPT2Config.attribute_map`.
const ALIASES: [(&str, &str); 4] = [
    ("max_position_embeddings", "n_positions"),
    ("hidden_size", "n_embd"),
    ("num_hidden_layers", "n_layer"),
    ("num_attention_heads", "n_head"),
];

/// Keys that would make another model than dsr's, fine while they are off, and why.
const UNSUPPORTED: [(&str, &str); 5] = [
    (
        "reorder_and_upcast_attn",
        "attention runs in libtorch's fused kernels, which choose order and precision themselves",
    ),
    ("add_cross_attention", "dsr trains decoders without an encoder"),
    ("quantization_config", "dsr trains weights in floating point"),
    ("per_layer_config", "all blocks of dsr's GPT-2 are alike"),
    ("pruned_heads", "all blocks of dsr's GPT-2 are alike"),
];

/// Keys of the file's own history, which an export writes anew, and of code, which dsr never runs.
const NOT_KEPT: [&str; 8] = [
    "model_type",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "_name_or_path",
    "_commit_hash",
    "auto_map",
];

/// Keys of real files that resemble a known one and are none.
const NO_MISSPELLING: [&str; 6] =
    ["n_ctx", "pad_token_id", "sep_token_id", "unk_token_id", "cls_token_id", "mask_token_id"];

struct Reader<'a> {
    map: &'a Map<String, Value>,
    origin: &'a str,
    faults: Vec<Error>,
}

impl Reader<'_> {
    fn fields(&mut self) -> Gpt2Config {
        let mut config = Gpt2Config::default();
        let c = &mut config;
        for (key, field) in [
            ("vocab_size", &mut c.vocab_size),
            ("n_positions", &mut c.n_positions),
            ("n_embd", &mut c.n_embd),
            ("n_layer", &mut c.n_layer),
            ("n_head", &mut c.n_head),
        ] {
            self.value(key, "an integer", field, Value::as_i64);
        }
        for (key, field) in [
            ("n_inner", &mut c.n_inner),
            ("bos_token_id", &mut c.bos_token_id),
            ("eos_token_id", &mut c.eos_token_id),
        ] {
            self.value(key, "an integer or null", field, |value| match value {
                Value::Null => Some(None),
                value => value.as_i64().map(Some),
            });
        }
        for (key, field) in [
            ("resid_pdrop", &mut c.resid_pdrop),
            ("embd_pdrop", &mut c.embd_pdrop),
            ("attn_pdrop", &mut c.attn_pdrop),
            ("layer_norm_epsilon", &mut c.layer_norm_epsilon),
            ("initializer_range", &mut c.initializer_range),
        ] {
            self.value(key, "a number", field, Value::as_f64);
        }
        for (key, field) in [
            ("scale_attn_weights", &mut c.scale_attn_weights),
            ("scale_attn_by_inverse_layer_idx", &mut c.scale_attn_by_inverse_layer_idx),
            ("tie_word_embeddings", &mut c.tie_word_embeddings),
        ] {
            self.value(key, "true or false", field, Value::as_bool);
        }
        let names: Vec<_> = Activation::NAMES.iter().map(|(name, _)| *name).collect();
        let expected = format!("one of {}", names.join(", "));
        let activation = |value: &Value| value.as_str().and_then(Activation::named);
        self.value("activation_function", &expected, &mut c.activation_function, activation);
        config
    }

    /// Sets a field from its key, or from the alias of the key.
    fn value<T>(
        &mut self,
        key: &str,
        expected: &str,
        field: &mut T,
        convert: impl Fn(&Value) -> Option<T>,
    ) {
        let alias = ALIASES.iter().find(|(_, known)| *known == key).map(|(alias, _)| *alias);
        let by_alias = alias.and_then(|alias| Some((alias, self.map.get(alias)?)));
        let by_key = self.map.get(key).map(|value| (key, value));
        if let (Some((alias, a)), Some((_, b))) = (by_alias, by_key)
            && a != b
        {
            let (a, b) = (brief(a), brief(b));
            self.fault(format!("{key} is {b} and {alias} is {a}: they mean the same"));
        }
        let Some((key, value)) = by_key.or(by_alias) else { return };
        match convert(value) {
            Some(value) => *field = value,
            None => self.fault(format!("{key} must be {expected}, got {}", brief(value))),
        }
    }

    fn refuse_unsupported(&mut self) {
        for (key, why) in UNSUPPORTED {
            if let Some(value) = self.map.get(key).filter(|value| !is_off(value)) {
                self.fault(format!("{key} is {}, which dsr does not support: {why}", brief(value)));
            }
        }
    }

    /// The keys that mean nothing to dsr, without those that must be misspellings.
    fn others(&mut self) -> Map<String, Value> {
        let aliases = ALIASES.map(|(alias, _)| alias);
        let unsupported = UNSUPPORTED.map(|(key, _)| key);
        let mut kept = Map::new();
        for (key, value) in self.map {
            let name = key.as_str();
            if Gpt2Config::KEYS.contains(&name)
                || aliases.contains(&name)
                || NOT_KEPT.contains(&name)
            {
                continue;
            }
            let is_fine = unsupported.contains(&name) || NO_MISSPELLING.contains(&name);
            let known = Gpt2Config::KEYS.into_iter().chain(aliases).chain(unsupported);
            match nearest(name, known).filter(|_| !is_fine) {
                Some(meant) => {
                    let text = format!("{}: unknown key {name}", self.origin);
                    let hint = format!("did you mean {meant}? if not, remove the key");
                    self.faults.push(Error::new(Code::ModelConfig, text).hint(hint));
                }
                None => {
                    kept.insert(key.clone(), value.clone());
                }
            }
        }
        kept
    }

    fn fault(&mut self, text: String) {
        self.faults.push(Error::new(Code::ModelConfig, format!("{}: {text}", self.origin)));
    }
}

fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(entries) => entries.is_empty(),
        _ => false,
    }
}

/// A value as JSON, cut where it gets long.
fn brief(value: &Value) -> String {
    const MOST_CHARS: usize = 60;
    let json = value.to_string();
    match json.char_indices().nth(MOST_CHARS) {
        Some((end, _)) => format!("{}...", &json[..end]),
        None => json,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::write;

    use serde_json::json;

    use super::*;

    fn read(value: Value) -> Result<Gpt2Config> {
        Gpt2Config::from_json(value.as_object().unwrap(), "config.json")
    }

    fn refusal(value: Value) -> String {
        let e = read(value).unwrap_err();
        assert_eq!(e.code(), Code::ModelConfig);
        e.to_string()
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
        assert_eq!(config.kept.len(), 7);
        assert_eq!(Gpt2Config { kept: Map::new(), ..config.clone() }, Gpt2Config::default());
        let json = config.to_json();
        assert_eq!(json["task_specific_params"]["text-generation"]["max_length"], 50);
        assert_eq!(Gpt2Config::from_json(&json, "again").unwrap(), config);
    }

    #[test]
    fn every_field_comes_back() {
        let config = Gpt2Config {
            vocab_size: 11,
            n_positions: 12,
            n_embd: 13,
            n_layer: 14,
            n_head: 13,
            n_inner: Some(15),
            activation_function: Activation::Silu,
            resid_pdrop: 0.25,
            embd_pdrop: 0.0,
            attn_pdrop: 0.5,
            layer_norm_epsilon: 1e-6,
            initializer_range: 0.01,
            scale_attn_weights: false,
            scale_attn_by_inverse_layer_idx: true,
            tie_word_embeddings: false,
            bos_token_id: Some(1),
            eos_token_id: None,
            kept: json!({"x": 1}).as_object().unwrap().clone(),
        };
        let json = config.to_json();
        assert_eq!(Gpt2Config::from_json(&json, "x").unwrap(), config);
        for key in Gpt2Config::KEYS {
            assert!(json.contains_key(key), "{key}");
        }
    }

    /// What a transformers config may hold beside GPT2Config's own.
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
        assert_eq!(Gpt2Config::from_json(&map, "x").unwrap().kept, map);
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
        assert_eq!(
            e.to_string(),
            "config.json: unknown key n_layr\nconfig.json: unknown key n_heads"
        );
        assert_eq!(e.hints(), ["did you mean n_layer? if not, remove the key"]);
        assert_eq!(read(json!({"comment": "mine"})).unwrap().kept["comment"], "mine");
    }

    #[test]
    fn the_aliases_of_transformers_are_understood() {
        let config = read(json!({"hidden_size": 64, "num_attention_heads": 4})).unwrap();
        assert_eq!((config.n_embd, config.n_head), (64, 4));
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
            "eos_token_id": [1, 2],
            "activation_function": "gelu_newer",
            "reorder_and_upcast_attn": true,
            "quantization_config": {"bits": 4},
        }));
        assert_eq!(text.lines().count(), 8, "{text}");
        for expected in [
            "config.json: n_layer must be an integer, got \"12\"",
            "config.json: attn_pdrop must be a number, got null",
            "config.json: eos_token_id must be an integer or null, got [1,2]",
            "config.json: activation_function must be one of gelu_new, gelu, ",
            "config.json: reorder_and_upcast_attn is true, which dsr does not support: attention",
        ] {
            assert!(text.contains(expected), "{expected}\n{text}");
        }
    }

    #[test]
    fn values_are_checked_and_another_model_is_named() {
        let text = refusal(json!({"n_head": 5, "resid_pdrop": 2}));
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(refusal(json!({"n_layer": 9_223_372_036_854_775_807i64})).contains("n_layer must"));
        assert_eq!(
            refusal(json!({"model_type": "llama", "n_layer": "x"})),
            "config.json describes a model of the type \"llama\"; dsr supports \"gpt2\""
        );
        assert!(refusal(json!({"model_type": "x".repeat(1000)})).len() < 200);
    }

    #[test]
    fn a_directory_or_a_file_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let refused = |at: &Path| {
            let e = Gpt2Config::read(at).unwrap_err();
            assert_eq!(e.code(), Code::ModelConfig);
            e.to_string()
        };
        assert!(refused(dir.path()).starts_with("no config.json at "));
        write(&path, "{\"n_layer\": 2,").unwrap();
        assert!(refused(&path).contains("config.json is not valid JSON: EOF"));
        write(&path, "[]").unwrap();
        assert!(refused(&path).ends_with("must hold one JSON object"));
        write(&path, "{\"n_layer\": 2}").unwrap();
        for place in [dir.path(), &path] {
            assert_eq!(Gpt2Config::read(place).unwrap().n_layer, 2);
        }
    }
}
