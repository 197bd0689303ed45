//! Files that are whole or absent: a reader sees the old content or the new, whenever the writer died.
//!
//! Everything is first written beside its target under a temporary name, flushed to the disk, and
//! only then renamed. The temporary name is locked (`flock`) for as long as its writer lives, so
//! that what a killed writer left behind can be told from work in progress and removed
//! ([`remove_leftovers`]); where locks are not supported, leftovers stay. A symbolic link at the
//! target is replaced, not followed.
//!
//! This file keeps nothing open and knows no file format but JSON. Data that is streamed or mapped into
//! memory (`data`, `tensor`) opens its own files.

use std::{
    ffi::OsString,
    fs::{self, File, Permissions},
    io::{self, Read, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, OFlags, RenameFlags};
use serde::Serialize;
use tempfile::{Builder, TempDir};

use crate::error::{Code, Error, IoContext, Result};

/// The middle of a temporary name, between the target's name and a random end.
const TEMPORARY: &str = ".dsr-tmp-";

/// The first bytes of what git leaves in the place of a large file that it has not fetched.
const LFS_POINTER: &[u8] = b"version https://git-lfs";
/// The first bytes of text that some programs write to say that it is UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The most bytes of a file that is read as a whole.
const MOST_BYTES: u64 = 1 << 30;

/// Opens a file to be read. A pipe or a device, which may have no end, is refused.
pub fn open_file(path: impl AsRef<Path>) -> Result<File> {
    let path = path.as_ref();
    // Without waiting for a writer of a pipe.
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
    let file = File::options().read(true).custom_flags(flags).open(path).at("read", path)?;
    let kind = file.metadata().at("read", path)?.file_type();
    match kind.is_file() {
        true => Ok(file),
        false => {
            let found = if kind.is_dir() { "a directory" } else { "a pipe or a device" };
            Err(Error::new(
                Code::Io,
                format!("cannot read {}: it is {found}, no file", path.display()),
            ))
        }
    }
}

/// The content of a file. A pipe or a device is refused, and so is more than a gibibyte.
pub fn read(path: impl AsRef<Path>) -> Result<Vec<u8>> {
    let path = path.as_ref();
    let file = open_file(path)?;
    let mut bytes = Vec::new();
    let len = file.metadata().at("read", path)?.len();
    if len <= MOST_BYTES {
        file.take(MOST_BYTES + 1).read_to_end(&mut bytes).at("read", path)?;
    }
    if len.max(bytes.len() as u64) > MOST_BYTES {
        return Err(Error::new(
            Code::Io,
            format!("cannot read {}: it has more than {MOST_BYTES} bytes", path.display()),
        ));
    }
    refuse_pointer(path, &bytes)?;
    Ok(bytes)
}

/// Refuses a file that begins with `start` where it is only git's pointer to the file that is meant.
pub fn refuse_pointer(path: &Path, start: &[u8]) -> Result<()> {
    if !start.starts_with(LFS_POINTER) {
        return Ok(());
    }
    let message = format!("{} is a Git LFS pointer, not the file itself", path.display());
    Err(Error::new(Code::Io, message).hint("`git lfs pull` in that repository downloads the file"))
}

/// Text without the byte order mark before it.
pub fn without_mark(text: &[u8]) -> &[u8] {
    text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text)
}

/// The content of a JSON file, as [`read`] reads it, without a byte order mark.
pub fn read_json(path: impl AsRef<Path>) -> Result<Vec<u8>> {
    let bytes = read(path)?;
    Ok(without_mark(&bytes).to_vec())
}

/// The content of a file that holds text in UTF-8, as [`read`] reads it.
pub fn read_to_string(path: impl AsRef<Path>) -> Result<String> {
    let text = String::from_utf8(read_json(path.as_ref())?).map_err(|_| {
        io::Error::new(io::ErrorKind::InvalidData, "stream did not contain valid UTF-8")
    });
    text.at("read", path.as_ref())
}

