//! Mistakes in a recipe and its imports, in calls between them, and in unused parameters.

use std::collections::BTreeSet;

use rhai::{AST, ASTNode, Expr};

use super::check;
use crate::{
    error::{Code, Error, Result},
    recipe::{
        error::AtPosition,
        imports::Imports,
        params::{GivenParameter, PARAMETERS, Parameter},
    },
};

/// All mistakes of the recipe `source` and of its imports, as one error.
pub(crate) fn check_whole(
    engine: &rhai::Engine,
    source: &str,
    ast: &AST,
    all: &mut Imports,
    parameters: &[Parameter],
) -> Result<()> {
    let mut faults = Vec::new();
    for (source, ast) in std::iter::once((source, ast)).chain(all.sources()) {
        if let Err(error) = check(engine, source, ast, all, parameters) {
            faults.extend(error.split());
        }
    }
    faults.extend(unused_parameters(source, ast, all, parameters.iter()));
    faults.append(&mut all.faults);
    Error::all(faults).map_or(Ok(()), Err)
}

/// Refuses values for parameters that are declared and not used: they would change nothing.
pub(crate) fn check_given(
    source: &str,
    ast: &AST,
    all: &Imports,
    parameters: &[Parameter],
    given: &[GivenParameter],
) -> Result<()> {
    // A module whose path is put together may use them.
    if !all.computed.is_empty() {
        return Ok(());
    }
    let is_given = |parameter: &&Parameter| given.iter().any(|given| given.name == parameter.name);
    let faults = unused_parameters(source, ast, all, parameters.iter().filter(is_given));
    Error::all(faults).map_or(Ok(()), Err)
}

fn unused_parameters<'a>(
    source: &str,
    ast: &AST,
    all: &Imports,
    parameters: impl Iterator<Item = &'a Parameter>,
) -> Vec<Error> {
    let used: BTreeSet<_> =
        all.sources().map(|(_, ast)| ast).chain([ast]).flat_map(used_parameters).collect();
    let unused = parameters.filter(|parameter| !used.contains(&parameter.name));
    let fault = |parameter: &Parameter| {
        let message = format!("the parameter `{}` is not used", parameter.name);
        Error::new(Code::Recipe, message)
            .hint(format!("use its value, P::{}, or leave it out", parameter.name))
            .at(source, parameter.position)
    };
    unused.map(fault).collect()
}

/// The parameters that a source uses.
fn used_parameters(ast: &AST) -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    ast.walk(&mut |nodes| {
        if let Some(ASTNode::Expr(Expr::Variable(variable, ..))) = nodes.last()
            && variable.2.to_string() == PARAMETERS
        {
            used.insert(variable.1.to_string());
        }
        true
    });
    used
}
