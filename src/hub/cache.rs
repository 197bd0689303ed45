//! The cache on disk, laid out as `huggingface_hub` does, so that each finds the other's files.
//!
//! ```text
//! hub/datasets--Owner--name/
//!     refs/main                         the commit that the branch stood at
//!     trees/<commit>.json               the commit's list of files
//!     blobs/<hash>                      contents, each once
//!     snapshots/<commit>/data/a.parquet a relative link to the blob
//! hub/.locks/datasets--Owner--name/<hash>.lock
//! ```
//!
//! A blob appears under its name only when it is whole, and links only to whole blobs: a file that
//! exists in a snapshot can be used without a look at the network.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use super::{repo::Repo, repo::is_commit, tree::Tree};
use crate::{
    error::{IoContext, Result},
    fs::Place,
};

/// The part of the cache that belongs to one repository.
#[derive(Debug)]
pub(super) struct RepoCache {
    dir: PathBuf,
    locks: PathBuf,
}

impl RepoCache {
    pub(super) fn new(cache_dir: &Path, repo: &Repo) -> Self {
        Self {
            dir: cache_dir.join(repo.folder()),
            locks: cache_dir.join(".locks").join(repo.folder()),
        }
    }

    /// The repository's directory.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The commit that `revision` stood at when the hub was last asked.
    pub(super) fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let commit = fs::read_to_string(self.ref_path(revision)).ok()?;
        Some(commit.trim().to_owned()).filter(|c| is_commit(c))
    }

    pub(super) fn set_commit(&self, revision: &str, commit: &str) -> Result<()> {
        if revision == commit || self.commit(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        write(&self.ref_path(revision), commit)
    }

    pub(super) fn tree(&self, commit: &str) -> Option<Tree> {
        Tree::from_json(&fs::read_to_string(self.tree_path(commit)).ok()?)
    }

    pub(super) fn set_tree(&self, commit: &str, tree: &Tree) -> Result<()> {
        write(&self.tree_path(commit), &tree.to_json())
    }

    /// The directory in which the commit's files lie under their own names.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.dir.join("snapshots").join(commit)
    }

    /// The files of a commit that are here, for a cache that holds no list of them.
    pub(super) fn present(&self, commit: &str) -> Vec<String> {
        let root = self.snapshot(commit);
        let (mut files, mut dirs) = (Vec::new(), vec![root.clone()]);
        while let Some(dir) = dirs.pop() {
            for path in fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()) {
                if path.is_dir() {
                    dirs.push(path);
                } else if path.is_file()
                    && let Some(name) = path.strip_prefix(&root).ok().and_then(Path::to_str)
                {
                    files.push(name.to_owned());
                }
            }
        }
        files.sort();
        files
    }

    pub(super) fn blob(&self, name: &str) -> PathBuf {
        self.dir.join("blobs").join(name)
    }

    /// Keeps other processes, Python's too, from downloading the same content at the same time.
    /// The lock lasts as long as the returned file.
    pub(super) fn lock(&self, name: &str) -> Result<File> {
        make_dir(&self.locks)?;
        let path = self.locks.join(format!("{name}.lock"));
        let file = File::options().create(true).append(true).open(&path).at("open", &path)?;
        match file.lock() {
            // A file system without locks still downloads rightly, at worst twice.
            Err(e) if e.kind() != io::ErrorKind::Unsupported => Err(e).at("lock", &path),
            _ => Ok(file),
        }
    }

    /// Makes the commit's `file` a link to the blob `name`.
    pub(super) fn link(&self, commit: &str, file: &str, name: &str) -> Result<()> {
        let path = self.snapshot(commit).join(file);
        make_dir(path.parent().unwrap_or(&self.dir))?;
        let up = "../".repeat(1 + file.split('/').count());
        match symlink(format!("{up}blobs/{name}"), &path) {
            // A link whose blob was deleted by hand is mended by the new blob under the old name.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            done => done.at("link", &path),
        }
    }

    fn ref_path(&self, revision: &str) -> PathBuf {
        self.dir.join("refs").join(revision)
    }

    fn tree_path(&self, commit: &str) -> PathBuf {
        self.dir.join("trees").join(format!("{commit}.json"))
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(parent) = path.parent() {
        make_dir(parent)?;
    }
    crate::fs::write_atomic(Place::unguarded(path), text.as_bytes())
}

pub(super) fn make_dir(dir: &Path) -> Result<()> {
    crate::fs::create_dir_all(Place::unguarded(dir))
}

#[cfg(test)]
mod tests {
    use super::{super::repo::RepoKind, *};

    #[test]
    fn a_link_is_relative_and_leads_to_its_blob() {
        let dir = tempfile::tempdir().unwrap();
        let repo = Repo::new(RepoKind::Dataset, "O/n", None).unwrap();
        let (cache, commit) = (RepoCache::new(dir.path(), &repo), "c".repeat(40));
        make_dir(&dir.path().join("datasets--O--n/blobs")).unwrap();
        fs::write(cache.blob("b"), "content").unwrap();
        for file in ["a.txt", "x/y/a.txt"] {
            cache.link(&commit, file, "b").unwrap();
            let path = cache.snapshot(&commit).join(file);
            assert!(fs::read_link(&path).unwrap().starts_with(".."));
            assert_eq!(fs::read_to_string(path).unwrap(), "content");
        }
        assert_eq!(cache.present(&commit), ["a.txt", "x/y/a.txt"]);
    }

    #[test]
    fn a_damaged_ref_is_no_ref() {
        let dir = tempfile::tempdir().unwrap();
        let repo = Repo::new(RepoKind::Model, "n", None).unwrap();
        let cache = RepoCache::new(dir.path(), &repo);
        cache.set_commit("refs/pr/1", &"d".repeat(40)).unwrap();
        assert_eq!(cache.commit("refs/pr/1"), Some("d".repeat(40)));
        fs::write(dir.path().join("models--n/refs/main"), "../../etc").unwrap();
        assert_eq!(cache.commit("main"), None);
    }
}
