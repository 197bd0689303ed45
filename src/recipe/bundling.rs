//! Makes the bundle of a recipe.

use std::collections::BTreeMap;

use super::{
    address::without_hash,
    bundle::{Bundle, check_name, file_name, first_mark},
    diagnostics::Failure,
    embedded::EMBEDDED,
    file::Recipe,
    lock::Lock,
    locking, requests,
    workspace::Workspace,
};
use crate::error::{Code, Error};

/// Bundles a recipe with its imports and its lock.
///
/// Fails where an import cannot be read, or could not be found in a bundle, and where the lock is
/// not true of the recipe.
pub fn bundle(workspace: &Workspace, recipe: &Recipe) -> Result<Bundle, Failure> {
    let sources = &workspace.sources;
    let found = requests::read(workspace, recipe)?;
    found.check(sources)?;
    found.check_bundling(sources)?;
    if let Some(lock) = &workspace.lock {
        locking::check_texts(lock, sources, recipe, &found)?;
    }
    let own = Bundle::open(recipe)?;
    let text = own.as_ref().map_or(&recipe.text, |own| &own.recipe);
    let mut bundle = Bundle {
        name: file_name(recipe, own.as_ref()),
        recipe: text.clone(),
        modules: BTreeMap::new(),
        lock: workspace.lock.as_ref().map(Lock::text),
    };
    if let Some(at) = first_mark(text) {
        let line = text[..at].matches('\n').count() + 1;
        let message = format!("line {line} of the recipe begins as the lines of a bundle do");
        return Err(Error::new(Code::BadValue, message).into());
    }
    for (name, text) in found.modules() {
        if name.starts_with(EMBEDDED) {
            continue;
        }
        let name = without_hash(name).to_owned();
        check_name(&name)?;
        if bundle.modules.insert(name.clone(), text.to_owned()).is_some_and(|old| old != text) {
            let message = format!("{name} is imported with two hashes, a bundle has one");
            return Err(Error::new(Code::Pin, message).into());
        }
    }
    Ok(bundle)
}
