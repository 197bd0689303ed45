//! The global norm of the gradient, and clipping by it (Pascanu et al. 2013).

use crate::{
    bridge::lists,
    error::Result,
    tensor::{Device, Kind, Tensor},
};

/// Rows of the partial sums: a norm of this many values is exact enough in float32, and their
/// squares are summed in float64.
const ROW: i64 = 4096;

/// Elements that are float32 at once, where they are kept in 16 bits.
const CHUNK: i64 = 1024 * ROW;

/// PyTorch's `clip_grad_norm_` adds this to the norm.
const EPSILON: f64 = 1e-6;

/// The square of the Euclidean norm of all gradients together: float64, a scalar on `device`, where
/// they are or are brought.
pub fn squared_norm(grads: &[Tensor], device: Device) -> Result<Tensor> {
    if grads.iter().all(|grad| grad.numel() == 0) {
        return Ok(Tensor::f_zeros([0i64; 0], (Kind::Double, device))?);
    }
    let norms = norms(grads)?.f_to_device(device)?;
    Ok(norms.f_dot(&norms)?)
}

/// Norms whose squares together are the square of the gradients, float64.
pub fn norms(grads: &[Tensor]) -> Result<Tensor> {
    match grads[0].device() {
        Device::Cpu => row_norms(grads),
        // One kernel, whose sums are float64.
        _ => lists::norms(grads),
    }
}

/// How many numbers [`norms`] gives for a gradient of so many elements on `device`.
pub fn norm_count(numel: i64, device: Device) -> i64 {
    if device == Device::Cpu { (numel + ROW - 1) / ROW } else { 1 }
}

/// The norms of the rows of all gradients, float64.
fn row_norms(grads: &[Tensor]) -> Result<Tensor> {
    let mut norms = Vec::new();
    for grad in grads {
        let n = grad.numel() as i64;
        let chunk = if grad.kind() == Kind::Float { n.max(1) } else { CHUNK };
        for start in (0..n).step_by(chunk as usize) {
            let part = grad.f_narrow(0, start, chunk.min(n - start))?.f_to_kind(Kind::Float)?;
            let (n, whole) = (part.numel() as i64, part.numel() as i64 / ROW * ROW);
            for (start, len, row) in [(0, whole, ROW), (whole, n - whole, n - whole)] {
                if len > 0 {
                    let rows = part.f_narrow(0, start, len)?.f_view([-1, row])?;
                    norms.push(rows.f_norm_scalaropt_dim(2.0, [1i64].as_slice(), false)?);
                }
            }
        }
    }
    Ok(Tensor::f_cat(&norms, 0)?.f_to_kind(Kind::Double)?)
}

/// The divisor of a gradient of this norm that makes it at most `most` long:
/// `max(1, (norm + 1e-6) / most)`, the inverse of PyTorch's coefficient. Float64 scalars.
pub fn clip_divisor(norm: &Tensor, most: f64) -> Result<Tensor> {
    Ok(norm.f_add_scalar(EPSILON)?.f_div_scalar(most)?.f_clamp_min(1.0)?)
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
    fn many_tensors_have_the_norm_of_their_rows() {
        let cpu = (Kind::Float, Device::Cpu);
        let grads = [Tensor::randn([3 * ROW + 5], cpu), Tensor::randn([7], cpu)];
        let square = |norms: Tensor| norms.dot(&norms).double_value(&[]);
        let rows = square(row_norms(&grads).unwrap());
        assert!((square(lists::norms(&grads).unwrap()) / rows - 1.0).abs() < 2e-6);
    }

    #[test]
    fn clipping_shortens_and_never_lengthens() {
        let divisor = |norm| clip_divisor(&Tensor::from(norm), 1.0).unwrap().double_value(&[]);
        assert_eq!(divisor(0.5f64), 1.0);
        assert!((divisor(4.0) - 4.0).abs() < 2e-6);
        assert!(divisor(f64::NAN).is_nan());
    }
}
