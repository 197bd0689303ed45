//! A file or directory that may be used: a path with the guard that judges it each time it is opened.
//!
//! A path by itself is a name, which can stand for another file a moment later. A [`Place`] has no way
//! to be opened but its own: its guard says where it really is, and that is opened beneath the handle of
//! the directory that was given, through no link. What has changed in between is judged anew.

use std::{
    ffi::OsString,
    fmt,
    fs::File,
    io::{self, Read},
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt},
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use rustix::fs::{Mode, OFlags};

use super::content::{refuse_pointer, without_mark};
use super::handle::{is_plain, make_beneath, open_beneath, open_root, path_of};
use crate::error::{Code, IoContext, Result};

/// How often a place that changes while it is opened is judged anew.
const TRIES: usize = 16;
/// The most bytes of a file that is read as a whole.
pub(super) const MOST_BYTES: u64 = 1 << 30;

/// The use that is made of a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// To read a file, or what is in a directory.
    Read,
    /// To make, change, replace or remove what has this name; a link of this name is not followed.
    Write,
}

/// Where a place really is.
#[derive(Debug)]
pub struct Found {
    /// The directory that was given.
    pub root: Arc<OwnedFd>,
    /// The path below it, without links and `..`.
    pub below: PathBuf,
}

/// Judges paths.
pub trait Guard: Send + Sync {
    /// Where `path` really is.
    ///
    /// # Errors
    /// [`Code::Permission`] where it may not be used so.
    fn find(&self, path: &Path, wants: Use) -> Result<Found>;
}

/// A file or directory that may be used. Cheap to clone.
#[derive(Clone)]
pub struct Place {
    path: PathBuf,
    guard: Option<Arc<dyn Guard>>,
}

/// The kind of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    File,
    Directory,
    Other,
}

/// The directory of a place, held open, and the place's path from it.
#[derive(Debug)]
pub(super) struct Target {
    /// Through the handle; valid while this lives.
    pub(super) path: PathBuf,
    /// The directory, through the handle.
    pub(super) parent: PathBuf,
    pub(super) handle: OwnedFd,
}

