//! The global norm of the gradient, and clipping by it (Pascanu et al. 2013).

use crate::tensor::{Device, Kind, TchError, Tensor};

/// Rows of the partial sums: a norm of this many values is exact enough in float32, and their
/// squares are summed in float64.
const ROW: i64 = 4096;

/// Elements that are float32 at once, where they are kept in 16 bits.
const CHUNK: i64 = 1024 * ROW;

/// PyTorch's `clip_grad_norm_` adds this to the norm.
const EPSILON: f64 = 1e-6;

/// The square of the Euclidean norm of all gradients together: float64, a scalar on `device`.
///
/// # Errors
/// libtorch refuses.
pub fn squared_norm(grads: &[Tensor], device: Device) -> Result<Tensor, TchError> {
    let mut sum = Tensor::f_zeros([0i64; 0], (Kind::Double, device))?;
    for grad in grads {
        let n = grad.numel() as i64;
        for start in (0..n).step_by(CHUNK as usize) {
            let part = grad.f_narrow(0, start, CHUNK.min(n - start))?.f_to_kind(Kind::Float)?;
            let whole = part.numel() as i64 / ROW * ROW;
            for rows in [
                part.f_narrow(0, 0, whole)?.f_view([-1, ROW])?,
                part.f_narrow(0, whole, part.numel() as i64 - whole)?.f_view([1, -1])?,
            ] {
                if rows.numel() > 0 {
                    let norms = rows.f_norm_scalaropt_dim(2.0, [1i64].as_slice(), false)?;
                    let norms = norms.f_to_kind(Kind::Double)?;
                    sum = sum.f_add(&norms.f_dot(&norms)?)?;
                }
            }
        }
    }
    Ok(sum)
}

/// What a gradient of this norm is multiplied by: `min(1, most / (norm + 1e-6))`.
pub fn clip_coefficient(norm: f64, most: Option<f64>) -> f64 {
    most.map_or(1.0, |most| (most / (norm + EPSILON)).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_norm_is_that_of_all_units_together() {
        let cpu = (Kind::Float, Device::Cpu);
        let grads = [Tensor::randn([3 * ROW + 5], cpu), Tensor::randn([7], cpu)];
        let all = Tensor::cat(&[&grads[0], &grads[1]], 0).to_kind(Kind::Double);
        let expected = all.dot(&all).double_value(&[]);
        let square = |grads| squared_norm(grads, Device::Cpu).unwrap().double_value(&[]);
        // Sums of 4096 squares in float32.
        assert!((square(&grads) / expected - 1.0).abs() < 2e-6);
        assert_eq!(square(&[]), 0.0);
    }

    #[test]
    fn clipping_shortens_and_never_lengthens() {
        assert_eq!(clip_coefficient(0.5, Some(1.0)), 1.0);
        assert!((clip_coefficient(4.0, Some(1.0)) - 0.25).abs() < 1e-6);
        assert_eq!(clip_coefficient(4.0, None), 1.0);
    }
}
