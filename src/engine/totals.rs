//! The sums of a step over all ranks, kept on the device, and their use by the optimizer there.
//!
//! Whether a step is made, and what its gradients are divided by, follows from the loss and the norm
//! of the gradient. The fused optimizers read both from the device, so that the host gives out the
//! whole step before it reads the same sums, once, and judges them.

use crate::{
    dist::{ProcessGroup, ReduceOp},
    error::{Code, Error, Result},
    optim::{Scaling, clip_divisor},
    tensor::{Device, Kind, Tensor, no_grad},
};

/// The sums of a step over all ranks.
pub(super) struct Totals {
    /// Losses, their weight, tokens that are no padding, squares of the gradient: float64 `[4]`.
    sums: Tensor,
    /// The gradient is that of the sum of the losses over this.
    loss_normalizer: f64,
}

/// [`Totals`] as numbers.
#[derive(Debug, Clone, Copy)]
pub(super) struct KnownTotals {
    /// The mean loss of the step; NaN without any target.
    pub(super) loss: f64,
    /// The weight of the losses.
    pub(super) weight: f64,
    /// Tokens that are no padding.
    pub(super) tokens: u64,
    /// The norm of the gradient of the mean loss.
    pub(super) grad_norm: f64,
}

impl Totals {
    /// Sums over the ranks what this one has, `[4]`: losses, weight, tokens, and the square of its
    /// part of the gradient. Every rank must call it.
    pub(super) fn over(group: &ProcessGroup, sums: Tensor, loss_normalizer: f64) -> Result<Self> {
        group.all_reduce(&sums, ReduceOp::Sum)?;
        Ok(Self { sums, loss_normalizer })
    }

    /// The scaling of gradients in the optimizer, on `device`: it divides them so that they are the
    /// gradients of the mean loss, at most `clipping` long, and skips the step where one of them or the
    /// loss is not finite, or where there is no target.
    pub(super) fn scaling(&self, clipping: Option<f64>, device: Device) -> Result<Scaling> {
        no_grad(|| {
            let weight = self.sums.f_select(0, 1)?;
            let mut grad_scale = weight.f_div_scalar(self.loss_normalizer)?;
            if let Some(most) = clipping {
                let norm = self.sums.f_select(0, 3)?.f_sqrt()?.f_div(&grad_scale)?;
                grad_scale = grad_scale.f_mul(&clip_divisor(&norm, most)?)?;
            }
            // 0 times what is finite is 0, and NaN otherwise. Without a target the means are NaN.
            let means = self.sums.f_div(&weight)?;
            let found_inf = means.f_mul_scalar(0.0)?.f_sum(Kind::Double)?.f_ne(0.0)?;
            let float = |x: Tensor| x.f_to_device_(device, Kind::Float, false, false);
            Ok(Scaling { grad_scale: float(grad_scale)?, found_inf: Some(float(found_inf)?) })
        })
    }

    /// The numbers, for which the device is waited for.
    pub(super) fn read(&self) -> Result<KnownTotals> {
        let &[losses, weight, tokens, square] = Vec::<f64>::try_from(&self.sums)?.as_slice() else {
            return Err(Error::new(Code::Internal, "a step has four sums"));
        };
        Ok(KnownTotals {
            loss: losses / weight,
            weight,
            tokens: tokens as u64,
            grad_norm: square.sqrt() * (self.loss_normalizer / weight),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(sums: [f64; 3], square: f64) -> Totals {
        let group = ProcessGroup::single(Device::Cpu).unwrap();
        let sums = Tensor::from_slice(&[sums[0], sums[1], sums[2], square]);
        Totals::over(&group, sums, 8.0).unwrap()
    }

    /// `grad_scale` and `found_inf`.
    fn scaling(totals: &Totals, clipping: Option<f64>) -> (f64, f64) {
        let Scaling { grad_scale, found_inf } = totals.scaling(clipping, Device::Cpu).unwrap();
        (grad_scale.double_value(&[]), found_inf.unwrap().double_value(&[]))
    }

    #[test]
    fn the_device_divides_by_what_the_numbers_say() {
        let totals = totals([12.0, 4.0, 5.0], 9.0);
        let KnownTotals { loss, weight, tokens, grad_norm } = totals.read().unwrap();
        assert_eq!((loss, weight, tokens, grad_norm), (3.0, 4.0, 5, 6.0));
        assert_eq!(scaling(&totals, None), (0.5, 0.0));
        // A norm of 6 that is to be 2; float32 and PyTorch's 1e-6, hence 1e-6.
        assert!((scaling(&totals, Some(2.0)).0 - 1.5).abs() < 1e-6);
        assert_eq!(scaling(&totals, Some(7.0)), (0.5, 0.0));
    }

    #[test]
    fn nothing_is_done_where_something_is_not_finite_or_nothing_counts() {
        let bad = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
        for totals in bad
            .map(|loss| totals([loss, 4.0, 5.0], 1.0))
            .into_iter()
            .chain(bad.map(|square| totals([1.0, 4.0, 5.0], square)))
            .chain([totals([0.0, 0.0, 5.0], 0.0)])
        {
            assert_eq!(scaling(&totals, Some(1.0)).1, 1.0, "{:?}", totals.read());
        }
    }
}
