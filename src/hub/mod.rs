//! The Hugging Face hub: files of datasets and models by name, kept in the cache that Python shares.
//!
//! A name and a revision lead to a commit, a commit to its list of files, a file to a content in the
//! cache. All three are remembered, so what was used once is used again without any request: a run
//! that is repeated reads the same data, on a machine with no network too. A branch that has moved
//! since is noticed with [`HubSettings::refresh`] only.
//!
//! | file | concept |
//! |---|---|
//! | `settings` | where the hub and the cache are, and the token |
//! | `connection` | the hub with its settings, callbacks and pins |
//! | `repo`, `tree` | a repository's name; a commit's list of files |
//! | `cache` | the layout on disk |
//! | `client`, `download`, `refusal` | requests; contents, resumed and checked; what failures mean |
//! | `files` | the files of models and tokenizers that are fetched |
//! | `stream` | large files of datasets that are fetched when they are read |
//! | `configs`, `splits` | which files are which split of a dataset |
//! | `pins` | commits and contents that a lock settles |
//! | `web` | a small file at any address |
//!
//! Not here: reading the files (`data`, `model`), uploading, and showing progress (`cli`).

mod cache;
mod client;
mod configs;
mod connection;
mod download;
mod files;
mod judged;
mod patience;
mod pins;
mod refusal;
mod repo;
mod settings;
mod snapshot;
mod splits;
mod stream;
mod tree;
mod web;

use std::path::PathBuf;

pub use self::{
    connection::{Hub, Listing, Progress},
    files::{MODEL_FILES, TOKENIZER_FILES},
    pins::{Content, Contents, Pins},
    repo::RepoKind,
    settings::HubSettings,
    stream::{CheckHost, DatasetFile, RemoteFile, StreamAccess},
    web::{Web, host_of},
};
use self::{files::OTHER_TOKENIZERS, repo::Repo, snapshot::Snapshot};
use crate::{
    companions::TOKENIZER,
    error::{Code, Error, Result},
};

/// A dataset on the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DatasetId<'a> {
    /// Its repository, such as `Salesforce/wikitext`.
    pub repo: &'a str,
    /// One of its configurations; `None` is the default one, or the only one.
    pub config: Option<&'a str>,
    /// A branch, a tag or a commit; `None` is `main`.
    pub revision: Option<&'a str>,
}

impl Hub {
    /// The names of the splits of a dataset, in order. No data is downloaded.
    ///
    /// # Errors
    /// [`Code::Hub`]: no such repository, revision or configuration (those that exist are listed),
    /// a gated repository, no network, or offline and not in the cache.
    pub fn dataset_splits(&self, dataset: DatasetId<'_>) -> Result<Vec<String>> {
        let (_, splits) = self.dataset(dataset)?;
        Ok(splits.into_iter().map(|(name, _)| name).collect())
    }

    /// The files of one of these splits. Those that are not in the cache are downloaded, or, where they
    /// are large and streamed, fetched when they are read.
    ///
    /// # Errors
    /// The errors of [`Hub::dataset_splits`], and [`Code::Hub`] where there is no such split.
    pub fn dataset_files(
        &self,
        dataset: DatasetId<'_>,
        split: &str,
        streamed: Option<&StreamAccess>,
    ) -> Result<Vec<DatasetFile>> {
        streamed.map_or(Ok(()), StreamAccess::prepare)?;
        let (snapshot, splits) = self.dataset(dataset)?;
        let Some((_, files)) = splits.into_iter().find(|(name, _)| name == split) else {
            bail!(Code::Hub, "the {} has no split {split}", snapshot.repo());
        };
        match streamed {
            Some(access) => files.into_iter().map(|file| snapshot.stream(file, access)).collect(),
            None => Ok(snapshot.fetch(&files)?.into_iter().map(DatasetFile::Here).collect()),
        }
    }

    /// The directory with those files of a model that `wanted` names, by path or by pattern
    /// (`*.safetensors`; `*` stays within a directory). Names that match nothing are passed over:
    /// models differ in what they have.
    pub fn model_files(
        &self,
        repo: &str,
        revision: Option<&str>,
        wanted: &[&str],
    ) -> Result<PathBuf> {
        let snapshot = self.snapshot(Repo::new(RepoKind::Model, repo, revision)?)?;
        snapshot.fetch(&chosen(&snapshot, wanted)?)?;
        Ok(snapshot.dir())
    }

    /// The commit of a model and the contents of the files that [`Hub::model_files`] would give,
    /// without downloading large ones.
    pub fn list_model(
        &self,
        repo: &str,
        revision: Option<&str>,
        wanted: &[&str],
    ) -> Result<Listing> {
        let snapshot = self.snapshot(Repo::new(RepoKind::Model, repo, revision)?)?;
        snapshot.list(&chosen(&snapshot, wanted)?)
    }

    /// The commit of a dataset and the contents of all files that [`Hub::dataset_files`] would use,
    /// without downloading large ones.
    pub fn list_dataset(&self, dataset: DatasetId<'_>) -> Result<Listing> {
        let (snapshot, splits) = self.dataset(dataset)?;
        let mut files: Vec<_> = splits.into_iter().flat_map(|(_, files)| files).collect();
        if snapshot.files().contains(&configs::CARD) {
            files.push(configs::CARD.to_owned());
        }
        snapshot.list(&files)
    }

    /// Where the files of a commit lie in the cache, those that are there.
    pub fn cached_dir(&self, kind: RepoKind, repo: &str, commit: &str) -> Result<PathBuf> {
        let repo = Repo::new(kind, repo, Some(commit))?;
        Ok(cache::RepoCache::new(&self.settings.cache_dir, &repo).snapshot(&repo.revision))
    }

    fn dataset(&self, dataset: DatasetId<'_>) -> Result<(Snapshot<'_>, Vec<splits::Split>)> {
        let DatasetId { repo, config, revision } = dataset;
        let snapshot = self.snapshot(Repo::new(RepoKind::Dataset, repo, revision)?)?;
        let card = snapshot.read_if_exists(configs::CARD)?;
        let splits = configs::resolve(snapshot.repo(), &snapshot.files(), card.as_deref(), config)?;
        Ok((snapshot, splits))
    }

    fn snapshot(&self, repo: Repo) -> Result<Snapshot<'_>> {
        Snapshot::open(self, self.pins.settle(repo)?)
    }
}

/// The files of a model that match one of these patterns; at least one.
fn chosen(snapshot: &Snapshot<'_>, wanted: &[&str]) -> Result<Vec<String>> {
    let files = snapshot.files();
    let mut chosen: Vec<String> = Vec::new();
    let has_rules = files.contains(&TOKENIZER) || !wanted.contains(&TOKENIZER);
    let others = OTHER_TOKENIZERS.iter().filter(|name| !has_rules && !wanted.contains(name));
    for pattern in wanted.iter().chain(others) {
        let Some(found) = configs::matching(&files, pattern) else {
            bail!(Code::Hub, "not a pattern of file names: `{pattern}`");
        };
        chosen.extend(found.into_iter().map(str::to_owned));
    }
    if chosen.is_empty() {
        let message = format!(
            "the {} has no file that matches {}; it has {}",
            snapshot.repo(),
            wanted.join(", "),
            listed(&files)
        );
        return Err(Error::new(Code::Hub, message));
    }
    Ok(chosen)
}

/// The first names of a list, for an error.
fn listed(names: &[&str]) -> String {
    let shown = names.iter().take(12).copied().collect::<Vec<_>>().join(", ");
    if names.len() > 12 { format!("{shown}, and {} more", names.len() - 12) } else { shown }
}
