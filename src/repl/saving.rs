//! Writing a session as a recipe, without overwriting what is not its own.

use std::path::Path;

use crate::{
    error::{Code, Error, IoContext, Result},
    fs::{self, Place},
    live::Live,
};

/// How a file begins that a session may overwrite.
const MARK: &str = "//! A session of dsr repl.\n";

/// Writes the session into the file at `path`, whole or not at all.
pub(super) fn save(place: &Place, live: &Live, force: bool) -> Result<()> {
    let path = place.path();
    check_imports(path, live)?;
    if place.is_taken()? && !force && !place.read_to_string()?.starts_with(MARK) {
        let message =
            format!("{} was not saved by a session, and is not overwritten", path.display());
        return Err(Error::new(Code::Io, message).hint("overwrite it with :save --force FILE"));
    }
    fs::write_atomic(place, format!("{MARK}\n{}", live.saved()).as_bytes())
}

/// A recipe imports from its own directory: it cannot run elsewhere.
fn check_imports(path: &Path, live: &Live) -> Result<()> {
    let whole = |dir: &Path| Path::new(".").join(dir).canonicalize().at("open", dir);
    for (from, import) in live.imported_files() {
        if whole(from)? != whole(path.parent().unwrap_or(from))? {
            let message = format!(
                "the session imports \"{import}\" from {}, and a recipe imports from its own directory",
                from.display()
            );
            let file = from.join(path.file_name().unwrap_or_default());
            return Err(Error::new(Code::Usage, message)
                .hint(format!("save it there: :save {}", file.display())));
        }
    }
    Ok(())
}
