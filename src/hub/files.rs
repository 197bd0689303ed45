//! The files of a model repository that are fetched.

/// Files of a model: its config, which is enough for a plan, its weights, those that an export hands on,
/// and an adapter's.
pub const MODEL_FILES: &[&str] = &[
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
    "adapter_config.json",
    "adapter_model.safetensors",
];

/// The other forms of a tokenizer, of a model that has no `tokenizer.json`.
pub(super) const OTHER_TOKENIZERS: [&str; 4] =
    ["vocab.json", "merges.txt", "spiece.model", "tokenizer.model"];

/// Files of a tokenizer, as far as the repository has them.
pub const TOKENIZER_FILES: &[&str] = &[
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
];

#[cfg(test)]
mod tests {
    use super::{MODEL_FILES, OTHER_TOKENIZERS, TOKENIZER_FILES};
    use crate::companions::COMPANIONS;

    /// A model of the hub has the files beside its weights that a model of a directory has.
    #[test]
    fn a_model_comes_with_all_that_an_export_hands_on() {
        let names = COMPANIONS.iter().chain(TOKENIZER_FILES);
        let known = [MODEL_FILES, &OTHER_TOKENIZERS].concat();
        let left_out: Vec<_> = names.filter(|name| !known.contains(name)).collect();
        assert!(left_out.is_empty(), "{left_out:?}");
    }
}
