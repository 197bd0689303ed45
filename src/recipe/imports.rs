//! The imports of a recipe, and theirs in turn, read without running it.

use std::collections::{BTreeMap, BTreeSet};

use rhai::{AST, ASTNode, Expr, Position, Stmt};

use super::{
    address::{Address, has_files, is_address},
    diagnostics::seal,
    error::AtPosition,
    module_path::relative_name,
    params::{self, Parameter},
    workspace::{Look, Workspace},
};
use crate::error::{Code, Error};

/// An import in a source.
pub(crate) struct Import {
    pub(crate) path: String,
    /// The name that its functions are called by.
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
    /// The name that the importer calls its functions by.
    pub(crate) alias: String,
    /// The path as it is written.
    pub(crate) path: String,
    pub(crate) position: Position,
    /// The module's name.
    pub(crate) name: String,
}

/// All imports of a source.
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
    /// Reads all imports of `source`. They may form a circle, which the run refuses.
    pub(crate) fn load(
        engine: &rhai::Engine,
        workspace: &Workspace,
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
                let found = workspace.find(Some(&importer), &import.path, Look::Read);
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
                let ast = match workspace.sources.compile(engine, &name, &text) {
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

    /// The valid modules that `importer` imports, by the names that it calls their functions by.
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

    /// The imports of the recipe `main` that no bundle could have: links, and paths that are put
    /// together while it runs.
    pub(super) fn bundling_obstacles(&self, main: &str) -> Vec<Error> {
        let mut faults = Vec::new();
        for (source, position) in &self.computed {
            let e = Error::new(Code::Recipe, "a path that is put together cannot be bundled")
                .hint("write the path of the import out");
            faults.push(e.at(source, *position));
        }
        for Edge { importer, path, position, name, .. } in &self.edges {
            let from = Some(importer.as_str()).filter(|source| *source != main);
            if has_files(path) && relative_name(from, path).as_ref() != Some(name) {
                let e = Error::new(Code::Recipe, format!("\"{path}\" is a link to {name}"))
                    .hint("a bundle has no links: import that file by its own name");
                faults.push(e.at(importer, *position));
            }
        }
        faults
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

/// The other imports of a source.
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

/// The text of a literal or of a parameter.
pub(crate) fn text_of(expression: &Expr, parameters: &[Parameter]) -> Option<String> {
    match expression {
        Expr::StringConstant(text, _) => Some(text.to_string()),
        other => params::used(other, parameters)?.value.clone().into_string().ok(),
    }
}
