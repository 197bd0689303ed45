//! What a forward and a backward pass hold in memory, from shapes alone.
//!
//! The operations of `gpt2.rs`, `head.rs` and `embedding.rs` in order, each with what it allocates
//! and frees: autograd keeps an operation's saved tensors until the operation's own backward is
//! done. H is a tensor `[B, T, C]`, I one of the MLP's inner width, S the attention's scores
//! `[B, H, T, T]`. Tensors below a thousandth of H, such as sums, are left out, and so is the mask
//! that padding before a row's tokens needs.

use super::{
    Gpt2Config, Gpt2Embedding, Head,
    config::Activation,
    gpt2::Gpt2Block,
    loss::{row_width, slice_rows},
    unit::{ParamSpec, padded_size},
};
use crate::{config::Dtype, tensor::Device};

/// Bytes of a float32: of losses, and of the statistics that norms and attention keep.
const FLOAT_BYTES: u64 = Dtype::Fp32.bytes();

/// Bytes of a token id.
const ID_BYTES: u64 = 8;

/// A micro batch and how it is computed on.
#[derive(Debug, Clone, Copy)]
pub struct Workload {
    /// Rows.
    pub rows: u64,
    /// Tokens in a row.
    pub tokens: u64,
    /// Bytes of a value of an activation.
    pub element_bytes: u64,
    /// Decides which kernels run: attention on the CPU is fused only without dropout.
    pub device: Device,
    /// Whether the loss gets the logits whole, and is a cross-entropy of them.
    pub whole_logits: bool,
}

/// Bytes held at the same time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// Of the forward pass of embedding and blocks.
    pub activations: u64,
    /// Of everything else.
    pub buffers: u64,
}

/// What the layers of a model hold for one workload, in bytes.
#[derive(Debug, Clone, Default)]
pub struct Footprint {
    /// Kept by the embedding, its output included.
    pub embedding: u64,
    /// Kept by a block, its output included and its input left out.
    pub block: u64,
    /// The output of a block, `[B, T, C]`.
    pub block_output: u64,
    /// What the head needs with its slice of the logits.
    pub head: u64,
    /// What the backward pass of a block holds at most: beside its input, the layers before it and
    /// flat gradients, its own included.
    pub block_backward: Held,
    /// What the backward pass of the embedding holds.
    pub embedding_backward: u64,
}

impl Gpt2Config {
    /// The elements of each parameter unit, padding included: embedding, blocks, head.
    pub fn unit_sizes(&self) -> Vec<u64> {
        self.unit_specs().iter().map(|specs| padded_size(specs).unsigned_abs()).collect()
    }

    /// The parameters of each unit.
    pub(super) fn unit_specs(&self) -> Vec<Vec<ParamSpec>> {
        let (vocab, c, std) = (self.vocab_size, self.n_embd, self.initializer_range);
        let mut specs = vec![Gpt2Embedding::specs(vocab, self.n_positions, c, std)];
        specs.extend((0..self.n_layer).map(|i| Gpt2Block::specs(self, i)));
        specs.push(Head::specs(vocab, c, std, self.tie_word_embeddings));
        specs
    }

    /// What the layers hold for `workload`.
    pub fn footprint(&self, workload: Workload) -> Footprint {
        let sizes = Sizes::of(self, workload);
        Footprint {
            embedding: sizes.embedding(),
            block: sizes.block(),
            block_output: sizes.h,
            head: sizes.head(self, workload),
            block_backward: sizes.block_backward(),
            // The gradient, once more behind a dropout, and the positions' part.
            embedding_backward: if sizes.embd_mask > 0 { 2 * sizes.h } else { sizes.h },
        }
    }
}

