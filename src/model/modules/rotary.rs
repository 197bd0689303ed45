//! Rotary positions (RoFormer, Su et al. 2021): pairs of a head's elements turn with the position.
//!
//! Queries and keys turn in one pass over memory each, and their gradients turn back. The layout is
//! Hugging Face's: the first half of the turned elements pairs with the second.

use std::{cell::RefCell, ptr, rc::Rc};

use crate::{
    bridge::{autograd::own_gradient, rows::turn},
    error::Result,
    kv_cache::DecodeRows,
    model::cost::{AngleTable, Workload},
    rope::Rope,
    tensor::{Device, Kind, Tensor, no_grad},
};

/// The table of angles is made for at least this many positions.
const LEAST_POSITIONS: i64 = 256;

/// Turns queries and keys. Layers share one, with the table that it made last.
#[derive(Debug)]
pub(crate) struct Rotary {
    rope: Rope,
    table: RefCell<Option<Rc<Table>>>,
}

/// Cosines and sines of the positions from 0 on, `[positions, 1, rotated / 2]` each.
#[derive(Debug)]
struct Table {
    positions: i64,
    cos: Tensor,
    sin: Tensor,
    /// The sines of the negative angles, which every turn needs too.
    minus_sin: Tensor,
}

impl Rotary {
    /// Turns by these frequencies.
    pub(crate) fn new(rope: Rope) -> Self {
        Self { rope, table: RefCell::new(None) }
    }

    /// The frequencies.
    pub(crate) fn rope(&self) -> &Rope {
        &self.rope
    }

    /// `x` `[B, T, H, D]` of the positions from 0 on, turned, in memory of its own.
    pub(crate) fn turn(&self, x: &Tensor) -> Result<Tensor> {
        let tokens = x.size()[1];
        let table = no_grad(|| self.table(tokens, x.kind(), x.device()))?;
        let part = |table: &Tensor| table.f_narrow(0, 0, tokens);
        let [cos, sin, minus_sin] = [part(&table.cos)?, part(&table.sin)?, part(&table.minus_sin)?];
        let result = no_grad(|| turned(x, &cos, [&sin, &minus_sin]))?;
        if x.requires_grad() {
            own_gradient(&[x], &result, move |grad| {
                // Back is the same by the negative angle.
                no_grad(|| Ok(vec![Some(turned(grad, &cos, [&minus_sin, &sin])?)]))
            })?;
        }
        Ok(result)
    }

    /// `x` `[B, 1, H, D]`, one token of each text, turned.
    pub(crate) fn turn_rows(&self, x: &Tensor, rows: &DecodeRows) -> Result<Tensor> {
        if !self.rope.depends_on_length() {
            let table = self.table(rows.longest(), x.kind(), x.device())?;
            let (cos, sin) = (&table.cos, &table.sin);
            if let Some(made) = turn(x, (cos, sin), rows.past())? {
                return Ok(made);
            }
            let [cos, sin, minus_sin] = [cos, sin, &table.minus_sin].map(|x| rows.of_table(x));
            return turned(x, &*cos?, [&*sin?, &*minus_sin?]);
        }
        let each = (0..).zip(rows.past()).map(|(row, &past)| {
            let table = self.table(past + 1, x.kind(), x.device())?;
            let of = |table: &Tensor| table.f_narrow(0, past, 1);
            let sines = [&of(&table.sin)?, &of(&table.minus_sin)?];
            turned(&x.f_narrow(0, row, 1)?, &of(&table.cos)?, sines)
        });
        Ok(Tensor::f_cat(&each.collect::<Result<Vec<_>>>()?, 0)?)
    }

    /// The table for rows of `work`, float32 or 16 bits as the model.
    pub(crate) fn angles(&self, work: &Workload) -> AngleTable {
        let positions = self.positions_for(work.tokens.cast_signed());
        let elements = (positions * self.rope.rotated() / 2 * 3).unsigned_abs();
        AngleTable { key: ptr::from_ref(self).addr(), bytes: elements * work.element_bytes }
    }

    /// The positions of a table for `positions` of them.
    fn positions_for(&self, positions: i64) -> i64 {
        match self.rope.depends_on_length() {
            true => positions,
            false => (positions.unsigned_abs().next_power_of_two() as i64).max(LEAST_POSITIONS),
        }
    }

