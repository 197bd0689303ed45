//! A tensor: shape, dtype, device, its range and a corner of its numbers.

use super::layout::{Card, number};
use crate::{
    error::Result,
    script::api::tensor::{Handle, show::corner},
    tensor::{Kind, Tensor, describe_place, guard, is_floating, no_grad},
};

pub(super) fn card(handle: &Handle) -> Result<Card> {
    let tensor = handle.tensor();
    let mut card = Card::new(format!("Tensor {}", describe_place(tensor)));
    guard("show", || {
        no_grad(|| {
            if tensor.numel() > 1 {
                facts(&mut card, tensor)?;
            }
            card.text = corner(tensor)?;
            Ok(())
        })
    })?;
    if tensor.requires_grad() {
        card.fact("requires_grad", "true");
    }
    Ok(card)
}

fn facts(card: &mut Card, tensor: &Tensor) -> Result<()> {
    if tensor.kind() == Kind::Bool {
        let set = tensor.f_sum(Kind::Int64)?.f_int64_value(&[])?;
        card.fact("true", format!("{set} of {}", tensor.numel()));
        return Ok(());
    }
    let is_float = is_floating(tensor.kind());
    let value = |t: Tensor| -> Result<String> {
        Ok(match is_float {
            true => number(t.f_double_value(&[])?),
            false => t.f_int64_value(&[])?.to_string(),
        })
    };
    card.fact("min", value(tensor.f_min()?)?);
    card.fact("mean", number(tensor.f_mean(Kind::Double)?.f_double_value(&[])?));
    card.fact("max", value(tensor.f_max()?)?);
    if is_float {
        let finite = tensor.f_isfinite()?.f_sum(Kind::Int64)?.f_int64_value(&[])?;
        let others = tensor.numel() as i64 - finite;
        if others > 0 {
            card.fact("not finite", others.to_string());
        }
    }
    Ok(())
}
