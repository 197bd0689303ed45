//! What an engine's memory is used for, counted from its tensors.

use super::Engine;
use crate::bridge::memory::Kind;

/// Bytes on the engine's device by kind, at the moment when their sum was highest so far.
///
/// Only what the engine and its model hold counts: not batches, other models, or what the allocator
/// keeps beside live tensors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// The units of the model.
    pub parameters: u64,
    /// Float32 copies of parameters of fewer bits, for the optimizer.
    pub master_weights: u64,
    /// The flat gradients of the units.
    pub gradients: u64,
    /// What the optimizer keeps from step to step.
    pub optimizer_state: u64,
    /// What embedding and blocks compute on the way forward, a recomputation included.
    pub activations: u64,
    /// The rest: the head with its slice of the logits, gradients of activations and of single
    /// parameters on the way backward, what a step needs meanwhile.
    pub buffers: u64,
}

impl MemoryUse {
    /// All kinds together: the highest sum so far.
    pub fn peak(&self) -> u64 {
        self.kinds().iter().map(|(_, bytes)| bytes).sum()
    }

    /// Each kind by its name.
    pub fn kinds(&self) -> [(&'static str, u64); 6] {
        [
            ("parameters", self.parameters),
            ("master_weights", self.master_weights),
            ("gradients", self.gradients),
            ("optimizer_state", self.optimizer_state),
            ("activations", self.activations),
            ("buffers", self.buffers),
        ]
    }
}

impl Engine {
    /// What the memory was used for when the engine used most of it.
    pub fn memory(&self) -> MemoryUse {
        let (_, peak) = self.ledger.counts();
        let units = self.model.units().iter().map(|unit| unit.flat());
        let bytes = units.map(|flat| flat.numel() * flat.kind().elt_size_in_bytes());
        MemoryUse {
            parameters: bytes.sum::<usize>() as u64,
            master_weights: peak.of(Kind::MasterWeights),
            gradients: peak.of(Kind::Gradients),
            optimizer_state: peak.of(Kind::OptimizerState),
            activations: peak.of(Kind::Activations),
            buffers: peak.of(Kind::Buffers),
        }
    }
}