impl Place {
    /// The place at `path`, which nobody judges: links are followed. It is for paths of the program and of
    /// its user. `tests/tidy.rs` lists the files that may make one, as a recipe's path needs a guard.
    pub fn unguarded(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), guard: None }
    }

    /// The directory `dir` of the user, as it is now. What lies beneath it is opened through no link.
    pub fn beneath(dir: impl Into<PathBuf>) -> Result<Self> {
        let dir = dir.into();
        let root = Arc::new(open_root(here_if_empty(&dir)).at("open", here_if_empty(&dir))?);
        Ok(Self::guarded(dir.clone(), Arc::new(Beneath { dir, root })))
    }

    /// The place at `path`, which `guard` judges.
    pub fn guarded(path: impl Into<PathBuf>, guard: Arc<dyn Guard>) -> Self {
        Self { path: path.into(), guard: Some(guard) }
    }

    /// Its path, for messages and for what a name says of a file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// As [`Path::display`].
    pub fn display(&self) -> std::path::Display<'_> {
        self.path.display()
    }

    /// The name of the last part.
    pub fn name(&self) -> Option<&str> {
        self.path.file_name()?.to_str()
    }

    /// The entry of this name in it.
    pub fn join(&self, name: impl AsRef<Path>) -> Self {
        self.beside(self.path.join(name))
    }

    /// Another path under the same guard.
    pub fn beside(&self, path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), guard: self.guard.clone() }
    }

    /// The directory that it is in.
    pub fn parent(&self) -> Option<Self> {
        Some(self.beside(here_if_empty(self.path.parent()?)))
    }

    /// Opens the file or directory to read.
    pub fn open(&self) -> Result<File> {
        self.open_to("open")
    }

    fn open_to(&self, doing: &str) -> Result<File> {
        // A pipe without a writer would keep `open` waiting.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let opened = match &self.guard {
            None => {
                let flags = flags.bits().cast_signed();
                let opened = File::options().read(true).custom_flags(flags).open(&self.path);
                opened.at(doing, &self.path)?
            }
            Some(guard) => self.try_open(&**guard, flags, doing)?.into(),
        };
        if !is_plain(&opened).at(doing, &self.path)? {
            let place = self.display();
            bail!(Code::Io, "cannot read {place}: it is a pipe or a device, no file");
        }
        Ok(opened)
    }

    /// The whole content; more than a gibibyte is refused.
    pub fn read(&self) -> Result<Vec<u8>> {
        let file = self.open_to("read")?;
        let mut bytes = Vec::new();
        let metadata = file.metadata().at("read", &self.path)?;
        if metadata.is_dir() {
            bail!(Code::Io, "cannot read {}: it is a directory, no file", self.display());
        }
        let len = metadata.len();
        if len <= MOST_BYTES {
            file.take(MOST_BYTES + 1).read_to_end(&mut bytes).at("read", &self.path)?;
        }
        if len.max(bytes.len() as u64) > MOST_BYTES {
            bail!(Code::Io, "cannot read {}: it has more than {MOST_BYTES} bytes", self.display());
        }
        refuse_pointer(&self.path, &bytes, Code::Io)?;
        Ok(bytes)
    }

    /// The whole content of a JSON file, without a byte order mark.
    pub fn read_json(&self) -> Result<Vec<u8>> {
        let mut bytes = self.read()?;
        bytes.drain(..bytes.len() - without_mark(&bytes).len());
        Ok(bytes)
    }

    /// The whole content, text in UTF-8, without a byte order mark.
    pub fn read_to_string(&self) -> Result<String> {
        String::from_utf8(self.read_json()?)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not text in UTF-8"))
            .at("read", &self.path)
    }

    /// Opens the file to append to and to read; it is made when absent. A link of its name is refused.
    pub fn append(&self) -> Result<File> {
        let target = self.target()?;
        let flags = OFlags::RDWR | OFlags::APPEND | OFlags::CREATE | OFlags::NONBLOCK;
        let handle = &target.handle;
        let name = self.path.file_name().unwrap_or_default();
        let opened = open_beneath(handle, Path::new(name), flags, Mode::from_raw_mode(0o666));
        let file = File::from(opened.map_err(no_link).at("open", &self.path)?);
        if self.guard.is_some() && !is_plain(&file).at("open", &self.path)? {
            bail!(Code::Io, "{} is not a file", self.display());
        }
        Ok(file)
    }

    /// Whether it is a file or a directory that may be read.
    pub fn exists(&self) -> bool {
        self.kind().is_some()
    }

    /// Whether it is a directory that may be read.
    pub fn is_dir(&self) -> bool {
        self.kind() == Some(Kind::Directory)
    }

    /// Whether it is a file that may be read.
    pub fn is_file(&self) -> bool {
        self.kind() == Some(Kind::File)
    }

    /// Whether what is there is a directory.
    ///
    /// # Errors
    /// [`Code::Permission`] where it may not be read.
    pub fn check_readable(&self) -> Result<bool> {
        if let Some(guard) = &self.guard {
            guard.find(&self.path, Use::Read)?;
        }
        Ok(self.is_dir())
    }

    fn kind(&self) -> Option<Kind> {
        let metadata = match &self.guard {
            None => std::fs::metadata(&self.path).ok()?,
            Some(guard) => {
                File::from(self.try_open(&**guard, OFlags::PATH, "open").ok()?).metadata().ok()?
            }
        };
        Some(match metadata.file_type() {
            kind if kind.is_dir() => Kind::Directory,
            kind if kind.is_file() => Kind::File,
            _ => Kind::Other,
        })
    }

    /// Whether something has its name, whatever it is, a link that leads nowhere included.
    pub fn is_taken(&self) -> Result<bool> {
        if self.exists() {
            return Ok(true);
        }
        let Some(parent) = self.parent().filter(Self::is_dir) else { return Ok(false) };
        let target = parent.join(self.path.file_name().unwrap_or_default()).target()?;
        Ok(target.path.symlink_metadata().is_ok())
    }

    /// Whether its name is that of a link.
    pub fn is_link(&self) -> Result<bool> {
        // Whoever may list the directory may see what kind its entries are.
        let Some(parent) = self.parent() else { return Ok(false) };
        let dir = parent.open()?;
        let name = path_of(&dir).join(self.path.file_name().unwrap_or_default());
        Ok(name.symlink_metadata().is_ok_and(|m| m.is_symlink()))
    }

    /// The size of the file in bytes.
    #[allow(clippy::len_without_is_empty, reason = "a place is no collection")]
    pub fn len(&self) -> Result<u64> {
        Ok(self.open()?.metadata().at("read", &self.path)?.len())
    }

    /// The names in a directory, in their order.
    pub fn list(&self) -> Result<Vec<OsString>> {
        let dir = self.open_to("list")?;
        let entries = std::fs::read_dir(path_of(&dir)).at("list", &self.path)?;
        let names: io::Result<Vec<_>> = entries.map(|entry| Ok(entry?.file_name())).collect();
        let mut names = names.at("list", &self.path)?;
        names.sort();
        Ok(names)
    }

    /// Makes the directory and those above it; one that exists already is fine.
    pub fn create_dir_all(&self) -> Result<()> {
        match &self.guard {
            None => std::fs::create_dir_all(&self.path).at("make the directory", &self.path),
            Some(guard) => {
                // One that is a link into another given directory may stay.
                if self.is_dir() {
                    return Ok(());
                }
                let doing = "make the directory";
                let make = |Found { root, below }: &Found| make_beneath(root, below);
                self.again(&**guard, Use::Write, doing, make).map(drop)
            }
        }
    }

    /// Makes the directories on the way to it, which whoever may write it may do.
    pub fn create_parents(&self) -> Result<()> {
        let Some(parent) = self.path.parent() else { return Ok(()) };
        let doing = "make the directory";
        let Some(guard) = &self.guard else {
            return std::fs::create_dir_all(parent).at(doing, parent);
        };
        let make = |Found { root, below }: &Found| {
            make_beneath(root, below.parent().unwrap_or(Path::new("")))
        };
        self.again(&**guard, Use::Write, doing, make).map(drop)
    }

    /// Makes the directory; false where the name is taken.
    pub fn create_dir(&self) -> Result<bool> {
        match std::fs::create_dir(self.target()?.path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            made => made.at("make the directory", &self.path).map(|()| true),
        }
    }

    /// Makes a file, to append to; `None` where the name is taken.
    pub fn create_file(&self) -> Result<Option<File>> {
        let made = File::options().append(true).create_new(true).open(self.target()?.path);
        match made {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(None),
            made => made.at("make", &self.path).map(Some),
        }
    }

    /// Makes a file, to be written from its start.
    ///
    /// # Errors
    /// [`Code::Io`] where the name is taken.
    pub fn create_new(&self) -> Result<File> {
        let taken = || io::Error::from(io::ErrorKind::AlreadyExists);
        self.create_file()?.ok_or_else(taken).at("write", &self.path)
    }

    /// Makes a file without a name in the directory that this is, to be written and read.
    pub fn unnamed_file(&self) -> Result<File> {
        let dir = self.directory()?;
        tempfile::tempfile_in(path_of(&dir)).at("make a file in", &self.path)
    }

    /// Removes the directory if it is empty.
    pub fn remove_empty_dir(&self) -> Result<()> {
        std::fs::remove_dir(self.target()?.path).at("remove", &self.path)
    }

    /// Removes the file.
    pub fn remove_file(&self) -> Result<()> {
        std::fs::remove_file(self.target()?.path).at("remove", &self.path)
    }

    /// The open directory that this is, to write in.
    pub fn directory(&self) -> Result<OwnedFd> {
        // Whoever may write in it may write what has some name in it.
        Ok(self.join("_").target()?.handle)
    }

    /// Its directory, to write there what has its name.
    pub(super) fn target(&self) -> Result<Target> {
        let Some(name) = self.path.file_name() else {
            bail!(Code::Io, "cannot write {}: no file name", self.display());
        };
        let handle = match &self.guard {
            None => {
                let parent = self.path.parent().unwrap_or(Path::new("."));
                open_root(here_if_empty(parent)).at("write", &self.path)
            }
            Some(guard) => self.again(&**guard, Use::Write, "write", |Found { root, below }| {
                let parent = below.parent().unwrap_or(Path::new(""));
                open_beneath(root, parent, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())
            }),
        };
        let handle = handle?;
        let parent = path_of(&handle);
        Ok(Target { path: parent.join(name), parent, handle })
    }

    fn try_open(&self, guard: &dyn Guard, flags: OFlags, doing: &str) -> Result<OwnedFd> {
        self.again(guard, Use::Read, doing, |Found { root, below }| {
            open_beneath(root, below, flags, Mode::empty())
        })
    }

    /// Finds the place and opens it, anew as long as a link has come between the two.
    fn again(
        &self,
        guard: &dyn Guard,
        wants: Use,
        doing: &str,
        open: impl Fn(&Found) -> io::Result<OwnedFd>,
    ) -> Result<OwnedFd> {
        let mut tries = 1..TRIES;
        loop {
            let found = guard.find(&self.path, wants)?;
            match open(&found) {
                Err(e) if is_changed(&e) && tries.next().is_some() => {}
                opened => return opened.map_err(no_link).at(doing, &self.path),
            }
        }
    }
}

