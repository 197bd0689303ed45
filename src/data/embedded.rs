//! Data inside the binary, under `dsr:NAME`, so that a recipe runs without files or network.

use crate::{
    config::suggest,
    error::{Code, Error, Result},
};

/// A dataset's splits, each one Parquet file.
pub(super) type EmbeddedSplits = &'static [(&'static str, &'static [u8])];

const DATASETS: &[(&str, EmbeddedSplits)] = &[(
    "austen",
    &[
        ("train", include_bytes!("../../recipes/data/austen/train.parquet")),
        ("validation", include_bytes!("../../recipes/data/austen/validation.parquet")),
        ("test", include_bytes!("../../recipes/data/austen/test.parquet")),
    ],
)];

const TOKENIZERS: &[(&str, &[u8])] =
    &[("gpt2", include_bytes!("../../recipes/data/gpt2/tokenizer.json"))];

/// The embedded dataset `name`.
pub(super) fn dataset(name: &str) -> Result<EmbeddedSplits> {
    find("dataset", DATASETS, name)
}

/// The `tokenizer.json` of the embedded tokenizer `name`.
pub(super) fn tokenizer(name: &str) -> Result<&'static [u8]> {
    find("tokenizer", TOKENIZERS, name)
}

fn find<T: Copy>(kind: &str, table: &[(&str, T)], name: &str) -> Result<T> {
    if let Some(&(_, value)) = table.iter().find(|(n, _)| *n == name) {
        return Ok(value);
    }
    let names: Vec<String> = table.iter().map(|(n, _)| format!("dsr:{n}")).collect();
    let message = format!("no embedded {kind} \"dsr:{name}\": there is {}", names.join(", "));
    let near = suggest::nearest(name, table.iter().map(|(n, _)| *n));
    Err(Error::new(Code::Data, message)
        .hint_if(near.map(|near| format!("did you mean \"dsr:{near}\"?"))))
}
