//! The host of a recipe, as all commands set it up.

use std::rc::Rc;

use super::{Console, console, download::Downloads, origin::FetchArgs, run_args::ParamArgs};
use crate::{
    error::Error,
    recipe::{Failure, Recipe, Workspace, params},
    script::Host,
};

/// The host of a recipe with these values of its parameters, which prints to `output`.
pub(super) fn of(
    recipe: &Recipe,
    params: &ParamArgs,
    fetch: &FetchArgs,
    console: &Console,
    output: impl FnMut(&str) + 'static,
) -> Result<Host, Failure> {
    let mut host = Host::new(&recipe.base_dir, output);
    host.workspace = workspace(recipe, params, fetch)?;
    host.output.has_colours = console::has_colours();
    let notes = console.clone();
    host.output.notes = Box::new(move |line| notes.note(line));
    let downloads = Downloads::new(console.clone());
    host.output.show_download = Rc::new(move |progress| downloads.show(progress));
    Ok(host)
}

/// The workspace of a recipe, with the parameters, the environment and the grants of its code.
pub(super) fn workspace(
    recipe: &Recipe,
    params: &ParamArgs,
    fetch: &FetchArgs,
) -> Result<Workspace, Failure> {
    let mut workspace = Workspace::new(&recipe.base_dir);
    workspace.rights.params = given(params)?;
    workspace.rights.env = fetch.env();
    workspace.rights.grants = fetch.grants();
    Ok(workspace)
}

/// The values of the parameter file, then those of `-p`, which win.
fn given(args: &ParamArgs) -> Result<Vec<params::GivenParameter>, Failure> {
    let mut given = match &args.params {
        Some(path) => params::read_file(path)?,
        None => Vec::new(),
    };
    let mut faults = Vec::new();
    for text in &args.param {
        match params::parse_assignment(text) {
            Ok(assignment) => given.push(assignment),
            Err(e) => faults.push(e),
        }
    }
    Error::all(faults).map_or(Ok(given), |e| Err(e.into()))
}
