//! The cost of a layer, from shapes alone: operations, and the memory of its forward and backward pass.
//!
//! Each module says beside its arithmetic what its operations do: what they keep for the backward
//! pass, and how large the gradients are that they make. A [`Tape`] takes this down in the order of
//! the forward pass, and plays it back as autograd does: a gradient is made, then what was kept for
//! it and the gradient that it was made from are freed. Tensors below a thousandth of the hidden
//! states, such as sums, are left out, and so is the mask that padding before a row's tokens needs.

pub mod profile;

use self::profile::ModuleProfile;
use crate::{
    config::{Dtype, Sides, TiledMlp},
    tensor::{Device, num_threads},
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

/// Bytes held at the same time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HeldBytes {
    /// Of the forward pass of embedding and blocks.
    pub activations: u64,
    /// Of everything else.
    pub buffers: u64,
}

/// The cost of a layer for one workload.
#[derive(Debug, Clone, Default)]
pub struct LayerCost {
    /// Its operations, module by module, without a name.
    pub profile: ModuleProfile,
    /// Bytes that it keeps for its backward pass, its output included and its input left out.
    pub kept: u64,
    /// Bytes of its output.
    pub output: u64,
    /// Bytes beside activations that its forward pass takes at most.
    pub forward: u64,
    /// The most that its backward pass holds, beside its input, the layers before it and flat
    /// gradients, its own included.
    pub backward: HeldBytes,
    /// Whether its gradients come after all else, since autograd makes them.
    pub adds_gradients_last: bool,
    /// Bytes that the ranks that share it sum.
    pub summed: SummedBytes,
    /// Bytes of the mask that it shares with all layers of a pass.
    pub mask: u64,
    /// Bytes of the bias of scores that it makes for the layers behind it, a part of its output.
    pub bias: u64,
    /// Bytes of the encoder's output, which cross-attention reads; all blocks of a decoder share it.
    pub encoded: u64,
}

/// Bytes of what ranks sum in a layer: a tensor that is gathered or scattered is half a sum.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SummedBytes {
    /// In its forward pass.
    pub forward: u64,
    /// In its backward pass.
    pub backward: u64,
}

impl LayerCost {
    /// The same, with `bytes` more that ranks sum in the forward pass.
    pub(crate) fn and_sums(mut self, bytes: u64) -> Self {
        self.summed.forward += bytes;
        self
    }
}

/// The operations of a layer in the order of the forward pass.
#[derive(Debug, Default)]
pub(crate) struct Tape {
    entries: Vec<TapeEntry>,
    summed: SummedBytes,
    mask: u64,
    bias: u64,
    encoded: u64,
    /// The region that was entered.
    region: Region,
}

/// Bytes of a region that ranks divide, where each has a part of the tokens.
#[derive(Debug, Default)]
struct Region {
    /// Of what was gathered.
    gathered: u64,
    /// Of the parts that it is gathered from again.
    kept: u64,
}

#[derive(Debug, Clone, Copy)]
enum TapeEntry {
    Operation(Operation),
    /// The operations that follow are a branch, whose result is added.
    Branch,
    /// The result of the branch is added.
    Joined,
    /// So many bytes are gathered, which the backward pass lets go of here.
    Gathered(u64),
    /// They are not needed any more, until the backward pass comes here.
    Left(u64),
    /// The backward pass goes on with one gradient, of so many bytes. The others stay allocated.
    GoesOnWith(u64),
}

/// One operation.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Operation {
    /// Bytes that are freed after its backward: what it alone keeps, or keeps last.
    pub(crate) kept: u64,
    /// Bytes that its backward takes and gives back before the gradient is made.
    pub(crate) transient: u64,
    /// Bytes of the gradient of its input; 0 where that is a view of the one of its output.
    pub(crate) gradient: u64,
    /// Bytes of it that the gradient of its output had already.
    pub(crate) carried: u64,
}

impl Tape {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// A mask of so many bytes, which is made once a pass for all layers.
    pub(crate) fn needs_mask(&mut self, bytes: u64) {
        self.mask = self.mask.max(bytes);
    }

