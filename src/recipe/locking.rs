//! Makes the lock of a recipe, and holds a recipe to its lock.

use std::{collections::BTreeSet, rc::Rc};

use super::{
    address::without_hash,
    bundle::{Bundle, file_name},
    diagnostics::Failure,
    error::AtPosition,
    file::Recipe,
    hub_name::{HubName, HubUse},
    lock::{Lock, missing},
    requests::{self, Requests},
    sources::Sources,
    workspace::Workspace,
};
use crate::{
    error::{Code, Error, Result},
    hash,
    hub::{DatasetId, Hub, Listing, MODEL_FILES, TOKENIZER_FILES},
};

/// Opens the hub when it is first needed.
type OpenHub<'a> = &'a dyn Fn() -> Result<Rc<Hub>>;

/// Locks a recipe to the commits that its branches on the hub have now. Large files are not
/// downloaded for their hashes.
///
/// Fails where an import cannot be read, or the hub does not give what the recipe names.
pub fn lock(workspace: &Workspace, recipe: &Recipe, hub: OpenHub<'_>) -> Result<Lock, Failure> {
    workspace.rights.settle()?;
    let found = requests::read(workspace, recipe)?;
    found.check(&workspace.sources)?;
    let mut lock = Lock::new();
    for (name, sha256) in hashes(recipe, &found)? {
        if lock.recipes.insert(name.clone(), sha256.clone()).is_some_and(|old| old != sha256) {
            let message = format!("{name} is imported with two hashes, a lock has one");
            return Err(Error::new(Code::Pin, message).into());
        }
    }
    for name in &found.hub {
        let listing = hub()
            .and_then(|hub| list(&hub, name))
            .map_err(|e| Failure::of(e.at(&name.source, name.position), &[], &workspace.sources))?;
        lock.add(name, listing);
    }
    Ok(lock)
}

/// The files of a name on the hub.
fn list(hub: &Hub, name: &HubName) -> Result<Listing> {
    let HubName { used_as, repo, config, revision, .. } = name;
    match used_as {
        HubUse::Model => hub.list_model(repo, Some(revision), MODEL_FILES),
        HubUse::Tokenizer => hub.list_model(repo, Some(revision), TOKENIZER_FILES),
        HubUse::Dataset => {
            let (config, revision) = (config.as_deref(), Some(revision.as_str()));
            hub.list_dataset(DatasetId { repo, config, revision })
        }
    }
}

/// Checks the lock of a frozen workspace against the recipe and the files in the cache; nothing is
/// asked of the hub.
///
/// Fails with all differences.
pub fn check(workspace: &Workspace, recipe: &Recipe, hub: OpenHub<'_>) -> Result<(), Failure> {
    let Some(lock) = &workspace.lock else { return Err(missing().into()) };
    let found = requests::read(workspace, recipe)?;
    let mut faults = faults(lock, recipe, &found)?;
    // An import that could not be read may have imports and names of its own.
    if faults.is_empty() {
        faults.extend(unused(lock, recipe, &found)?);
    }
    faults.extend(lock.damaged(hub)?);
    Failure::check(faults, &workspace.sources)
}

/// Refuses a recipe that has more than its lock, if the workspace is frozen.
pub(crate) fn check_frozen(workspace: &Workspace, recipe: &Recipe) -> Result<(), Failure> {
    if !workspace.frozen {
        return Ok(());
    }
    let Some(lock) = &workspace.lock else { return Err(missing().into()) };
    let found = requests::read(workspace, recipe)?;
    Failure::check(faults(lock, recipe, &found)?, &workspace.sources)
}

/// Refuses a lock of another recipe, or of an earlier text.
pub(super) fn check_texts(
    lock: &Lock,
    sources: &Sources,
    recipe: &Recipe,
    found: &Requests,
) -> Result<(), Failure> {
    let mut faults = faults(lock, recipe, found)?;
    for (name, text) in found.modules() {
        faults.extend(lock.check_text(without_hash(name), text).err());
    }
    faults.extend(unused(lock, recipe, found)?);
    Failure::check(faults, sources)
}

/// The parts of a recipe that are not in the lock, or have another hash there.
fn faults(lock: &Lock, recipe: &Recipe, found: &Requests) -> Result<Vec<Error>, Failure> {
    let mut faults: Vec<_> = found.faults().collect();
    // Its imports were checked where they stand.
    if let Some((name, sha256)) = hashes(recipe, found)?.into_iter().next() {
        faults.extend(lock.check_hash(&name, &sha256).err());
    }
    faults.extend(lock.missing(&found.hub));
    Ok(faults)
}

fn unused(lock: &Lock, recipe: &Recipe, found: &Requests) -> Result<Vec<Error>, Failure> {
    let names: BTreeSet<_> = hashes(recipe, found)?.into_iter().map(|(name, _)| name).collect();
    Ok(lock.unused(&names, &found.hub))
}

/// Names and hashes of the recipe, which is the first, and of its imports.
fn hashes(recipe: &Recipe, found: &Requests) -> Result<Vec<(String, String)>, Failure> {
    let bundle = Bundle::open(recipe)?;
    let text = bundle.as_ref().map_or(&recipe.text, |bundle| &bundle.recipe);
    let own = (file_name(recipe, bundle.as_ref()), hash::sha256(text));
    let modules = found.modules();
    let modules = modules.map(|(name, text)| (without_hash(name).to_owned(), hash::sha256(text)));
    Ok([own].into_iter().chain(modules).collect())
}
