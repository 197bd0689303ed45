//! The checkpoint that a path means: itself, or one of a store, of a run or behind a mark.

use std::path::Path;

use super::{
    manifest,
    step_dir::step_of,
    store::{BEST, LATEST, Store},
};
use crate::{
    config::suggest::nearest,
    error::{Code, Error, Result},
    fs::{Place, is_temporary},
};

/// Where a run keeps its store.
const IN_A_RUN: &str = "checkpoints";

impl Store {
    /// Whether a path means a checkpoint of those beneath or beside it: a run, or the mark `best` or
    /// `latest` of a store.
    pub fn is_mark_or_run(path: &Place) -> bool {
        let is_mark = matches!(path.name(), Some(BEST | LATEST)) && path.is_file();
        is_mark || path.join(IN_A_RUN).is_dir()
    }

    /// The checkpoint that a path means: itself, the one that a store's file `best` or `latest` names, or
    /// the latest of a store or of a run's directory.
    /// It is not verified yet.
    pub fn resolve(path: impl Into<Place>) -> Result<Place> {
        let path = path.into();
        if let Some(store) = path.parent().filter(|_| path.is_file()) {
            let store = Self::open(store);
            match path.name() {
                Some(BEST) => {
                    if let Some(best) = store.best()? {
                        return Ok(path.beside(best.path));
                    }
                }
                Some(LATEST) => return store.latest(),
                _ => {}
            }
        }
        if path.join(manifest::FILE_NAME).exists() {
            return Ok(path);
        }
        if !path.is_dir() {
            return Err(absent(&path));
        }
        let run = path.join(IN_A_RUN);
        if run.is_dir() {
            return Self::open(run).latest();
        }
        let store = Self::open(&path);
        if path.join(LATEST).exists() || !store.list()?.is_empty() {
            return store.latest();
        }
        if path.name().and_then(step_of).is_some() {
            // It has a checkpoint's name and no manifest: let verification say so.
            Self::verify(&path)?;
        }
        Err(Error::new(Code::Checkpoint, format!("no checkpoint in {}", path.display())).hint(
            "expected a checkpoint (with manifest.json), a directory of checkpoints \
             (step-...), or a run (with checkpoints/)",
        ))
    }
}

/// The error for a path that does not exist, with what lies beside it.
fn absent(path: &Place) -> Error {
    let e = Error::new(Code::Checkpoint, format!("no checkpoint at {}", path.display()));
    let Some(parent) = path.parent() else { return e };
    let Ok(entries) = parent.list() else { return e };
    let names: Vec<String> = entries
        .into_iter()
        .filter_map(|name| name.into_string().ok())
        .filter(|name| parent.join(name).is_dir() && !is_temporary(Path::new(name)))
        .collect();
    let wanted = path.name().unwrap_or_default();
    if let Some(name) = nearest(wanted, names.iter().map(String::as_str)) {
        return e.hint(format!("did you mean {}?", parent.join(name).display()));
    }
    if names.is_empty() {
        e
    } else {
        e.hint(format!("{} has: {}", parent.display(), names.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::checkpoint::store::tests::{save, store};

    #[test]
    fn a_checkpoint_a_store_and_a_run_are_all_understood() {
        let (run, store) = store();
        let path = save(&store, 3, None);
        for given in [path.as_path(), store.root(), run.path()] {
            assert_eq!(Store::resolve(given).unwrap(), path);
        }
    }

    #[test]
    fn a_path_without_a_checkpoint_is_an_error() {
        let (run, store) = store();
        let message = |path: &Path| {
            let e = Store::resolve(path).unwrap_err();
            assert_eq!(e.code(), Code::Checkpoint);
            format!("{e:?}")
        };
        assert!(message(run.path()).contains("no checkpoint in"));
        save(&store, 3, None);
        assert!(message(&run.path().join("checkpoint")).contains("did you mean"));
        assert!(message(&store.root().join("best")).contains("has: step-00000003"));
        let torn = store.root().join("step-00000004");
        fs::create_dir(&torn).unwrap();
        assert!(message(&torn).contains("has no manifest.json"));
        assert!(message(&torn).contains("step-00000003"));
    }
}