    /// A bias of the scores of so many bytes, which the layers behind this one add too.
    pub(crate) fn makes_bias(&mut self, bytes: u64) {
        self.bias = bytes;
    }

    /// The output of an encoder of so many bytes, which is read beside the hidden states.
    pub(crate) fn reads_encoded(&mut self, bytes: u64) {
        self.encoded = bytes;
    }

    /// The backward pass goes on with one gradient, of so many bytes. The others stay allocated: for operations
    /// before, or for other layers.
    pub(crate) fn goes_on_with(&mut self, bytes: u64) {
        self.entries.push(TapeEntry::GoesOnWith(bytes));
    }

    /// Adds an operation.
    pub(crate) fn push(&mut self, operation: Operation) {
        self.entries.push(TapeEntry::Operation(operation));
    }

    /// Enters a region that ranks divide with `width` values of each token of `work`, which is of
    /// whole rows; the input is kept if nothing before keeps it.
    pub(crate) fn enter(&mut self, work: &Workload, width: i64, keeps_input: bool) {
        self.share(work, width);
        if work.has_part_of_tokens() {
            let (all, own) = (work.bytes(width), work.between().bytes(width));
            // A region lets go of the gathered tokens at its end, and gathers them again to go back.
            self.summed.backward += all / 2;
            self.region.gathered += all;
            self.region.kept += if keeps_input { own } else { 0 };
            self.entries.push(TapeEntry::Gathered(all));
        }
    }

    /// The same for what no region leaves.
    pub(crate) fn share(&mut self, work: &Workload, width: i64) {
        if work.sharing.ranks == 1 {
            return;
        }
        let (all, own) = (work.bytes(width), work.between().bytes(width));
        if work.has_part_of_tokens() {
            self.summed.forward += all / 2;
            self.summed.backward += all / 2;
            // The tensor that is scattered stands rank by rank first.
            self.push(Operation { transient: all + own, gradient: own, ..Operation::default() });
            return;
        }
        self.summed.backward += all;
        self.push(Operation { gradient: all, ..Operation::default() });
    }

    /// Leaves a region with a sum.
    pub(crate) fn leave(&mut self, work: &Workload, width: i64) {
        if work.sharing.ranks == 1 {
            return;
        }
        let all = work.bytes(width);
        if work.has_part_of_tokens() {
            self.summed.forward += all / 2;
            self.summed.backward += all / 2;
            let Region { gathered, kept } = std::mem::take(&mut self.region);
            // The gathered tensor stands rank by rank first.
            let transient = 2 * all;
            self.push(Operation { kept, transient, gradient: all, ..Operation::default() });
            self.entries.push(TapeEntry::Left(gathered));
            return;
        }
        self.summed.forward += all;
    }

    /// Begins a branch whose result will be added to what is there: a residual connection.
    pub(crate) fn branch(&mut self) {
        self.entries.push(TapeEntry::Branch);
    }

    /// Adds the result of the branch.
    pub(crate) fn join(&mut self) {
        self.entries.push(TapeEntry::Joined);
    }

    /// Bytes that the operations keep.
    fn kept(&self) -> u64 {
        let bytes = self.entries.iter().map(|entry| match entry {
            TapeEntry::Operation(operation) => operation.kept,
            _ => 0,
        });
        bytes.sum()
    }

    /// The cost of a layer with an output of `output` bytes that no operation keeps.
    pub(crate) fn cost(&self, profile: ModuleProfile, output: u64) -> LayerCost {
        let kept = self.kept() + output;
        let (backward, summed) = (self.backward(kept, output), self.summed);
        let (mask, bias, encoded) = (self.mask, self.bias, self.encoded);
        LayerCost {
            profile,
            kept,
            output,
            backward,
            summed,
            mask,
            bias,
            encoded,
            ..LayerCost::default()
        }
    }

