//! Files of tensors in Hugging Face's safetensors format: a JSON header and raw bytes, never code.
//!
//! A tensor's bytes are read a part at a time into the parameter, converted on the way. Writing streams one tensor after another, so that a model on a
//! device never has a second copy in host memory. A header is checked against the size of the file
//! before anything is looked up in it.
//!
//! The format: <https://github.com/huggingface/safetensors#format>.

mod read;
mod write;

use safetensors::tensor::Dtype;

use super::Kind;

pub use self::{
    read::SafetensorsFile,
    write::{TensorEntry, write},
};
#[cfg(test)]
pub use write::write_tensors;

/// Bytes of the number at the start of a file that says how long the header is; also what the data
/// is aligned to.
const LENGTH_BYTES: usize = 8;

// The format is little-endian, and so are the tensors in memory.
const _: () = assert!(cfg!(target_endian = "little"), "tensors are written as they lie in memory");

/// The dtypes of both libtorch and the format. No booleans: a byte of a file may be 2.
const KINDS: [(Kind, Dtype); 9] = [
    (Kind::Float, Dtype::F32),
    (Kind::Half, Dtype::F16),
    (Kind::BFloat16, Dtype::BF16),
    (Kind::Double, Dtype::F64),
    (Kind::Int64, Dtype::I64),
    (Kind::Int, Dtype::I32),
    (Kind::Int16, Dtype::I16),
    (Kind::Int8, Dtype::I8),
    (Kind::Uint8, Dtype::U8),
];
