//! What rows of tokens train: their text, cut where training begins and ends.

use std::sync::Arc;

use crate::{
    data::{
        stage::Stage,
        tokens::{INPUT_IDS, LABELS, TokenLists, require_tokens},
    },
    error::{Code, Error, Result},
    tensor::IGNORE_INDEX,
};

/// A row of tokens as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreviewRow {
    /// Parts of the text with whether they are trained.
    pub parts: Vec<(String, bool)>,
    /// Tokens of the row.
    pub tokens: usize,
    /// Tokens that are trained.
    pub trained: usize,
}

/// The first `n` rows of a stage whose rows are tokens.
pub(in crate::data) fn preview(stage: &Arc<dyn Stage>, n: usize) -> Result<Vec<PreviewRow>> {
    require_tokens(&stage.schema(), "preview(n)")?;
    let Some(tokenizer) = stage.tokenizer() else {
        return Err(Error::new(
            Code::Data,
            "no tokenizer made these tokens, which could show them",
        )
        .hint("preview shows rows of .chat(tokenizer) and .tokenize(tokenizer)"));
    };
    let mut shown = Vec::new();
    for batch in stage.read(0, 0)? {
        let batch = batch?;
        let ids = TokenLists::of(&batch, INPUT_IDS)?;
        let ids = ids.ok_or_else(|| Error::new(Code::Internal, "a batch lost its input_ids"))?;
        let labels = TokenLists::of(&batch, LABELS)?;
        for row in 0..ids.len() {
            if shown.len() == n {
                return Ok(shown);
            }
            let ids: Vec<u32> = ids.row(row).iter().map(|&id| id as u32).collect();
            let is_trained: Vec<bool> = match &labels {
                Some(labels) if labels.row(row).len() == ids.len() => {
                    labels.row(row).iter().map(|&label| label != IGNORE_INDEX).collect()
                }
                _ => vec![true; ids.len()],
            };
            let mut parts = Vec::new();
            let mut start = 0;
            while start < ids.len() {
                let flag = is_trained[start];
                let len = is_trained[start..].iter().take_while(|&&other| other == flag).count();
                let text = tokenizer.decode_with_special_tokens(&ids[start..start + len])?;
                parts.push((text, flag));
                start += len;
            }
            let trained = is_trained.iter().filter(|&&trained| trained).count();
            shown.push(PreviewRow { parts, tokens: ids.len(), trained });
        }
        if shown.len() == n {
            break;
        }
    }
    Ok(shown)
}
