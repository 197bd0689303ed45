//! The attentions of the same queries to two sets of keys as that to both.

use crate::{
    error::Result,
    tensor::{Kind, Tensor},
};

/// The format in which parts of values of this one are summed, PyTorch's accumulate type.
pub(super) fn accumulate_kind(kind: Kind) -> Kind {
    if kind == Kind::Double { Kind::Double } else { Kind::Float }
}

/// Makes a result `[.., D]` and the log-sum-exp of its scores `[..]` those of more keys, whose own are `more`.
pub(super) fn merge_into((out, sums): (&Tensor, &Tensor), more: (&Tensor, &Tensor)) -> Result<()> {
    let both = sums.f_logaddexp(more.1)?;
    let weight = |sums: &Tensor| sums.f_sub(&both)?.f_exp()?.f_unsqueeze(-1);
    let (old, new) = (weight(sums)?, weight(more.1)?);
    let _ = out.shallow_clone().f_mul_(&old)?.f_addcmul_(more.0, &new)?;
    sums.shallow_clone().f_copy_(&both)?;
    Ok(())
}
