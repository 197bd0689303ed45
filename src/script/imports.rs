//! What a recipe imports, and what that imports in turn, read without running it.

use std::collections::{BTreeMap, BTreeSet};

use rhai::{AST, ASTNode, Expr, Position, Stmt};

use super::{
    Host,
    diagnostics::seal,
    error::AtPosition,
    params::{self, Parameter},
    pinned::{Address, is_address},
    resolver::{self, Look},
};
use crate::error::Error;

/// An import as it stands in a source, with the path that it names.
pub(crate) struct Import {
    pub(crate) path: String,
    /// What its functions are called by.
    pub(crate) alias: String,
    pub(crate) position: Position,
}

/// A module that is imported.
pub(crate) struct Imported {
    pub(crate) text: String,
    /// `None` where the text is no valid source.
    pub(crate) ast: Option<AST>,
}

/// An import that was found.
pub(crate) struct Edge {
    pub(crate) importer: String,
    /// What the importer calls its functions by.
    pub(crate) alias: String,
    /// As it stands there.
    pub(crate) path: String,
    pub(crate) position: Position,
    /// The module's name.
    pub(crate) name: String,
}

/// All that a source imports.
#[derive(Default)]
pub(crate) struct Imports {
    /// The modules by their names.
    pub(crate) modules: BTreeMap<String, Imported>,
    /// Every import that was found.
    pub(crate) edges: Vec<Edge>,
    /// The addresses among them, and those that could not be read.
    pub(crate) addresses: Vec<Address>,
    /// Imports whose path is put together while the source runs: the source and the place.
    pub(crate) computed: Vec<(String, Position)>,
    /// Files that are not there or may not be imported, and texts that are no valid source.
    pub(crate) faults: Vec<Error>,
}

impl Imports {
    /// Reads all that `source` imports. Imports may go round in a circle, which the run refuses.
    pub(crate) fn load(
        engine: &rhai::Engine,
        host: &Host,
        source: &str,
        ast: &AST,
        parameters: &[Parameter],
    ) -> Self {
        let mut all = Self::default();
        let mut open = vec![(source.to_owned(), ast.clone())];
        while let Some((importer, ast)) = open.pop() {
            let computed = computed(&ast, parameters).into_iter();
            all.computed.extend(computed.map(|position| (importer.clone(), position)));
            for import in of(&ast, parameters) {
                if let Some(address) = Some(&import.path).filter(|path| is_address(path)) {
                    all.addresses.extend(Address::parse(address));
                }
                let found = resolver::find(host, Some(&importer), &import.path, Look::Read);
                let (name, text) = match found {
                    Ok(found) => found,
                    Err(e) => {
                        all.faults.push(e.at(&importer, import.position));
                        continue;
                    }
                };
                all.edges.push(Edge {
                    importer: importer.clone(),
                    alias: import.alias,
                    path: import.path,
                    position: import.position,
                    name: name.clone(),
                });
                if all.modules.contains_key(&name) {
                    continue;
                }
                let ast = match host.sources.compile(engine, &name, &text) {
                    Ok(ast) => {
                        open.push((name.clone(), ast.clone()));
                        Some(ast)
                    }
                    Err(e) => {
                        all.faults.extend(seal(engine, *Box::from(e), &name).split());
                        None
                    }
                };
                all.modules.insert(name, Imported { text, ast });
            }
        }
        all
    }

    /// The valid modules that `importer` imports, by what it calls their functions by.
    pub(crate) fn of(&self, importer: &str) -> BTreeMap<String, &AST> {
        let mut names: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for edge in self.edges.iter().filter(|edge| edge.importer == importer) {
            names.entry(&edge.alias).or_default().insert(&edge.name);
        }
        // Two functions may each import another module under the same name.
        let only = names.into_iter().filter(|(_, names)| names.len() == 1);
        only.filter_map(|(alias, names)| {
            let module = self.modules.get(*names.first()?)?;
            Some((alias.to_owned(), module.ast.as_ref()?))
        })
        .collect()
    }

    /// The valid modules, each with its name.
    pub(crate) fn sources(&self) -> impl Iterator<Item = (&str, &AST)> {
        self.modules.iter().filter_map(|(name, module)| Some((name.as_str(), module.ast.as_ref()?)))
    }
}

/// The imports of a source whose path is written out, or is a parameter.
pub(crate) fn of(ast: &AST, parameters: &[Parameter]) -> Vec<Import> {
    let mut found = Vec::new();
    ast.walk(&mut |nodes| {
        if let Some(ASTNode::Stmt(Stmt::Import(import, position))) = nodes.last()
            && let Some(path) = text_of(&import.0, parameters)
        {
            let alias = import.1.name.to_string();
            found.push(Import { path, alias, position: *position });
        }
        true
    });
    found
}

/// The imports of a source whose path is neither.
fn computed(ast: &AST, parameters: &[Parameter]) -> Vec<Position> {
    let mut found = Vec::new();
    ast.walk(&mut |nodes| {
        if let Some(ASTNode::Stmt(Stmt::Import(import, position))) = nodes.last()
            && text_of(&import.0, parameters).is_none()
        {
            found.push(*position);
        }
        true
    });
    found
}

/// The text that stands there, or that the parameter there has.
pub(crate) fn text_of(expression: &Expr, parameters: &[Parameter]) -> Option<String> {
    match expression {
        Expr::StringConstant(text, _) => Some(text.to_string()),
        other => params::used(other, parameters)?.value.clone().into_string().ok(),
    }
}
