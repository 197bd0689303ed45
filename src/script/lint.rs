//! Mistakes that can be seen before a recipe runs.
//!
//! Rhai looks a function up when it is called, which may be an hour into a run. Names can be
//! checked at once: a plain call `f(x)` must name a function that dsr or the file has, `nn::f(x)` one
//! of that group, and `P::x` a parameter that the recipe declares. Methods are left to the run,
//! because a map may hold them.

use rhai::{AST, ASTNode, Expr, Position, Stmt};

use super::{
    api,
    error::AtPosition,
    locate,
    params::{self, Parameter},
    translate,
};
use crate::error::{Code, Error, Result};

/// Calls that Rhai answers itself and that are in no list of functions.
const BUILT_IN: [&str; 12] = [
    "Fn",
    "call",
    "curry",
    "debug",
    "eval",
    "exit",
    "global",
    "import",
    "is_def_fn",
    "is_def_var",
    "is_shared",
    "print",
];

/// All names of the source that nothing answers to, as one error.
pub(crate) fn check(
    engine: &rhai::Engine,
    source: &str,
    ast: &AST,
    parameters: &[Parameter],
) -> Result<()> {
    let known = translate::function_names(engine);
    let own: Vec<String> = ast.iter_functions().map(|f| f.name.to_owned()).collect();
    let is_known = |name: &str| {
        BUILT_IN.contains(&name) || name == "type_of" || known.iter().chain(&own).any(|k| k == name)
    };
    let mut faults = Vec::new();
    let mut fault = |position: Position, error: Error| {
        faults.push((position, error.at(source, position)));
    };
    ast.walk(&mut |nodes| {
        let Some(node) = nodes.last() else { return true };
        if let ASTNode::Expr(Expr::Variable(variable, _, position)) = node
            && variable.2.to_string() == super::PARAMETERS
            && !parameters.iter().any(|p| p.name == *variable.1)
        {
            fault(*position, params::undeclared(&variable.1, parameters));
        }
        if let ASTNode::Stmt(Stmt::For(x, position)) = node
            && x.2.body.is_empty()
        {
            // Rhai passes over the errors of what an empty loop goes over.
            let message =
                "the body of this loop is empty: it would hide errors in what it goes over";
            fault(*position, Error::new(Code::Recipe, message));
        }
        if let Some((call, position)) = locate::as_call(node)
            && !matches!(node, ASTNode::Expr(Expr::MethodCall(..)))
            && !call.is_qualified()
            && !call.is_operator_call()
            && rhai::is_valid_identifier(&call.name)
            && !is_known(&call.name)
        {
            fault(position, translate::unknown_function(engine, &call.name, &own));
        }
        if let Some((call, position)) = locate::as_call(node)
            && let group = call.namespace.to_string()
            && api::has_group(&group)
            && let names = translate::function_names_in(engine, &group)
            && !names.iter().any(|name| *name == call.name)
        {
            fault(position, translate::unknown_in_group(&group, &call.name, &names));
        }
        true
    });
    faults.sort_by_key(|(position, _)| (position.line(), position.position()));
    Error::all(faults.into_iter().map(|(_, error)| error).collect()).map_or(Ok(()), Err)
}
