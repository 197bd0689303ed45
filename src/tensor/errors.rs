//! libtorch's refusals as dsr's errors.

use super::TchError;
use crate::{
    bridge::without_backtrace,
    error::{Code, Error},
};

impl From<TchError> for Error {
    fn from(e: TchError) -> Self {
        match e {
            TchError::Torch(words) => from_words(without_backtrace(&words)),
            other => Self::new(Code::Torch, other.to_string()),
        }
    }
}

/// The error for libtorch's own words: [`Code::Memory`] where they speak of exhausted memory.
pub(super) fn from_words(words: &str) -> Error {
    let exhausted = words.contains("out of memory") || words.contains("can't allocate memory");
    if exhausted {
        Error::new(Code::Memory, words)
            .hint("a smaller micro_batch_size, a shorter sequence or a smaller model needs less")
    } else {
        Error::new(Code::Torch, words)
    }
}
