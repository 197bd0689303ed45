//! The keys that attention sees, in a checkpoint: a model that has learned to look at some of them is
//! another one where it sees others.

use serde_json::Value;

use super::{Engine, train_state::TrainState};
use crate::config::{SPARSE_ATTENTION, SparseAttention};

impl Engine {
    /// The options of block-sparse attention, where there is one.
    pub(super) fn sparse_record(&self) -> Option<Value> {
        self.config.sparse_attention.as_ref().map(SparseAttention::record)
    }

    /// A warning about a checkpoint whose model attended to other keys. Training may go on so.
    pub fn other_attention(&self, state: &TrainState) -> Option<String> {
        let own = self.sparse_record();
        (state.sparse_attention != own).then(|| {
            format!(
                "warning: the checkpoint was trained with another {SPARSE_ATTENTION}: it had {}, and \
                 the engine has {}",
                in_words(state.sparse_attention.as_ref()),
                in_words(own.as_ref())
            )
        })
    }
}

fn in_words(options: Option<&Value>) -> String {
    let Some(options) = options.and_then(Value::as_object) else { return "all keys".to_owned() };
    let given = options.iter().filter(|(_, value)| !value.is_null());
    given.map(|(name, value)| format!("{name} {value}")).collect::<Vec<_>>().join(", ")
}
