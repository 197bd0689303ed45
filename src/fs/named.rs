//! Files that the user named, who may name a pipe or a device.

use std::{
    fs::File,
    io::Read,
    path::{Component, Path, PathBuf},
};

use super::place::{self, Place};
use crate::error::{Code, IoContext, Result};

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

#[cfg(test)]
mod tests {
    use std::{fs, io::Write, os::unix::fs::symlink};

    use super::*;
    use crate::fs::write_atomic;

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
}
