//! A recipe with all that it imports: what is wrong in any of them, what one calls of another, and
//! parameters that none of them uses.

use std::collections::{BTreeMap, BTreeSet};

use rhai::{AST, ASTNode, Expr, FnAccess, Position, Stmt};

use super::check;
use crate::{
    config::suggest::nearest,
    error::{Code, Error, Result},
    script::{
        Host, PARAMETERS,
        diagnostics::seal,
        error::{AtPosition, split},
        locate,
        params::Parameter,
        resolver,
    },
};

/// All mistakes of the recipe `source` and of what it imports, as one error.
pub(crate) fn check_with_imports(
    engine: &rhai::Engine,
    host: &Host,
    source: &str,
    ast: &AST,
    parameters: &[Parameter],
) -> Result<()> {
    let mut all = Imports { engine, host, parameters, known: BTreeMap::new(), faults: Vec::new() };
    all.source(source, ast);
    let used: BTreeSet<_> = std::iter::once(ast)
        .chain(all.known.values().flatten())
        .flat_map(used_parameters)
        .collect();
    for parameter in parameters.iter().filter(|p| !used.contains(&p.name)) {
        let message = format!("the parameter `{}` is not used", parameter.name);
        let fault = Error::new(Code::Recipe, message)
            .hint(format!("use its value, P::{}, or leave it out", parameter.name));
        all.faults.push(fault.at(source, parameter.position));
    }
    Error::all(all.faults).map_or(Ok(()), Err)
}

/// What has been found so far.
struct Imports<'a> {
    engine: &'a rhai::Engine,
    host: &'a Host,
    parameters: &'a [Parameter],
    /// The modules by their names; `None` for one that is no valid source.
    known: BTreeMap<String, Option<AST>>,
    faults: Vec<Error>,
}

impl Imports<'_> {
    fn source(&mut self, source: &str, ast: &AST) {
        if let Err(error) = check(self.engine, self.host, source, ast, self.parameters) {
            self.faults.extend(split(error));
        }
        let mut by_alias = BTreeMap::new();
        for (path, alias, position) in imports(ast) {
            match resolver::find(&self.host.base_dir, Some(source), &path) {
                Ok((name, text)) => {
                    self.module(&name, &text);
                    by_alias.insert(alias, name);
                }
                Err(e) => self.faults.push(e.at(source, position)),
            }
        }
        for call in qualified_calls(ast) {
            let module = by_alias.get(&call.alias).and_then(|name| self.known.get(name));
            if let Some(Some(module)) = module
                && let Some(fault) = call.fault(module)
            {
                self.faults.push(fault.at(source, call.position));
            }
        }
    }

    fn module(&mut self, name: &str, text: &str) {
        if self.known.contains_key(name) {
            return;
        }
        // Known before it is looked into: imports may go round in a circle, which the run refuses.
        self.known.insert(name.to_owned(), None);
        self.host.sources.insert_text(name, text);
        match self.engine.compile(text) {
            Ok(mut ast) => {
                ast.set_source(name);
                self.host.sources.insert_ast(name, &ast);
                self.known.insert(name.to_owned(), Some(ast.clone()));
                self.source(name, &ast);
            }
            Err(e) => self.faults.extend(split(seal(self.engine, *Box::from(e), name))),
        }
    }
}

/// The modules that a source imports, and those that they import, as far as they are valid.
pub(super) fn reachable(engine: &rhai::Engine, host: &Host, source: &str, ast: &AST) -> Vec<AST> {
    let mut known: BTreeMap<String, AST> = BTreeMap::new();
    let mut open = vec![(source.to_owned(), ast.clone())];
    while let Some((importer, ast)) = open.pop() {
        for (path, ..) in imports(&ast) {
            let Ok((name, text)) = resolver::find(&host.base_dir, Some(&importer), &path) else {
                continue;
            };
            if let Ok(ast) = engine.compile(&text)
                && known.insert(name.clone(), ast.clone()).is_none()
            {
                open.push((name, ast));
            }
        }
    }
    known.into_values().collect()
}

/// The path, alias and place of each import whose path is written out.
fn imports(ast: &AST) -> Vec<(String, String, Position)> {
    let mut found = Vec::new();
    ast.walk(&mut |nodes| {
        if let Some(ASTNode::Stmt(Stmt::Import(import, position))) = nodes.last()
            && let Expr::StringConstant(path, _) = &import.0
        {
            found.push((path.to_string(), import.1.name.to_string(), *position));
        }
        true
    });
    found
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