    /// The table for `positions` positions, made anew where the last one does not serve.
    fn table(&self, positions: i64, kind: Kind, device: Device) -> Result<Rc<Table>> {
        let depends = self.rope.depends_on_length();
        let serves = |table: &&Rc<Table>| {
            let enough =
                if depends { table.positions == positions } else { table.positions >= positions };
            enough && table.cos.kind() == kind && table.cos.device() == device
        };
        if let Some(table) = self.table.borrow().as_ref().filter(serves) {
            return Ok(Rc::clone(table));
        }
        let count = self.positions_for(positions);
        let (inv_freq, factor) = self.rope.frequencies(positions);
        // float32 throughout, as transformers computes them.
        let inv_freq = Tensor::f_from_slice(&inv_freq)?.f_view([1, -1])?;
        let angles = Tensor::f_arange(count, (Kind::Float, Device::Cpu))?.f_view([-1, 1])?;
        let angles = angles.f_mul(&inv_freq)?.f_unsqueeze(1)?;
        let of = |values: Tensor| -> Result<Tensor> {
            let values = if factor == 1.0 { values } else { values.f_mul_scalar(factor)? };
            Ok(values.f_to_kind(kind)?.f_to_device(device)?)
        };
        let (cos, sin) = (of(angles.f_cos()?)?, of(angles.f_sin()?)?);
        let minus_sin = sin.f_neg()?;
        let table = Rc::new(Table { positions: count, cos, sin, minus_sin });
        *self.table.borrow_mut() = Some(Rc::clone(&table));
        Ok(table)
    }
}

/// `(a, b)` to `(a cos - b sin, b cos + a sin)` for the halves `a` and `b` of the elements that turn;
/// the rest stays.
fn turned(x: &Tensor, cos: &Tensor, [sin, minus_sin]: [&Tensor; 2]) -> Result<Tensor> {
    let size = x.size();
    let (head_dim, half) = (size[3], cos.size().last().copied().unwrap_or(0));
    let out = Tensor::f_empty(&size[..], (x.kind(), x.device()))?;
    let part = |x: &Tensor, from: i64, len: i64| x.f_narrow(3, from, len);
    let (a, b) = (part(x, 0, half)?, part(x, half, half)?);
    let (mut first, mut second) = (part(&out, 0, half)?, part(&out, half, half)?);
    let _ = a.f_mul_out(&first, cos)?;
    let _ = first.f_addcmul_(&b, minus_sin)?;
    let _ = b.f_mul_out(&second, cos)?;
    let _ = second.f_addcmul_(&a, sin)?;
    let rest = head_dim - 2 * half;
    if rest > 0 {
        part(&out, 2 * half, rest)?.f_copy_(&part(x, 2 * half, rest)?)?;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{bridge::autograd, rope::RopeContext};

    fn rotary() -> Rotary {
        let context = RopeContext {
            head_dim: 8,
            default_theta: 100.0,
            theta: None,
            partial_rotary_factor: Some(0.5),
            max_positions: 32,
            original_max_positions: None,
        };
        Rotary::new(Rope::read("rope_scaling", None, &context).unwrap())
    }

    #[test]
    fn a_gradient_turns_back_and_the_rest_of_a_head_stays() {
        let cpu = (Kind::Float, Device::Cpu);
        let x = Tensor::randn([2, 3, 2, 8], cpu).set_requires_grad(true);
        let rotary = rotary();
        let turned = rotary.turn(&x).unwrap();
        assert!(turned.narrow(3, 4, 4).equal(&x.narrow(3, 4, 4)));
        // A rotation there and back is none; lengths stay, so that the gradient of half
        // the square of the result is the input itself.
        let back = autograd::grad(&[(&turned, &turned.detach())], &[&x]).unwrap().remove(0);
        assert!(back.unwrap().allclose(&x, 1e-5, 1e-6, false));
        let rows = DecodeRows::new(vec![2, 1], Device::Cpu).unwrap();
        let one = |x: &Tensor| {
            Tensor::cat(&[x.narrow(0, 0, 1).narrow(1, 2, 1), x.narrow(0, 1, 1).narrow(1, 1, 1)], 0)
        };
        let later = rotary.turn_rows(&one(&x.detach()), &rows).unwrap();
        assert!(later.allclose(&one(&turned), 1e-6, 1e-7, false), "as in whole rows");
    }
}
