//! Paths of imported modules, which stay inside of the recipe's directory.

use std::path::{Component, Path, PathBuf};

use crate::error::{Code, Error, IoContext, Result};

/// The name of the file `path` in the folder of the module `importer`, or in the recipe's own, without a
/// look at the disk; `None` for a path that may not be imported.
pub(super) fn relative_name(importer: Option<&str>, path: &str) -> Option<String> {
    let path = Path::new(path);
    let mut file =
        importer.and_then(|name| Path::new(name).parent()).unwrap_or(Path::new("")).join(path);
    if !path.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
        return None;
    }
    if file.extension().is_none_or(|e| e != "rhai") {
        file.as_mut_os_string().push(".rhai");
    }
    let parts = file.components().filter(|c| matches!(c, Component::Normal(_)));
    let parts: Vec<_> = parts.map(|c| c.as_os_str().to_string_lossy()).collect();
    Some(parts.join("/"))
}

/// The file `path`, proven to be inside of `base`.
pub(super) fn confined(base: &Path, importer: Option<&str>, path: &str) -> Result<PathBuf> {
    let refused = |why: &str| {
        Error::new(Code::Permission, format!("cannot import \"{path}\": {why}"))
            .hint("a recipe imports from its own directory: \"name\" or \"folder/name\"")
    };
    let relative = Path::new(path);
    if path.contains("://") {
        return Err(refused("an address begins https://"));
    }
    if relative.is_absolute() {
        return Err(refused("the path is absolute"));
    }
    if !relative.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Err(refused("the path leaves the recipe's directory"));
    }
    let base = base.canonicalize().at("open", base)?;
    // Imported files are known by their path from the base; the recipe itself is in it.
    let from = importer.map(Path::new).filter(|source| source.is_relative());
    let from = from.map(|source| base.join(source)).filter(|source| source.is_file());
    let folder =
        from.and_then(|source| source.parent().map(Path::to_owned)).unwrap_or(base.clone());
    let mut file = folder.join(relative);
    if file.extension().is_none_or(|e| e != "rhai") {
        file.as_mut_os_string().push(".rhai");
    }
    if !file.exists() {
        return Err(Error::new(
            Code::Io,
            format!("cannot import \"{path}\": there is no file {}", file.display()),
        ));
    }
    let file = file.canonicalize().at("open", &file)?;
    if !file.starts_with(&base) {
        return Err(refused("it is a link that leaves the recipe's directory"));
    }
    Ok(file)
}
