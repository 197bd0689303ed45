//! `dsr.lock`: what a recipe is made of, to the byte, so that it is the same again.
//!
//! A lock has the hash of the recipe and of all that it imports, and of what it loads from the hub the
//! commit with the hash of each file. It is made from the text of the recipe and the values of its
//! parameters, without running it: names that are put together while it runs are not in it.
//!
//! A lock that is there is used: the revisions that it has are its commits, whatever their branches
//! have come to. It changes by `dsr lock` alone. With `frozen` it is all that a recipe may load.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    rc::Rc,
};

use serde::{Deserialize, Serialize};

use super::{
    Failure, Host, Recipe,
    api::{model::MODEL_FILES, tokenizer::HUB_FILES},
    bundle::{Bundle, file_name},
    error::AtPosition,
    pinned::{has_files, without_hash},
    requests::{self, HubName, HubUse, Requests},
};
use crate::{
    config::suggest,
    error::{Code, Error, Result},
    fs,
    hash::{self, is_hex, is_sha256},
    hub::{Content, Listing, Pins, RepoKind},
};

/// What a lock beside a recipe is called.
pub const FILE: &str = "dsr.lock";

/// What is settled.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// The version of dsr that made it.
    pub dsr: String,
    /// The SHA-256 of the recipe and of what it imports: files by their path from the recipe's
    /// directory, modules of dsr, addresses.
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

type Repos = BTreeMap<String, BTreeMap<String, LockedFile>>;

/// The content of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LockedFile {
    sha256: String,
    /// Bytes.
    size: u64,
}

impl Lock {
    /// The lock of a recipe: in the file that the user named, in the recipe's own bundle, or beside
    /// it. `None` where there is none of these.
    ///
    /// Fails where the named file is not there, or a lock is damaged.
    pub fn find(recipe: &Recipe, named: Option<&Path>) -> Result<Option<Self>, Failure> {
        if let Some(path) = named {
            return Ok(Some(Self::open(path)?));
        }
        if let Some(text) = Bundle::open(recipe)?.and_then(|bundle| bundle.lock) {
            return Ok(Some(Self::read(&text, &format!("{} ({FILE})", recipe.name))?));
        }
        let beside = Self::beside(recipe).filter(|path| path.exists());
        Ok(beside.map(|path| Self::open(&path)).transpose()?)
    }

    /// Where a recipe's lock is, where the recipe is a file.
    pub fn beside(recipe: &Recipe) -> Option<PathBuf> {
        let dir = recipe.base_dir.strip_prefix(".").unwrap_or(&recipe.base_dir);
        has_files(&recipe.name).then(|| dir.join(FILE))
    }

    /// The lock in the file at `path`.
    ///
    /// # Errors
    /// [`Code::Io`]: it cannot be read; [`Code::Pin`]: it is damaged.
    pub fn open(path: &Path) -> Result<Self> {
        Self::read(&fs::read_to_string(path)?, &path.display().to_string())
    }

    /// Reads a lock's text; `name` is what its errors call it.
    ///
    /// # Errors
    /// [`Code::Pin`]: it is not JSON, has keys that no lock has, or what is no hash.
    pub fn read(text: &str, name: &str) -> Result<Self> {
        let damaged =
            |why: &str| Error::new(Code::Pin, format!("the lock is damaged: {name}{why}"));
        let again = "`dsr lock RECIPE` makes it anew";
        let lock: Self = serde_json::from_str(text).map_err(|e| {
            let said = e.to_string();
            let said = said.split(" at line ").next().unwrap_or_default();
            let error = damaged(&format!(":{}:{}: {said}", e.line(), e.column()));
            let error = match suggest::for_unknown_field(said) {
                Some(near) => error.hint(format!("did you mean `{near}`?")),
                None => error,
            };
            error.hint(again)
        })?;
        match lock.wrong_entry() {
            Some(entry) => Err(damaged(&format!(": `{entry}` is no entry of a lock")).hint(again)),
            None => Ok(lock),
        }
    }

    /// The first entry whose name or hash has another form than it should.
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

    fn section(&self, used_as: HubUse) -> &Repos {
        match used_as {
            HubUse::Model => &self.models,
            HubUse::Dataset => &self.datasets,
            HubUse::Tokenizer => &self.tokenizers,
        }
    }

    /// The text of its file.
    pub fn text(&self) -> String {
        let json = serde_json::to_string_pretty(self).expect("a lock is maps of text and numbers");
        json + "\n"
    }

    /// The lock of a recipe, asking the hub what its branches stand at. Large files are not
    /// downloaded for their hashes.
    ///
    /// Fails where an import cannot be read, or the hub does not give what the recipe names.
    pub fn make(mut host: Host, recipe: &Recipe) -> Result<Self, Failure> {
        host.refresh = true;
        host.settle_permissions()?;
        let host = Rc::new(host);
        let found = requests::read(&host, recipe)?;
        found.check(&host)?;
        let mut lock = Self { dsr: env!("CARGO_PKG_VERSION").to_owned(), ..Self::default() };
        for (name, sha256) in texts(recipe, &found)? {
            if lock.recipes.insert(name.clone(), sha256.clone()).is_some_and(|old| old != sha256) {
                let message = format!("{name} is imported with two hashes, a lock has one");
                return Err(Error::new(Code::Pin, message).into());
            }
        }
        for name in &found.hub {
            lock.add(&host, name)
                .map_err(|e| Failure::of(e.at(&name.source, name.position), &[], &host.sources))?;
        }
        Ok(lock)
    }

