//! The base of an adapter, in a checkpoint: an adapter is of one base alone.

use super::{
    Engine,
    state::{STATE, train_state},
    train_state::TrainState,
};
use crate::{
    error::{Code, Error, Result},
    fs::Place,
    model::OriginRecord,
};

/// The base that an adapter's checkpoint names; none in a directory of anything else.
///
/// # Errors
/// [`Code::Checkpoint`] for a checkpoint whose state cannot be read.
pub fn adapter_base(dir: impl Into<Place>) -> Result<Option<OriginRecord>> {
    let dir = dir.into();
    match dir.join(STATE).is_file() {
        true => Ok(train_state(&dir)?.base),
        false => Ok(None),
    }
}

impl Engine {
    /// Refuses a checkpoint of an adapter of another base, or of none.
    pub(super) fn check_base(&self, dir: &Place, state: &TrainState) -> Result<()> {
        let has_adapter = self.model.adapter().is_some();
        let refused = |why: String| {
            Error::new(Code::Checkpoint, format!("checkpoint {} {why}", dir.display()))
        };
        match &state.base {
            None if !has_adapter => Ok(()),
            None => Err(refused("is of a whole model, and this one trains an adapter".to_owned())
                .hint("load_model reads the checkpoint as a base")),
            Some(_) if !has_adapter => {
                Err(refused("is of an adapter, which the model does not have".to_owned())
                    .hint("give the model the same adapter first, with `model.lora(#{ ... })`"))
            }
            Some(base) => {
                let own = self.model.origin_record()?;
                base.check_same(&own).map_err(refused)?;
                if base.quantization == own.quantization {
                    return Ok(());
                }
                let [then, now] = [base, &own].map(|base| match base.quantization {
                    Some(quantization) => format!("was quantized to {}", quantization.name()),
                    None => "was not quantized".to_owned(),
                });
                Err(refused(format!("is of an adapter whose base {then}, and this base {now}"))
                    .hint("give `load_model` the same `quantize`, `double_quant` and `include_input_output_embeddings`"))
            }
        }
    }
}
