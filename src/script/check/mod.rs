//! Mistakes that can be seen before a recipe runs.
//!
//! Rhai looks a function up when it is called, which may be an hour into a run. What is known at once
//! is checked at once: that a function, method or property exists and takes such arguments, the
//! options that are written out, and that `P::x` is a parameter that the recipe declares. What the
//! types of values decide is judged only where they are certain.

mod calls;
mod option_maps;
mod surface;
mod types;
mod whole;

use rhai::AST;

pub use self::option_maps::check_options;
pub(crate) use self::whole::check_whole;
use self::{calls::Calls, surface::Surface};
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
    let surface = Surface::new(engine, ast);
    let faults = Calls::new(engine, &surface, (ast, imports), parameters).faults(ast);
    let faults = faults.into_iter().map(|(position, fault)| fault.at(source, position));
    Error::all(faults.collect()).map_or(Ok(()), Err)
}
