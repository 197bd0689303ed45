//! Random numbers of a seed, which touch no generator that others draw from.

use std::ffi::c_int;

use tch::{Device, Tensor};

use super::{RawTensor, check, raw};
use crate::error::Result;

unsafe extern "C" {
    fn dsr_fill_normal(tensor: RawTensor, mean: f64, std: f64, seed: u64) -> c_int;
    fn dsr_fill_uniform(tensor: RawTensor, from: f64, to: f64, seed: u64) -> c_int;
}

/// Draws all elements of a tensor on the CPU from a normal distribution: the numbers that `normal_`
/// gives after `manual_seed(seed)`.
pub(crate) fn fill_normal(tensor: &Tensor, mean: f64, std: f64, seed: u64) -> Result<()> {
    debug_assert_eq!(tensor.device(), Device::Cpu);
    // SAFETY: the tensor lives during the call; libtorch refuses a type that has no such numbers.
    check(unsafe { dsr_fill_normal(raw(tensor), mean, std, seed) })
}

/// Draws all elements of a tensor on the CPU evenly from `[from, to)`: the numbers that `uniform_`
/// gives after `manual_seed(seed)`.
pub(crate) fn fill_uniform(tensor: &Tensor, from: f64, to: f64, seed: u64) -> Result<()> {
    debug_assert_eq!(tensor.device(), Device::Cpu);
    // SAFETY: as in fill_normal.
    check(unsafe { dsr_fill_uniform(raw(tensor), from, to, seed) })
}
