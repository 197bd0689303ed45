//! Learned positions for more tokens than a model was trained with: its table repeated, as
//! DeepSpeed's `extend_position_embedding` does for block-sparse attention on long rows.

use serde_json::Value;

use super::ModelConfig;
use crate::{
    error::{Code, Error, Result},
    model::files::RepeatedRows,
};

/// A family's table of learned positions.
struct Learned {
    model_type: &'static str,
    /// The setting with the number of positions.
    key: &'static str,
    param: &'static str,
    /// Rows before that of the first position.
    first: i64,
}

const LEARNED: [Learned; 2] = [
    Learned { model_type: "gpt2", key: "n_positions", param: "transformer.wpe.weight", first: 0 },
    Learned {
        model_type: "opt",
        key: "max_position_embeddings",
        param: "model.decoder.embed_positions.weight",
        first: 2,
    },
];

impl ModelConfig {
    /// The settings of the same model with so many positions, whose learned ones are repeated when it is
    /// loaded.
    ///
    /// # Errors
    /// The family has no learned positions, or the model has as many already.
    pub fn extended(self, positions: i64) -> Result<Self> {
        let family = self.family.table.model_type;
        let refuse =
            |message: String| Error::new(Code::BadValue, message).option("extend_positions");
        let Some(learned) = LEARNED.iter().find(|learned| learned.model_type == family) else {
            let families = LEARNED.map(|learned| learned.model_type).join(" and ");
            let e = refuse(format!(
                "`extend_positions` repeats learned positions, and a model of the type \"{family}\" has \
                 none: {families} have them"
            ));
            let has_rope = self.family.table.keys.iter().any(|key| key.name == "rope_scaling");
            return Err(match has_rope {
                true => e.hint(
                    "its positions are rotary: set rope_scaling and max_position_embeddings in config.json",
                ),
                false => e.hint("its positions are relative, and have no end"),
            });
        };
        let found = self.to_json().get(learned.key).and_then(Value::as_i64).unwrap_or(0);
        if positions <= found {
            return Err(refuse(format!(
                "`extend_positions` must be more than the {found} positions that the model has, found \
                 {positions}"
            )));
        }
        let Learned { key, param, first, .. } = *learned;
        let repeated = Some(RepeatedRows { param, first, positions: found });
        let more = self.with([(key, positions.into())], "extend_positions")?;
        Ok(Self { repeated, ..more })
    }
}
