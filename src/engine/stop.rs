//! The user's interruption of a pass, asked for between two layers.

use crate::error::{Error, Result, StopWhen};

/// Says whether the user wants a pass to end.
#[derive(Clone, Default)]
pub(super) struct StopSignal(pub(super) Option<StopWhen>);

impl StopSignal {
    /// # Errors
    /// [`Code::Interrupted`] where the pass is to end.
    pub(super) fn check(&self) -> Result<()> {
        match &self.0 {
            Some(stop) if stop() => Err(Error::interrupted()),
            _ => Ok(()),
        }
    }
}
