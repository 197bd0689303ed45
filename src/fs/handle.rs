//! Open directories, and what is opened beneath them: never through a link.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat, openat2, statat,
    },
    io::Errno,
};

/// Flags of a directory that is a place to look from: it is neither read nor listed.
const PLACE: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// The directory at `path`, with links followed.
pub fn open_root(path: &Path) -> io::Result<OwnedFd> {
    Ok(openat(CWD, path, PLACE, Mode::empty())?)
}

/// Opens `below`, which has no `..`, beneath the directory `root`. A link on the way, or at its end, is
/// `ELOOP`; the kernel judges each part as it walks.
pub(super) fn open_beneath(
    root: impl AsFd,
    below: &Path,
    flags: OFlags,
    mode: Mode,
) -> io::Result<OwnedFd> {
    let below = if below.as_os_str().is_empty() { Path::new(".") } else { below };
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match openat2(&root, below, flags, mode, resolve) {
        // The kernel is older than 5.6, or a filter of the container knows the call by no name.
        Err(Errno::NOSYS | Errno::PERM) => walk(root, below, flags, mode),
        Err(Errno::NOTDIR) if is_link(&root, below) => Err(Errno::LOOP.into()),
        opened => no_link(opened?),
    }
}

/// A path handle of a link is not refused by `NOFOLLOW`.
fn no_link(opened: OwnedFd) -> io::Result<OwnedFd> {
    match FileType::from_raw_mode(fstat(&opened)?.st_mode).is_symlink() {
        true => Err(Errno::LOOP.into()),
        false => Ok(opened),
    }
}

/// As [`open_beneath`], part by part.
fn walk(root: impl AsFd, below: &Path, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
    let (parents, last) = parts(below)?;
    let mut at = openat(&root, ".", PLACE, Mode::empty())?;
    for part in parents {
        at = step(&at, part)?;
    }
    match openat(&at, last, flags | OFlags::NOFOLLOW, mode) {
        Err(Errno::NOTDIR) if is_link(&at, last) => Err(Errno::LOOP.into()),
        opened => no_link(opened?),
    }
}

/// The directory `part` of a directory; a link is `ELOOP`.
fn step(at: impl AsFd, part: &Path) -> rustix::io::Result<OwnedFd> {
    match openat(&at, part, PLACE | OFlags::NOFOLLOW, Mode::empty()) {
        Err(Errno::NOTDIR) if is_link(&at, part) => Err(Errno::LOOP),
        opened => opened,
    }
}

fn is_link(at: impl AsFd, part: &Path) -> bool {
    let stat = statat(at, part, AtFlags::SYMLINK_NOFOLLOW);
    stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_symlink())
}

/// Makes the directory `below` beneath `root`, and those above it, and opens it.
pub(super) fn make_beneath(root: impl AsFd, below: &Path) -> io::Result<OwnedFd> {
    let mut at = openat(&root, ".", PLACE, Mode::empty())?;
    for part in below.components() {
        let Component::Normal(part) = part else { return Err(Errno::XDEV.into()) };
        let part = Path::new(part);
        at = match step(&at, part) {
            Err(Errno::NOENT) => {
                match mkdirat(&at, part, Mode::from_raw_mode(0o777)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(e) => return Err(e.into()),
                }
                step(&at, part)?
            }
            opened => opened?,
        };
    }
    Ok(at)
}

fn parts(below: &Path) -> io::Result<(Vec<&Path>, &Path)> {
    let mut parts = Vec::new();
    for part in below.components() {
        match part {
            Component::Normal(name) => parts.push(Path::new(name)),
            Component::CurDir => {}
            _ => return Err(Errno::XDEV.into()),
        }
    }
    let last = parts.pop().unwrap_or(Path::new("."));
    Ok((parts, last))
}

/// The path that stands for an open file or directory as long as it is open, for what takes a path only.
pub fn path_of(handle: &impl AsRawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", handle.as_raw_fd()))
}

/// Whether what was opened is a file or a directory: a pipe or a device never ends.
pub(super) fn is_plain(file: &File) -> io::Result<bool> {
    let kind = file.metadata()?.file_type();
    Ok(kind.is_file() || kind.is_dir())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    /// The kernel's walk and the one part by part refuse the same.
    #[test]
    fn nothing_is_opened_through_a_link() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("in/deep")).unwrap();
        fs::write(root.path().join("in/deep/file"), "x").unwrap();
        symlink("in/deep", root.path().join("link")).unwrap();
        symlink("in/deep/file", root.path().join("file")).unwrap();
        let at = open_root(root.path()).unwrap();
        let read = OFlags::RDONLY;
        type Open = fn(&OwnedFd, &Path, OFlags) -> io::Result<OwnedFd>;
        let both: [Open; 2] = [
            |at, path, flags| open_beneath(at, path, flags, Mode::empty()),
            |at, path, flags| walk(at, path, flags, Mode::empty()),
        ];
        for open in both {
            assert!(open(&at, Path::new("in/deep/file"), read).is_ok());
            assert!(open(&at, Path::new(""), read).is_ok());
            for path in ["link/file", "file", "link", "..", "in/../../etc", "/etc"] {
                for flags in [read, OFlags::PATH] {
                    assert!(open(&at, Path::new(path), flags).is_err(), "{path}");
                }
            }
            let e = open(&at, Path::new("link"), PLACE).unwrap_err();
            assert_eq!(e.raw_os_error(), Some(Errno::LOOP.raw_os_error()));
        }
        assert!(make_beneath(&at, Path::new("link/new")).is_err());
        assert!(make_beneath(&at, Path::new("in/new/er")).is_ok());
        assert!(
            root.path().join("in/new/er").is_dir() && !root.path().join("in/deep/new").exists()
        );
    }
}
