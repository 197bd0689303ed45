//! `mine.lock` beside `mine.rhai`: the hashes of the files that a recipe is made of.
//!
//! A lock has the hash of the recipe and of each import, and for each name on the hub the commit with
//! the hash of each file. It is made from the text of the recipe and the values of its parameters,
//! without running it: names that are put together while it runs are not in it.
//!
//! A lock that is there is used: its revisions are its commits, even if their branches have moved. Only
//! `dsr lock` changes it. A frozen recipe may load nothing else.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    rc::Rc,
};

use serde::{Deserialize, Serialize};

use super::{
    address::has_files,
    bundle::Bundle,
    diagnostics::Failure,
    error::AtPosition,
    file::Recipe,
    hub_name::{HubName, HubUse},
};
use crate::{
    config::suggest,
    error::{Code, Error, Result},
    fs::{self, Place},
    hash::{self, is_hex, is_sha256},
    hub::{Content, Contents, Hub, Listing, Pins, RepoKind},
};

/// A lock.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// The version of dsr that made it.
    pub dsr: String,
    /// The SHA-256 of the recipe and of its imports: files by their path from the recipe's directory,
    /// modules of dsr, addresses.
    pub recipes: BTreeMap<String, String>,
    /// The commit of each revision: `models/Owner/name@main`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    revisions: BTreeMap<String, String>,
    /// The files of each commit: `Owner/name@COMMIT`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    models: Repos,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    datasets: Repos,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    tokenizers: Repos,
}

type Repos = BTreeMap<String, Contents>;

impl Lock {
    /// An empty lock of this version of dsr.
    pub(super) fn new() -> Self {
        Self { dsr: env!("CARGO_PKG_VERSION").to_owned(), ..Self::default() }
    }

    /// The lock of a recipe, if there is one: the file that the user named, else in the recipe's own
    /// bundle, else beside it.
    ///
    /// Fails if the named file is not there, or a lock is damaged.
    pub fn find(recipe: &Recipe, named: Option<&Path>) -> Result<Option<Self>, Failure> {
        if let Some(path) = named {
            return Ok(Some(Self::open(path)?));
        }
        if let Some(text) = Bundle::open(recipe)?.and_then(|bundle| bundle.lock) {
            return Ok(Some(Self::read(&text, &format!("{} (its lock)", recipe.name))?));
        }
        let Some(path) = Self::beside(recipe).filter(|path| path.exists()) else {
            return Ok(None);
        };
        // It may have come with the recipe.
        let dir = Place::beneath(path.parent().unwrap_or(Path::new("")))?;
        let file = dir.join(path.file_name().unwrap_or_default());
        Ok(Some(Self::read(&file.read_to_string()?, &path.display().to_string())?))
    }

    /// The path of the lock beside a recipe, if the recipe is a file.
    pub fn beside(recipe: &Recipe) -> Option<PathBuf> {
        let dir = recipe.base_dir.strip_prefix(".").unwrap_or(&recipe.base_dir);
        has_files(&recipe.name).then(|| dir.join(Recipe::lock_of(&recipe.name)))
    }

    /// Reads the lock in the file at `path`.
    pub fn open(path: &Path) -> Result<Self> {
        Self::read(&fs::read_to_string(Place::unguarded(path))?, &path.display().to_string())
    }

    /// Reads a lock's text; `name` is its name in errors.
    pub fn read(text: &str, name: &str) -> Result<Self> {
        let damaged =
            |why: &str| Error::new(Code::Pin, format!("the lock is damaged: {name}{why}"));
        let again = "`dsr lock RECIPE` makes it anew";
        let lock: Self = serde_json::from_str(text).map_err(|e| {
            let said = e.to_string();
            let said = said.split(" at line ").next().unwrap_or_default();
            let error = damaged(&format!(":{}:{}: {said}", e.line(), e.column()));
            let error = error.hint_if(
                suggest::for_unknown_field(said).map(|near| format!("did you mean `{near}`?")),
            );
            error.hint(again)
        })?;
        match lock.wrong_entry() {
            Some(entry) => Err(damaged(&format!(": `{entry}` is no entry of a lock")).hint(again)),
            None => Ok(lock),
        }
    }

    /// The first entry whose name or hash is malformed.
    fn wrong_entry(&self) -> Option<&str> {
        let commit =
            |name: &str| name.split_once('@').is_some_and(|(_, commit)| is_hex(commit, 40));
        let kind = |name: &str| name.starts_with("models/") || name.starts_with("datasets/");
        let hashes = self.recipes.iter().filter(|(_, hash)| !is_sha256(hash)).map(|(name, _)| name);
        let revisions = self.revisions.iter();
        let revisions = revisions.filter(|(n, c)| !(kind(n) && n.contains('@') && is_hex(c, 40)));
        let repos = self.sections().into_iter().flat_map(|(_, repos)| repos);
        let repos = repos.filter(|(name, files)| {
            !(commit(name) && files.values().all(|file| is_sha256(&file.sha256)))
        });
        let all = hashes.chain(revisions.map(|(name, _)| name)).chain(repos.map(|(name, _)| name));
        all.map(String::as_str).next()
    }

