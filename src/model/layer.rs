//! What the engine and generation know of a block: a function of hidden states and parameters.

use super::{
    profile::{ModuleProfile, Recorder},
    unit_gradient::Sink,
};
use crate::{
    error::Result,
    tensor::{Kind, Tensor},
};

/// The keys and values of the tokens seen so far, of one block, `[B, H, T, D]` each, in memory for
/// all that will come.
#[derive(Debug)]
pub struct KeyValues {
    capacity: i64,
    tokens: i64,
    /// `[B, H, capacity, D]` each; made for the first tokens, whose shape and format they have.
    memory: Option<(Tensor, Tensor)>,
}

impl KeyValues {
    /// For at most `capacity` tokens.
    pub fn new(capacity: i64) -> Self {
        Self { capacity, tokens: 0, memory: None }
    }

    /// Number of tokens held.
    pub fn tokens(&self) -> i64 {
        self.tokens
    }

    /// Writes new keys and values behind those that are there, and returns all of them, as views.
    pub fn append(&mut self, k: &Tensor, v: &Tensor) -> (Tensor, Tensor) {
        let &[b, h, new, d] = k.size().as_slice() else { unreachable!("keys are [B, H, T, D]") };
        let room = |x: &Tensor| Tensor::empty([b, h, self.capacity, d], (x.kind(), x.device()));
        let (keys, values) = self.memory.get_or_insert_with(|| (room(k), room(v)));
        let from = self.tokens;
        self.tokens += new;
        let written = |all: &Tensor, x: &Tensor| {
            all.narrow(2, from, new).copy_(x);
            all.narrow(2, 0, from + new)
        };
        (written(keys, k), written(values, v))
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
    /// Where a backward pass adds the gradients that operations make by hand; without it autograd
    /// makes all of them.
    pub sink: Option<&'a Sink>,
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
/// `[B, T]`) on top of what is hidden by causality. Where all padding is on the right none is needed:
/// no real token sees it anyway, and libtorch's faster kernels take no mask.
pub fn padding_mask(attention_mask: &Tensor) -> Tensor {
    let real = attention_mask.not_equal(0);
    let t = real.size()[1];
    let causal = Tensor::ones([t, t], (Kind::Bool, real.device())).tril(0);
    // A padding token sees itself: a row without any key has no softmax.
    let itself = Tensor::eye(t, (Kind::Int64, real.device())).not_equal(0);
    real.view([-1, 1, 1, t]).logical_or(&itself).logical_and(&causal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_sees_no_padding_and_padding_sees_itself() {
        let left = padding_mask(&Tensor::from_slice(&[1i64, 1, 1, 0, 1, 1]).view([2, 3]));
        let seen = Vec::<i64>::try_from(left.to_kind(Kind::Int64).reshape([-1])).unwrap();
        assert_eq!(seen, [1, 0, 0, 1, 1, 0, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 1, 1]);
    }
}
