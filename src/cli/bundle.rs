//! `dsr recipe bundle` and `unbundle`: a recipe with all that it imports as one file, and back.

use std::path::{Path, PathBuf};

use super::{args::BundleArgs, console, host, origin::FetchArgs};
use crate::{
    error::{Code, Error, Result},
    fs::{NewDir, Place, write_atomic},
    recipe::{Failure, Recipe, address, bundle::Bundle, bundling, lock::Lock},
};

/// Writes a recipe's bundle into a new file.
pub(super) fn make(args: &BundleArgs) -> Result<(), Failure> {
    let recipe = args.fetch.open(&args.recipe)?;
    let default = || PathBuf::from(format!("{}.bundle.rhai", Recipe::stem(&recipe.name)));
    let to = args.output.clone().unwrap_or_else(default);
    absent(&to)?;
    let mut workspace = host::workspace(&recipe, &args.given, &args.fetch)?;
    workspace.lock = Lock::find(&recipe, args.lock.as_deref())?;
    let bundle = bundling::bundle(&workspace, &recipe)?;
    write_atomic(Place::unguarded(&to), bundle.text().as_bytes())?;
    let (modules, lock) = (bundle.modules.len(), bundle.lock.is_some());
    let lock = if lock { "with its lock" } else { "without a lock: there is none" };
    let modules = if modules == 1 { "1 module".to_owned() } else { format!("{modules} modules") };
    console::out(&format!("{}: {modules}, {lock}\n", to.display()));
    Ok(())
}

/// Writes the parts of a bundle into a new directory; what is at an address goes into the cache.
pub(super) fn take_apart(from: &Path, to: &Path, fetch: &FetchArgs) -> Result<(), Failure> {
    let recipe = fetch.open(from)?;
    let Some(bundle) = Bundle::open(&recipe)? else {
        let message = format!("{} is no bundle: there is nothing to take apart", recipe.name);
        return Err(Error::new(Code::Usage, message)
            .hint("`dsr recipe cp` copies a recipe")
            .into());
    };
    absent(to)?;
    let dir = NewDir::create(Place::unguarded(to))?;
    let env = fetch.env();
    let mut names = Vec::new();
    let mut write = |name: &str, text: &str| -> Result<()> {
        let place = dir.place().join(name);
        absent(place.path())?;
        place.create_parents()?;
        names.push(to.join(name).display().to_string() + "\n");
        write_atomic(place, text.as_bytes())
    };
    write(&bundle.name, &bundle.recipe)?;
    for (name, text) in &bundle.modules {
        match address::is_address(name) {
            true => address::keep(&env, &crate::hash::sha256(text), text),
            false => write(name, text)?,
        }
    }
    bundle.lock.iter().try_for_each(|text| write(&Recipe::lock_of(&bundle.name), text))?;
    dir.publish()?;
    console::out(&names.concat());
    Ok(())
}

/// Refuses a path where something is.
pub(super) fn absent(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let message = format!("{} is there already, and is not overwritten", path.display());
    Err(Error::new(Code::Io, message).hint("give another name"))
}