    fn sections(&self) -> [(HubUse, &Repos); 3] {
        [
            (HubUse::Model, &self.models),
            (HubUse::Dataset, &self.datasets),
            (HubUse::Tokenizer, &self.tokenizers),
        ]
    }

    /// The text of its file.
    pub fn text(&self) -> String {
        let json = serde_json::to_string_pretty(self).expect("a lock is maps of text and numbers");
        json + "\n"
    }

    /// Adds the files that the hub lists for a name.
    pub(super) fn add(&mut self, name: &HubName, listing: Listing) {
        let HubName { used_as, repo, revision, .. } = name;
        let Listing { commit, contents } = listing;
        if *revision != commit {
            self.revisions.insert(revision_key(used_as.kind(), repo, revision), commit.clone());
        }
        let section = match used_as {
            HubUse::Model => &mut self.models,
            HubUse::Dataset => &mut self.datasets,
            HubUse::Tokenizer => &mut self.tokenizers,
        };
        section.entry(format!("{repo}@{commit}")).or_default().extend(contents);
    }

    /// The commit of a revision, if the lock has it.
    pub(super) fn commit(&self, kind: RepoKind, repo: &str, revision: &str) -> Option<&str> {
        self.revisions.get(&revision_key(kind, repo, revision)).map(String::as_str)
    }

    /// The commits and contents that the hub must use.
    pub fn pins(&self) -> Pins {
        let mut pins = Pins::default();
        for (name, commit) in &self.revisions {
            let (kind, name) = match name.split_once('/') {
                Some(("datasets", name)) => (RepoKind::Dataset, name),
                Some((_, name)) => (RepoKind::Model, name),
                None => continue,
            };
            if let Some((repo, revision)) = name.split_once('@') {
                pins.pin(kind, repo, revision, commit);
            }
        }
        for (used_as, repos) in self.sections() {
            for (name, files) in repos {
                let Some((repo, commit)) = name.split_once('@') else { continue };
                pins.add_contents(used_as.kind(), repo, commit, files.clone());
            }
        }
        pins
    }

    /// Refuses a text that is not in the lock, or has another hash there.
    pub(super) fn check_text(&self, name: &str, text: &str) -> Result<()> {
        self.check_hash(name, &hash::sha256(text))
    }

    pub(super) fn check_hash(&self, name: &str, found: &str) -> Result<()> {
        match self.recipes.get(name) {
            Some(sha256) if sha256 == found => Ok(()),
            Some(sha256) => Err(changed(format!("{name} is not what the lock says"))
                .hint(format!("the lock: sha256={sha256}"))
                .hint(format!("found:    sha256={found}"))),
            None => Err(changed(format!("{name} is not in the lock"))),
        }
    }

    /// The name in its section, and the files, of what a recipe names.
    fn entry(&self, name: &HubName) -> Option<(String, &Contents)> {
        let HubName { used_as, repo, revision, .. } = name;
        let commit = self.commit(used_as.kind(), repo, revision).unwrap_or(revision);
        let key = format!("{repo}@{commit}");
        let (_, repos) = self.sections().into_iter().find(|(section, _)| section == used_as)?;
        let files = repos.get(&key)?;
        Some((key, files))
    }

