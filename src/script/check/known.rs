//! The names that a source did not make itself.

use std::{
    any::TypeId,
    collections::{BTreeMap, BTreeSet},
};

use rhai::{AST, ASTNode, Expr, Stmt};

use crate::recipe::imports::Imports;

/// The names that the inputs before a source left to it.
#[derive(Debug, Default)]
pub(crate) struct KnownNames {
    /// Variables with their types.
    pub(crate) variables: Vec<(String, TypeId)>,
    /// Keys of maps.
    pub(crate) keys: BTreeSet<String>,
    /// Imported modules by the names that their functions are called by.
    pub(crate) modules: BTreeMap<String, AST>,
}

impl KnownNames {
    /// Adds the keys and modules of an input and its imports.
    pub(crate) fn add(&mut self, source: &str, ast: &AST, imports: &Imports) {
        let modules = imports.sources().map(|(_, module)| module);
        self.keys.extend(modules.chain([ast]).flat_map(keys));
        let modules = imports.of(source).into_iter();
        self.modules.extend(modules.map(|(alias, ast)| (alias, ast.clone())));
    }
}

/// The keys of the maps that a source makes.
pub(super) fn keys(ast: &AST) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    ast.walk(&mut |nodes| {
        match nodes.last() {
            Some(ASTNode::Expr(Expr::Map(map, _))) => {
                keys.extend(map.0.iter().map(|(key, _)| key.name.to_string()));
            }
            Some(ASTNode::Expr(Expr::Property(property, _))) if is_assigned(nodes) => {
                keys.insert(property.2.to_string());
            }
            _ => {}
        }
        true
    });
    keys
}

/// Whether the last node is the property that an assignment gives a value.
pub(super) fn is_assigned(nodes: &[ASTNode<'_>]) -> bool {
    let Some((ASTNode::Expr(member), before)) = nodes.split_last() else { return false };
    match before.last() {
        Some(ASTNode::Expr(Expr::Dot(pair, ..) | Expr::Index(pair, ..))) => {
            std::ptr::eq(&raw const pair.rhs, *member) && is_assigned(before)
        }
        Some(ASTNode::Stmt(Stmt::Assignment(x))) => std::ptr::eq(&raw const x.1.lhs, *member),
        _ => false,
    }
}