/// The tensors of a workload, in bytes.
struct Sizes {
    h: u64,
    inner: u64,
    /// Mean and reciprocal deviation of a norm.
    norm: u64,
    /// The mask of a dropout of H after attention and MLP, and after the embedding: zero without.
    resid_mask: u64,
    embd_mask: u64,
    attention: Attention,
    /// Whether the activation's input is kept beside its output.
    keeps_inner_input: bool,
    /// The gradients of the weights of the four linear layers, where products cannot add them to the
    /// flat gradient themselves.
    c_attn: u64,
    c_proj: u64,
    mlp: u64,
}

/// Whether a product can add to a float32 gradient without a tensor of its own.
fn products_are_added(element_bytes: u64, device: Device) -> bool {
    element_bytes == FLOAT_BYTES || device != Device::Cpu
}

/// What attention keeps beside H, its output.
enum Attention {
    /// One kernel on the projections' own storage; the sums of exponents.
    Fused { statistics: u64 },
    /// Written out: q, k and v made contiguous, and three times the scores: probabilities, mask,
    /// product.
    Written { copies: u64, scores: u64 },
}

impl Sizes {
    fn of(config: &Gpt2Config, workload: Workload) -> Self {
        let Workload { rows, tokens, element_bytes, device, .. } = workload;
        let [c, inner, heads] =
            [config.n_embd, config.inner(), config.n_head].map(|size| size.unsigned_abs());
        let places = rows * tokens;
        let h = places * c * element_bytes;
        // On the CPU a mask is a tensor of factors, elsewhere one of bools.
        let mask = if device == Device::Cpu { h } else { places * c };
        let mask_of = |p: f64| if p > 0.0 { mask } else { 0 };
        let attention = if device == Device::Cpu && config.attn_pdrop > 0.0 {
            // The values of a single row are contiguous, and hold on to the storage of all three.
            let copies = if rows == 1 { 5 * h } else { 3 * h };
            Attention::Written { copies, scores: rows * heads * tokens * tokens * element_bytes }
        } else {
            Attention::Fused { statistics: places * heads * FLOAT_BYTES }
        };
        let made = if products_are_added(element_bytes, device) { 0 } else { element_bytes };
        Self {
            h,
            inner: places * inner * element_bytes,
            norm: 2 * places * FLOAT_BYTES,
            resid_mask: mask_of(config.resid_pdrop),
            embd_mask: mask_of(config.embd_pdrop),
            attention,
            keeps_inner_input: config.activation_function != Activation::Relu,
            c_attn: 3 * c * c * made,
            c_proj: c * c * made,
            mlp: c * inner * made,
        }
    }

    fn embedding(&self) -> u64 {
        if self.embd_mask > 0 { 2 * self.h + self.embd_mask } else { self.h }
    }

    /// Kept of attention beside the input of its last projection.
    fn attention(&self) -> u64 {
        match self.attention {
            Attention::Fused { statistics } => 3 * self.h + statistics,
            Attention::Written { copies, scores } => copies + 3 * scores,
        }
    }

    /// Two norms' outputs, attention with its output, the sum after it, the MLP and the sum.
    fn block(&self) -> u64 {
        let inner = if self.keeps_inner_input { 2 * self.inner } else { self.inner };
        2 * (self.h + self.norm) + self.attention() + 3 * self.h + inner + 2 * self.resid_mask
    }

    /// The norm's output, its rows with a target, their gradient, and the slice of the logits; with
    /// whole logits also the gradient of the norm's output and targets.
    fn head(&self, config: &Gpt2Config, workload: Workload) -> u64 {
        let [c, vocab] = [config.n_embd, config.vocab_size].map(|size| size.unsigned_abs());
        let places = workload.rows * workload.tokens;
        if workload.whole_logits {
            // In float32 probabilities, their gradient and that of the logits, which goes on in 16
            // bits.
            let also =
                if workload.element_bytes == FLOAT_BYTES { 0 } else { workload.element_bytes };
            let logits = places * vocab * (3 * FLOAT_BYTES + also);
            return 2 * self.h + self.norm + places * ID_BYTES + logits;
        }
        let (element, device) = (workload.element_bytes, workload.device);
        let most = i64::try_from(places).unwrap_or(i64::MAX);
        let rows = slice_rows(most, config.vocab_size, device).unsigned_abs();
        let row = row_width(config.vocab_size, device).unsigned_abs();
        let formats = if element == FLOAT_BYTES { element } else { element + FLOAT_BYTES };
        let made = if products_are_added(element, device) { 0 } else { vocab * c * element };
        3 * self.h + self.norm + rows * row * formats + made
    }

