//! Keys and values of the tokens seen so far, kept while a text is generated.

use crate::tensor::Tensor;

/// The keys and values of one attention, `[B, H, T, D]` each, in memory for all that will come.
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
