//! The cost of a layer for one workload.

use super::profile::ModuleProfile;

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
    /// The table of angles of its rotary positions.
    pub angles: Option<AngleTable>,
    /// Bytes of the bias of scores that it makes for the layers behind it, a part of its output.
    pub bias: u64,
    /// Bytes of the encoder's output, which cross-attention reads; all blocks of a decoder share it.
    pub encoded: u64,
}

/// A table of angles, which layers share and keep from pass to pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct AngleTable {
    /// A number that no other table of the model has.
    pub key: usize,
    /// Its bytes.
    pub bytes: u64,
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
