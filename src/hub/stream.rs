//! Files of a dataset that are fetched when they are read, and removed behind it.
//!
//! They lie in a directory of dsr's own, not in the cache that Python shares: what is removed here is
//! nobody else's. A download that was cut goes on where it stopped. Processes of one machine that read the
//! same file share it.

use std::{
    io::Read,
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    thread::sleep,
    time::{Duration, SystemTime},
};

use super::{
    cache::make_dir,
    client::Client,
    download::download,
    patience::Patience,
    refusal::RequestContext,
    repo::Repo,
    settings::HubSettings,
    snapshot::{Snapshot, offline},
    tree::Blob,
};
use crate::{
    error::{Code, Error, IoContext, Result, StopWhen},
    fs::{File, Place, TryLockError},
};

/// The time after which what a killed run has left is removed.
const UNUSED: Duration = Duration::from_hours(7 * 24);
/// How often a process that waits for another's download looks.
const PATIENCE: Duration = Duration::from_millis(20);

/// Says whether a host may be asked, in every thread.
pub type CheckHost = Arc<dyn Fn(&str) -> Result<()> + Send + Sync>;

/// Where streamed files are kept while they are read, and who may be asked for them.
#[derive(Clone)]
pub struct StreamAccess {
    /// The directory.
    pub dir: PathBuf,
    /// Called with the host of each request, redirects included.
    pub on_host: CheckHost,
}

/// A file of a dataset.
pub enum DatasetFile {
    /// It is on this machine.
    Here(PathBuf),
    /// It is fetched when it is read.
    Remote(Box<RemoteFile>),
}

/// A large file of the hub.
pub struct RemoteFile {
    settings: HubSettings,
    access: StreamAccess,
    repo: Repo,
    commit: String,
    file: String,
    blob: Blob,
}

impl StreamAccess {
    /// Makes the directory, and removes what killed runs have left there.
    pub(super) fn prepare(&self) -> Result<()> {
        make_dir(&self.dir)?;
        remove_unused(&self.dir);
        Ok(())
    }
}

impl Snapshot<'_> {
    /// A file that is fetched when it is read, where it is large and not in the cache.
    pub(super) fn stream(&self, file: String, access: &StreamAccess) -> Result<DatasetFile> {
        match self.large(&file)? {
            None => Ok(DatasetFile::Here(self.fetch_one(&file)?)),
            Some(blob) => Ok(DatasetFile::Remote(Box::new(RemoteFile {
                settings: self.settings().clone(),
                access: access.clone(),
                repo: self.repo().clone(),
                commit: self.commit().to_owned(),
                file,
                blob,
            }))),
        }
    }
}

impl RemoteFile {
    /// Its path in the repository, behind the repository's name.
    pub fn name(&self) -> String {
        format!("{}/{}", self.repo.id, self.file)
    }

    /// Its bytes.
    pub fn size(&self) -> u64 {
        self.blob.size
    }

    /// The hash of its content.
    pub fn hash(&self) -> &str {
        self.blob.name()
    }

    /// The directory that it lies in while it is read.
    pub fn dir(&self) -> &Path {
        &self.access.dir
    }

    /// The file, downloaded if it is not there.
    ///
    /// # Errors
    /// [`Code::Interrupted`] soon after `stop` says so; what has come is kept.
    pub fn bring(&self, stop: &StopWhen) -> Result<File> {
        let target = self.path();
        make_dir(self.dir())?;
        let _lock = self.lock(stop)?;
        if !target.exists() {
            self.check_online()?;
            let client = self.client(stop)?;
            download(&client, &self.asked(), &self.url(), &self.blob, &target, &|_| ())?;
        }
        crate::fs::open_file(Place::unguarded(target))
    }

    /// Removes it. Who reads it reads on.
    pub fn remove(&self) {
        // What cannot be removed now is in some days, by another run.
        let _ = std::fs::remove_file(self.path());
    }

    /// The last bytes of it, without the others.
    pub fn end(&self, bytes: u64, stop: &StopWhen) -> Result<Vec<u8>> {
        self.check_online()?;
        let client = self.client(stop)?;
        let start = self.blob.size.saturating_sub(bytes);
        let asked = self.asked();
        let reply = client.get(&self.url(), start).map_err(|fault| asked.error(fault))?;
        let is_part = start == 0 || reply.status().as_u16() == 206;
        let mut end = Vec::new();
        let body = reply.into_body().into_reader();
        body.take(bytes).read_to_end(&mut end).at("read", Path::new(&self.file))?;
        match is_part && end.len() as u64 == self.blob.size - start {
            true => Ok(end),
            false => Err(Error::new(Code::Hub, format!("no end of {} was sent", self.name()))),
        }
    }

    fn path(&self) -> PathBuf {
        self.dir().join(self.blob.name())
    }

    fn lock(&self, stop: &StopWhen) -> Result<File> {
        let path = self.dir().join(format!("{}.lock", self.blob.name()));
        let file = File::options().create(true).append(true).open(&path).at("open", &path)?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) if stop() => {
                    return Err(Error::interrupted());
                }
                Err(TryLockError::WouldBlock) => sleep(PATIENCE),
                Err(TryLockError::Error(e)) => return Err(e).at("lock", &path),
            }
        }
    }

    fn url(&self) -> String {
        self.repo.resolve_path(&self.settings.endpoint, &self.commit, &self.file)
    }

    fn client(&self, stop: &StopWhen) -> Result<Client> {
        let on_host = Arc::clone(&self.access.on_host);
        let patience = Patience::until(Arc::clone(stop));
        Client::new(&self.settings, Rc::new(move |host| on_host(host)), patience)
    }

    fn check_online(&self) -> Result<()> {
        match self.settings.offline {
            true => Err(offline(&self.settings, &self.repo, Some(&self.file))),
            false => Ok(()),
        }
    }

    fn asked(&self) -> RequestContext<'_> {
        RequestContext {
            repo: &self.repo,
            file: Some(&self.file),
            endpoint: &self.settings.endpoint,
            has_token: self.settings.token.is_some(),
        }
    }
}

/// Removes what killed runs have left long ago.
fn remove_unused(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let changed = entry.metadata().and_then(|metadata| metadata.modified()).ok();
        let age = changed.and_then(|changed| SystemTime::now().duration_since(changed).ok());
        if age.is_some_and(|age| age > UNUSED) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}
