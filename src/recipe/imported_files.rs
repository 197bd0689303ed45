//! The files that a recipe imports, each read once: the text that was judged is the text that runs, whatever
//! becomes of the file in between.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::module_path::confined;
use crate::{
    error::{IoContext, Result},
    fs::Place,
};

/// The files of one directory that were read.
#[derive(Debug, Default)]
pub(super) struct ImportedFiles {
    base: PathBuf,
    /// The name of a module, by its importer and the path that stands there. A link may lead elsewhere later.
    names: BTreeMap<(Option<String>, String), String>,
    texts: BTreeMap<String, String>,
}

impl ImportedFiles {
    /// The name and text of the file `path` that `importer` imports, in the recipe's directory `base`.
    pub(super) fn find(
        &mut self,
        base: &Path,
        importer: Option<&str>,
        path: &str,
    ) -> Result<(String, String)> {
        if self.base != base {
            *self = Self { base: base.to_owned(), ..Self::default() };
        }
        let import = (importer.map(str::to_owned), path.to_owned());
        if let Some(name) = self.names.get(&import)
            && let Some(text) = self.texts.get(name)
        {
            return Ok((name.clone(), text.clone()));
        }
        let file = confined(base, importer, path)?;
        let base = base.canonicalize().at("open", base)?;
        let relative = file.strip_prefix(&base).unwrap_or(&file);
        let name = relative.display().to_string();
        let text = match self.texts.get(&name) {
            Some(text) => text.clone(),
            // A file that was found inside of the directory is opened there, through no link.
            None => Place::beneath(&base)?.join(relative).read_to_string()?,
        };
        self.names.insert(import, name.clone());
        self.texts.insert(name.clone(), text.clone());
        Ok((name, text))
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn a_file_that_changes_between_two_looks_is_as_it_was_read() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("a.rhai"), "1").unwrap();
        fs::write(at("other.rhai"), "2").unwrap();
        symlink("a.rhai", at("link.rhai")).unwrap();
        let mut files = ImportedFiles::default();
        let mut look = |importer, path| files.find(dir.path(), importer, path).unwrap();
        let first = look(None, "link");
        assert_eq!(first, ("a.rhai".to_owned(), "1".to_owned()));
        fs::write(at("a.rhai"), "3").unwrap();
        fs::remove_file(at("link.rhai")).unwrap();
        symlink("other.rhai", at("link.rhai")).unwrap();
        assert_eq!(look(None, "link"), first);
        assert_eq!(look(Some("other.rhai"), "a"), first, "one file has one text");
        assert_eq!(look(None, "other").1, "2");
    }

    #[test]
    fn a_file_that_has_no_end_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let holes = fs::File::create(dir.path().join("holes.rhai")).unwrap();
        holes.set_len(1 << 40).unwrap();
        let e = ImportedFiles::default().find(dir.path(), None, "holes").unwrap_err();
        assert!(e.message().ends_with("it has more than 1073741824 bytes"), "{e}");
    }
}
