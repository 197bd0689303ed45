//! The step of Adam on the CPU over averages in 8 bits: weights, averages and codes in one pass.

use std::{ffi::c_int, ptr::null_mut};

use tch::{Device, Kind, Tensor};

use super::{RawTensor, check, fused::AdamHyperparameters, raw};
use crate::error::{Code, Result};

/// Averages that share a scale.
const BLOCK: usize = 256;

// The structs of native/blockwise.h.

#[repr(C)]
struct RawAverage {
    codes: RawTensor,
    scales: RawTensor,
}

#[repr(C)]
struct RawTable {
    values: RawTensor,
    cells: RawTensor,
    zero: i32,
    is_signed: bool,
}

#[repr(C)]
struct RawAdam {
    decoupled: bool,
    step: f64,
    lr: f64,
    beta1: f64,
    beta2: f64,
    weight_decay: f64,
    eps: f64,
}

unsafe extern "C" {
    fn dsr_blockwise_adam(
        param: RawTensor,
        grad: RawTensor,
        averages: *const RawAverage,
        tables: *const RawTable,
        adam: *const RawAdam,
        grad_scale: RawTensor,
        place: u32,
        seed: u32,
    ) -> c_int;
}

/// A data type of 256 codes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CodeTable<'a> {
    /// The float32 value of each code: `[256]`.
    pub(crate) values: &'a Tensor,
    /// The codes of float32 numbers by their upper bits, as `quantize/moments.rs` has them: int32,
    /// `[65536]`.
    pub(crate) cells: &'a Tensor,
    /// The code of 0.
    pub(crate) zero: u8,
    pub(crate) is_signed: bool,
}

/// A slice that is updated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockwiseSlice<'a> {
    /// float32, or bfloat16 that is rounded randomly.
    pub(crate) param: &'a Tensor,
    pub(crate) grad: &'a Tensor,
    /// The codes of both averages, and the scales of their blocks.
    pub(crate) averages: [(&'a Tensor, &'a Tensor); 2],
    /// Of the random bits, with the place of the first element in its unit.
    pub(crate) seed: u32,
    pub(crate) place: i64,
}

/// One step of Adam or AdamW, number `step`, to the bit that of libtorch's fused kernel between averages
/// that are decoded and encoded by libtorch's operations. `grad_scale` is as in [`super::fused::Scaling`].
pub(crate) fn blockwise_adam(
    slice: BlockwiseSlice<'_>,
    tables: [CodeTable<'_>; 2],
    (step, hyper): (f64, AdamHyperparameters),
    grad_scale: Option<&Tensor>,
) -> Result<()> {
    let numel = slice.param.numel();
    if !slice_fits(&slice) || !tables.iter().all(table_fits) {
        bail!(Code::Internal, "a step of {numel} weights and averages in 8 bits");
    }
    let averages =
        slice.averages.map(|(codes, scales)| RawAverage { codes: raw(codes), scales: raw(scales) });
    let tables = tables.map(|table| RawTable {
        values: raw(table.values),
        cells: raw(table.cells),
        zero: i32::from(table.zero),
        is_signed: table.is_signed,
    });
    let adam = RawAdam {
        decoupled: hyper.decoupled,
        step,
        lr: hyper.lr,
        beta1: hyper.betas.0,
        beta2: hyper.betas.1,
        weight_decay: hyper.weight_decay,
        eps: hyper.eps,
    };
    // SAFETY: every pointer is to a live tensor, to a struct or to two of them, and grad_scale may be
    // null; the tensors are of the host, are contiguous, and have the formats and the sizes that the
    // kernel counts on.
    check(unsafe {
        dsr_blockwise_adam(
            raw(slice.param),
            raw(slice.grad),
            averages.as_ptr(),
            tables.as_ptr(),
            &raw const adam,
            grad_scale.map_or(null_mut(), raw),
            slice.place as u32,
            slice.seed,
        )
    })
}

fn is(tensor: &Tensor, kinds: &[Kind], numel: usize) -> bool {
    kinds.contains(&tensor.kind())
        && tensor.numel() == numel
        && tensor.device() == Device::Cpu
        && tensor.is_contiguous()
}

fn slice_fits(slice: &BlockwiseSlice<'_>) -> bool {
    let numel = slice.param.numel();
    is(slice.param, &[Kind::Float, Kind::BFloat16], numel)
        && is(slice.grad, &[Kind::Float, Kind::BFloat16, Kind::Half], numel)
        && slice.averages.iter().all(|(codes, scales)| {
            is(codes, &[Kind::Uint8], numel) && is(scales, &[Kind::Float], numel.div_ceil(BLOCK))
        })
}

fn table_fits(table: &CodeTable<'_>) -> bool {
    is(table.values, &[Kind::Float], 256) && is(table.cells, &[Kind::Int], 1 << 16)
}
