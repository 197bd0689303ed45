//! Models as directories of files: Hugging Face's `config.json` and safetensors.

mod companions;
mod export;
mod repeated_rows;
mod weights;

pub(super) use companions::Companions;
pub use companions::ExportedTokenizer;
pub(super) use repeated_rows::RepeatedRows;
pub(super) use weights::StoredWeights;