    /// Plays the tape back. The gradient of the layer's output comes from outside and stays.
    fn backward(&self, kept: u64, output: u64) -> HeldBytes {
        let mut tally = MemoryCounter::new(kept, output);
        let mut gradient = Gradient { bytes: output, stays: true };
        let mut joined = Vec::new();
        for entry in self.entries.iter().rev() {
            match *entry {
                TapeEntry::Operation(Operation { kept, transient, gradient: made, carried }) => {
                    tally.allocate(transient);
                    tally.free(transient);
                    if made > 0 {
                        tally.allocate(made - carried);
                        gradient.bytes -= carried;
                        tally.free_gradient(gradient);
                        gradient = Gradient { bytes: made, stays: false };
                    }
                    tally.free_kept(kept);
                }
                TapeEntry::Left(bytes) => tally.allocate(bytes),
                TapeEntry::Gathered(bytes) => tally.free(bytes),
                TapeEntry::GoesOnWith(bytes) => gradient = Gradient { bytes, stays: false },
                TapeEntry::Joined => {
                    joined.push(gradient);
                    gradient.stays = true;
                }
                TapeEntry::Branch => {
                    let Some(past) = joined.pop() else { continue };
                    tally.allocate(past.bytes);
                    tally.free_gradient(gradient);
                    tally.free_gradient(past);
                    gradient = Gradient { bytes: past.bytes, stays: false };
                }
            }
        }
        tally.peak
    }
}

/// The gradient that the playback has come to.
#[derive(Debug, Clone, Copy)]
struct Gradient {
    bytes: u64,
    /// Whether it is still needed after what it is consumed by.
    stays: bool,
}

/// A count that goes up and down, and its highest.
struct MemoryCounter {
    now: HeldBytes,
    peak: HeldBytes,
}

impl MemoryCounter {
    fn new(activations: u64, buffers: u64) -> Self {
        let now = HeldBytes { activations, buffers };
        Self { now, peak: now }
    }

    fn allocate(&mut self, bytes: u64) {
        self.now.buffers += bytes;
        if self.now.activations + self.now.buffers > self.peak.activations + self.peak.buffers {
            self.peak = self.now;
        }
    }

    fn free(&mut self, bytes: u64) {
        self.now.buffers = self.now.buffers.saturating_sub(bytes);
    }

    fn free_gradient(&mut self, gradient: Gradient) {
        if !gradient.stays {
            self.free(gradient.bytes);
        }
    }

    fn free_kept(&mut self, bytes: u64) {
        self.now.activations = self.now.activations.saturating_sub(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tape_is_played_back_as_autograd_frees() {
        let mut tape = Tape::new();
        tape.branch();
        tape.push(Operation { kept: 5, gradient: 10, ..Operation::default() });
        tape.push(Operation { kept: 40, transient: 3, gradient: 40, carried: 0 });
        tape.join();
        let cost = tape.cost(ModuleProfile::new("", "Block"), 10);
        assert_eq!(cost.kept, 55);
        // The output's gradient stays; 40 are made while all is kept.
        assert_eq!(cost.backward, HeldBytes { activations: 55, buffers: 50 });
    }

    /// Cross-attention makes the gradient of the encoder's output beside that of its queries.
    #[test]
    fn a_gradient_for_other_layers_stays() {
        let mut tape = Tape::new();
        tape.goes_on_with(10);
        tape.push(Operation { gradient: 30, ..Operation::default() });
        tape.goes_on_with(8);
        tape.push(Operation { gradient: 10, ..Operation::default() });
        tape.goes_on_with(4);
        tape.push(Operation { gradient: 12, ..Operation::default() });
        let cost = tape.cost(ModuleProfile::new("", "Block"), 10);
        // The output's; then 4 of queries and 8 of keys and values; 10 and 30 that are made of these.
        assert_eq!(cost.backward.buffers, 10 + 8 + 10 + 30);
    }

    #[test]
    fn the_sum_after_a_branch_needs_both_parts() {
        let mut tape = Tape::new();
        tape.branch();
        tape.push(Operation { gradient: 10, ..Operation::default() });
        tape.join();
        let cost = tape.cost(ModuleProfile::new("", "Block"), 10);
        assert_eq!(cost.backward.buffers, 30, "output's, branch's, sum");
    }
}
