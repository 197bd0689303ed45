//! Texts that grow until they end, and that nobody looks at meanwhile.

use dsr::{
    error::Result,
    generation::{Ended, Watch},
};

/// Nobody.
pub(crate) struct Unwatched;

impl Watch for Unwatched {
    fn token(&mut self, _: usize, _: i64) -> Result<bool> {
        Ok(true)
    }

    fn ended(&mut self, _: usize, _: &Ended) -> Result<()> {
        Ok(())
    }

    fn must_stop(&self) -> bool {
        false
    }
}
