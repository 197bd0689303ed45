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
    Ok(Description { doc: without_marks(ast.doc()), parameters })
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

/// The text of `///` and `//!` lines without the marks.
pub(crate) fn without_marks(comments: &str) -> String {
    let lines = comments.lines().map(|line| {
        let line = line.trim_start();
        let line = line.strip_prefix("///").or_else(|| line.strip_prefix("//!")).unwrap_or(line);
        line.strip_prefix(' ').unwrap_or(line).trim_end()
    });
    lines.collect::<Vec<_>>().join("\n").trim().to_owned()
}

/// The first sentence of a text, on one line.
pub(crate) fn first_sentence(text: &str) -> String {
    let paragraph = text.split("\n\n").next().unwrap_or(text).replace('\n', " ");
    match paragraph.split_once(". ") {
        Some((first, _)) => format!("{first}."),
        None => paragraph,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_has_one_sentence_of_each() {
        assert_eq!(first_sentence("Trains a\nmodel. And more.\n\nDetails."), "Trains a model.");
        assert_eq!(first_sentence("Trains a model."), "Trains a model.");
    }
}
