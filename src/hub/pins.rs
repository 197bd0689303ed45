//! Commits and contents that a lock pins, so that the hub is not asked for them.
//!
//! A pinned revision is its commit, and the hub is not asked what the branch stands at. Pins that are
//! *frozen* are also all that there is: another repository, another file or another content is
//! refused.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::repo::{Repo, RepoKind, is_commit};
use crate::{
    error::{Code, Error, IoContext, Result},
    hash,
};

const CHUNK: usize = 256 << 10;

/// A file's content: its SHA-256, as 64 hexadecimal digits, and its length.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Content {
    /// The hash.
    pub sha256: String,
    /// Bytes.
    pub size: u64,
}

impl Content {
    /// The content of the file at `path`.
    pub fn of(path: &Path) -> Result<Self> {
        let mut sha256 = Sha256::new();
        let mut file = File::open(path).at("open", path)?;
        let (mut chunk, mut size) = (vec![0; CHUNK], 0);
        loop {
            let n = file.read(&mut chunk).at("read", path)?;
            if n == 0 {
                break;
            }
            sha256.update(&chunk[..n]);
            size += n as u64;
        }
        Ok(Self { sha256: hash::hex(&sha256.finalize()), size })
    }
}

/// Files by their paths in a repository.
pub type Contents = BTreeMap<String, Content>;

/// The pinned commits and contents.
#[derive(Debug, Default)]
pub struct Pins {
    commits: BTreeMap<(RepoKind, String, String), String>,
    contents: BTreeMap<(RepoKind, String, String), Contents>,
    is_frozen: bool,
    /// Files that were looked at and are as they should be.
    seen: RefCell<BTreeSet<PathBuf>>,
}

impl Pins {
    /// Nothing but what is pinned may be used.
    #[must_use]
    pub fn frozen(self) -> Self {
        Self { is_frozen: true, ..self }
    }

    /// `revision` of a repository is this commit.
    pub fn pin(&mut self, kind: RepoKind, repo: &str, revision: &str, commit: &str) {
        let key = (kind, repo.to_owned(), revision.to_owned());
        self.commits.insert(key, commit.to_owned());
    }

    /// A commit has these files, among others.
    pub fn add_contents(&mut self, kind: RepoKind, repo: &str, commit: &str, contents: Contents) {
        let key = (kind, repo.to_owned(), commit.to_owned());
        self.contents.entry(key).or_default().extend(contents);
    }

    /// The repository at the commit that is pinned for its revision.
    pub(super) fn settle(&self, repo: Repo) -> Result<Repo> {
        let Repo { kind, id, revision } = &repo;
        if let Some(commit) = self.commits.get(&(*kind, id.clone(), revision.clone())) {
            return Ok(Repo { revision: commit.clone(), ..repo });
        }
        let key = (*kind, id.clone(), revision.clone());
        if !self.is_frozen || (is_commit(revision) && self.contents.contains_key(&key)) {
            return Ok(repo);
        }
        Err(not_locked(format!("the {repo} at revision {revision} is not in the lock")))
    }

    /// Refuses a file that is not pinned, before it is fetched.
    pub(super) fn check_name(&self, repo: &Repo, commit: &str, file: &str) -> Result<()> {
        match self.is_frozen && self.content(repo, commit, file).is_none() {
            true => Err(not_locked(format!("{file} of the {repo} is not in the lock"))),
            false => Ok(()),
        }
    }

    /// Refuses a file whose content is another than what is pinned.
    pub(super) fn check(&self, repo: &Repo, commit: &str, file: &str, path: &Path) -> Result<()> {
        if !self.is_frozen || self.seen.borrow().contains(path) {
            return Ok(());
        }
        self.check_name(repo, commit, file)?;
        let damaged = |e: Error| {
            e.hint(format!("if it was damaged, delete {} and run again", path.display()))
        };
        self.check_content(repo, commit, file, &Content::of(path)?).map_err(damaged)?;
        self.seen.borrow_mut().insert(path.to_owned());
        Ok(())
    }

    /// Refuses a content that is another than what is pinned.
    pub(super) fn check_content(
        &self,
        repo: &Repo,
        commit: &str,
        file: &str,
        found: &Content,
    ) -> Result<()> {
        match self.content(repo, commit, file).filter(|pinned| self.is_frozen && *pinned != found) {
            None => Ok(()),
            Some(pinned) => {
                let message = format!("{file} of the {repo} is not what the lock says");
                Err(Error::new(Code::Pin, message)
                    .hint(format!("the lock: sha256 {}, {} bytes", pinned.sha256, pinned.size))
                    .hint(format!("found: sha256 {}, {} bytes", found.sha256, found.size)))
            }
        }
    }

    fn content(&self, repo: &Repo, commit: &str, file: &str) -> Option<&Content> {
        self.contents.get(&(repo.kind, repo.id.clone(), commit.to_owned()))?.get(file)
    }
}

fn not_locked(message: String) -> Error {
    Error::new(Code::Pin, message)
        .hint("`dsr lock RECIPE` adds what the recipe names; --frozen allows nothing else")
}