/// The text of a file that the user named, who may name a pipe: `dsr run <(make_recipe)`.
pub fn read_named(path: impl AsRef<Path>) -> Result<String> {
    let text = fs::read_to_string(path.as_ref()).at("read", path.as_ref())?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

/// The first bytes of a file, `len` at most.
pub fn read_start(file: &mut File, len: usize) -> io::Result<Vec<u8>> {
    let len = file.metadata()?.len().min(len as u64);
    let mut begin = Vec::new();
    Read::by_ref(file).take(len).read_to_end(&mut begin)?;
    Ok(begin)
}

/// Makes a directory and those above it; one that exists already is fine.
pub fn create_dir_all(path: impl AsRef<Path>) -> Result<()> {
    fs::create_dir_all(path.as_ref()).at("make the directory", path.as_ref())
}

/// Writes a file, or replaces it, in one step: a reader never sees a part of it.
///
/// # Errors
/// [`Code::DiskFull`] or [`Code::Io`]; what stood at `path` is then unchanged.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let parent = parent_of(path);
    let prefix = temporary_prefix(path)?;
    let (mut temporary, _lock) = locked(|| {
        let mut builder = Builder::new();
        builder.prefix(&prefix).permissions(Permissions::from_mode(0o666));
        let file = builder.tempfile_in(parent)?;
        let lock = file.as_file().try_clone()?;
        let at = file.path().to_path_buf();
        Ok((file, lock, at))
    })
    .at("write", path)?;
    write_and_sync(temporary.as_file_mut(), bytes).at("write", path)?;
    temporary.persist(path).map_err(|e| e.error).at("write", path)?;
    sync_dir(parent).at("write", path)
}

/// Writes a value as JSON, as [`write_atomic`] does.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value).map_err(|e| {
        Error::new(Code::Io, format!("cannot write {} as JSON", path.display())).caused_by(e)
    })?;
    text.push('\n');
    write_atomic(path, text.as_bytes())
}

/// The entries of a directory, by name, and whether each is a directory.
pub fn list(dir: impl AsRef<Path>) -> Result<Vec<(String, bool)>> {
    let dir = dir.as_ref();
    let entries = fs::read_dir(dir).at("list", dir)?.flatten();
    let named = entries
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path().is_dir()));
    Ok(named.collect())
}

/// Removes a directory such that it is whole until, at one instant, it is gone.
pub fn remove_dir(path: &Path) -> Result<()> {
    let parent = parent_of(path);
    // A kill while the files are being deleted must not leave a directory that looks whole.
    let hidden = Builder::new()
        .prefix(&temporary_prefix(path)?)
        .tempdir_in(parent)
        .at("remove", path)?
        .keep();
    fs::rename(path, &hidden).at("remove", path)?;
    absent_is_fine(fs::remove_dir_all(&hidden)).at("remove", path)
}

/// Removes what killed writers left in `dir` and returns how many there were. The temporaries of
/// living writers stay.
pub fn remove_leftovers(dir: &Path) -> Result<usize> {
    let mut removed = 0;
    for entry in fs::read_dir(dir).at("list", dir)? {
        let path = entry.at("list", dir)?.path();
        if !is_temporary(&path) {
            continue;
        }
        // The lock of a killed process is released by the kernel. It is held while removing, so
        // that a writer that has just made this name notices (see `locked`).
        let Ok(file) = File::open(&path) else { continue };
        if file.try_lock().is_err() {
            continue;
        }
        let done = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        absent_is_fine(done).at("remove", &path)?;
        removed += 1;
    }
    Ok(removed)
}

/// True for a name that a writer uses before it publishes: to be passed over in listings.
pub fn is_temporary(path: &Path) -> bool {
    path.file_name()
        .map(|name| name.to_string_lossy())
        .is_some_and(|name| name.starts_with('.') && name.contains(TEMPORARY))
}

/// Bytes that this user can still write to the filesystem of `path`, which need not exist yet.
pub fn available_bytes(path: impl AsRef<Path>) -> Result<u64> {
    let path = path.as_ref();
    let absolute = std::path::absolute(path).at("find the free space of", path)?;
    let existing = absolute.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    let stat = rustix::fs::statvfs(existing)
        .map_err(io::Error::from)
        .at("find the free space of", existing)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// A directory being written: it appears at its target whole, with [`NewDir::publish`], or never.
#[derive(Debug)]
pub struct NewDir {
    target: PathBuf,
    temporary: TempDir,
    _lock: File,
}

impl NewDir {
    /// Begins a directory that will stand at `target`; those above it are made.
    pub fn create(target: &Path) -> Result<Self> {
        if target.exists() && !target.is_dir() {
            return Err(Error::new(
                Code::Io,
                format!(
                    "cannot make the directory {}: a file of this name exists",
                    target.display()
                ),
            ));
        }
        let parent = parent_of(target);
        create_dir_all(parent)?;
        let prefix = temporary_prefix(target)?;
        let (temporary, lock) = locked(|| {
            let mut builder = Builder::new();
            builder.prefix(&prefix).permissions(Permissions::from_mode(0o777));
            let dir = builder.tempdir_in(parent)?;
            let lock = File::open(dir.path())?;
            let at = dir.path().to_path_buf();
            Ok((dir, lock, at))
        })
        .at("make the directory", target)?;
        Ok(Self { target: target.to_path_buf(), temporary, _lock: lock })
    }

    /// Where to write the files.
    pub fn path(&self) -> &Path {
        self.temporary.path()
    }

    /// Flushes every file to the disk and puts the directory in its place; a directory that stood
    /// there is exchanged for it in the same instant, then removed.
    ///
    /// # Errors
    /// [`Code::DiskFull`] or [`Code::Io`]; what stood at the target is then unchanged.
    pub fn publish(self) -> Result<()> {
        let Self { target, temporary, _lock } = self;
        sync_tree(temporary.path()).at("write", &target)?;
        if target.exists() {
            exchange(temporary.path(), &target).at("replace", &target)?;
            sync_dir(parent_of(&target)).at("write", &target)?;
            // The temporary name now holds the old directory.
            return absent_is_fine(temporary.close()).at("remove the former", &target);
        }
        fs::rename(temporary.path(), &target).at("write", &target)?;
        // From here on the temporary name does not exist: there is nothing to clean up.
        let _ = temporary.keep();
        sync_dir(parent_of(&target)).at("write", &target)
    }
}

/// Exchanges two directories; where the filesystem cannot do it in one step, in three.
fn exchange(new: &Path, target: &Path) -> io::Result<()> {
    match rustix::fs::renameat_with(CWD, new, CWD, target, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::NOTSUP) => {
            exchange_in_steps(new, target)
        }
        Err(e) => Err(e.into()),
    }
}

