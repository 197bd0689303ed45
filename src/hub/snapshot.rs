//! A repository at one commit: its list of files, and the files fetched when they are asked for.
//!
//! The commit is settled once, when a snapshot is opened; everything fetched through it is of that
//! commit, even if the branch moves meanwhile.

use std::{fs, path::PathBuf};

use super::{
    cache::{RepoCache, make_dir},
    client::{Client, RequestError},
    connection::{Hub, Listing, Progress},
    download::download,
    pins::Content,
    refusal::RequestContext,
    repo::{Repo, is_commit, percent_encode},
    settings::HubSettings,
    splits,
    tree::{Blob, Tree},
};
use crate::error::{Code, Error, IoContext, Result};

/// A commit of a repository.
pub(super) struct Snapshot<'a> {
    hub: &'a Hub,
    repo: Repo,
    cache: RepoCache,
    commit: String,
    files: Files,
}

/// The known files of a commit.
enum Files {
    /// The list from the hub.
    Known(Tree),
    /// No list: the names of the files that are in the cache.
    Present(Vec<String>),
}

impl<'a> Snapshot<'a> {
    /// Settles the commit and its list of files, from the cache where they are there.
    pub(super) fn open(hub: &'a Hub, repo: Repo) -> Result<Self> {
        let cache = RepoCache::new(&hub.settings.cache_dir, &repo);
        let ask = hub.settings.refresh && !hub.settings.offline && !is_commit(&repo.revision);
        // One run reads one commit of a branch.
        let ask = ask && hub.asks_first(&repo);
        let commit = match cache.commit(&repo.revision).filter(|_| !ask) {
            Some(commit) => commit,
            None => ask_for_commit(hub, &repo, &cache)?,
        };
        let files = match cache.tree(&commit) {
            Some(tree) => Files::Known(tree),
            None => ask_for_files(hub, &repo, &cache, &commit)?,
        };
        Ok(Self { hub, repo, cache, commit, files })
    }

    pub(super) fn repo(&self) -> &Repo {
        &self.repo
    }

    /// The names of the files, in order.
    pub(super) fn files(&self) -> Vec<&str> {
        match &self.files {
            Files::Known(tree) => tree.files.keys().map(String::as_str).collect(),
            Files::Present(names) => names.iter().map(String::as_str).collect(),
        }
    }

    /// The directory in which the fetched files lie.
    pub(super) fn dir(&self) -> PathBuf {
        self.cache.snapshot(&self.commit)
    }

    /// The paths of `files`, downloaded where they are not in the cache.
    pub(super) fn fetch(&self, files: &[String]) -> Result<Vec<PathBuf>> {
        if let Files::Present(_) = self.files {
            self.check_shards(files)?;
        }
        files.iter().map(|file| self.fetch_one(file)).collect()
    }

