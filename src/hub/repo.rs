//! The name of a repository on the hub, checked, and the addresses and directories made of it.
//!
//! Names of a recipe or a server become parts of a path on this machine: a name that could leave the
//! cache's directory is refused here.

use std::fmt;

use crate::error::{Code, Error, Result};

/// The two kinds of repository that training needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RepoKind {
    /// Rows.
    Dataset,
    /// Weights, or a tokenizer.
    Model,
}

/// A repository at a revision.
#[derive(Debug, Clone)]
pub(super) struct Repo {
    pub(super) kind: RepoKind,
    pub(super) id: String,
    pub(super) revision: String,
}

impl Repo {
    pub(super) fn new(kind: RepoKind, id: &str, revision: Option<&str>) -> Result<Self> {
        let parts: Vec<&str> = id.split('/').collect();
        if parts.len() > 2 || !parts.iter().all(|part| is_name(part)) {
            return Err(Error::new(
                Code::Hub,
                format!("not the name of a {}: `{id}`", kind.noun()),
            )
            .hint("a name on the hub looks like `Owner/name`, or `name` for a few old ones"));
        }
        let revision = revision.unwrap_or("main");
        if !is_relative_path(revision) {
            return Err(Error::new(Code::Hub, format!("not a revision: `{revision}`"))
                .hint("a revision is a branch, a tag or a commit of 40 hexadecimal digits"));
        }
        Ok(Self { kind, id: id.to_owned(), revision: revision.to_owned() })
    }

    /// `datasets--Owner--name`, the repository's directory in the cache.
    pub(super) fn folder(&self) -> String {
        format!("{}--{}", self.kind.plural(), self.id.replace('/', "--"))
    }

    /// The path of a request to the hub's API about this repository.
    pub(super) fn api_path(&self, endpoint: &str) -> String {
        format!("{endpoint}/api/{}/{}", self.kind.plural(), self.id)
    }

    /// The address of a file's content at a commit.
    pub(super) fn resolve_path(&self, endpoint: &str, commit: &str, file: &str) -> String {
        format!("{}/resolve/{commit}/{}", self.page(endpoint), percent_encode(file, true))
    }

    /// The page of the repository in a browser.
    pub(super) fn page(&self, endpoint: &str) -> String {
        match self.kind {
            RepoKind::Dataset => format!("{endpoint}/datasets/{}", self.id),
            RepoKind::Model => format!("{endpoint}/{}", self.id),
        }
    }
}

impl fmt::Display for Repo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} `{}`", self.kind.noun(), self.id)
    }
}

impl RepoKind {
    pub(super) fn noun(self) -> &'static str {
        match self {
            Self::Dataset => "dataset",
            Self::Model => "model",
        }
    }

    /// As the hub's API calls it: `models`, `datasets`.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Dataset => "datasets",
            Self::Model => "models",
        }
    }
}

fn is_name(part: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
    part.len() <= 96
        && part.chars().all(allowed)
        && edge(part.chars().next())
        && !part.contains("--")
        && !part.contains("..")
}

/// True for a path that stays below the directory that it is joined to.
pub(super) fn is_relative_path(path: &str) -> bool {
    !path.is_empty()
        && !path.contains(['\\', '\0'])
        && path.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

/// True for a commit's name: 40 hexadecimal digits.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && is_hex(text)
}

pub(super) fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Escapes a path for an address; slashes stay where `keep_slash` is set.
pub(super) fn percent_encode(path: &str, keep_slash: bool) -> String {
    let mut out = String::with_capacity(path.len());
    for b in path.bytes() {
        if b.is_ascii_alphanumeric() || b"-_.~".contains(&b) || (keep_slash && b == b'/') {
            out.push(char::from(b));
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_leave_the_cache() {
        for id in ["wikitext", "Salesforce/wikitext", "a/b.c_d-e"] {
            Repo::new(RepoKind::Dataset, id, None).unwrap();
        }
        for id in ["", "/", "../x", "a/../b", "a/b/c", "a b", ".hidden", "a--b/c"] {
            let e = Repo::new(RepoKind::Dataset, id, None).unwrap_err();
            assert_eq!(e.code(), Code::Hub, "{id}");
        }
        assert!(Repo::new(RepoKind::Model, "a/b", Some("refs/../../x")).is_err());
        assert!(Repo::new(RepoKind::Model, "a/b", Some("refs/convert/parquet")).is_ok());
    }

    #[test]
    fn addresses_are_escaped() {
        let repo = Repo::new(RepoKind::Dataset, "O/n", None).unwrap();
        assert_eq!(
            repo.resolve_path("https://h", "c", "dir/a b#1.parquet"),
            "https://h/datasets/O/n/resolve/c/dir/a%20b%231.parquet"
        );
        assert_eq!(percent_encode("refs/convert", false), "refs%2Fconvert");
    }
}
