//! Models as directories of files: Hugging Face's `config.json` and safetensors.

mod export;
mod repeated_rows;
mod weight_files;
mod weights;

pub(super) use repeated_rows::RepeatedRows;
pub(super) use weights::StoredWeights;