/// A guard that lets nothing be used but what is beneath one directory, without links on the way.
struct Beneath {
    dir: PathBuf,
    root: Arc<OwnedFd>,
}

impl Guard for Beneath {
    fn find(&self, path: &Path, _wants: Use) -> Result<Found> {
        let below = path.strip_prefix(&self.dir).ok();
        let is_below = |below: &&Path| !below.components().any(|part| part == Component::ParentDir);
        match below.filter(is_below) {
            Some(below) => Ok(Found { root: Arc::clone(&self.root), below: below.to_owned() }),
            None => {
                let (path, dir) = (path.display(), here_if_empty(&self.dir).display());
                bail!(Code::Permission, "{path} is not beneath {dir}")
            }
        }
    }
}

/// The directory of a path without one.
pub(super) fn here_if_empty(dir: &Path) -> &Path {
    if dir.as_os_str().is_empty() { Path::new(".") } else { dir }
}

fn is_changed(e: &io::Error) -> bool {
    use rustix::io::Errno;
    let changed = [Errno::LOOP, Errno::XDEV, Errno::AGAIN].map(Errno::raw_os_error);
    e.raw_os_error().is_some_and(|code| changed.contains(&code))
}

fn no_link(e: io::Error) -> io::Error {
    match is_changed(&e) {
        true => io::Error::other("it is a link, and is not followed"),
        false => e,
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.path, f)
    }
}

impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        self.path == other.path
    }
}

impl Eq for Place {}

impl PartialEq<PathBuf> for Place {
    fn eq(&self, other: &PathBuf) -> bool {
        self.path == *other
    }
}

impl From<&Self> for Place {
    fn from(place: &Self) -> Self {
        place.clone()
    }
}

/// A text of the program itself, such as `/proc/meminfo`. A recipe's text does not live so long.
impl From<&'static str> for Place {
    fn from(path: &'static str) -> Self {
        Self::unguarded(path)
    }
}

/// Unit tests name their own files.
#[cfg(test)]
impl From<PathBuf> for Place {
    fn from(path: PathBuf) -> Self {
        Self::unguarded(path)
    }
}

#[cfg(test)]
impl From<&PathBuf> for Place {
    fn from(path: &PathBuf) -> Self {
        Self::unguarded(path)
    }
}

#[cfg(test)]
impl From<&Path> for Place {
    fn from(path: &Path) -> Self {
        Self::unguarded(path)
    }
}
