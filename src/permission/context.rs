//! The environment of a recipe: the places that it may use without a grant.

use std::path::{Path, PathBuf};

use super::place;

/// The environment of a recipe: the places that it may use without a grant.
#[derive(Debug, Clone, Default)]
pub struct AccessContext {
    /// The user's place of work: read and written, but not what begins with a dot.
    pub work_dir: PathBuf,
    /// The recipe's directory: read, but not what begins with a dot.
    pub recipe_dir: PathBuf,
    /// Paths that the user named on the command line: read.
    pub named: Vec<PathBuf>,
    /// Directories that may be listed, without what is in them: the ways to what the user named by a
    /// pattern. They are real paths.
    pub listed: Vec<PathBuf>,
    /// Caches of dsr and of Hugging Face: read.
    pub caches: Vec<PathBuf>,
    /// The user's home, with the files that are never given.
    pub home: Option<PathBuf>,
    /// Further files that are never given, such as a token's.
    pub secrets: Vec<PathBuf>,
    /// The host that the user's settings name for the hub. It may be private.
    pub hub_host: Option<String>,
    /// Whether the user named something on the hub on the command line: the hub is asked.
    pub names_hub: bool,
}

impl AccessContext {
    /// With its paths as they really are.
    pub(super) fn resolved(mut self) -> Self {
        for path in [&mut self.work_dir, &mut self.recipe_dir] {
            *path = place::root(Path::new("."), path);
        }
        let all = self.named.iter_mut().chain(&mut self.caches);
        all.for_each(|path| *path = place::root(&self.work_dir, path));
        self
    }

    /// Whether the directory may be listed.
    pub(super) fn lists(&self, path: &Path) -> bool {
        self.listed.contains(&place::root(&self.work_dir, path))
    }

    /// Whether what is really there may be read.
    pub(super) fn reads(&self, real: &Path) -> bool {
        let mut visible = [&self.work_dir, &self.recipe_dir].into_iter();
        visible.any(|root| place::is_visible_in(root, real))
            || self.listed.iter().any(|dir| dir == real)
            || self.named.iter().chain(&self.caches).any(|root| real.starts_with(root))
    }

    /// Whether what is really there may be written.
    pub(super) fn writes(&self, real: &Path) -> bool {
        place::is_visible_in(&self.work_dir, real)
    }
}
