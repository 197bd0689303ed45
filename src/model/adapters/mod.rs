//! Adapters: small trained parameters beside those of a frozen model.
//!
//! Names, defaults, arithmetic and files are those of peft. The linear layer of a target adds the
//! product of two narrow matrices (LoRA, Hu et al. 2021), scaled by magnitudes with DoRA (Liu et al.
//! 2024); a module to save is used in a trained copy. An adapter's parameters are units of their own,
//! so that all that goes over trained units, goes over the adapter.

mod attach;
mod attached;
mod config;
mod files;
mod merge;
mod origin_record;
mod targets;
mod values;

pub(super) use self::attached::{Attached, Lora, Part};
pub use self::{
    config::Adapter,
    files::{ADAPTER_CONFIG, ADAPTER_WEIGHTS, TRAINED_WEIGHTS},
};

use crate::error::{Code, Error};

/// The start of the names of an adapter's parameters, in its files too.
const PREFIX: &str = "base_model.model.";

/// Whether a parameter of this name is an adapter's.
pub fn is_of_adapter(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// The error of a model without an adapter.
fn no_adapter() -> Error {
    Error::new(Code::CallOrder, "the model has no adapter")
        .hint("give it one with `model.lora(#{ ... })` or `model.load_adapter(dir)`")
}
