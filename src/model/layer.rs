//! What the engine and generation know of a block: a function of hidden states and parameters.

use super::profile::{ModuleProfile, Recorder};
use crate::{
    error::Result,
    tensor::{Kind, Tensor},
};

/// The keys and values of the tokens seen so far, of one block: `[B, H, T, D]` each.
#[derive(Debug, Default)]
pub struct KeyValues(Option<(Tensor, Tensor)>);

impl KeyValues {
    /// Number of tokens held.
    pub fn tokens(&self) -> i64 {
        self.0.as_ref().map_or(0, |(k, _)| k.size()[2])
    }

    /// Appends new keys and values, and returns all of them.
    pub fn append(&mut self, k: Tensor, v: Tensor) -> (Tensor, Tensor) {
        let all = match self.0.take() {
            None => (k, v),
            Some((old_k, old_v)) => (Tensor::cat(&[old_k, k], 2), Tensor::cat(&[old_v, v], 2)),
        };
        self.0 = Some((all.0.shallow_clone(), all.1.shallow_clone()));
        all
    }
}

/// What a block needs beside its parameters and input.
#[derive(Debug, Default)]
pub struct BlockContext<'a> {
    /// Whether dropout is on.
    pub train: bool,
    /// What a query may see, bool `[B, 1, T, T]`; `None` is all keys up to its own place.
    pub attention_mask: Option<&'a Tensor>,
    /// The cache of this block while generating.
    pub key_values: Option<&'a mut KeyValues>,
    /// What measures the modules inside, where they are profiled.
    pub recorder: Option<&'a Recorder>,
}

/// One block: hidden states `[B, T, C]` to hidden states of the same shape.
///
/// Pure but for dropout, which draws from libtorch's default generator: the engine seeds it before
/// each call, so that a recomputation draws the same masks.
pub trait Block {
    /// Runs the block; panics where libtorch refuses, to be called under [`crate::tensor::guard`].
    ///
    /// # Errors
    /// Those of whoever wrote it.
    fn forward(&self, params: &[Tensor], x: &Tensor, context: BlockContext<'_>) -> Result<Tensor>;

    /// What [`Block::forward`] costs for `rows` rows of `tokens` tokens, without a name; the modules
    /// inside are named as it names them to the recorder. `None` where it is not known.
    fn profile(&self, rows: i64, tokens: i64) -> Option<ModuleProfile>;
}

/// The mask for [`BlockContext::attention_mask`] that hides padding (0 in `attention_mask`
/// `[B, T]`) on top of what is hidden by causality. `None` where all padding is on the right: no
/// real token sees it anyway, and libtorch's faster kernels take no mask.
pub fn padding_mask(attention_mask: &Tensor) -> Option<Tensor> {
    let real = attention_mask.not_equal(0);
    let t = real.size()[1];
    if t < 2 {
        return None;
    }
    let shown_after_hidden =
        real.narrow(1, 1, t - 1).logical_and(&real.narrow(1, 0, t - 1).logical_not());
    if shown_after_hidden.any().int64_value(&[]) == 0 {
        return None;
    }
    let bool_on = (Kind::Bool, real.device());
    let causal = Tensor::ones([t, t], bool_on).tril(0);
    // A padding token sees itself: a row without any key has no softmax.
    let itself = Tensor::eye(t, (Kind::Int64, real.device())).not_equal(0);
    Some(real.view([-1, 1, 1, t]).logical_or(&itself).logical_and(&causal))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_padding_before_a_token_needs_a_mask() {
        let mask = |rows: &[i64]| Tensor::from_slice(rows).view([2, 3]);
        assert!(padding_mask(&mask(&[1, 1, 1, 1, 0, 0])).is_none());
        let left = padding_mask(&mask(&[1, 1, 1, 0, 1, 1])).unwrap();
        let seen = Vec::<i64>::try_from(left.to_kind(Kind::Int64).reshape([-1])).unwrap();
        assert_eq!(seen, [1, 0, 0, 1, 1, 0, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 1, 1]);
    }
}