/// Between the first and the second rename the target is missing; the old directory then lies
/// beside it under `NAME.former`, which is never taken for a leftover.
fn exchange_in_steps(new: &Path, target: &Path) -> io::Result<()> {
    let mut former = target.as_os_str().to_owned();
    former.push(".former");
    fs::rename(target, &former)?;
    if let Err(e) = fs::rename(new, target) {
        fs::rename(&former, target)?;
        return Err(e);
    }
    fs::rename(&former, new)
}

/// Makes a temporary and locks it. The lock comes an instant after the name, and
/// [`remove_leftovers`] may strike between the two: then the name is gone, and another is made.
fn locked<T>(make: impl Fn() -> io::Result<(T, File, PathBuf)>) -> io::Result<(T, File)> {
    loop {
        let (made, lock, path) = make()?;
        // Without locks (some network filesystems) nothing is ever taken for a leftover either.
        let _ = lock.lock();
        if path.exists() {
            return Ok((made, lock));
        }
    }
}

fn write_and_sync(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    file.write_all(bytes)?;
    file.sync_all()
}

fn sync_tree(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_tree(&entry.path())?;
        } else {
            File::open(entry.path())?.sync_all()?;
        }
    }
    sync_dir(dir)
}

/// Makes renames in `dir` durable. Filesystems that cannot flush a directory say EINVAL.
fn sync_dir(dir: &Path) -> io::Result<()> {
    match File::open(dir)?.sync_all() {
        Err(e) if e.kind() == io::ErrorKind::InvalidInput => Ok(()),
        done => done,
    }
}

