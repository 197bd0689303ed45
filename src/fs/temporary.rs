//! Temporary names: made and locked by a writer, and removed where their writer died.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use super::{handle::path_of, place::Place};
use crate::error::{Code, Error, IoContext, Result};

/// The middle of a temporary name, between the target's name and a random end.
const TEMPORARY: &str = ".dsr-tmp-";

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

/// Makes a temporary and locks it. The lock comes an instant after the name, and
/// [`remove_leftovers`] may strike between the two: then the name is gone, and another is made.
pub(super) fn locked<T>(
    make: impl Fn() -> io::Result<(T, File, PathBuf)>,
) -> io::Result<(T, File)> {
    loop {
        let (made, lock, path) = make()?;
        // Without locks (some network filesystems) nothing is ever taken for a leftover either.
        let _ = lock.lock();
        if path.exists() {
            return Ok((made, lock));
        }
    }
}

pub(super) fn temporary_prefix(target: &Path) -> Result<OsString> {
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

pub(super) fn absent_is_fine(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::fs::NewDir;

    pub(in crate::fs) fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
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
}
