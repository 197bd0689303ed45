//! Directories that appear whole, and go so.

use std::{
    fs::{self, File, Permissions},
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, RenameFlags};
use tempfile::{Builder, TempDir};

use super::{
    flush::{sync_dir, sync_tree},
    handle::path_of,
    place::{Place, Target},
    temporary::{absent_is_fine, locked, remove_leftovers, temporary_prefix},
};
use crate::error::{Code, Error, IoContext, Result};

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::{read_to_string, temporary::tests::names};

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
    fn a_removed_directory_leaves_no_trace() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("step-1");
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("weights"), "w").unwrap();
        remove_dir(&dir).unwrap();
        assert!(names(root.path()).is_empty());
    }
}
