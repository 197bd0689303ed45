//! What ranks that train together tell each other in a recipe.

use std::hash::{DefaultHasher, Hash, Hasher};

use rhai::plugin::*;

use super::tensor::{check, handle::Handle};
use crate::{
    dist::{ProcessGroup, ReduceOp},
    error::{Code, Error, Result},
    recipe::error::ScriptResult,
    script::host,
    tensor::Tensor,
};

/// Ranks.
#[export_module]
pub mod api {
    /// The sum of a tensor over all ranks, in a new tensor, which no gradient goes through. Every rank calls
    /// it, with a tensor of the same shape and dtype; alone a rank gets its own.
    ///
    /// ```rhai
    /// let seen = all_reduce(tensor([0.5, 1.0]));
    /// print(seen[0] / seen[1]);
    /// ```
    #[rhai_fn(return_raw)]
    pub fn all_reduce(ctx: NativeCallContext, tensor: Handle) -> ScriptResult<Handle> {
        all_reduce_with_op(ctx, tensor, "sum")
    }

    /// A tensor reduced over all ranks by `op`: "sum", "avg", "max" or "min", the operations of
    /// `torch.distributed`.
    ///
    /// ```rhai
    /// let longest = all_reduce(tensor([17]), "max").item();
    /// ```
    #[rhai_fn(name = "all_reduce", return_raw)]
    pub fn all_reduce_with_op(
        ctx: NativeCallContext,
        tensor: Handle,
        op: &str,
    ) -> ScriptResult<Handle> {
        let group = host::of(&ctx)?.group()?;
        Ok(super::reduced(&group, &tensor, op)?)
    }
}

const OPS: [(&str, ReduceOp); 4] = [
    ("sum", ReduceOp::Sum),
    ("avg", ReduceOp::Avg),
    ("max", ReduceOp::Max),
    ("min", ReduceOp::Min),
];

fn reduced(group: &ProcessGroup, tensor: &Handle, op: &str) -> Result<Handle> {
    let Some((name, op)) = OPS.iter().find(|(name, _)| *name == op) else {
        let names = OPS.map(|(name, _)| format!("\"{name}\"")).join(", ");
        let message = format!("`all_reduce` has no operation \"{op}\": they are {names}");
        return Err(Error::new(Code::BadValue, message));
    };
    if *op == ReduceOp::Avg {
        check::floating("all_reduce", tensor.tensor())?;
    }
    check_alike(group, tensor, name)?;
    let copy = check::run("all_reduce", &[tensor.tensor()], || {
        let own = tensor.tensor().f_detach()?;
        let mut copy = Tensor::f_empty(own.size(), (own.kind(), group.device()))?;
        copy.f_copy_(&own)?;
        Ok(copy)
    })?;
    group.all_reduce(&copy, *op)?;
    Ok(Handle::new(copy))
}

/// Refuses calls that differ from rank to rank in shape, dtype or operation, of which the transports make
/// nonsense.
fn check_alike(group: &ProcessGroup, tensor: &Handle, op: &str) -> Result<()> {
    let shown = format!("\"{op}\" of {}", check::shown(tensor.tensor()));
    let mut hasher = DefaultHasher::new();
    shown.hash(&mut hasher);
    // Its negative is a number too.
    let hash = (hasher.finish() >> 2) as i64;
    if group.greatest(hash)? == -group.greatest(-hash)? {
        return Ok(());
    }
    let message =
        format!("`all_reduce` needs calls that are alike on all ranks, and this rank's is {shown}");
    Err(Error::new(Code::Shape, message)
        .hint("give each rank's the same shape, dtype and operation"))
}