    fn add(&mut self, host: &Rc<Host>, name: &HubName) -> Result<()> {
        let HubName { used_as, repo, config, revision, .. } = name;
        let hub = host.hub()?;
        let Listing { commit, contents } = match used_as {
            HubUse::Model => hub.list_model(repo, Some(revision), MODEL_FILES)?,
            HubUse::Tokenizer => hub.list_model(repo, Some(revision), &HUB_FILES)?,
            HubUse::Dataset => hub.list_dataset(repo, config.as_deref(), Some(revision))?,
        };
        if *revision != commit {
            self.revisions.insert(revision_key(used_as.kind(), repo, revision), commit.clone());
        }
        let section = match used_as {
            HubUse::Model => &mut self.models,
            HubUse::Dataset => &mut self.datasets,
            HubUse::Tokenizer => &mut self.tokenizers,
        };
        let files = contents
            .into_iter()
            .map(|(path, Content { sha256, size })| (path, LockedFile { sha256, size }));
        section.entry(format!("{repo}@{commit}")).or_default().extend(files);
        Ok(())
    }

    /// The commit of a revision, where the lock has it.
    pub(super) fn commit(&self, kind: RepoKind, repo: &str, revision: &str) -> Option<&str> {
        self.revisions.get(&revision_key(kind, repo, revision)).map(String::as_str)
    }

    /// What the hub is to take from it.
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
                let contents = files.iter().map(|(path, LockedFile { sha256, size })| {
                    (path.clone(), Content { sha256: sha256.clone(), size: *size })
                });
                pins.add_contents(used_as.kind(), repo, commit, contents.collect());
            }
        }
        pins
    }

    /// Refuses a text that is not in the lock, or has another hash there.
    pub(super) fn check_text(&self, name: &str, text: &str) -> Result<()> {
        self.check_hash(name, &hash::sha256(text))
    }

    fn check_hash(&self, name: &str, found: &str) -> Result<()> {
        match self.recipes.get(name) {
            Some(sha256) if sha256 == found => Ok(()),
            Some(sha256) => Err(changed(format!("{name} is not what the lock says"))
                .hint(format!("the lock: sha256={sha256}"))
                .hint(format!("found:    sha256={found}"))),
            None => Err(changed(format!("{name} is not in the lock"))),
        }
    }

    /// All of a recipe that is not in the lock, or is there otherwise.
    pub(super) fn faults(&self, recipe: &Recipe, found: &Requests) -> Result<Vec<Error>, Failure> {
        let mut faults: Vec<_> = found.faults().collect();
        // Its imports were checked where they stand.
        if let Some((name, sha256)) = texts(recipe, found)?.into_iter().next() {
            faults.extend(self.check_hash(&name, &sha256).err());
        }
        for name in &found.hub {
            let HubName { used_as, repo, revision, source, position, .. } = name;
            if self.entry(name).is_none() {
                let what = format!("the {} `{repo}` at revision {revision}", used_as.name());
                faults.push(changed(format!("{what} is not in the lock")).at(source, *position));
            }
        }
        Ok(faults)
    }

    /// Fails where the lock is another recipe's, or of an earlier text.
    pub(super) fn check_texts(
        &self,
        host: &Host,
        recipe: &Recipe,
        found: &Requests,
    ) -> Result<(), Failure> {
        let mut faults = self.faults(recipe, found)?;
        for (name, text) in found.modules() {
            faults.extend(self.check_text(without_hash(name), text).err());
        }
        faults.extend(self.unused(recipe, found)?);
        Error::all(faults).map_or(Ok(()), |e| Err(Failure::of(e, &[], &host.sources)))
    }

    /// The name in its section, and the files, of what a recipe names.
    fn entry(&self, name: &HubName) -> Option<(String, &BTreeMap<String, LockedFile>)> {
        let HubName { used_as, repo, revision, .. } = name;
        let commit = self.commit(used_as.kind(), repo, revision).unwrap_or(revision);
        let key = format!("{repo}@{commit}");
        let files = self.section(*used_as).get(&key)?;
        Some((key, files))
    }

    /// Says whether the lock, which is that of `host`, is still true of the recipe and of the files in
    /// the cache; nothing is asked of the hub. Fails with all that is not so.
    pub fn check(mut host: Host, recipe: &Recipe) -> Result<(), Failure> {
        host.frozen = true;
        let host = Rc::new(host);
        let Some(lock) = &host.lock else { return Err(missing().into()) };
        let found = requests::read(&host, recipe)?;
        let mut faults = lock.faults(recipe, &found)?;
        // What could not be read may have imports and names of its own.
        if faults.is_empty() {
            faults.extend(lock.unused(recipe, &found)?);
        }
        for (used_as, repos) in lock.sections() {
            for (name, files) in repos {
                let Some((repo, commit)) = name.split_once('@') else { continue };
                let dir = host.hub()?.cached_dir(used_as.kind(), repo, commit)?;
                for (file, locked) in files {
                    faults.extend(locked.check(&dir.join(file), &format!("{file} of {name}"))?);
                }
            }
        }
        Error::all(faults).map_or(Ok(()), |e| Err(Failure::of(e, &[], &host.sources)))
    }

    /// What is in the lock and in the recipe no more.
    fn unused(&self, recipe: &Recipe, found: &Requests) -> Result<Vec<Error>, Failure> {
        let texts: BTreeSet<_> = texts(recipe, found)?.into_iter().map(|(name, _)| name).collect();
        let recipes = self.recipes.keys().filter(|name| !texts.contains(*name)).cloned();
        let mut unused: Vec<String> = recipes.collect();
        for (used_as, repos) in self.sections() {
            let of_section = found.hub.iter().filter(|name| name.used_as == used_as);
            let used: BTreeSet<_> =
                of_section.filter_map(|name| Some(self.entry(name)?.0)).collect();
            let names = repos.keys().filter(|name| !used.contains(*name));
            unused.extend(names.map(|name| format!("the {} {name}", used_as.name())));
        }
        let fault = |name: String| changed(format!("the recipe has no use for {name} in the lock"));
        Ok(unused.into_iter().map(fault).collect())
    }

    /// What this lock has and `other` has not: names, for people.
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

