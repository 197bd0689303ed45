//! One family of models, and the parts that families share.

use serde_json::Value;

use crate::{
    config_json::{Config, Table},
    error::Result,
    model::{
        architecture::{Architecture, ModelInfo, Prediction, WeightNames},
        param_id::ParamId,
        param_spec::Init,
        params::LayerBuilder,
    },
};

/// A family of models, under one `model_type`.
pub(super) struct Family {
    pub(super) table: &'static Table,
    /// Published sizes by name, with the settings that differ from the table's defaults, as JSON.
    pub(super) sizes: &'static [(&'static str, &'static str)],
    pub(super) describe: fn(&Config) -> Result<Architecture>,
    pub(super) names: WeightNames,
}

impl Config {
    /// The properties of a causal model of these settings; the family adds the positions.
    pub(super) fn facts(&self, names: WeightNames, summary: String) -> Result<ModelInfo> {
        Ok(ModelInfo {
            config: self.to_json(),
            vocab_size: self.int("vocab_size")?,
            max_positions: None,
            cache_ends_behind: None,
            objective: Prediction::Causal { is_cached: true },
            bos_token_id: self.token("bos_token_id")?,
            eos_token_ids: self.tokens("eos_token_id")?,
            pad_token_id: self.to_json().get("pad_token_id").and_then(Value::as_i64),
            names: Some(names),
            kind: self.table().model_type.to_owned(),
            summary,
        })
    }

    /// Sizes in words, as a model's card has them.
    pub(super) fn summary(
        &self,
        layers: i64,
        (width, heads): (i64, i64),
        positions: &str,
    ) -> Result<String> {
        let (vocab, tied) = (self.int("vocab_size")?, self.flag("tie_word_embeddings")?);
        let tied = if tied { ", tied head" } else { "" };
        Ok(format!(
            "{layers} layers of {width} x {heads} heads, {positions}, vocabulary {vocab}{tied}"
        ))
    }

    /// The projection to the vocabulary: the embedding of this name, or one of the head's own.
    pub(super) fn projection(
        &self,
        b: &mut LayerBuilder,
        embedding: &str,
        shape: (i64, i64),
        init: Init,
    ) -> Result<ParamId> {
        Ok(match self.flag("tie_word_embeddings")? {
            true => b.borrow(embedding),
            false => b.add_of_tokens("lm_head.weight", shape, init),
        })
    }

    /// Whether each layer has a window: as `layer_types` says, or else by its number.
    pub(super) fn layer_types(&self, default: impl Fn(i64) -> bool) -> Result<Vec<bool>> {
        let layers = self.int("num_hidden_layers")?;
        let types = match self.value("layer_types")? {
            Value::Null => (0..layers).map(default).collect(),
            types => self.written_types(types.as_array().map_or(&[], Vec::as_slice), layers)?,
        };
        let has_window = self.optional_int("sliding_window")?.is_some();
        if types.contains(&true) && !has_window {
            let text = "sliding_window is null, and there are layers of the type sliding_attention";
            return Err(self.refusal(vec![text.to_owned()]));
        }
        Ok(types)
    }

    fn written_types(&self, types: &[Value], layers: i64) -> Result<Vec<bool>> {
        let is_sliding = |name: &Value| match name.as_str() {
            Some("full_attention") => Some(false),
            Some("sliding_attention") => Some(true),
            _ => None,
        };
        let types: Option<Vec<bool>> = types.iter().map(is_sliding).collect();
        types.filter(|types| types.len() as i64 == layers).ok_or_else(|| {
            self.refusal(vec![format!(
                "layer_types must have \"full_attention\" or \"sliding_attention\" for each of \
                 {layers} layers"
            )])
        })
    }
}