    /// The text of a file, `None` when the repository does not have it.
    pub(super) fn read_if_exists(&self, file: &str) -> Result<Option<String>> {
        if !self.files().contains(&file) {
            return Ok(None);
        }
        let path = self.fetch_one(file)?;
        let bytes = fs::read(&path).at("read", &path)?;
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// The commit and the contents of `files`; those whose hash the hub tells are not downloaded.
    pub(super) fn list(&self, files: &[String]) -> Result<Listing> {
        if let Files::Present(_) = self.files {
            self.check_shards(files)?;
        }
        let content = |file: &String| Ok((file.clone(), self.content(file)?));
        let contents = files.iter().map(content).collect::<Result<_>>()?;
        Ok(Listing { commit: self.commit.clone(), contents })
    }

    fn content(&self, file: &str) -> Result<Content> {
        if let Files::Known(tree) = &self.files
            && let Some(blob) = tree.files.get(file)
            && let Some(sha256) = &blob.lfs_sha256
        {
            return Ok(Content { sha256: sha256.clone(), size: blob.size });
        }
        Content::of(&self.fetch_one(file)?)
    }

    /// The content of a large file that is not in the cache, held against the lock. The hub tells its hash.
    pub(super) fn large(&self, file: &str) -> Result<Option<Blob>> {
        let Files::Known(tree) = &self.files else { return Ok(None) };
        let blob = tree.files.get(file).filter(|blob| blob.lfs_sha256.is_some());
        if self.dir().join(file).exists() {
            return Ok(None);
        }
        if let Some(Blob { lfs_sha256: Some(sha256), size, .. }) = blob {
            let content = Content { sha256: sha256.clone(), size: *size };
            self.hub.pins.check_name(&self.repo, &self.commit, file)?;
            self.hub.pins.check_content(&self.repo, &self.commit, file, &content)?;
        }
        Ok(blob.cloned())
    }

    pub(super) fn settings(&self) -> &HubSettings {
        &self.hub.settings
    }

    pub(super) fn commit(&self) -> &str {
        &self.commit
    }

    pub(super) fn fetch_one(&self, file: &str) -> Result<PathBuf> {
        self.hub.pins.check_name(&self.repo, &self.commit, file)?;
        let path = self.bring(file)?;
        self.hub.pins.check(&self.repo, &self.commit, file, &path)?;
        Ok(path)
    }

    fn bring(&self, file: &str) -> Result<PathBuf> {
        let path = self.dir().join(file);
        if path.exists() {
            return Ok(path);
        }
        let blob = match &self.files {
            Files::Known(tree) => tree.files.get(file),
            Files::Present(_) => None,
        };
        let Some(blob) = blob else {
            bail!(Code::Hub, "the {} has no file {file}", self.repo);
        };
        if !self.cache.blob(blob.name()).exists() {
            self.download(file, blob)?;
        }
        self.cache.link(&self.commit, file, blob.name())?;
        Ok(path)
    }

    fn download(&self, file: &str, blob: &Blob) -> Result<()> {
        if self.hub.settings.offline {
            return Err(offline(&self.hub.settings, &self.repo, Some(file)));
        }
        let target = self.cache.blob(blob.name());
        make_dir(&self.cache.dir().join("blobs"))?;
        let _lock = self.cache.lock(blob.name())?;
        // Another process may have brought it while this one waited.
        if target.exists() {
            return Ok(());
        }
        let client = self.hub.client()?;
        let endpoint = &self.hub.settings.endpoint;
        let url = self.repo.resolve_path(endpoint, &self.commit, file);
        let asked = RequestContext { file: Some(file), ..asked(self.hub, &self.repo) };
        let on_bytes = |done| {
            let (repo, total) = (self.repo.id.as_str(), blob.size);
            (self.hub.on_progress)(&Progress { repo, file, done, total });
        };
        download(client, &asked, &url, blob, &target, &on_bytes)
    }

    /// Without the list of files a shard that was never downloaded would go unnoticed.
    fn check_shards(&self, files: &[String]) -> Result<()> {
        for file in files {
            let (dir, name) = file.rsplit_once('/').unwrap_or(("", file));
            let Some((stem, total)) = splits::shard(name) else { continue };
            let of_stem = |f: &&String| {
                let (d, n) = f.rsplit_once('/').unwrap_or(("", f));
                d == dir && splits::shard(n) == Some((stem, total))
            };
            let here = files.iter().filter(of_stem).count();
            if here < total {
                let message = format!(
                    "the cache holds {here} of the {total} files {stem}-*-of-{total:05} of the {}",
                    self.repo
                );
                let e = Error::new(Code::Hub, message);
                return Err(e.hint("run once with the network to complete them"));
            }
        }
        Ok(())
    }
}

fn asked<'a>(hub: &'a Hub, repo: &'a Repo) -> RequestContext<'a> {
    let settings = &hub.settings;
    RequestContext {
        repo,
        file: None,
        endpoint: &settings.endpoint,
        has_token: settings.token.is_some(),
    }
}

fn ask_for_commit(hub: &Hub, repo: &Repo, cache: &RepoCache) -> Result<String> {
    if hub.settings.offline {
        return Err(offline(&hub.settings, repo, None));
    }
    let revision = percent_encode(&repo.revision, false);
    let url = format!("{}/revision/{revision}", repo.api_path(&hub.settings.endpoint));
    let commit = match hub.client()?.json(&url) {
        Ok((info, _)) => {
            let commit = info["sha"].as_str().filter(|sha| is_commit(sha)).map(str::to_owned);
            commit.ok_or_else(|| not_a_hub(hub, repo))?
        }
        // With the hub out of reach, what it said last is the best there is.
        Err(fault) if fault.is_silence() => {
            cache.commit(&repo.revision).ok_or_else(|| asked(hub, repo).error(fault))?
        }
        Err(fault) => return Err(asked(hub, repo).error(fault)),
    };
    cache.set_commit(&repo.revision, &commit)?;
    Ok(commit)
}

fn ask_for_files(hub: &Hub, repo: &Repo, cache: &RepoCache, commit: &str) -> Result<Files> {
    let present = || Some(cache.present(commit)).filter(|files| !files.is_empty());
    if hub.settings.offline {
        return present().map(Files::Present).ok_or_else(|| offline(&hub.settings, repo, None));
    }
    match read_tree(hub.client()?, &repo.api_path(&hub.settings.endpoint), commit) {
        Ok(Some(tree)) => {
            cache.set_tree(commit, &tree)?;
            Ok(Files::Known(tree))
        }
        Ok(None) => Err(not_a_hub(hub, repo)),
        Err(fault) => match present().filter(|_| fault.is_silence()) {
            Some(files) => Ok(Files::Present(files)),
            None => Err(asked(hub, repo).error(fault)),
        },
    }
}

/// The list of files, page by page; `None` when an answer is not such a list.
fn read_tree(client: &Client, api: &str, commit: &str) -> Result<Option<Tree>, RequestError> {
    let mut tree = Tree::default();
    let mut next = Some(format!("{api}/tree/{commit}?recursive=true"));
    while let Some(url) = next {
        let (page, following) = client.json(&url)?;
        if tree.add_page(&page).is_none() {
            return Ok(None);
        }
        next = following;
    }
    Ok(Some(tree))
}

pub(super) fn offline(settings: &HubSettings, repo: &Repo, file: Option<&str>) -> Error {
    let what = file.map_or_else(|| format!("the {repo}"), |f| format!("{f} of the {repo}"));
    let cache = settings.cache_dir.display();
    let message = format!("{what} is not in the cache, and the hub may not be asked (offline)");
    let at = if repo.revision == "main" {
        String::new()
    } else {
        format!(", revision {}", repo.revision)
    };
    Error::new(Code::Hub, message)
        .hint(format!("the cache is {cache}{at}"))
        .hint("unset HF_HUB_OFFLINE, or download it on a machine with a network and copy the cache")
}

fn not_a_hub(hub: &Hub, repo: &Repo) -> Error {
    let endpoint = &hub.settings.endpoint;
    Error::new(Code::Hub, format!("{endpoint} gives no list of the files of the {repo}"))
        .hint("HF_ENDPOINT must be the hub or a mirror of it")
}
