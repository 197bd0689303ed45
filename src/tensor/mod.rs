//! Tensors made safe to use: libtorch's types under one name, and its panics turned into errors.
//!
//! Everyone above writes `crate::tensor::{Tensor, Kind, Device}`, so that the binding to libtorch is
//! named in one place.

mod device;
mod errors;
mod flat_storage;
mod gpu;
mod guard;
mod memory;
mod names;
mod numerics;
mod rates;
mod rng;
pub mod safetensors;
mod transfer;

pub use self::safetensors::SafetensorsFile;
pub use device::{DeviceChoice, LocalRank, driver_version, make_current, why_no_gpu};
pub use flat_storage::{ALIGNMENT, BLOCKS_FROM, FlatStorage, alignment};
pub use gpu::{Gpu, has_bf16};
pub use guard::guard;
pub use memory::{
    AllocatorUse, allocator_use, available_bytes, check_memory, free_memory, held_by_rust,
    total_memory,
};
pub use names::{DTYPES, describe_place, device_name, dtype, dtype_name};
pub use numerics::{check_numerics, compute_with};
pub use rates::{copy_rate, product_rate};
pub use rng::{fill_normal, fill_uniform, manual_seed, mix, seed_of};
pub use tch::{
    Device, Kind, Reduction, Scalar, TchError, Tensor, no_grad, no_grad_guard, with_grad,
};
pub use transfer::{
    Copying, STAGE_BYTES, moved, place_on_host, settled, start_copy, start_move, to_device,
    write_over,
};

use crate::config::Dtype;

/// The label that is no target, as in PyTorch and Hugging Face.
pub const IGNORE_INDEX: i64 = -100;

impl From<Dtype> for Kind {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::Fp32 => Self::Float,
            Dtype::Bf16 => Self::BFloat16,
            Dtype::Fp16 => Self::Half,
        }
    }
}

/// Whether values of the format `kind` have a fraction.
pub fn is_floating(kind: Kind) -> bool {
    matches!(kind, Kind::Half | Kind::BFloat16 | Kind::Float | Kind::Double)
}

/// Bytes of `numel` elements in the format `kind`.
pub fn bytes_of(kind: Kind, numel: i64) -> u64 {
    numel.unsigned_abs() * kind.elt_size_in_bytes() as u64
}

/// Waits until `device` has done all that it was given; the CPU always has.
///
/// Panics where libtorch reports what went wrong there, to be called under [`guard()`].
pub fn synchronize(device: Device) {
    if let Device::Cuda(index) = device {
        tch::Cuda::synchronize(index as i64);
    }
}

/// Whether libtorch sees a CUDA device that it can use.
pub fn cuda_is_available() -> bool {
    tch::Cuda::is_available()
}

/// How many threads libtorch computes with on the CPU.
pub fn num_threads() -> usize {
    usize::try_from(tch::get_num_threads()).unwrap_or(1)
}

/// How many CUDA devices libtorch sees.
pub fn cuda_device_count() -> usize {
    usize::try_from(tch::Cuda::device_count()).unwrap_or(0)
}
