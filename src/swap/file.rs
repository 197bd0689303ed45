//! Files without a name whose space is there from the start.

use std::{io, os::unix::fs::FileExt};

use rustix::{
    fs::{FallocateFlags, OFlags, fallocate, fcntl_getfl, fcntl_setfl},
    io::{Errno, retry_on_intr},
};

use crate::{
    error::{Code, Error, IoContext, Result},
    fs::{File, Place, available_bytes},
    units::Bytes,
};

/// Bytes that a transfer without the page cache (`O_DIRECT`) is a multiple of, in memory and file.
pub(super) const BLOCK: u64 = 4096;

/// A file of `bytes` in `dir`, which no directory lists.
pub(super) fn create(dir: &Place, bytes: u64) -> Result<File> {
    let file = dir.unnamed_file()?;
    let room = available_bytes(dir)?;
    if room < bytes {
        return Err(no_room(dir, bytes, room));
    }
    if bytes > 0 {
        match retry_on_intr(|| fallocate(&file, FallocateFlags::empty(), 0, bytes)) {
            // Not all filesystems can; then the look at the free space is all there is.
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(Errno::NOSPC) => return Err(no_room(dir, bytes, room)),
            Err(e) => Err(io::Error::from(e)).at("make a file in", dir.path())?,
        }
    }
    bypass_cache(&file);
    Ok(file)
}

fn no_room(dir: &Place, bytes: u64, room: u64) -> Error {
    let (dir, bytes, room) = (dir.display(), Bytes(bytes), Bytes(room));
    let message = format!("what is offloaded to {dir} needs {bytes} there, and {room} are free");
    Error::new(Code::DiskFull, message)
        .hint("free some space, or give `zero.nvme_path` a directory on a larger disk")
}

/// Makes transfers go past the page cache, where the filesystem can: the state would only push
/// other files out of it.
fn bypass_cache(file: &File) {
    let Ok(flags) = fcntl_getfl(file) else { return };
    if fcntl_setfl(file, flags | OFlags::DIRECT).is_err() {
        return;
    }
    // Some filesystems take the flag and refuse the transfers.
    let mut memory = vec![0u8; 2 * BLOCK as usize];
    let start = memory.as_ptr().align_offset(BLOCK as usize);
    let block = memory.get_mut(start..start + BLOCK as usize);
    let is_refused = block.is_none_or(|block| file.read_at(block, 0).is_err());
    if is_refused {
        // The transfers themselves would tell.
        let _ = fcntl_setfl(file, flags);
    }
}
