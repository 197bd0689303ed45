//! Writing a session as a recipe, without overwriting what is not its own.

use std::path::Path;

use crate::{
    error::{Code, Error, Result},
    fs,
};

/// How a file begins that a session may overwrite.
const MARK: &str = "//! A session of dsr repl.\n";

/// Writes `text` into the file at `path`, whole or not at all.
pub(super) fn save(path: &Path, text: &str, force: bool) -> Result<()> {
    if path.exists() && !force && !fs::read_to_string(path)?.starts_with(MARK) {
        let message =
            format!("{} was not saved by a session, and is not overwritten", path.display());
        return Err(Error::new(Code::Io, message).hint("overwrite it with :save --force FILE"));
    }
    fs::write_atomic(path, format!("{MARK}\n{text}").as_bytes())
}
