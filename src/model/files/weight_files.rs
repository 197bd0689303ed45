//! The files of a directory that have a model's weights: one, or shards that an index names.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Component, Path},
};

use serde_json::Value;

use crate::{
    error::{Code, Error, Result},
    fs::{self, Place},
};

/// The file with all weights.
pub(super) const SINGLE: &str = "model.safetensors";
/// The file that names the shards.
pub(super) const INDEX: &str = "model.safetensors.index.json";
/// Formats that hold pickled Python objects.
const PICKLES: [&str; 2] = ["pytorch_model.bin", "pytorch_model.bin.index.json"];

/// Names listed in one error; more are counted.
const MOST_NAMES: usize = 20;

/// The names of the files in `dir` that have the weights.
pub(super) fn file_names(dir: &Place) -> Result<Vec<String>> {
    if dir.join(SINGLE).exists() {
        return Ok(vec![SINGLE.to_owned()]);
    }
    Ok(read_index(dir)?.into_keys().collect())
}

/// The shards with the tensors that the index expects in each. All of them exist.
pub(super) fn read_index(dir: &Place) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let path = dir.join(INDEX);
    let index: Value = serde_json::from_slice(&fs::read(&path)?).map_err(|e| {
        Error::new(Code::Weights, format!("{} is not valid JSON: {e}", path.display()))
    })?;
    let Some(map) = index.get("weight_map").and_then(Value::as_object) else {
        bail!(Code::Weights, "{} has no weight_map, an object of shards by tensor", path.display());
    };
    let mut shards = BTreeMap::<_, BTreeSet<_>>::new();
    for (name, shard) in map {
        let Some(shard) = shard.as_str().filter(|shard| is_file_name(shard)) else {
            bail!(
                Code::Weights,
                "{}: the shard of {name} must be the name of a file beside the index, got {shard}",
                path.display()
            );
        };
        shards.entry(shard.to_owned()).or_default().insert(name.clone());
    }
    let absent: Vec<_> =
        shards.keys().map(String::as_str).filter(|shard| !dir.join(shard).exists()).collect();
    if !absent.is_empty() {
        return Err(Error::new(
            Code::Weights,
            format!("{} lacks shards that {INDEX} names: {}", dir.display(), list(&absent)),
        )
        .hint("download the missing files into the same directory"));
    }
    Ok(shards)
}

/// True for a name that cannot lead out of its directory.
fn is_file_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!(components.next(), Some(Component::Normal(only)) if only == name)
        && components.next().is_none()
}

/// The error of a directory without weights that can be read.
pub(super) fn no_weights(dir: &Place) -> Error {
    if let Some(pickle) = PICKLES.iter().find(|name| dir.join(name).exists()) {
        return Error::new(
            Code::Weights,
            format!(
                "{} has its weights in {pickle} only, a pickle: reading it would run code from it",
                dir.display()
            ),
        )
        .hint(
            "convert it where you trust it, in Python: \
             AutoModelForCausalLM.from_pretrained(dir).save_pretrained(dir), which writes \
             safetensors",
        );
    }
    Error::new(
        Code::Weights,
        format!("no weights in {}: looked for {SINGLE} and {INDEX}", dir.display()),
    )
}

/// The first names of a list, and how many more there are.
pub(super) fn list(names: &[impl AsRef<str>]) -> String {
    let shown: Vec<_> = names.iter().take(MOST_NAMES).map(AsRef::as_ref).collect();
    let shown = shown.join(", ");
    match names.len().saturating_sub(MOST_NAMES) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
