//! Codes by block, which NF4, quantized scales and averages share: values are divided by the largest magnitude of
//! their block, its scale, and each quotient becomes the number of the nearest value of a table.

use crate::{
    error::Result,
    tensor::{Device, Kind, Tensor},
};

/// Blocks of so many values.
pub(super) fn count(numel: i64, block: i64) -> i64 {
    (numel + block - 1) / block
}

/// Where one code of ascending `values` ends and the next begins.
pub(super) fn bounds(values: &[f32], device: Device) -> Result<Tensor> {
    let bounds: Vec<f32> = values.windows(2).map(|pair| (pair[0] + pair[1]) / 2.0).collect();
    Ok(Tensor::f_from_slice(&bounds)?.f_to_device(device)?)
}

/// Flat `values`, filled up to whole blocks, over the scales of these, so that they are from -1 to 1:
/// `[blocks, block]`, and the scales `[blocks, 1]`.
pub(super) fn to_unit(values: &Tensor, block: i64) -> Result<(Tensor, Tensor)> {
    let blocks = filled(values, block)?;
    let scales = blocks.f_abs()?.f_amax([1i64], true)?;
    let inverse = scales.f_clamp_min(1e-38)?.f_reciprocal()?;
    Ok((blocks.f_mul(&inverse)?.f_clamp_(-1.0, 1.0)?, scales))
}

/// The codes of flat `values`, filled up to whole blocks, and the scale of each block: `[blocks, 1]`.
pub(super) fn encode(values: &Tensor, block: i64, bounds: &Tensor) -> Result<(Tensor, Tensor)> {
    let (scaled, scales) = to_unit(values, block)?;
    let codes = scaled.f_bucketize(bounds, true, false)?.f_to_kind(Kind::Uint8)?;
    Ok((codes.f_view([-1i64])?, scales))
}

/// The first `numel` of flat `values`, a tensor of our own, times the scales of their blocks.
pub(super) fn scaled(values: &Tensor, scales: &Tensor, block: i64, numel: i64) -> Result<Tensor> {
    let mut blocks = filled(values, block)?;
    let _ = blocks.f_mul_(&scales.f_view([-1i64, 1])?)?;
    Ok(blocks.f_view([-1i64])?.f_narrow(0, 0, numel)?)
}

fn filled(values: &Tensor, block: i64) -> Result<Tensor> {
    let numel = values.numel() as i64;
    let whole = match count(numel, block) * block - numel {
        0 => values.shallow_clone(),
        padding => values.f_constant_pad_nd([0, padding])?,
    };
    Ok(whole.f_view([-1, block])?)
}
