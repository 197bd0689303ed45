//! The settings of an adapter, as `adapter_config.json` has them.

use serde_json::{Map, Value, json};

use crate::{
    config::LoraOptions,
    error::{Code, Error, Result},
    foreign::brief,
};

/// The settings of an adapter that a model has.
#[derive(Debug, Clone)]
pub(super) struct AdapterConfig {
    /// As `adapter_config.json` has them.
    json: Map<String, Value>,
}

/// A model's adapter.
#[derive(Debug, Clone)]
pub struct Adapter {
    config: AdapterConfig,
}

impl Adapter {
    pub(super) fn new(config: AdapterConfig) -> Self {
        Self { config }
    }

    /// Whether it has magnitudes (DoRA).
    pub fn use_dora(&self) -> bool {
        self.config.use_dora()
    }

    pub(super) fn config(&self) -> &AdapterConfig {
        &self.config
    }
}

/// Keys that are written into the file of a new adapter, or say nothing that its arithmetic depends on.
const KNOWN: [&str; 28] = [
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "target_modules",
    "task_type",
    "runtime_config",
];

impl AdapterConfig {
    /// Those of a recipe's options, for these targets.
    pub(super) fn new(options: &LoraOptions, targets: &[String]) -> Self {
        let saved = match &options.modules_to_save[..] {
            [] => Value::Null,
            modules => json!(modules),
        };
        let json = json!({
            "alpha_pattern": {},
            "bias": "none",
            "init_lora_weights": true,
            "layers_pattern": null,
            "layers_to_transform": null,
            "lora_alpha": number(options.lora_alpha),
            "lora_bias": false,
            "lora_dropout": options.lora_dropout,
            "modules_to_save": saved,
            "peft_type": "LORA",
            "r": options.r,
            "rank_pattern": {},
            "target_modules": targets,
            "use_dora": options.use_dora,
            "use_rslora": options.use_rslora,
        });
        let Value::Object(json) = json else { return Self { json: Map::new() } };
        Self { json }
    }

    /// Reads the content of an `adapter_config.json`; `origin` names it in errors.
    pub(super) fn from_json(text: &[u8], origin: &str) -> Result<Self> {
        let invalid = |e: String| Error::new(Code::ModelConfig, format!("{origin}: {e}"));
        let json: Map<String, Value> =
            serde_json::from_slice(text).map_err(|e| invalid(format!("not valid JSON: {e}")))?;
        let config = Self { json };
        let faults = config.faults();
        let faults = faults.into_iter().map(|fault| {
            invalid(fault).hint("dsr reads LoRA and DoRA without biases and other extensions")
        });
        Error::all(faults.collect()).map_or(Ok(config), Err)
    }

    /// What dsr would not compute as peft does.
    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let shown = |key: &str| brief(self.get(key));
        if self.get("peft_type") != &json!("LORA") {
            faults.push(format!("peft_type is {}, and dsr has \"LORA\"", shown("peft_type")));
        }
        if !matches!(self.get("bias").as_str(), None | Some("none")) {
            faults.push(format!("bias is {}, and dsr has \"none\"", shown("bias")));
        }
        let init = self.get("init_lora_weights");
        // Others change the base.
        let is_plain = matches!(init, Value::Null | Value::Bool(_))
            || matches!(init.as_str(), Some("gaussian" | "orthogonal" | "eva"));
        if !is_plain {
            faults.push(format!(
                "init_lora_weights is {}, which changes the base model",
                brief(init)
            ));
        }
        for key in ["r", "lora_alpha"] {
            if self.get(key).as_f64().is_none_or(|value| !value.is_finite()) {
                faults.push(format!("{key} must be a number, found {}", shown(key)));
            }
        }
        let dropout = self.get("lora_dropout");
        if !dropout.is_null() && dropout.as_f64().is_none_or(|p| !(0.0..1.0).contains(&p)) {
            faults
                .push(format!("lora_dropout must be from 0 to below 1, found {}", brief(dropout)));
        }
        let names = self.get("modules_to_save");
        if !names.is_null() && !names.as_array().is_some_and(|l| l.iter().all(Value::is_string)) {
            faults.push(format!("modules_to_save must be a list of names, found {}", brief(names)));
        }
        let mine = ["use_dora", "use_rslora"];
        for key in mine.into_iter().filter(|k| !self.get(k).is_null() && !self.get(k).is_boolean())
        {
            faults.push(format!("{key} must be true or false, found {}", shown(key)));
        }
        let others = self
            .json
            .iter()
            .filter(|(key, _)| !KNOWN.contains(&key.as_str()) && !mine.contains(&key.as_str()));
        for (key, value) in others {
            let is_off = match value {
                Value::Null | Value::Bool(false) => true,
                Value::Object(map) => map.is_empty(),
                Value::Array(list) => list.is_empty(),
                _ => false,
            };
            if !is_off {
                faults.push(format!("{key} is {}, which dsr does not have", brief(value)));
            }
        }
        faults
    }

    /// Whether a matrix of this rank is what `r` or `rank_pattern` say.
    pub(super) fn has_rank(&self, rank: i64) -> bool {
        let patterns = self.get("rank_pattern").as_object();
        let ranks = patterns.into_iter().flat_map(Map::values).chain([self.get("r")]);
        ranks.filter_map(Value::as_i64).any(|known| known == rank)
    }

    fn get(&self, key: &str) -> &Value {
        self.json.get(key).unwrap_or(&Value::Null)
    }

    fn is_on(&self, key: &str) -> bool {
        self.get(key).as_bool().unwrap_or(false)
    }

    /// Whether it has magnitudes.
    pub(super) fn use_dora(&self) -> bool {
        self.is_on("use_dora")
    }

    /// The factor of what an adapter of this rank adds.
    pub(super) fn scaling(&self, rank: i64) -> f64 {
        let alpha = self.get("lora_alpha").as_f64().unwrap_or(1.0);
        let rank = rank.max(1) as f64;
        alpha / if self.is_on("use_rslora") { rank.sqrt() } else { rank }
    }

    /// The dropout of its input.
    pub(super) fn dropout(&self) -> f64 {
        self.get("lora_dropout").as_f64().unwrap_or(0.0)
    }

    /// The ends of the names of modules that are trained as they are.
    pub(super) fn modules_to_save(&self) -> Vec<String> {
        let list = self.get("modules_to_save").as_array();
        let names = list.into_iter().flatten().filter_map(Value::as_str);
        names.map(str::to_owned).collect()
    }

    /// The file's content, for a base of this name, whose matrices are stored `[in, out]` or not.
    pub(super) fn to_json(
        &self,
        base: Option<&str>,
        fan_in_fan_out: bool,
        is_seq2seq: bool,
    ) -> Map<String, Value> {
        let mut json = self.json.clone();
        let task = if is_seq2seq { "SEQ_2_SEQ_LM" } else { "CAUSAL_LM" };
        json.insert("base_model_name_or_path".to_owned(), json!(base));
        json.insert("fan_in_fan_out".to_owned(), json!(fan_in_fan_out));
        json.insert("inference_mode".to_owned(), json!(true));
        json.insert("task_type".to_owned(), json!(task));
        json.sort_keys();
        json
    }
}

/// A whole number as one, as peft writes it.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 9.0e15 { json!(value as i64) } else { json!(value) }
}
