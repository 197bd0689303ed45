//! Mistakes that can be seen before a recipe runs.
//!
//! Rhai looks a function up when it is called, which may be an hour into a run. The check looks at once:
//! whether a function, method or property exists and takes such arguments, whether options that are
//! written out are right, whether `P::x` is a parameter of the recipe. Types of values count only where
//! they are certain.

mod calls;
mod known;
mod option_functions;
mod own_options;
mod reader;
mod surface;
mod types;
mod whole;
mod written;
mod written_mesh;
mod written_models;

use std::collections::BTreeMap;

use rhai::AST;

use self::calls::{Calls, Functions};
pub(crate) use self::{
    known::KnownNames,
    option_functions::option_function,
    own_options::OwnOptions,
    reader::OptionReader,
    surface::{Surface, ValueType},
    whole::{check_given, check_whole},
};
pub use self::{option_functions::check_options, written_mesh::written_meshes};
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
    let mut faults = calls.faults(ast);
    if faults.is_empty() {
        faults = written_models::faults(ast, parameters);
    }
    let faults = faults.into_iter().map(|(position, fault)| fault.at(source, position));
    Error::all(faults.collect()).map_or(Ok(()), Err)
}
