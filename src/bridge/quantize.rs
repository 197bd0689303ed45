//! Kernels of the CPU for quantized weights.

use std::ffi::c_int;

use tch::{Device, Kind, Tensor};

use super::{RawTensor, check, raw};
use crate::error::{Code, Result};

unsafe extern "C" {
    fn dsr_nf4_decode(
        codes: RawTensor,
        scales: RawTensor,
        values: *const f32,
        out: RawTensor,
        outputs: i64,
        inputs: i64,
        by_inputs: bool,
    ) -> c_int;
    fn dsr_int8_decode(
        codes: RawTensor,
        steps: RawTensor,
        out: RawTensor,
        outputs: i64,
        inputs: i64,
        by_inputs: bool,
    ) -> c_int;
    fn dsr_nf4_encode(
        values: RawTensor,
        bounds: *const f32,
        codes: RawTensor,
        scales: RawTensor,
    ) -> c_int;
    fn dsr_int8_encode(values: RawTensor, codes: RawTensor, scales: RawTensor) -> c_int;
}

/// How a matrix `[outputs, inputs]` lies in the host's memory.
struct Layout {
    outputs: i64,
    inputs: i64,
    /// Whether an input's weights are side by side.
    by_inputs: bool,
}

impl Layout {
    /// Of a matrix without gaps; `None` for any other.
    fn of(out: &Tensor) -> Option<Self> {
        let &[outputs, inputs] = &out.size()[..] else { return None };
        let by_inputs = !out.is_contiguous();
        let is_dense = !by_inputs || out.stride() == [1, outputs];
        (out.device() == Device::Cpu && is_dense).then_some(Self { outputs, inputs, by_inputs })
    }
}

fn fits(tensor: &Tensor, kind: Kind, count: usize) -> bool {
    tensor.kind() == kind
        && tensor.numel() == count
        && tensor.device() == Device::Cpu
        && tensor.is_contiguous()
}

/// Writes the values of NF4 codes into the matrix `out` `[outputs, inputs]`: two codes a byte, the first
/// in its high bits, a float32 scale for each 64 of them, and `values` for the 16 codes. Returns whether
/// it did: there is a kernel for matrices without gaps in the host's memory.
pub(crate) fn nf4_decode(
    codes: &Tensor,
    scales: &Tensor,
    values: &[f32; 16],
    out: &Tensor,
) -> Result<bool> {
    let Some(Layout { outputs, inputs, by_inputs }) = Layout::of(out) else { return Ok(false) };
    if by_inputs && inputs % 64 != 0 {
        return Ok(false);
    }
    let numel = out.numel();
    if !fits(codes, Kind::Uint8, numel.div_ceil(2))
        || !fits(scales, Kind::Float, numel.div_ceil(64))
    {
        bail!(Code::Internal, "{} codes, {} scales of {numel}", codes.numel(), scales.numel());
    }
    // SAFETY: every pointer is to a live tensor or to 16 numbers; the tensors are of the host, have the
    // formats and the sizes that the kernel counts on, and `out` lies as it is told.
    check(unsafe {
        let (codes, scales, out) = (raw(codes), raw(scales), raw(out));
        dsr_nf4_decode(codes, scales, values.as_ptr(), out, outputs, inputs, by_inputs)
    })?;
    Ok(true)
}

/// The same of int8 codes `[outputs, inputs]` with a float32 step for each output.
pub(crate) fn int8_decode(codes: &Tensor, steps: &Tensor, out: &Tensor) -> Result<bool> {
    let Some(Layout { outputs, inputs, by_inputs }) = Layout::of(out) else { return Ok(false) };
    if !fits(codes, Kind::Int8, out.numel()) || !fits(steps, Kind::Float, outputs as usize) {
        bail!(Code::Internal, "{} codes, {} steps", codes.numel(), steps.numel());
    }
    // SAFETY: as above.
    check(unsafe {
        dsr_int8_decode(raw(codes), raw(steps), raw(out), outputs, inputs, by_inputs)
    })?;
    Ok(true)
}

/// Whether values are quantized by a kernel: float32 ones without gaps in the host's memory.
fn is_ours(values: &Tensor) -> bool {
    fits(values, Kind::Float, values.numel())
}

/// Codes and scales of a matrix.
pub(crate) type Encoded = (Tensor, Tensor);

/// The NF4 codes of values in their order in memory, two a byte, and a float32 scale for each 64 of them;
/// `bounds` are the numbers between the codes. `None` where libtorch's operations are to be taken, which
/// give the same.
pub(crate) fn nf4_encode(values: &Tensor, bounds: &[f32; 15]) -> Result<Option<Encoded>> {
    if !is_ours(values) {
        return Ok(None);
    }
    let numel = values.numel();
    let empty = |count: usize, kind| Tensor::f_empty([count as i64], (kind, Device::Cpu));
    let codes = empty(numel.div_ceil(2), Kind::Uint8)?;
    let scales = empty(numel.div_ceil(64), Kind::Float)?;
    // SAFETY: every pointer is to a live tensor or to 15 numbers; the tensors are of the host, are
    // contiguous, and have the formats and the sizes that the kernel counts on.
    check(unsafe { dsr_nf4_encode(raw(values), bounds.as_ptr(), raw(&codes), raw(&scales)) })?;
    Ok(Some((codes, scales)))
}

/// The int8 codes of a matrix `[outputs, inputs]`, and a float32 scale for each output; `None` as above.
pub(crate) fn int8_encode(values: &Tensor) -> Result<Option<Encoded>> {
    let (&[outputs, inputs], true) = (&values.size()[..], is_ours(values)) else {
        return Ok(None);
    };
    let codes = Tensor::f_empty([outputs, inputs], (Kind::Int8, Device::Cpu))?;
    let scales = Tensor::f_empty([outputs], (Kind::Float, Device::Cpu))?;
    // SAFETY: as above.
    check(unsafe { dsr_int8_encode(raw(values), raw(&codes), raw(&scales)) })?;
    Ok(Some((codes, scales)))
}
