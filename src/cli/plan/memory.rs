//! The bytes of a plan, by kind.

use serde::Serialize;

use crate::engine::MemoryUse;

/// Bytes of a rank at the peak of its memory.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct MemoryNumbers {
    pub(super) parameters: u64,
    pub(super) master_weights: u64,
    pub(super) gradients: u64,
    pub(super) optimizer_state: u64,
    pub(super) activations: u64,
    pub(super) buffers: u64,
    /// The sum of these.
    pub(super) all: u64,
    pub(super) host: u64,
    pub(super) disk: u64,
}

impl MemoryNumbers {
    pub(super) fn of(device: MemoryUse, host: u64, disk: u64) -> Self {
        let MemoryUse {
            parameters,
            master_weights,
            gradients,
            optimizer_state,
            activations,
            buffers,
            ..
        } = device;
        Self {
            parameters,
            master_weights,
            gradients,
            optimizer_state,
            activations,
            buffers,
            all: device.peak(),
            host,
            disk,
        }
    }

    /// Those of the device by their names.
    pub(super) fn kinds(&self) -> [(&'static str, u64); 7] {
        [
            ("parameters", self.parameters),
            ("master_weights", self.master_weights),
            ("gradients", self.gradients),
            ("optimizer_state", self.optimizer_state),
            ("activations", self.activations),
            ("buffers", self.buffers),
            ("all", self.all),
        ]
    }
}
