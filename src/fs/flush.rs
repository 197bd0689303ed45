//! Files and directories flushed to the disk, before and after they are renamed.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

pub(super) fn write_and_sync(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    file.write_all(bytes)?;
    file.sync_all()
}

pub(super) fn sync_tree(dir: &Path) -> io::Result<()> {
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
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    match File::open(dir)?.sync_all() {
        Err(e) if e.kind() == io::ErrorKind::InvalidInput => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Code, IoContext};

    #[test]
    fn a_full_device_is_told_from_other_failures() {
        let mut full = File::options().write(true).open("/dev/full").unwrap();
        let e = write_and_sync(&mut full, b"x").at("write", Path::new("x")).unwrap_err();
        assert_eq!(e.code(), Code::DiskFull);
    }
}
