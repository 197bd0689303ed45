//! A micro batch and how it is computed on: tokens, formats, kernels, and the ranks that share the layers.

use crate::{
    config::{Dtype, Sides, TiledMlp},
    tensor::{Device, Kind, num_threads},
};

/// Bytes of a float32: of losses, and of the statistics that norms and attention keep.
pub(crate) const FLOAT_BYTES: u64 = Dtype::Fp32.bytes();

/// A micro batch and how it is computed on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Workload {
    /// Rows.
    pub rows: u64,
    /// Tokens in a row.
    pub tokens: u64,
    /// Tokens in a row of an encoder.
    pub encoder_tokens: u64,
    /// Tokens in a row of the decoder behind an encoder.
    pub decoder_tokens: u64,
    /// Bytes of a value of an activation.
    pub element_bytes: u64,
    /// Decides which kernels run: attention on the CPU is fused only without dropout.
    pub device: Device,
    /// Threads that a CPU computes with, each with buffers of its own.
    pub threads: u64,
    /// Whether the loss gets the logits whole, and is a cross-entropy of them.
    pub whole_logits: bool,
    /// Block-sparse attention; the model knows it.
    pub sparse: Option<SparseWork>,
    /// How MLPs run over slices of tokens; the model knows it.
    pub tiled_mlp: Option<TiledMlp>,
    /// The ranks that share the layers; the costs are those of one of them.
    pub sharing: LayerSharing,
}

/// How ranks share each layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerSharing {
    /// How many there are.
    pub ranks: u64,
    /// Whether a rank has a part of the tokens between attention and MLP.
    pub sequence_parallel: bool,
}

impl LayerSharing {
    /// One rank, which has the layers alone.
    pub const ALONE: Self = Self { ranks: 1, sequence_parallel: false };
}

/// How block-sparse attention computes on rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SparseWork {
    /// The sides that a query sees.
    pub sides: Sides,
    /// The part of the scores that is computed.
    pub density: f64,
    /// Tokens of a block.
    pub block: u64,
}

impl Workload {
    /// Rows of so many tokens, on a rank that has the layers alone.
    pub fn new((rows, tokens): (u64, u64), element_bytes: u64, device: Device) -> Self {
        Self {
            rows,
            tokens,
            encoder_tokens: tokens,
            decoder_tokens: tokens,
            element_bytes,
            device,
            threads: num_threads() as u64,
            whole_logits: false,
            sparse: None,
            tiled_mlp: None,
            sharing: LayerSharing::ALONE,
        }
    }

    /// Bytes of `width` values for each token.
    pub(crate) fn bytes(&self, width: i64) -> u64 {
        self.places() * width.unsigned_abs() * self.element_bytes
    }

    /// Tokens of all rows.
    pub(crate) fn places(&self) -> u64 {
        self.rows * self.tokens
    }

    /// Bytes that the mask of a dropout of `width` values keeps: on the CPU factors, elsewhere bools.
    pub(crate) fn mask_bytes(&self, width: i64) -> u64 {
        let element = if self.device == Device::Cpu { self.element_bytes } else { 1 };
        self.places() * width.unsigned_abs() * element
    }

    /// Bytes of the gradient of a matrix, if the product cannot add it to the flat gradient itself.
    pub(crate) fn matrix_gradient_bytes(&self, numel: i64) -> u64 {
        match self.is_narrow() && self.device == Device::Cpu {
            true => numel.unsigned_abs() * self.element_bytes,
            false => 0,
        }
    }

    /// Whether activations are in 16 bits.
    pub(crate) fn is_narrow(&self) -> bool {
        self.element_bytes < FLOAT_BYTES
    }

    /// A format as wide as that of the activations.
    pub(crate) fn kind(&self) -> Kind {
        if self.is_narrow() { Kind::BFloat16 } else { Kind::Float }
    }

    /// Bytes of activations of `bytes` in float32.
    pub(crate) fn in_floats(&self, bytes: u64) -> u64 {
        bytes / self.element_bytes * FLOAT_BYTES
    }

    /// Bytes of the buffers of libtorch's flash attention on a CPU in its backward pass. Each thread has a block of
    /// scores and a block of their gradients, in 16 bits also rounded copies. The sizes of a block are those of
    /// `FlashAttentionKernel.cpp`.
    pub(crate) fn flash_buffers(&self, queries: u64, keys: u64) -> u64 {
        if self.device != Device::Cpu {
            return 0;
        }
        let most = match queries {
            768.. => 256,
            192.. => 64,
            _ => 32,
        };
        let rounded = if self.is_narrow() { self.element_bytes } else { 0 };
        2 * self.threads * queries.min(most) * keys.min(512) * (FLOAT_BYTES + rounded)
    }

    /// The same rows as the decoder has them.
    pub(crate) fn of_decoder(self) -> Self {
        Self { tokens: self.decoder_tokens, ..self }
    }

    /// The same rows as the encoder before a decoder has them.
    pub(crate) fn of_encoder(self) -> Self {
        Self { tokens: self.encoder_tokens, ..self }
    }

    /// A rank's part of `all` heads, inner activations or rows of a vocabulary.
    pub(crate) fn part(&self, all: i64) -> i64 {
        all.unsigned_abs().div_ceil(self.sharing.ranks).cast_signed()
    }

    /// Whether a rank has a part of the tokens between attention and MLP.
    pub(crate) fn has_part_of_tokens(&self) -> bool {
        self.sharing.ranks > 1 && self.sharing.sequence_parallel
    }

    /// The same rows between attention and MLP.
    pub(crate) fn between(self) -> Self {
        let ranks = if self.has_part_of_tokens() { self.sharing.ranks } else { 1 };
        let all = [self.tokens, self.encoder_tokens, self.decoder_tokens];
        let [tokens, encoder_tokens, decoder_tokens] = all.map(|tokens| tokens.div_ceil(ranks));
        Self { tokens, encoder_tokens, decoder_tokens, ..self }
    }
}
