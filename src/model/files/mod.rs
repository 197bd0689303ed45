//! Models as directories of files: Hugging Face's `config.json` and safetensors.

mod companions;
mod export;
mod weights;

pub(super) use companions::Companions;
pub use companions::ExportedTokenizer;
pub(super) use weights::StoredWeights;
