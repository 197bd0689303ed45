//! The cost of a layer, from shapes alone: operations, and the memory of its forward and backward pass.
//!
//! Each module says beside its arithmetic what its operations do: what they keep for the backward
//! pass, and how large the gradients are that they make. A `Tape` takes this down in the order of
//! the forward pass, and plays it back as autograd does: a gradient is made, then what was kept for
//! it and the gradient that it was made from are freed. Tensors below a thousandth of the hidden
//! states, such as sums, are left out, and so is the mask that padding before a row's tokens needs.

mod layer_cost;
pub mod profile;
mod tape;
mod workload;

pub use layer_cost::{AngleTable, HeldBytes, LayerCost, SummedBytes};
pub(crate) use tape::{Operation, Tape};
pub(crate) use workload::FLOAT_BYTES;
pub use workload::{LayerSharing, SparseWork, Workload};
