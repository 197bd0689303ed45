//! All mistakes of one source.

use std::collections::BTreeMap;

use rhai::AST;

use super::{
    calls::{Calls, Functions},
    known::KnownNames,
    surface::Surface,
};
use crate::{
    error::{Error, Result},
    recipe::{error::AtPosition, imports::Imports, params::Parameter},
};

/// All mistakes of the source, as one error.
pub(crate) fn check(
    engine: &rhai::Engine,
    source: &str,
    ast: &AST,
    imports: &Imports,
    parameters: &[Parameter],
) -> Result<()> {
    check_input(engine, source, (ast, ast), imports, parameters, &KnownNames::default())
}

/// All mistakes of an input, whose functions stand in `whole` among those of earlier ones.
pub(crate) fn check_input(
    engine: &rhai::Engine,
    source: &str,
    (whole, ast): (&AST, &AST),
    imports: &Imports,
    parameters: &[Parameter],
    known: &KnownNames,
) -> Result<()> {
    let surface = Surface::new(engine, whole);
    let mut modules: BTreeMap<_, _> =
        known.modules.iter().map(|(alias, ast)| (alias.clone(), ast)).collect();
    modules.extend(imports.of(source));
    let functions = Functions { own: whole, modules };
    let calls = Calls::new(engine, &surface, functions, (ast, imports), parameters, known);
    let faults = calls.faults(ast);
    let faults = faults.into_iter().map(|(position, fault)| fault.at(source, position));
    Error::all(faults.collect()).map_or(Ok(()), Err)
}
