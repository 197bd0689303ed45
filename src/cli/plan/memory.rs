//! The bytes of a plan, by kind.

use serde::Serialize;

use crate::engine::MemoryUse;

/// Bytes of a rank at the peak of its memory.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct MemoryNumbers {
    /// On the device, by kind.
    #[serde(flatten)]
    device: MemoryUse,
    /// The sum of these.
    pub(super) all: u64,
    pub(super) host: u64,
    pub(super) disk: u64,
}

impl MemoryNumbers {
    pub(super) fn of(device: MemoryUse, host: u64, disk: u64) -> Self {
        Self { device, all: device.peak(), host, disk }
    }

    /// The bytes on the device by kind, and their sum.
    pub(super) fn kinds(&self) -> [(&'static str, u64); 7] {
        let [a, b, c, d, e, f] = self.device.kinds();
        [a, b, c, d, e, f, ("all", self.all)]
    }
}
