//! Files that are written whole or not at all.

use std::{
    fs::{File, Permissions},
    io::{self, Write},
    os::unix::fs::PermissionsExt,
};

use serde::Serialize;
use tempfile::Builder;

use super::{
    flush::{sync_dir, write_and_sync},
    place::Place,
    temporary::{locked, temporary_prefix},
};
use crate::error::{Code, Error, IoContext, Result};

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

/// Appends `bytes` to a file that was opened to append to: all of them, or none where the disk is full.
pub fn append_whole(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    let before = file.metadata()?.len();
    file.write_all(bytes).inspect_err(|_| {
        // A line that was written in part would tear the next one. A device has no length.
        let _ = file.set_len(before);
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command};

    use super::*;
    use crate::fs::{available_bytes, read, read_to_string, temporary::tests::names};

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
    fn files_get_the_permissions_that_the_umask_allows() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("usual"), "").unwrap();
        write_atomic(dir.path().join("ours"), b"").unwrap();
        let mode = |name| fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode("ours"), mode("usual"));
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
}
