//! libtorch's refusals as dsr's errors.

use super::TchError;
use crate::{
    bridge::refusal,
    error::{Code, Error},
};

impl From<TchError> for Error {
    fn from(e: TchError) -> Self {
        match e {
            TchError::Torch(words) => refusal(&words),
            other => Self::new(Code::Torch, other.to_string()),
        }
    }
}
