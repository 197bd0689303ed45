//! Models as directories of files: Hugging Face's `config.json` and safetensors.

mod export;
mod weights;

pub(super) use export::Companions;
pub use export::ExportedTokenizer;
pub(super) use weights::StoredWeights;
