//! Files that are whole or absent: a reader sees the old content or the new, whenever the writer died.
//!
//! Everything is first written beside its target under a temporary name, flushed to the disk, and
//! only then renamed. The temporary name is locked (`flock`) for as long as its writer lives, so
//! that what a killed writer left behind can be told from work in progress and removed
//! ([`remove_leftovers`]); where locks are not supported, leftovers stay. A symbolic link at the
//! target is replaced, not followed.
//!
//! Each name is used in the open directory that it is in, so that a directory that is exchanged for a link
//! meanwhile leads nowhere else. What may be used at all is a [`Place`]'s matter.
//!
//! | file | concept |
//! |---|---|
//! | `place` | a path with the guard that judges it whenever it is opened |
//! | `handle` | open directories, and what is opened beneath them |

mod content;
mod handle;
mod place;

use std::{
    ffi::OsString,
    fs::{self, Permissions},
    io::{self, Read, Write},
    os::unix::fs::PermissionsExt,
    path::{Component, Path, PathBuf},
};

use rustix::fs::{CWD, RenameFlags};
use serde::Serialize;
use tempfile::{Builder, TempDir};

pub use self::content::{refuse_pointer, without_mark};
use self::place::Target;
/// An open file, which says nothing of how it was opened.
pub use std::fs::{File, TryLockError};

pub use self::{
    handle::{open_root, path_of},
    place::{Found, Guard, Place, Use},
};
use crate::error::{Code, Error, IoContext, Result};

/// The middle of a temporary name, between the target's name and a random end.
const TEMPORARY: &str = ".dsr-tmp-";

/// Opens a file to be read. A pipe or a device, which may have no end, is refused.
pub fn open_file(place: impl Into<Place>) -> Result<File> {
    let place = place.into();
    let file = place.open()?;
    if file.metadata().at("read", place.path())?.is_dir() {
        bail!(Code::Io, "cannot read {}: it is a directory, no file", place.display());
    }
    Ok(file)
}

/// The content of a file. A pipe or a device is refused, and so is more than a gibibyte.
pub fn read(place: impl Into<Place>) -> Result<Vec<u8>> {
    place.into().read()
}

/// The content of a JSON file, as [`read`] reads it, without a byte order mark.
pub fn read_json(place: impl Into<Place>) -> Result<Vec<u8>> {
    place.into().read_json()
}

/// The content of a file that holds text in UTF-8, as [`read`] reads it.
pub fn read_to_string(place: impl Into<Place>) -> Result<String> {
    place.into().read_to_string()
}

/// The most bytes of a recipe or of the parameters of one.
const MOST_NAMED: u64 = 64 << 20;

