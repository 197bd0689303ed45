//! `dsr lock`: makes the lock of a recipe, or says whether it is still true.

use std::rc::Rc;

use super::{Console, args::LockCommandArgs, console, host, origin};
use crate::{
    error::{Code, Error},
    fs::{Place, write_atomic},
    permission::Scope,
    recipe::{Failure, Recipe, bundle::Bundle, lock::Lock, locking},
};

pub(super) fn run(args: &LockCommandArgs, console: &Console) -> Result<(), Failure> {
    let recipe = args.grants.open(&args.recipe)?;
    if args.check { check(args, &recipe, console) } else { make(args, &recipe, console) }
}

fn make(args: &LockCommandArgs, recipe: &Recipe, console: &Console) -> Result<(), Failure> {
    if args.lock.is_none() && Bundle::open(recipe)?.is_some_and(|bundle| bundle.lock.is_some()) {
        let message = format!("{} is a bundle with a lock of its own", recipe.name);
        return Err(Error::new(Code::Usage, message)
            .hint("take it apart with `dsr recipe unbundle`, or name another file with --lock")
            .into());
    }
    let Some(path) = args.lock.clone().or_else(|| Lock::beside(recipe)) else {
        let message = format!("{} is no file that a lock could be beside", recipe.name);
        return Err(Error::new(Code::Usage, message)
            .hint(format!("name the lock: --lock={}", Recipe::lock_of(&recipe.name)))
            .into());
    };
    let mut host = host::of(recipe, &args.given, args.grants.fetch(), console, |_| ())?;
    host.workspace.refresh = true;
    args.grants.clone().settle(&mut host, recipe)?;
    let host = Rc::new(host);
    let new = locking::lock(&host.workspace, recipe, &|| host.hub())?;
    // A damaged lock is replaced.
    let old = Lock::open(&path).unwrap_or_default();
    write_atomic(Place::unguarded(&path), new.text().as_bytes())?;
    let gone = old.beyond(&new).into_iter().map(|line| format!("  - {line}\n"));
    let come = new.beyond(&old).into_iter().map(|line| format!("  + {line}\n"));
    let changes: String = gone.chain(come).collect();
    let what = if changes.is_empty() { "as it was" } else { "written" };
    console::out(&format!("{}: {what}\n{changes}", path.display()));
    Ok(())
}

fn check(args: &LockCommandArgs, recipe: &Recipe, console: &Console) -> Result<(), Failure> {
    let mut host = host::of(recipe, &args.given, args.grants.fetch(), console, |_| ())?;
    // Nothing is fetched, so that a text in no cache is reported as such.
    host.workspace.rights.env = origin::environment(true);
    host.workspace.rights.grants.import = Scope::All;
    host.workspace.lock = Lock::find(recipe, args.lock.as_deref())?;
    host.workspace.frozen = true;
    let host = Rc::new(host);
    locking::check(&host.workspace, recipe, &|| host.hub())?;
    console::out(&format!("{}: the lock is true\n", recipe.name));
    Ok(())
}