impl LockedFile {
    /// What is wrong with the file at `path`; a file that is not there is right.
    fn check(&self, path: &Path, what: &str) -> Result<Option<Error>> {
        if !path.exists() {
            return Ok(None);
        }
        let Content { sha256, size } = Content::of(path)?;
        if sha256 == self.sha256 && size == self.size {
            return Ok(None);
        }
        Ok(Some(
            Error::new(Code::Pin, format!("{what} is not what the lock says"))
                .hint(format!("the lock: sha256={}, {} bytes", self.sha256, self.size))
                .hint(format!("found:    sha256={sha256}, {size} bytes"))
                .hint(format!("it was damaged in the cache: delete {}", path.display())),
        ))
    }
}

impl Host {
    /// Refuses a recipe of which the lock has not all, where the lock is all there is.
    pub(super) fn check_frozen(&self, recipe: &Recipe) -> Result<(), Failure> {
        if !self.frozen {
            return Ok(());
        }
        let Some(lock) = &self.lock else { return Err(missing().into()) };
        let found = requests::read(self, recipe)?;
        let faults = Error::all(lock.faults(recipe, &found)?);
        faults.map_or(Ok(()), |e| Err(Failure::of(e, &[], &self.sources)))
    }
}

/// Names and hashes of the recipe, which is the first, and of what it imports.
fn texts(recipe: &Recipe, found: &Requests) -> Result<Vec<(String, String)>, Failure> {
    let bundle = Bundle::open(recipe)?;
    let text = bundle.as_ref().map_or(&recipe.text, |bundle| &bundle.recipe);
    let own = (file_name(recipe, bundle.as_ref()), hash::sha256(text));
    let modules = found.modules();
    let modules = modules.map(|(name, text)| (without_hash(name).to_owned(), hash::sha256(text)));
    Ok([own].into_iter().chain(modules).collect())
}

fn revision_key(kind: RepoKind, repo: &str, revision: &str) -> String {
    format!("{}/{repo}@{revision}", kind.plural())
}

fn changed(message: String) -> Error {
    Error::new(Code::Pin, message).hint("if that is as it should be: dsr lock RECIPE")
}

/// The error for a lock that is not there.
pub fn missing() -> Error {
    Error::new(Code::Missing, format!("there is no lock: no {FILE} beside the recipe"))
        .hint("`dsr lock RECIPE` makes it, --lock=FILE names another one")
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "c0ffeec0ffeec0ffeec0ffeec0ffeec0ffeec0ff";

    fn lock() -> Lock {
        let file = LockedFile { sha256: hash::sha256("x"), size: 1 };
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
        assert_eq!(Lock::read(&lock.text(), "dsr.lock").unwrap(), lock);
        assert_eq!(lock.commit(RepoKind::Model, "O/m", "refs/pr/1"), Some(COMMIT));
        assert_eq!(lock.commit(RepoKind::Dataset, "O/m", "refs/pr/1"), None);
    }

    #[test]
    fn what_is_no_lock_is_refused() {
        let told = |text: &str| {
            let e = Lock::read(text, "dsr.lock").unwrap_err();
            assert_eq!(e.code(), Code::Pin);
            format!("{}\n{}", e.message(), e.hints().join("\n"))
        };
        assert!(told("{").contains("dsr.lock:1:1: EOF"), "{}", told("{"));
        let said = told("{\"dsr\": \"1\",\n\"recipe\": {}}");
        assert!(said.contains("dsr.lock:2:8: unknown field `recipe`"), "{said}");
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
