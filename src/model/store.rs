//! The store of parameters between their uses.
//!
//! In ZeRO's stage 3 the parameters of a unit are on a rank only while a layer uses them. Its units
//! are gathered before it runs, and stay until [`Gathered`](super::Gathered) is dropped; the store may
//! prefetch the units of the layers that follow. A model without a store has all of its parameters, and
//! gathering costs nothing but the first time, which gives them their first values.

use super::unit::FlatUnit;
use crate::error::Result;

/// The order of the layers of a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the first layer to the last.
    Forward,
    /// From the last to the first.
    Backward,
}

/// A store of the parameters that are not in use.
pub trait ParameterStore {
    /// Gathers unit `i`, and may prefetch `following`, which are used after it in this order. Every
    /// rank must call it.
    fn gather(&self, units: &[FlatUnit], i: usize, following: &[usize]) -> Result<()>;

    /// Releases unit `i`, as often as it was gathered.
    fn release(&self, units: &[FlatUnit], i: usize);

    /// Whether `flag` is set on any rank: the same answer on all. Every rank must call it.
    fn any(&self, flag: bool) -> Result<bool>;
}
