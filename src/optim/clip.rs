//! The global norm of the gradient, and clipping by it (Pascanu et al. 2013).

use crate::tensor::{Kind, TchError, Tensor};

/// Rows of the partial sums: a norm of this many values is exact enough in float32, and their
/// squares are summed in float64.
const ROW: i64 = 4096;

/// PyTorch's `clip_grad_norm_` adds this to the norm.
const EPSILON: f64 = 1e-6;

/// The Euclidean norm of all gradients together.
///
/// # Errors
/// libtorch refuses.
pub fn norm(grads: &[Tensor]) -> Result<f64, TchError> {
    let Some(first) = grads.first() else { return Ok(0.0) };
    let mut sum = Tensor::f_zeros([0i64; 0], (Kind::Double, first.device()))?;
    for grad in grads {
        let n = grad.numel() as i64;
        let whole = n / ROW * ROW;
        for part in [
            grad.f_narrow(0, 0, whole)?.f_view([-1, ROW])?,
            grad.f_narrow(0, whole, n - whole)?.f_view([1, -1])?,
        ] {
            if part.numel() > 0 {
                let norms = part.f_norm_scalaropt_dim(2.0, [1i64].as_slice(), false)?;
                let norms = norms.f_to_kind(Kind::Double)?;
                sum = sum.f_add(&norms.f_dot(&norms)?)?;
            }
        }
    }
    Ok(sum.f_double_value(&[])?.sqrt())
}

/// What a gradient of this norm is multiplied by: `min(1, most / (norm + 1e-6))`.
pub fn clip_coefficient(norm: f64, most: Option<f64>) -> f64 {
    most.map_or(1.0, |most| (most / (norm + EPSILON)).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Device;

    #[test]
    fn the_norm_is_that_of_all_units_together() {
        let cpu = (Kind::Float, Device::Cpu);
        let grads = [Tensor::randn([3 * ROW + 5], cpu), Tensor::randn([7], cpu)];
        let all = Tensor::cat(&[&grads[0], &grads[1]], 0).to_kind(Kind::Double);
        let expected = all.dot(&all).double_value(&[]).sqrt();
        // Sums of 4096 squares in float32.
        assert!((norm(&grads).unwrap() / expected - 1.0).abs() < 1e-6);
        assert_eq!(norm(&[]).unwrap(), 0.0);
    }

    #[test]
    fn clipping_shortens_and_never_lengthens() {
        assert_eq!(clip_coefficient(0.5, Some(1.0)), 1.0);
        assert!((clip_coefficient(4.0, Some(1.0)) - 0.25).abs() < 1e-6);
        assert_eq!(clip_coefficient(4.0, None), 1.0);
    }
}
