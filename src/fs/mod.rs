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
//! | `whole_file`, `whole_dir` | what appears whole |
//! | `temporary`, `flush` | the name that it has before, and its way to the disk |
//! | `named` | what the user named, a pipe maybe |
//! | `content` | the first bytes of a file that say what it is |

mod content;
mod flush;
mod handle;
mod named;
mod place;
mod temporary;
mod whole_dir;
mod whole_file;

use std::{
    io::{self, Read},
    path::Path,
};

/// An open file, which says nothing of how it was opened.
pub use std::fs::{File, TryLockError};

pub use self::{
    content::{refuse_pointer, without_mark},
    handle::{open_root, path_of},
    named::{append_to_named, read_named},
    place::{Found, Guard, Place, Use},
    temporary::{is_temporary, remove_leftovers},
    whole_dir::{NewDir, remove_dir},
    whole_file::{append_whole, write_atomic, write_json, write_over_own},
};
use crate::error::{Code, IoContext, Result};

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

/// Copies a file to a place that is free; the directories on the way are made.
pub fn copy(from: &Place, to: &Place) -> Result<()> {
    to.create_parents()?;
    let mut new = to.create_new()?;
    io::copy(&mut open_file(from)?, &mut new).at("write", to.path()).map(drop)
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

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

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
