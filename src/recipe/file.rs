//! A recipe by its name: a file, or a part of dsr.

use std::path::{Path, PathBuf};

use super::embedded::{self, EMBEDDED};
use crate::{
    config::suggest::nearest,
    error::{Code, Error, Result},
    fs,
};

/// A recipe that is part of dsr.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BuiltIn {
    /// Its name, without `.rhai`.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
}

/// The recipes that are part of dsr, by name.
pub const BUILT_IN: [BuiltIn; 10] = [
    BuiltIn { name: "dpo", text: include_str!("../../recipes/dpo.rhai") },
    BuiltIn { name: "gpt2_loop", text: include_str!("../../recipes/gpt2_loop.rhai") },
    BuiltIn { name: "gpt2_trainer", text: include_str!("../../recipes/gpt2_trainer.rhai") },
    BuiltIn { name: "gpt2_wikitext", text: include_str!("../../recipes/gpt2_wikitext.rhai") },
    BuiltIn { name: "llama_pretrain", text: include_str!("../../recipes/llama_pretrain.rhai") },
    BuiltIn { name: "long_context", text: include_str!("../../recipes/long_context.rhai") },
    BuiltIn { name: "lora_chat", text: include_str!("../../recipes/lora_chat.rhai") },
    BuiltIn { name: "own_model", text: include_str!("../../recipes/own_model.rhai") },
    BuiltIn { name: "qlora", text: include_str!("../../recipes/qlora.rhai") },
    BuiltIn { name: "t5_summarize", text: include_str!("../../recipes/t5_summarize.rhai") },
];

/// A recipe's text and origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    /// The path of its file as it was given, or `dsr:NAME`.
    pub name: String,
    /// Its text.
    pub text: String,
    /// The directory that it can import from.
    pub base_dir: PathBuf,
}

impl Recipe {
    /// Opens the file `spec`, if there is one, else the module or the recipe of dsr with this name; `dsr:dpo`
    /// is what a recipe imports by it.
    pub fn open(spec: &Path) -> Result<Self> {
        let name = spec.display().to_string();
        if !spec.exists() {
            if let Some(text) = name.strip_prefix(EMBEDDED).and_then(embedded::module) {
                return Ok(Self { name, text: text.to_owned(), base_dir: ".".into() });
            }
            if let Some(built_in) = built_in(&name) {
                return Ok(built_in.into());
            }
        }
        let text = fs::read_named(spec).map_err(|e| match spec.exists() {
            true => e,
            false => absent(&name),
        })?;
        let parent = spec.parent().filter(|parent| !parent.as_os_str().is_empty());
        Ok(Self { name, text, base_dir: parent.map_or_else(|| ".".into(), Path::to_owned) })
    }

    /// The name without directory and ending, which its runs have.
    pub fn stem(name: &str) -> String {
        let name = name.strip_prefix(EMBEDDED).unwrap_or(name);
        let stem = Path::new(name).file_stem().map(|stem| stem.to_string_lossy());
        stem.map_or_else(|| "run".to_owned(), |stem| stem.into_owned())
    }

    /// The name of the lock of a recipe, which stands beside it: `mine.lock` of `mine.rhai`.
    pub fn lock_of(name: &str) -> String {
        format!("{}.lock", Self::stem(name))
    }
}

impl From<BuiltIn> for Recipe {
    fn from(BuiltIn { name, text }: BuiltIn) -> Self {
        let name = format!("{EMBEDDED}{name}");
        Self { name, text: text.to_owned(), base_dir: ".".into() }
    }
}

/// The recipe of dsr called `name`, with or without `.rhai`.
pub fn built_in(name: &str) -> Option<BuiltIn> {
    let name = name.strip_suffix(".rhai").unwrap_or(name);
    let name = name.strip_prefix(EMBEDDED).unwrap_or(name);
    BUILT_IN.into_iter().find(|recipe| recipe.name == name)
}

/// The error for a recipe that is neither a file nor part of dsr.
pub fn absent(name: &str) -> Error {
    let message = format!("there is no recipe {name}: neither a file nor a recipe of dsr");
    let error = Error::new(Code::Io, message);
    let file = format!("{name}.rhai");
    if Path::new(&file).exists() {
        return error.hint(format!("did you mean {file}?"));
    }
    let names = BUILT_IN.map(|recipe| recipe.name);
    let stem = Path::new(name).file_stem().map(|stem| stem.to_string_lossy().into_owned());
    match nearest(&stem.unwrap_or_default(), names) {
        Some(near) => error.hint(format!("did you mean `{near}`?")),
        None => error.hint(format!("recipes of dsr: {}", names.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_comes_before_a_recipe_of_dsr() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("gpt2_loop.rhai");
        let mine = Recipe::open(&file).unwrap_err();
        assert_eq!(mine.hints(), ["did you mean `gpt2_loop`?"]);
        std::fs::write(&file, "1;").unwrap();
        let name = dir.path().join("gpt2_loop");
        let hint = format!("did you mean {}?", file.display());
        assert_eq!(absent(&name.display().to_string()).hints(), [hint]);
        let mine = Recipe::open(&file).unwrap();
        assert_eq!((mine.text.as_str(), mine.base_dir.as_path()), ("1;", dir.path()));
        for spec in ["gpt2_wikitext", "gpt2_wikitext.rhai", "dsr:gpt2_wikitext"] {
            let own = Recipe::open(Path::new(spec)).unwrap();
            assert_eq!(own.name, "dsr:gpt2_wikitext");
            assert_eq!(Recipe::stem(&own.name), "gpt2_wikitext");
        }
    }

    #[test]
    fn every_recipe_of_the_repository_is_part_of_dsr() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes");
        let mut files: Vec<_> = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|end| end == "rhai"))
            .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
            .collect();
        files.sort();
        assert_eq!(files, BUILT_IN.map(|recipe| recipe.name));
    }
}
