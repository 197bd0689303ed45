//! A checkpoint that can be served as it is: with the tokenizer that made the rows.

use super::Engine;
use crate::{data::Tokenizer, error::Result, fs::Place, model::ExportedTokenizer};

impl Engine {
    /// Writes `tokenizer`, which made the rows that this engine trains on, beside the model in `dir`.
    /// A model that came with a tokenizer keeps it, and one with fewer rows of logits than the
    /// tokenizer has ids gets none.
    pub fn write_tokenizer(&self, dir: &Place, tokenizer: &Tokenizer) -> Result<()> {
        let ids = i64::try_from(tokenizer.vocab_size()).unwrap_or(i64::MAX);
        if self.model().has_tokenizer() || ids > self.model().facts().vocab_size {
            return Ok(());
        }
        self.model().write_companions_with(dir, &exported(tokenizer)?)
    }
}

/// A tokenizer as a model's files have it.
pub fn exported(tokenizer: &Tokenizer) -> Result<ExportedTokenizer> {
    let token = |id: Option<u32>| id.and_then(|id| tokenizer.token(id));
    Ok(ExportedTokenizer {
        json: tokenizer.to_json()?,
        config: tokenizer.config().clone(),
        chat_template: tokenizer.chat_template().map(|template| template.source().to_owned()),
        eos_token: token(tokenizer.eos_id()),
        pad_token: token(tokenizer.own_pad_id()),
    })
}
