//! Tensors made safe to use: libtorch's types under one name, and its panics turned into errors.
//!
//! Everyone above writes `crate::tensor::{Tensor, Kind, Device}`, so that the binding to libtorch is
//! named in one place.

mod errors;
mod guard;
mod memory;
mod rng;
pub mod safetensors;

pub use self::safetensors::SafetensorsFile;
pub use guard::guard;
pub use memory::{check_memory, total_memory};
pub use rng::{manual_seed, mix};
pub use tch::{Device, Kind, TchError, Tensor, no_grad};

/// The label that is no target, as in PyTorch and Hugging Face.
pub const IGNORE_INDEX: i64 = -100;

/// Whether libtorch sees a CUDA device that it can use.
pub fn cuda_is_available() -> bool {
    tch::Cuda::is_available()
}
