//! Tokenizers that are trained in scripts.

use std::sync::Arc;

use rhai::{Map, plugin::*};

use crate::{
    data,
    recipe::{error::ScriptResult, options},
};

/// Tokenizers that are trained.
#[export_module]
pub mod api {
    use crate::script::api::{dataset::api::Dataset, tokenizer::api::Tokenizer};

    /// Learns a tokenizer from the text of a dataset, on all cores: byte-level BPE as GPT-2's.
    ///
    /// ```rhai
    /// let tok = train_tokenizer(dataset("dsr:austen"), #{ vocab_size: 1000 });
    /// tok.save("tok/tokenizer.json");
    /// ```
    #[rhai_fn(return_raw)]
    pub fn train_tokenizer(dataset: Dataset, options: Map) -> ScriptResult<Tokenizer> {
        let options = options::read_table("train_tokenizer", &options)?;
        Ok(Arc::new(data::Tokenizer::train(&dataset, &options)?))
    }
}
