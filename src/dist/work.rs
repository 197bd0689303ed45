//! A collective that was started and is not waited for yet.

use super::group::Place;
use crate::{bridge, error::Result};

/// A collective that runs beside the caller, so that communication overlaps with computation. It
/// keeps its tensors alive; until [`Work::wait`] returns they must not be written, and what is
/// received must not be read.
///
/// Dropping it does not stop the transfer: the other ranks count on it.
#[must_use = "the result of a collective may be used only after `wait`"]
pub struct Work {
    pub(super) inner: bridge::dist::Work,
    pub(super) operation: &'static str,
    pub(super) place: Place,
}

impl Work {
    /// Returns when the result can be used: on the CPU when it is there, on CUDA when every later
    /// operation of the current stream is ordered after it.
    ///
    /// # Errors
    /// [`Code::Dist`](crate::error::Code::Dist) when another rank has left or did not take part
    /// within the timeout.
    pub fn wait(self) -> Result<()> {
        self.inner.wait().map_err(|e| self.place.failed(self.operation, e))
    }

    /// Whether the transfer is over, well or not. An average is only complete after
    /// [`Work::wait`].
    ///
    /// # Errors
    /// [`Code::Dist`](crate::error::Code::Dist) when the state cannot be asked for.
    pub fn is_completed(&self) -> Result<bool> {
        self.inner.is_completed().map_err(|e| self.place.failed(self.operation, e))
    }
}
