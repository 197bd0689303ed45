//! The other stages of a model whose layers are on several ranks, outside of training.

use super::Flow;
use crate::{
    error::Result,
    tensor::{Kind, Tensor},
};

/// The way to the other stages of this rank's pipeline. The ranks of a pipeline make the same calls.
pub trait Pipeline {
    /// The flow that the stage before has made. There is one.
    fn receive_any(&self) -> Result<Flow>;

    /// Starts to send a flow to the stage after. There is one.
    fn send_any(&self, flow: &Flow) -> Result<()>;

    /// What the last stage has made, on all stages: it gives `result`, the others nothing.
    fn share(&self, result: Option<&Tensor>) -> Result<Tensor>;

    /// Whether this is the stage that speaks for a unit of the whole model.
    fn owns(&self, unit: usize) -> bool;

    /// A part of a unit of the whole model, of this size and format, on all stages: the stage that
    /// owns the unit gives it, the others nothing.
    fn bring(&self, unit: usize, part: Option<&Tensor>, like: (&[i64], Kind)) -> Result<Tensor>;

    /// Whether `flag` is set on any rank of the mesh: the same answer on all. Every rank must call it.
    fn any(&self, flag: bool) -> Result<bool>;
}
