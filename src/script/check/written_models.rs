//! Models that a mesh of ranks cannot divide, as far as a recipe's text tells both: the heads, inner
//! activations, vocabulary and layers of `new_model` with a published name, and layers of a recipe's own.

use rhai::{AST, ASTNode, Expr, FnCallExpr, Position, Stmt};

use super::{
    written::Seen,
    written_mesh::{certain_calls, mesh_of},
};
use crate::{
    engine,
    error::{Error, Result},
    model::Model,
    recipe::params::Parameter,
    script::api,
};

/// The mistakes of the calls of `init_engine` that are made whatever happens, each with its place.
pub(super) fn faults(ast: &AST, parameters: &[Parameter]) -> Vec<(Position, Error)> {
    let of_call = |call: &FnCallExpr, position| {
        let fault = check(ast, call, parameters)?.err()?;
        Some((position, fault))
    };
    certain_calls(ast, of_call)
}

/// Whether the mesh of a call divides its model; `None` where only the run knows.
fn check(ast: &AST, call: &FnCallExpr, parameters: &[Parameter]) -> Option<Result<()>> {
    let [model, options] = call.args.as_slice() else { return None };
    if call.name != "init_engine" {
        return None;
    }
    let options = Seen::of_any_type(options, parameters);
    let mesh = mesh_of(&*options.as_map_ref().ok()?)?;
    let made = made_by(ast, model)?;
    if made.namespace.to_string() == "nn" {
        return Some(engine::check_own_layers(mesh));
    }
    Some(engine::check_division(&outline(made, parameters)?, mesh))
}

/// The call that makes the value of `expr`: its own, or that of the one `let` of a variable which nothing
/// else is assigned to.
fn made_by<'a>(ast: &'a AST, expr: &'a Expr) -> Option<&'a FnCallExpr> {
    let Expr::Variable(variable, ..) = expr else { return call_of(expr) };
    let name = variable.1.as_str();
    let (mut values, mut is_changed) = (Vec::new(), false);
    for statement in ast.statements() {
        if let Stmt::Var(x, ..) = statement
            && x.0.name == name
        {
            values.push(&x.1);
        }
    }
    ast.walk(&mut |nodes| {
        if let Some(ASTNode::Stmt(Stmt::Assignment(x))) = nodes.last() {
            is_changed |= matches!(&x.1.lhs, Expr::Variable(x, ..) if x.1 == name);
        }
        true
    });
    match values[..] {
        [value] if !is_changed => call_of(value),
        _ => None,
    }
}

fn call_of(expr: &Expr) -> Option<&FnCallExpr> {
    match expr {
        Expr::FnCall(call, _) => Some(call),
        _ => None,
    }
}

/// The model without weights that a call of `new_model` makes.
fn outline(call: &FnCallExpr, parameters: &[Parameter]) -> Option<Model> {
    if call.name != "new_model" || call.is_qualified() {
        return None;
    }
    let (name, settings) = call.args.split_first()?;
    let name = Seen::certain(name, parameters)?.into_string().ok()?;
    let settings = settings.first().map(|map| Seen::certain(map, parameters));
    let settings = settings.unwrap_or_else(|| Some(rhai::Map::new().into()))?;
    api::model::outline(&name, &*settings.as_map_ref().ok()?)
}
