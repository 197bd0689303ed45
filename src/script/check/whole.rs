//! Mistakes in a recipe and its imports, in calls between them, and in unused parameters.

use std::collections::BTreeSet;

use rhai::{AST, ASTNode, Expr};

use super::check;
use crate::{
    error::{Code, Error, Result},
    recipe::{
        error::AtPosition,
        imports::Imports,
        params::{PARAMETERS, Parameter},
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
    let used: BTreeSet<_> =
        all.sources().map(|(_, ast)| ast).chain([ast]).flat_map(used_parameters).collect();
    for parameter in parameters.iter().filter(|p| !used.contains(&p.name)) {
        let message = format!("the parameter `{}` is not used", parameter.name);
        let fault = Error::new(Code::Recipe, message)
            .hint(format!("use its value, P::{}, or leave it out", parameter.name));
        faults.push(fault.at(source, parameter.position));
    }
    faults.append(&mut all.faults);
    Error::all(faults).map_or(Ok(()), Err)
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
