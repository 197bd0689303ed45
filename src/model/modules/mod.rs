//! The modules of layers: arithmetic with its parameters, its gradient where autograd's would cost
//! more, and its cost.
//!
//! A module holds the places of its parameters in its layer, and sizes; nothing that changes. Shapes in
//! comments: B batch, T tokens, C channels (hidden_size), H heads, D head dim, V vocab.

mod attention;
mod attention_of_texts;
mod attention_scores;
mod block;
mod embedding;
mod gated;
mod head;
mod linear;
mod lora;
mod mlp;
mod norm;
mod products;
mod relative;
mod rms;
mod rotary;
mod tiled;

pub(super) use self::{
    attention::{Attention, Position, Projections},
    block::{Block, Branch},
    embedding::{DecoderStart, Embed, Embedding, Positions},
    head::Head,
    linear::{Divided, Linear},
    mlp::{Gate, Mlp},
    norm::Norm,
    relative::RelativeBias,
    rotary::Rotary,
};
use crate::tensor::Tensor;

/// Dropout with the probability `p`, while `train` is on.
fn dropout(x: Tensor, p: f64, train: bool) -> Tensor {
    if train && p > 0.0 { x.dropout(p, true) } else { x }
}
