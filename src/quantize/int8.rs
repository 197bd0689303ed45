//! Int8: each output has a scale, its largest magnitude, and its weights are whole 127ths of it (the
//! vector-wise quantization of LLM.int8(), Dettmers et al. 2022; inputs are not quantized).

use super::rows::parts;
use crate::{
    bridge::quantize::{int8_decode, int8_encode},
    error::Result,
    tensor::{Kind, Tensor},
};

/// The largest code.
const MOST: f64 = 127.0;

/// The codes of a float32 matrix `[outputs, inputs]`, and the scale of each output.
pub(super) fn encode(matrix: &Tensor) -> Result<(Tensor, Tensor)> {
    match int8_encode(matrix)? {
        Some((codes, scales)) => Ok((codes.f_view_dtype(Kind::Uint8)?, scales)),
        None => encode_by_operations(matrix),
    }
}

fn encode_by_operations(matrix: &Tensor) -> Result<(Tensor, Tensor)> {
    let scales = matrix.f_abs()?.f_amax([1i64], true)?;
    let inverse = scales.f_clamp_min(1e-38)?.f_reciprocal()?.f_mul_scalar(MOST)?;
    let codes = matrix.f_mul(&inverse)?.f_round()?.f_clamp(-MOST, MOST)?;
    let codes = codes.f_to_kind(Kind::Int8)?.f_view_dtype(Kind::Uint8)?;
    Ok((codes, scales.f_view([-1i64])?))
}

/// The factor of the codes of each output.
pub(super) fn steps(scales: &Tensor) -> Result<Tensor> {
    Ok(scales.f_mul_scalar(1.0 / MOST)?)
}

/// Writes the values of `codes` into `out` `[outputs, inputs]`.
pub(super) fn decode(codes: &Tensor, scales: &Tensor, out: &Tensor) -> Result<()> {
    let steps = steps(scales)?;
    if int8_decode(codes, &steps, out)? {
        return Ok(());
    }
    let (codes, steps) = (codes.f_view(&out.size()[..])?, steps.f_unsqueeze(1)?);
    for (first, rows) in parts(out) {
        let part = |x: &Tensor| x.f_narrow(0, first, rows);
        let _ = part(&codes)?.f_mul_out(&part(out)?, &part(&steps)?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Device, manual_seed};

    /// Halves too, which go to the even neighbour, and a row of zeros.
    #[test]
    fn the_kernel_and_the_operations_give_the_same_codes() {
        manual_seed(4);
        for shape in [[300, 70], [5, 1000], [3, 1]] {
            let matrix = Tensor::randn(shape, (Kind::Float, Device::Cpu));
            let _ = matrix.select(0, 1).zero_();
            let halves = Tensor::arange(shape[1], (Kind::Float, Device::Cpu)).remainder(64.0) + 0.5;
            matrix.select(0, 2).copy_(&halves);
            let _ = matrix.select(0, 2).narrow(0, 0, 1).fill_(127.0);
            let (codes, scales) = encode(&matrix).unwrap();
            let (expected, expected_scales) = encode_by_operations(&matrix).unwrap();
            assert!(codes.equal(&expected) && scales.equal(&expected_scales), "{shape:?}");
        }
    }

    #[test]
    fn a_weight_is_a_whole_127th_of_the_largest_of_its_output() {
        let matrix = Tensor::from_slice2(&[[2.0f32, -1.0, 0.01], [0.0, 0.0, 0.0]]);
        let (codes, scales) = encode(&matrix).unwrap();
        let codes = codes.view_dtype(Kind::Int8);
        assert_eq!(Vec::<i8>::try_from(codes.view([-1])).unwrap(), [127, -64, 1, 0, 0, 0]);
        assert_eq!(Vec::<f32>::try_from(&scales).unwrap(), [2.0, 0.0]);
        let out = Tensor::zeros([2, 3], (Kind::Float, Device::Cpu));
        decode(&codes, &scales, &out).unwrap();
        let step = 2.0 * (1.0 / 127.0f32);
        let expected = [127.0 * step, -64.0 * step, step, 0.0, 0.0, 0.0];
        assert_eq!(Vec::<f32>::try_from(out.view([-1])).unwrap(), expected);
        for kind in [Kind::Float, Kind::BFloat16] {
            let zeros = |shape: [i64; 2]| Tensor::zeros(shape, (kind, Device::Cpu));
            // In the other order, and with gaps, so that operations do it.
            for by in [zeros([3, 2]).transpose(0, 1), zeros([2, 6]).slice(1, 0, 6, 2)] {
                decode(&codes, &scales, &by).unwrap();
                assert!(by.equal(&out.to_kind(kind)), "{kind:?}");
            }
        }
    }
}
