//! The end of a text, and the caller who sees texts grow and end.

use crate::error::Result;

/// The end of one text.
#[derive(Debug, Clone, PartialEq)]
pub struct Ended {
    /// The tokens behind the prompt, without one that ended the text.
    pub tokens: Vec<i64>,
    /// The logarithm of each token's probability by the model's own logits; empty unless asked for.
    pub logprobs: Vec<f64>,
    /// Why it ended.
    pub reason: FinishReason,
}

/// Why a text ended, named as in Text Generation Inference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model gave a token that ends texts.
    EosToken,
    /// `max_new_tokens` were made.
    Length,
    /// A stop was found.
    StopSequence,
    /// The user interrupted it.
    Interrupted,
}

impl Ended {
    pub(super) fn none(reason: FinishReason) -> Self {
        Self { tokens: Vec::new(), logprobs: Vec::new(), reason }
    }
}

impl FinishReason {
    /// Its name for scripts and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::EosToken => "eos_token",
            Self::Length => "length",
            Self::StopSequence => "stop_sequence",
            Self::Interrupted => "interrupted",
        }
    }
}

/// The caller's view of texts while they grow.
pub trait Watch {
    /// Takes token `token` of text `text`; false ends that text there.
    fn token(&mut self, _text: usize, _token: i64) -> Result<bool> {
        Ok(true)
    }

    /// Takes the end of text `text`.
    fn ended(&mut self, _text: usize, _ended: &Ended) -> Result<()> {
        Ok(())
    }

    /// Whether all texts must end now.
    fn must_stop(&self) -> bool {
        false
    }
}

/// Nobody looks.
impl Watch for () {}
