//! Mistakes that can be seen before a recipe runs.
//!
//! Rhai looks a function up when it is called, which may be an hour into a run. What is known at once
//! is checked at once: that a function, method or property exists and takes such arguments, the
//! options that are written out, and that `P::x` is a parameter that the recipe declares. What the
//! types of values decide is judged only where they are certain.

mod calls;
mod imports;
mod option_maps;
mod surface;
mod types;

use rhai::AST;

pub(crate) use self::imports::check_with_imports;
use self::{calls::Calls, surface::Surface};
use super::{Host, error::AtPosition, params::Parameter};
use crate::error::{Error, Result};

/// All mistakes of the source, as one error.
pub(crate) fn check(
    engine: &rhai::Engine,
    host: &Host,
    source: &str,
    ast: &AST,
    parameters: &[Parameter],
) -> Result<()> {
    let surface = Surface::new(engine, ast);
    let modules = imports::reachable(engine, host, source, ast);
    let faults = Calls::new(engine, &surface, (ast, &modules), parameters).faults(ast);
    let faults = faults.into_iter().map(|(position, fault)| fault.at(source, position));
    Error::all(faults.collect()).map_or(Ok(()), Err)
}
