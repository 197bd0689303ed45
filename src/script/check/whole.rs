//! A recipe with all that it imports: what is wrong in any of them, what one calls of another, and
//! parameters that none of them uses.

use std::collections::{BTreeMap, BTreeSet};

use rhai::{AST, ASTNode, Expr, FnAccess, Position};

use super::check;
use crate::{
    config::suggest::nearest,
    error::{Code, Error, Result},
    script::{
        Host, PARAMETERS,
        error::{AtPosition, split},
        imports::{self, Imports},
        locate,
        params::Parameter,
        resolver::{self, Look},
    },
};

/// All mistakes of the recipe `source` and of what it imports, as one error.
pub(crate) fn check_whole(
    engine: &rhai::Engine,
    host: &Host,
    source: &str,
    ast: &AST,
    parameters: &[Parameter],
) -> Result<()> {
    let mut all = Imports::load(engine, host, source, ast, parameters);
    let mut faults = Vec::new();
    for (source, ast) in std::iter::once((source, ast)).chain(all.sources()) {
        if let Err(error) = check(engine, source, ast, &all, parameters) {
            faults.extend(split(error));
        }
        faults.extend(calls_of_modules(host, source, ast, &all, parameters));
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

/// The mistakes of a source in what it calls of the modules that it imports.
fn calls_of_modules(
    host: &Host,
    source: &str,
    ast: &AST,
    all: &Imports,
    parameters: &[Parameter],
) -> Vec<Error> {
    let mut by_alias = BTreeMap::new();
    for import in imports::of(ast, parameters) {
        if let Ok((name, _)) = resolver::find(host, Some(source), &import.path, Look::Read) {
            by_alias.insert(import.alias, name);
        }
    }
    let fault = |call: QualifiedCall| {
        let module = all.modules.get(by_alias.get(&call.alias)?)?.ast.as_ref()?;
        Some(call.fault(module)?.at(source, call.position))
    };
    qualified_calls(ast).into_iter().filter_map(fault).collect()
}

/// A call such as `schedule::cosine(x)`.
struct QualifiedCall {
    alias: String,
    name: String,
    arguments: usize,
    position: Position,
}

fn qualified_calls(ast: &AST) -> Vec<QualifiedCall> {
    let mut found = Vec::new();
    ast.walk(&mut |nodes| {
        if let Some((call, position)) = nodes.last().and_then(locate::as_call)
            && call.is_qualified()
        {
            found.push(QualifiedCall {
                alias: call.namespace.to_string(),
                name: call.name.to_string(),
                arguments: call.args.len(),
                position,
            });
        }
        true
    });
    found
}

impl QualifiedCall {
    fn fault(&self, module: &AST) -> Option<Error> {
        let public = || module.iter_functions().filter(|f| f.access == FnAccess::Public);
        let Self { alias, name, arguments, .. } = self;
        let counts: Vec<_> = public().filter(|f| f.name == name).map(|f| f.params.len()).collect();
        if counts.contains(arguments) {
            return None;
        }
        if !counts.is_empty() {
            let counts: Vec<_> = counts.iter().map(ToString::to_string).collect();
            let counts = counts.join(" or ");
            let message = format!("`{alias}::{name}` takes {counts} arguments, found {arguments}");
            return Some(Error::new(Code::WrongType, message));
        }
        let error =
            Error::new(Code::UnknownFunction, format!("unknown function `{alias}::{name}`"));
        Some(match nearest(name, public().map(|f| f.name)) {
            Some(near) => error.hint(format!("did you mean `{alias}::{near}`?")),
            None => error,
        })
    }
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
