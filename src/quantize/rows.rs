//! Matrices in parts, for libtorch's operations, which need memory beside what they write.

use crate::{
    config::QuantizedFormat,
    tensor::{Device, Tensor},
};

/// Values that are dequantized at once.
const AT_ONCE: i64 = 1 << 24;

/// The rows of a matrix `[outputs, inputs]` in parts, as the first and how many: each part begins at a
/// multiple of 64 rows, and has at most [`AT_ONCE`] values or 64 rows.
pub(super) fn parts(matrix: &Tensor) -> impl Iterator<Item = (i64, i64)> + use<> {
    let size = matrix.size();
    let (outputs, inputs) = (size[0], size[1].max(1));
    let rows = (AT_ONCE / inputs / 64).max(1) * 64;
    (0..outputs).step_by(rows as usize).map(move |first| (first, rows.min(outputs - first)))
}

/// Bytes that dequantizing a matrix of so many values takes on a device for a moment, beside what it
/// writes.
pub fn passing_bytes(format: QuantizedFormat, numel: i64, device: Device) -> u64 {
    // The host has kernels that need none; libtorch has float32 values of NF4, and a number of four bytes for
    // each four codes.
    let each = match format {
        QuantizedFormat::Nf4 { .. } if device != Device::Cpu => 5,
        QuantizedFormat::Nf4 { .. } | QuantizedFormat::Int8 => 0,
    };
    each * numel.min(AT_ONCE) as u64
}