    /// What the backward pass of a block holds at its peak.
    fn block_backward(&self) -> Held {
        let Self { h, inner, .. } = *self;
        let dropped = if self.resid_mask > 0 { h } else { 0 };
        // The gradient of the output comes from outside and stays.
        let mut tally = Tally::new(self.block(), h);
        // Into the MLP: the dropout's product, then the last projection.
        tally.buffer(dropped);
        tally.free_activation(self.resid_mask);
        tally.made(self.mlp);
        tally.buffer(inner);
        tally.free_buffer(dropped);
        if self.keeps_inner_input {
            tally.free_activation(inner);
        }
        // The activation, from its input or else from the projection's.
        tally.buffer(inner);
        tally.free_buffer(inner);
        tally.free_activation(inner);
        // The first projection, the norm, and the sum with what went past them.
        tally.made(self.mlp);
        tally.buffer(h);
        tally.free_buffer(inner);
        tally.free_activation(h);
        tally.buffer(h);
        tally.free_buffer(h);
        tally.free_activation(h + self.norm);
        tally.buffer(h);
        tally.free_buffer(h);
        self.attention_backward(&mut tally, dropped);
        // The norm before attention, and the sum.
        tally.buffer(h);
        tally.free_buffer(h);
        tally.free_activation(self.norm);
        tally.buffer(h);
        tally.peak
    }

    fn attention_backward(&self, tally: &mut Tally, dropped: u64) {
        let h = self.h;
        tally.buffer(dropped);
        tally.free_activation(self.resid_mask);
        tally.made(self.c_proj);
        tally.buffer(h);
        tally.free_buffer(dropped);
        match self.attention {
            Attention::Fused { statistics } => {
                tally.buffer(3 * h);
                tally.free_activation(4 * h + statistics);
                tally.free_buffer(h);
            }
            Attention::Written { copies, scores } => {
                // Its output was copied for the projection.
                tally.free_activation(h);
                tally.buffer(scores + h);
                tally.free_activation(scores + copies - 2 * h);
                tally.free_buffer(h);
                for _ in 0..2 {
                    tally.buffer(scores);
                    tally.free_activation(scores);
                    tally.free_buffer(scores);
                }
                tally.buffer(2 * h);
                tally.free_activation(2 * h);
                tally.free_buffer(scores);
            }
        }
        // The parts' gradients are put together.
        tally.buffer(3 * h);
        tally.free_buffer(3 * h);
        tally.made(self.c_attn);
        tally.buffer(h);
        tally.free_buffer(3 * h);
        tally.free_activation(h);
    }
}

/// A count that goes up and down, and its highest.
struct Tally {
    now: Held,
    peak: Held,
}

impl Tally {
    fn new(activations: u64, buffers: u64) -> Self {
        let now = Held { activations, buffers };
        Self { now, peak: now }
    }

    fn buffer(&mut self, bytes: u64) {
        self.now.buffers += bytes;
        if self.now.activations + self.now.buffers > self.peak.activations + self.peak.buffers {
            self.peak = self.now;
        }
    }

    /// A tensor that is gone at once.
    fn made(&mut self, bytes: u64) {
        self.buffer(bytes);
        self.free_buffer(bytes);
    }

    fn free_buffer(&mut self, bytes: u64) {
        self.now.buffers = self.now.buffers.saturating_sub(bytes);
    }

    fn free_activation(&mut self, bytes: u64) {
        self.now.activations = self.now.activations.saturating_sub(bytes);
    }
}
