//! A text to go on with, and whether a model can.

use crate::{
    error::{Code, Error, Result},
    model::Model,
};

/// A text to go on with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// Its tokens, at least one. A model with an encoder reads them there.
    pub tokens: Vec<i64>,
    /// The seed of its draws.
    pub seed: u64,
}

/// Refuses a prompt that the model cannot go on with for so many tokens.
pub(super) fn check(model: &Model, prompt: &[i64], new: usize) -> Result<()> {
    let (Some(&low), Some(&high)) = (prompt.iter().min(), prompt.iter().max()) else {
        return Err(Error::new(Code::BadValue, "the prompt has no token")
            .hint("begin with the end-of-text token, which models see before each text"));
    };
    let positions = model.facts().max_positions;
    if let Some(positions) = positions.filter(|&most| (prompt.len() + new) as i64 > most) {
        return Err(Error::new(
            Code::Shape,
            format!(
                "a prompt of {} tokens and max_new_tokens {new} are more than the model's \
                 {positions} positions",
                prompt.len()
            ),
        )
        .hint("shorten the prompt or lower max_new_tokens"));
    }
    model.check_ids(low, high)
}
