//! A recipe as it describes itself, read without running it.

use rhai::AST;

use super::{
    bundle::{Bundle, code},
    diagnostics::{Failure, diagnose},
    file::Recipe,
    params::{self, Parameter},
    parser,
    sources::Sources,
};

/// The documentation and the parameters of a recipe.
#[derive(Debug)]
pub struct Description {
    /// The text of its `//!` lines.
    pub doc: String,
    /// Its parameters, in order.
    pub parameters: Vec<Parameter>,
}

/// Reads a recipe's description.
pub fn describe(recipe: &Recipe) -> Result<Description, Failure> {
    let sources = Sources::default();
    let (ast, parameters) = scan(recipe, &sources)?;
    Ok(Description { doc: doc_text(ast.doc()), parameters })
}

/// Parses a recipe and reads its parameters.
pub(crate) fn scan(recipe: &Recipe, sources: &Sources) -> Result<(AST, Vec<Parameter>), Failure> {
    let Recipe { name, text, .. } = recipe;
    sources.insert_text(name, text);
    Bundle::open(recipe)?;
    let parser = parser::parser();
    let ast = sources
        .compile(&parser, name, code(text))
        .map_err(|e| diagnose(&parser, *Box::from(e), name, sources))?;
    let parameters = params::scan(name, &ast).map_err(|e| Failure::of(e, &[], sources))?;
    Ok((ast, parameters))
}

/// The text of `//!` lines without the marks.
fn doc_text(doc: &str) -> String {
    let lines = doc.lines().map(|line| {
        let line = line.strip_prefix("//!").unwrap_or(line);
        line.strip_prefix(' ').unwrap_or(line).trim_end()
    });
    lines.collect::<Vec<_>>().join("\n").trim().to_owned()
}
