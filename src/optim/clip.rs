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

/// The square of the Euclidean norm of all gradients together: float64, a scalar on `device`.
pub fn squared_norm(grads: &[Tensor], device: Device) -> Result<Tensor> {
    Ok(squares(grads, device)?.f_sum(Kind::Double)?)
}

/// The squares of the Euclidean norms of gradients, which may be on several devices: float64,
/// `[gradients]`, on `device`.
pub fn squares(grads: &[Tensor], device: Device) -> Result<Tensor> {
    let neighbours = grads.chunk_by(|a, b| a.device() == b.device());
    let of_device = |grads: &[Tensor]| -> Result<Tensor> {
        let squares = match grads[0].device() {
            Device::Cpu => squares_on_cpu(grads)?,
            // One kernel, whose sums are float64.
            _ => lists::norms(grads)?.f_square()?,
        };
        Ok(squares.f_to_device(device)?)
    };
    let squares = neighbours.map(of_device).collect::<Result<Vec<_>>>()?;
    match &squares[..] {
        [] => Ok(Tensor::f_zeros([0], (Kind::Double, device))?),
        [one] => Ok(one.shallow_clone()),
        several => Ok(Tensor::f_cat(several, 0)?),
    }
}

/// The squares of the norms of gradients on the CPU, from the norms of their rows: float64.
fn squares_on_cpu(grads: &[Tensor]) -> Result<Tensor> {
    let (mut norms, mut ends) = (Vec::new(), Vec::new());
    for grad in grads {
        row_norms(grad, &mut norms)?;
        ends.push(norms.iter().map(|norms| norms.numel() as i64).sum());
    }
    if norms.is_empty() {
        return Ok(Tensor::f_zeros([grads.len() as i64], (Kind::Double, Device::Cpu))?);
    }
    let norms = Tensor::f_cat(&norms, 0)?.f_to_kind(Kind::Double)?;
    let starts = std::iter::once(0).chain(ends.iter().copied());
    let square = |(start, end): (i64, &i64)| -> Result<Tensor> {
        let norms = norms.f_narrow(0, start, end - start)?;
        Ok(norms.f_dot(&norms)?)
    };
    let squares = starts.zip(&ends).map(square).collect::<Result<Vec<_>>>()?;
    Ok(Tensor::f_stack(&squares, 0)?)
}

/// Adds the norms of the rows of a gradient to `norms`, float32.
fn row_norms(grad: &Tensor, norms: &mut Vec<Tensor>) -> Result<()> {
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
    Ok(())
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
        let of_each = squares(&[Tensor::zeros([0], cpu), Tensor::ones([4], cpu)], Device::Cpu);
        assert_eq!(Vec::<f64>::try_from(of_each.unwrap()).unwrap(), [0.0, 4.0]);
    }

    #[test]
    fn many_tensors_have_the_norm_of_their_rows() {
        let cpu = (Kind::Float, Device::Cpu);
        let grads = [Tensor::randn([3 * ROW + 5], cpu), Tensor::randn([7], cpu)];
        let rows = squares(&grads, Device::Cpu).unwrap();
        let off = lists::norms(&grads).unwrap().square() / rows - 1.0;
        assert!(off.abs().max().double_value(&[]) < 2e-6);
    }

    #[test]
    fn clipping_shortens_and_never_lengthens() {
        let divisor = |norm| clip_divisor(&Tensor::from(norm), 1.0).unwrap().double_value(&[]);
        assert_eq!(divisor(0.5f64), 1.0);
        assert!((divisor(4.0) - 4.0).abs() < 2e-6);
        assert!(divisor(f64::NAN).is_nan());
    }
}
