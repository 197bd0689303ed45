//! The uses that a recipe's text makes of its parameters: as a path, or as the name of a model, a dataset or
//! a tokenizer.
//!
//! A value on the command line gives the recipe a right only for such a use. The text is read as it stands: a
//! parameter goes through `let` and through the arguments of the recipe's own functions.

use std::collections::{BTreeMap, BTreeSet};

use rhai::{AST, ASTNode, Expr, FnCallExpr, Stmt};

use super::{locate, params, params::Parameter};

/// The parameters by their uses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ParameterUses {
    /// Those that become a path, or a part of one.
    pub(crate) paths: BTreeSet<String>,
    /// Those that are handed as they are to what loads from the hub.
    pub(crate) sources: BTreeSet<String>,
    /// Those that are handed as they are to what writes a path.
    pub(crate) written: BTreeSet<String>,
}

impl ParameterUses {
    /// The uses in `ast`. `names_path` says whether a function takes a path, `loads` whether it also takes
    /// a name on the hub, `writes` whether a function or an option takes one that is written to.
    pub(super) fn of(
        ast: &AST,
        parameters: &[Parameter],
        names_path: impl Fn(&str) -> bool,
        loads: impl Fn(&str) -> bool,
        writes: impl Fn(&str) -> bool,
    ) -> Self {
        let meanings = meanings(ast, parameters);
        let mut uses = Self::default();
        ast.walk(&mut |nodes| {
            let Some((ASTNode::Expr(last), above)) = nodes.split_last() else { return true };
            let names = named(last, parameters, &meanings);
            if names.is_empty() {
                return true;
            }
            // The calls that it is an argument of, the innermost last; each node of a method call stands
            // beside its dot.
            let mut calls = above.iter().filter_map(locate::as_call).map(|(call, _)| call);
            if calls.clone().any(|call| names_path(&call.name)) {
                uses.paths.extend(names.iter().cloned());
            }
            let is_argument_of = |call: &FnCallExpr, is_meant: &dyn Fn(&str) -> bool| {
                is_meant(&call.name) && call.args.iter().any(|arg| arg.position() == last.position())
            };
            if calls.clone().any(|call| is_argument_of(call, &loads)) {
                uses.sources.extend(names.iter().cloned());
            }
            let is_option = matches!(above.last(), Some(ASTNode::Expr(Expr::Map(map, _)))
                if map.0.iter().any(|(key, value)| value.position() == last.position() && writes(&key.name)));
            if is_option || calls.any(|call| is_argument_of(call, &writes)) {
                uses.written.extend(names);
            }
            true
        });
        uses
    }
}

/// The parameters that each variable may have the value of.
fn meanings(ast: &AST, parameters: &[Parameter]) -> BTreeMap<String, BTreeSet<String>> {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let functions: Vec<_> = ast
        .shared_lib()
        .iter_script_fn_info()
        .map(|(.., name, count, function)| (name.to_owned(), count, function.params.clone()))
        .collect();
    // A value goes one step further each time, until none does.
    loop {
        let before = found.clone();
        ast.walk(&mut |nodes| {
            let Some(node) = nodes.last() else { return true };
            if let ASTNode::Stmt(Stmt::Var(var, ..)) = node {
                let names = named(&var.1, parameters, &before);
                found.entry(var.0.name.to_string()).or_default().extend(names);
            }
            if let Some((call, _)) = locate::as_call(node) {
                let own = functions
                    .iter()
                    .filter(|(name, count, _)| *name == *call.name && *count == call.args.len());
                for (.., variables) in own {
                    for (variable, arg) in variables.iter().zip(&call.args) {
                        let names = named(arg, parameters, &before);
                        found.entry(variable.to_string()).or_default().extend(names);
                    }
                }
            }
            true
        });
        found.retain(|_, names| !names.is_empty());
        if found == before {
            return found;
        }
    }
}

/// The parameters whose value an expression is.
fn named(
    expression: &Expr,
    parameters: &[Parameter],
    meanings: &BTreeMap<String, BTreeSet<String>>,
) -> BTreeSet<String> {
    if let Some(parameter) = params::used(expression, parameters) {
        return [parameter.name.clone()].into();
    }
    match expression {
        Expr::Variable(variable, ..) => {
            meanings.get(variable.1.as_str()).cloned().unwrap_or_default()
        }
        _ => BTreeSet::new(),
    }
}