    /// The names on the hub that are not in the lock.
    pub(super) fn missing<'a>(
        &self,
        hub: &'a [HubName],
    ) -> impl Iterator<Item = Error> + use<'_, 'a> {
        hub.iter().filter(|name| self.entry(name).is_none()).map(|name| {
            let HubName { used_as, repo, revision, source, position, .. } = name;
            let what = format!("the {} `{repo}` at revision {revision}", used_as.name());
            changed(format!("{what} is not in the lock")).at(source, *position)
        })
    }

    /// The entries that a recipe with these texts and these names on the hub does not use.
    pub(super) fn unused(&self, texts: &BTreeSet<String>, hub: &[HubName]) -> Vec<Error> {
        let recipes = self.recipes.keys().filter(|name| !texts.contains(*name)).cloned();
        let mut unused: Vec<String> = recipes.collect();
        for (used_as, repos) in self.sections() {
            let of_section = hub.iter().filter(|name| name.used_as == used_as);
            let used: BTreeSet<_> =
                of_section.filter_map(|name| Some(self.entry(name)?.0)).collect();
            let names = repos.keys().filter(|name| !used.contains(*name));
            unused.extend(names.map(|name| format!("the {} {name}", used_as.name())));
        }
        let fault = |name: String| changed(format!("the recipe has no use for {name} in the lock"));
        unused.into_iter().map(fault).collect()
    }

    /// The files in the cache of `hub` that are not as the lock says.
    pub(super) fn damaged(&self, hub: &dyn Fn() -> Result<Rc<Hub>>) -> Result<Vec<Error>> {
        let mut faults = Vec::new();
        for (used_as, repos) in self.sections() {
            for (name, files) in repos {
                let Some((repo, commit)) = name.split_once('@') else { continue };
                let dir = hub()?.cached_dir(used_as.kind(), repo, commit)?;
                for (file, locked) in files {
                    let what = format!("{file} of {name}");
                    faults.extend(fault(locked, &dir.join(file), &what)?);
                }
            }
        }
        Ok(faults)
    }

    /// The entries of this lock that `other` does not have, for people.
    pub fn beyond(&self, other: &Self) -> Vec<String> {
        let lines = |lock: &Self| -> BTreeSet<String> {
            let recipes = lock.recipes.iter().map(|(name, hash)| format!("{name} {hash}"));
            let sections = lock.sections().into_iter();
            let repos = sections.flat_map(|(used_as, repos)| {
                repos.keys().map(move |name| format!("{} {name}", used_as.name()))
            });
            recipes.chain(repos).collect()
        };
        lines(self).difference(&lines(other)).cloned().collect()
    }
}

/// The fault of the file at `path`; a file that is not there has none.
fn fault(locked: &Content, path: &Path, what: &str) -> Result<Option<Error>> {
    if !path.exists() {
        return Ok(None);
    }
    let found = Content::of(path)?;
    if found == *locked {
        return Ok(None);
    }
    Ok(Some(
        Error::new(Code::Pin, format!("{what} is not what the lock says"))
            .hint(format!("the lock: sha256={}, {} bytes", locked.sha256, locked.size))
            .hint(format!("found:    sha256={}, {} bytes", found.sha256, found.size))
            .hint(format!("it was damaged in the cache: delete {}", path.display())),
    ))
}

fn revision_key(kind: RepoKind, repo: &str, revision: &str) -> String {
    format!("{}/{repo}@{revision}", kind.plural())
}

fn changed(message: String) -> Error {
    Error::new(Code::Pin, message).hint("if that is as it should be: dsr lock RECIPE")
}

/// The error for a lock that is not there.
pub fn missing() -> Error {
    Error::new(Code::Missing, "there is no lock beside the recipe")
        .hint("`dsr lock RECIPE` makes it, --lock=FILE names another one")
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "c0ffeec0ffeec0ffeec0ffeec0ffeec0ffeec0ff";

    fn lock() -> Lock {
        let file = Content { sha256: hash::sha256("x"), size: 1 };
        let files = BTreeMap::from([("config.json".to_owned(), file)]);
        Lock {
            dsr: "0.1.0".to_owned(),
            recipes: [("r.rhai".to_owned(), hash::sha256("1;"))].into(),
            revisions: [("models/O/m@refs/pr/1".to_owned(), COMMIT.to_owned())].into(),
            models: [(format!("O/m@{COMMIT}"), files)].into(),
            ..Lock::default()
        }
    }

    #[test]
    fn a_lock_is_read_as_it_was_written() {
        let lock = lock();
        assert_eq!(Lock::read(&lock.text(), "r.lock").unwrap(), lock);
        assert_eq!(lock.commit(RepoKind::Model, "O/m", "refs/pr/1"), Some(COMMIT));
        assert_eq!(lock.commit(RepoKind::Dataset, "O/m", "refs/pr/1"), None);
    }

    #[test]
    fn what_is_no_lock_is_refused() {
        let told = |text: &str| {
            let e = Lock::read(text, "r.lock").unwrap_err();
            assert_eq!(e.code(), Code::Pin);
            format!("{}\n{}", e.message(), e.hints().join("\n"))
        };
        assert!(told("{").contains("r.lock:1:1: EOF"), "{}", told("{"));
        let said = told("{\"dsr\": \"1\",\n\"recipe\": {}}");
        assert!(said.contains("r.lock:2:8: unknown field `recipe`"), "{said}");
        assert!(said.contains("did you mean `recipes`?"), "{said}");
        let text = lock().text();
        for (from, to) in
            [("r.rhai\": \"", "r.rhai\": \"0"), ("O/m@c0ff", "O/m@xxxx"), ("models/O", "O")]
        {
            let said = told(&text.replace(from, to));
            assert!(said.contains("is no entry of a lock"), "{said}");
        }
        assert!(told(&text.replace("\"size\"", "\"bytes\"")).contains("unknown field `bytes`"));
        told("[]");
        told("");
    }
}