fn absent_is_fine(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn temporary_prefix(target: &Path) -> Result<OsString> {
    let Some(name) = target.file_name() else {
        return Err(Error::new(
            Code::Io,
            format!("cannot write {}: no file name", target.display()),
        ));
    };
    let mut prefix = OsString::from(".");
    prefix.push(name);
    prefix.push(TEMPORARY);
    Ok(prefix)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_and_nothing_else_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("latest");
        write_atomic(&path, b"one").unwrap();
        write_atomic(&path, b"two").unwrap();
        assert_eq!(read_to_string(&path).unwrap(), "two");
        assert_eq!(names(dir.path()), ["latest"]);
    }

    #[test]
    fn a_write_that_fails_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("taken");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("inside"), "x").unwrap();
        let e = write_atomic(&path, b"a file over a directory").unwrap_err();
        assert_eq!(e.code(), Code::Io);
        assert!(e.message().contains("taken"), "{e}");
        assert_eq!(names(dir.path()), ["taken"]);
        assert_eq!(names(&path), ["inside"]);
    }

    #[test]
    fn a_directory_appears_when_published_and_not_before() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("store/step-1");
        let new = NewDir::create(&target).unwrap();
        fs::create_dir(new.path().join("deep")).unwrap();
        fs::write(new.path().join("deep/weights"), "w").unwrap();
        assert!(!target.exists());
        new.publish().unwrap();
        assert_eq!(read_to_string(target.join("deep/weights")).unwrap(), "w");
        assert_eq!(names(&root.path().join("store")), ["step-1"]);
    }

    #[test]
    fn a_published_directory_replaces_the_former_one() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("best");
        for content in ["old", "new"] {
            let new = NewDir::create(&target).unwrap();
            fs::write(new.path().join(content), content).unwrap();
            new.publish().unwrap();
        }
        assert_eq!(names(&target), ["new"]);
        assert_eq!(names(root.path()), ["best"]);
    }

    #[test]
    fn without_an_atomic_exchange_the_directories_still_change_places() {
        let root = tempfile::tempdir().unwrap();
        let (new, target) = (root.path().join("new"), root.path().join("target"));
        for dir in [&new, &target] {
            fs::create_dir(dir).unwrap();
            fs::write(dir.join(dir.file_name().unwrap()), "").unwrap();
        }
        exchange_in_steps(&new, &target).unwrap();
        assert_eq!((names(&target), names(&new)), (vec!["new".into()], vec!["target".into()]));
        assert_eq!(names(root.path()), ["new", "target"]);
    }

    #[test]
    fn a_directory_that_is_not_published_vanishes() {
        let root = tempfile::tempdir().unwrap();
        let new = NewDir::create(&root.path().join("step-1")).unwrap();
        fs::write(new.path().join("half"), "x").unwrap();
        drop(new);
        assert!(names(root.path()).is_empty());
    }

    #[test]
    fn a_directory_cannot_take_the_place_of_a_file() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("notes.txt");
        fs::write(&target, "mine").unwrap();
        let e = NewDir::create(&target).unwrap_err();
        assert!(e.message().contains("a file of this name exists"), "{e}");
    }

    #[test]
    fn leftovers_are_removed_but_not_the_work_of_a_living_writer() {
        let root = tempfile::tempdir().unwrap();
        let dead_dir = root.path().join(".step-1.dsr-tmp-dead");
        fs::create_dir(&dead_dir).unwrap();
        fs::write(dead_dir.join("half"), "x").unwrap();
        fs::write(root.path().join(".latest.dsr-tmp-dead"), "st").unwrap();
        fs::write(root.path().join(".hidden"), "the user's own").unwrap();
        let living = NewDir::create(&root.path().join("step-2")).unwrap();
        assert_eq!(remove_leftovers(root.path()).unwrap(), 2);
        assert!(living.path().exists());
        living.publish().unwrap();
        assert_eq!(names(root.path()), [".hidden", "step-2"]);
    }

    #[test]
    fn a_removed_directory_leaves_no_trace() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("step-1");
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("weights"), "w").unwrap();
        remove_dir(&dir).unwrap();
        assert!(names(root.path()).is_empty());
    }

    #[test]
    fn files_get_the_permissions_that_the_umask_allows() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("usual"), "").unwrap();
        write_atomic(&dir.path().join("ours"), b"").unwrap();
        let mode = |name| fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode("ours"), mode("usual"));
    }

    #[test]
    fn a_full_device_is_told_from_other_failures() {
        let mut full = File::options().write(true).open("/dev/full").unwrap();
        let e = write_and_sync(&mut full, b"x").at("write", Path::new("x")).unwrap_err();
        assert_eq!(e.code(), Code::DiskFull);
    }

    #[test]
    fn a_full_disk_leaves_the_old_file_whole() {
        let root = tempfile::tempdir().unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"])
            .arg(root.path())
            .output();
        if !mount.as_ref().is_ok_and(|o| o.status.success()) {
            println!("skipped: a small tmpfs cannot be mounted here");
            return;
        }
        let path = root.path().join("state");
        write_atomic(&path, b"old").unwrap();
        let file = write_atomic(&path, &vec![7; 1 << 20]).unwrap_err();
        let content = read(&path);
        let left = names(root.path());
        let available = available_bytes(root.path());
        Command::new("umount").arg(root.path()).status().unwrap();
        assert_eq!(file.code(), Code::DiskFull);
        assert_eq!(content.unwrap(), b"old");
        assert_eq!(left, ["state"]);
        assert!(available.unwrap() <= 64 << 10);
    }

    #[test]
    fn free_space_is_known_for_places_that_do_not_exist_yet() {
        let root = tempfile::tempdir().unwrap();
        assert!(available_bytes(root.path().join("a/b/c")).unwrap() > 0);
        assert!(available_bytes("not/yet/there").unwrap() > 0);
    }

    #[test]
    fn what_may_have_no_end_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let (pipe, holes) = (root.path().join("pipe"), root.path().join("holes"));
        let made = Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        File::create(&holes).unwrap().set_len(1 << 40).unwrap();
        for (path, expected) in [
            (pipe.as_path(), "it is a pipe or a device, no file"),
            (Path::new("/dev/zero"), "it is a pipe or a device, no file"),
            (root.path(), "it is a directory, no file"),
            (holes.as_path(), "it has more than 1073741824 bytes"),
        ] {
            let e = read(path).unwrap_err();
            assert!(e.message().ends_with(expected), "{e}");
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let e = read("/no/such/file").unwrap_err();
        assert_eq!(e.to_string(), "cannot read /no/such/file: No such file or directory");
    }
}