/// The text of a file that the user named, who may name a pipe: `dsr run <(make_recipe)`.
pub fn read_named(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    let (mut text, most) = (String::new(), MOST_NAMED);
    let read = File::open(path).and_then(|file| file.take(most + 1).read_to_string(&mut text));
    if read.at("read", path)? as u64 > most {
        bail!(Code::Io, "cannot read {}: it has more than {most} bytes", path.display());
    }
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

/// Opens a file that the user named, who may name a pipe or a device, to append to it. It is made when
/// absent. In `work_dir`, whose content may be a stranger's, no link is followed.
pub fn append_to_named(path: &Path, work_dir: &Path) -> Result<File> {
    match beneath(path, work_dir) {
        Some(below) => Place::beneath(work_dir)?.join(below).append(),
        None => File::options().create(true).append(true).open(path).at("open", path),
    }
}

/// The path from `dir` on, where `path` is one beneath it. A relative one starts there.
fn beneath(path: &Path, dir: &Path) -> Option<PathBuf> {
    let below = match path.is_relative() {
        true => path,
        false => {
            // Relative, or through links of the user's own.
            let real = place::here_if_empty(dir).canonicalize();
            let real = real.unwrap_or_else(|_| dir.to_owned());
            path.strip_prefix(&real).or_else(|_| path.strip_prefix(dir)).ok()?
        }
    };
    let is_name = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
    (!below.as_os_str().is_empty() && below.components().all(is_name)).then(|| below.to_owned())
}

/// Appends `bytes` to a file that was opened to append to: all of them, or none where the disk is full.
pub fn append_whole(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    let before = file.metadata()?.len();
    file.write_all(bytes).inspect_err(|_| {
        // A line that was written in part would tear the next one. A device has no length.
        let _ = file.set_len(before);
    })
}

/// The first bytes of a file, `len` at most.
pub fn read_start(file: &mut File, len: usize) -> io::Result<Vec<u8>> {
    let len = file.metadata()?.len().min(len as u64);
    let mut begin = Vec::new();
    Read::by_ref(file).take(len).read_to_end(&mut begin)?;
    Ok(begin)
}

/// Makes a directory and those above it; one that exists already is fine.
pub fn create_dir_all(place: impl Into<Place>) -> Result<()> {
    place.into().create_dir_all()
}

/// Writes a file, or replaces it, in one step: a reader never sees a part of it.
///
/// # Errors
/// [`Code::DiskFull`] or [`Code::Io`]; what stood there is then unchanged.
pub fn write_atomic(place: impl Into<Place>, bytes: &[u8]) -> Result<()> {
    let place = place.into();
    let shown = place.path();
    let target = place.target()?;
    let prefix = temporary_prefix(shown)?;
    let (mut temporary, _lock) = locked(|| {
        let mut builder = Builder::new();
        builder.prefix(&prefix).permissions(Permissions::from_mode(0o666));
        let file = builder.tempfile_in(&target.parent)?;
        let lock = file.as_file().try_clone()?;
        let at = file.path().to_path_buf();
        Ok((file, lock, at))
    })
    .at("write", shown)?;
    write_and_sync(temporary.as_file_mut(), bytes).at("write", shown)?;
    temporary.persist(&target.path).map_err(|e| e.error).at("write", shown)?;
    sync_dir(&target.parent).at("write", shown)
}

/// Writes a file, as [`write_atomic`] does, where there is none or one that `is_own` by its content: a `kind` of
/// file. Another one is somebody's work, and stays.
pub fn write_over_own(
    place: &Place,
    bytes: &[u8],
    (kind, is_own): (&str, impl Fn(&[u8]) -> bool),
) -> Result<()> {
    let is_replaced =
        || -> Result<bool> { Ok(place.is_file() && !place.is_link()? && is_own(&place.read()?)) };
    if place.is_taken()? && !is_replaced()? {
        let message = format!("{} is no {kind}, and is not overwritten", place.display());
        return Err(Error::new(Code::Io, message).hint("name a file that does not exist yet"));
    }
    write_atomic(place, bytes)
}

/// Writes a value as JSON, as [`write_atomic`] does.
pub fn write_json(place: impl Into<Place>, value: &impl Serialize) -> Result<()> {
    let place = place.into();
    let mut text = serde_json::to_string_pretty(value).map_err(|e| {
        Error::new(Code::Io, format!("cannot write {} as JSON", place.display())).caused_by(e)
    })?;
    text.push('\n');
    write_atomic(place, text.as_bytes())
}

/// Copies a file to a place that is free; the directories on the way are made.
pub fn copy(from: &Place, to: &Place) -> Result<()> {
    to.create_parents()?;
    let mut new = to.create_new()?;
    io::copy(&mut open_file(from)?, &mut new).at("write", to.path()).map(drop)
}

/// Removes a directory such that it is whole until, at one instant, it is gone.
pub fn remove_dir(place: impl Into<Place>) -> Result<()> {
    let place = place.into();
    let shown = place.path();
    let target = place.target()?;
    // A kill while the files are being deleted must not leave a directory that looks whole.
    let hidden = Builder::new()
        .prefix(&temporary_prefix(shown)?)
        .tempdir_in(&target.parent)
        .at("remove", shown)?
        .keep();
    fs::rename(&target.path, &hidden).at("remove", shown)?;
    absent_is_fine(fs::remove_dir_all(&hidden)).at("remove", shown)
}

/// Removes what killed writers of `names` left in a directory and returns how much there was. The
/// temporaries of living writers stay, and what merely has such a name.
pub fn remove_leftovers(dir: impl Into<Place>, is_ours: impl Fn(&str) -> bool) -> Result<usize> {
    let dir = dir.into();
    let (shown, handle) = (dir.path(), dir.directory()?);
    let at = path_of(&handle);
    let mut removed = 0;
    for name in dir.list()? {
        let path = at.join(&name);
        if !name.to_str().and_then(target_of).is_some_and(&is_ours) {
            continue;
        }
        // The lock of a killed process is released by the kernel. It is held while removing, so
        // that a writer that has just made this name notices (see `locked`).
        let plain = path.symlink_metadata().is_ok_and(|m| m.is_dir() || m.is_file());
        let Some(file) = File::open(&path).ok().filter(|_| plain) else { continue };
        if file.try_lock().is_err() {
            continue;
        }
        let done = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        absent_is_fine(done).at("remove", &shown.join(&name))?;
        removed += 1;
    }
    Ok(removed)
}

/// The name that a temporary name was made for.
fn target_of(name: &str) -> Option<&str> {
    let (target, end) = name.strip_prefix('.')?.rsplit_once(TEMPORARY)?;
    // `tempfile` puts six letters and digits behind the prefix.
    (end.len() == 6 && end.bytes().all(|b| b.is_ascii_alphanumeric())).then_some(target)
}

/// True for a name that a writer uses before it publishes: to be passed over in listings.
pub fn is_temporary(path: &Path) -> bool {
    path.file_name()
        .map(|name| name.to_string_lossy())
        .is_some_and(|name| name.starts_with('.') && name.contains(TEMPORARY))
}

/// Bytes that this user can still write to the filesystem of a place, which need not exist yet.
pub fn available_bytes(place: impl Into<Place>) -> Result<u64> {
    let place = place.into();
    let absolute = std::path::absolute(place.path()).at("find the free space of", place.path())?;
    let existing = absolute.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    let stat = rustix::fs::statvfs(existing)
        .map_err(io::Error::from)
        .at("find the free space of", existing)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// A directory being written: it appears at its target whole, with [`NewDir::publish`], or never.
#[derive(Debug)]
pub struct NewDir {
    shown: PathBuf,
    /// Through the handle of the directory itself.
    place: Place,
    temporary: TempDir,
    target: Target,
    _lock: File,
}

impl NewDir {
    /// Begins a directory that will stand at `place`; those above it are made. What killed writers of the
    /// same directory left is removed.
    pub fn create(place: impl Into<Place>) -> Result<Self> {
        let place = place.into();
        let shown = place.path().to_path_buf();
        if place.exists() && !place.is_dir() {
            let message = format!(
                "cannot make the directory {}: a file of this name exists",
                shown.display()
            );
            return Err(Error::new(Code::Io, message));
        }
        let parent = place.parent().unwrap_or_else(|| place.clone());
        place.create_parents()?;
        if let Some(name) = place.name()
            && parent.exists()
        {
            remove_leftovers(&parent, |target| target == name)?;
        }
        let prefix = temporary_prefix(&shown)?;
        let target = place.target()?;
        let (temporary, lock) = locked(|| {
            let mut builder = Builder::new();
            builder.prefix(&prefix).permissions(Permissions::from_mode(0o777));
            let dir = builder.tempdir_in(&target.parent)?;
            let lock = File::open(dir.path())?;
            let at = dir.path().to_path_buf();
            Ok((dir, lock, at))
        })
        .at("make the directory", &shown)?;
        Ok(Self { shown, place: Place::unguarded(path_of(&lock)), temporary, target, _lock: lock })
    }

    /// Where to write the files.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Flushes every file to the disk and puts the directory in its place; a directory that stood
    /// there is exchanged for it in the same instant, then removed.
    ///
    /// # Errors
    /// [`Code::DiskFull`] or [`Code::Io`]; what stood at the target is then unchanged.
    pub fn publish(self) -> Result<()> {
        let Self { shown, place: _, temporary, target, _lock } = self;
        sync_tree(temporary.path()).at("write", &shown)?;
        if target.path.symlink_metadata().is_ok() {
            exchange(temporary.path(), &target.path).at("replace", &shown)?;
            sync_dir(&target.parent).at("write", &shown)?;
            // The temporary name now holds what stood there.
            let former = temporary.keep();
            let is_dir = former.symlink_metadata().is_ok_and(|m| m.is_dir());
            let gone = if is_dir { fs::remove_dir_all(&former) } else { fs::remove_file(&former) };
            return absent_is_fine(gone).at("remove the former", &shown);
        }
        fs::rename(temporary.path(), &target.path).at("write", &shown)?;
        // From here on the temporary name does not exist: there is nothing to clean up.
        let _ = temporary.keep();
        sync_dir(&target.parent).at("write", &shown)
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
    use std::{os::unix::fs::symlink, process::Command};

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
        fs::create_dir(new.place().path().join("deep")).unwrap();
        fs::write(new.place().path().join("deep/weights"), "w").unwrap();
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
            fs::write(new.place().path().join(content), content).unwrap();
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
        let new = NewDir::create(root.path().join("step-1")).unwrap();
        fs::write(new.place().path().join("half"), "x").unwrap();
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
        let dead_dir = root.path().join(".step-1.dsr-tmp-deadAA");
        fs::create_dir(&dead_dir).unwrap();
        fs::write(dead_dir.join("half"), "x").unwrap();
        fs::write(root.path().join(".latest.dsr-tmp-deadAA"), "st").unwrap();
        fs::write(root.path().join(".hidden"), "the user's own").unwrap();
        let living = NewDir::create(root.path().join("step-2")).unwrap();
        assert_eq!(remove_leftovers(root.path(), |_| true).unwrap(), 2);
        assert!(living.place().path().exists());
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
        write_atomic(dir.path().join("ours"), b"").unwrap();
        let mode = |name| fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode("ours"), mode("usual"));
    }

    #[test]
    fn a_full_device_is_told_from_other_failures() {
        let mut full = File::options().write(true).open("/dev/full").unwrap();
        let e = write_and_sync(&mut full, b"x").at("write", Path::new("x")).unwrap_err();
        assert_eq!(e.code(), Code::DiskFull);
    }

    /// A disk of 64 KiB, if one can be mounted here.
    fn small_disk() -> Option<tempfile::TempDir> {
        let root = tempfile::tempdir().unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"])
            .arg(root.path())
            .output();
        if !mount.as_ref().is_ok_and(|o| o.status.success()) {
            println!("skipped: a small tmpfs cannot be mounted here");
            return None;
        }
        Some(root)
    }

    #[test]
    fn what_is_appended_to_a_full_disk_is_whole_or_not_there() {
        let Some(root) = small_disk() else { return };
        let mut log = Place::unguarded(root.path().join("log")).append().unwrap();
        append_whole(&mut log, b"a line\n").unwrap();
        let failed = append_whole(&mut log, &[7; 1 << 20]);
        let again = append_whole(&mut log, b"another\n");
        let content = read(root.path().join("log"));
        drop(log);
        Command::new("umount").arg(root.path()).status().unwrap();
        assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::StorageFull);
        again.unwrap();
        assert_eq!(content.unwrap(), b"a line\nanother\n");
    }

    #[test]
    fn a_full_disk_leaves_the_old_file_whole() {
        let Some(root) = small_disk() else { return };
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
    fn what_the_user_names_may_be_a_device_that_ends() {
        assert_eq!(read_named("/dev/null").unwrap(), "");
        let e = read_named("/dev/zero").unwrap_err();
        assert_eq!(e.message(), "cannot read /dev/zero: it has more than 67108864 bytes");
    }

    #[test]
    fn beneath_a_directory_nothing_is_a_link_or_above_it() {
        let root = tempfile::tempdir().unwrap();
        let (dir, file) = (root.path().join("dir"), root.path().join("file"));
        fs::create_dir(&dir).unwrap();
        fs::write(&file, "mine").unwrap();
        symlink(&file, dir.join("link")).unwrap();
        symlink(root.path(), dir.join("up")).unwrap();
        let place = Place::beneath(&dir).unwrap();
        for below in ["link", "up/file", "../file", "x/../../file"] {
            assert!(place.join(below).read().is_err(), "{below}");
        }
        for below in ["link", "up/file", "up/new"] {
            assert!(append_to_named(Path::new(below), &dir).is_err(), "{below}");
        }
        assert!(place.beside(&file).read().is_err());
        assert!(append_to_named(&dir.join("link"), &dir).is_err());
        append_to_named(Path::new("log"), &dir).unwrap().write_all(b"a").unwrap();
        append_to_named(&dir.join("log"), &dir).unwrap().write_all(b"b").unwrap();
        assert_eq!(place.join("log").read().unwrap(), b"ab");
        write_atomic(place.join("link"), b"new").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"mine", "the link is replaced");
        append_to_named(&file, &dir).unwrap().write_all(b" own").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"mine own", "it is elsewhere, and the user's");
    }

    #[test]
    fn a_missing_file_is_named() {
        let e = read("/no/such/file").unwrap_err();
        assert_eq!(e.to_string(), "cannot read /no/such/file: No such file or directory");
    }
}
