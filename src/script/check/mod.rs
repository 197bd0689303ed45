//! Mistakes that can be seen before a recipe runs.
//!
//! Rhai looks a function up when it is called, which may be an hour into a run. What is known at once
//! is checked at once: that a function, method or property exists and takes such arguments, the
//! options that are written out, and that `P::x` is a parameter that the recipe declares. What the
//! types of values decide is judged only where they are certain.

mod calls;
mod option_functions;
mod own_options;
mod reader;
pub(crate) mod surface;
mod types;
mod whole;
mod written;

use std::{
    any::TypeId,
    collections::{BTreeMap, BTreeSet},
};

use rhai::AST;

pub use self::option_functions::check_options;
use self::{
    calls::{Calls, Functions},
    surface::Surface,
};
pub(crate) use self::{
    option_functions::option_function, own_options::OwnOptions, reader::OptionReader,
    whole::check_whole,
};
use super::{error::AtPosition, imports::Imports, params::Parameter};
use crate::error::{Error, Result};

/// All mistakes of the source, as one error.
pub(crate) fn check(
    engine: &rhai::Engine,
    source: &str,
    ast: &AST,
    imports: &Imports,
    parameters: &[Parameter],
) -> Result<()> {
    check_input(engine, source, (ast, ast), imports, parameters, &Known::default())
}

/// What a source finds there that it did not make itself: that of the inputs before it.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// Variables with their types.
    pub(crate) variables: Vec<(String, TypeId)>,
    /// Keys of maps.
    pub(crate) keys: BTreeSet<String>,
    /// What was imported, by what its functions are called by.
    pub(crate) modules: BTreeMap<String, AST>,
}

impl Known {
    /// Adds what an input and its imports leave to the inputs after it.
    pub(crate) fn add(&mut self, source: &str, ast: &AST, imports: &Imports) {
        let modules = imports.sources().map(|(_, module)| module);
        self.keys.extend(modules.chain([ast]).flat_map(calls::keys));
        let modules = imports.of(source).into_iter();
        self.modules.extend(modules.map(|(alias, ast)| (alias, ast.clone())));
    }
}

/// All mistakes of an input, whose functions stand in `whole` among those of earlier ones.
pub(crate) fn check_input(
    engine: &rhai::Engine,
    source: &str,
    (whole, ast): (&AST, &AST),
    imports: &Imports,
    parameters: &[Parameter],
    known: &Known,
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
