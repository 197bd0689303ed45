//! The first bytes of a file that say what it is.

use std::path::Path;

use crate::error::{Code, Error, Result};

/// The first bytes of what git leaves in the place of a large file that it has not fetched.
const LFS_POINTER: &[u8] = b"version https://git-lfs";
/// The first bytes of text that some programs write to say that it is UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Refuses a file that begins with `start` where it is only git's pointer to the file that is meant, with
/// the code of what the file should be.
pub fn refuse_pointer(path: &Path, start: &[u8], code: Code) -> Result<()> {
    if !start.starts_with(LFS_POINTER) {
        return Ok(());
    }
    let message = format!("{} is a Git LFS pointer, not the file itself", path.display());
    Err(Error::new(code, message).hint("`git lfs pull` in that repository downloads the file"))
}

/// Text without the byte order mark before it.
pub fn without_mark(text: &[u8]) -> &[u8] {
    text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text)
}
