//! The statements of an input, as ranges of its text.

use std::ops::Range;

use crate::recipe::{
    lexer::{Class, Token, tokens},
    params::DECLARE,
};

/// The kind of a statement, as far as a saved session must know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum StatementKind {
    /// The declaration of a parameter.
    Parameter,
    /// The definition of a function, with the number of its parameters.
    Function(String, usize),
    /// Anything else.
    Other,
}

/// A statement with the comments before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Statement {
    pub(super) kind: StatementKind,
    pub(super) range: Range<usize>,
}

/// Words that begin a statement which ends with its block.
const BLOCKS: [&str; 10] =
    ["fn", "private", "for", "while", "loop", "if", "switch", "try", "do", "{"];

/// Words that continue a statement after its block.
const AFTER_BLOCK: [&str; 5] = ["else", "catch", "while", "until", ";"];

/// The statements at the top of the text, in order; together they are the whole text.
pub(super) fn statements(text: &str) -> Vec<Statement> {
    let all = tokens(text);
    let code: Vec<&Token> = all.iter().filter(|token| token.class != Class::Comment).collect();
    let mut found = Vec::new();
    let (mut start, mut first, mut depth) = (0, 0, 0);
    for (i, token) in code.iter().enumerate() {
        match token.class {
            Class::Open => depth += 1,
            Class::Close => depth -= 1,
            _ => {}
        }
        let word = token.of(text);
        let next = code.get(i + 1).map(|next| next.of(text));
        let ends_block = word == "}"
            && BLOCKS.contains(&code[first].of(text))
            && !next.is_some_and(|next| AFTER_BLOCK.contains(&next));
        if depth == 0 && (word == ";" || ends_block || next.is_none()) {
            found.push(Statement {
                kind: kind(text, &code[first..=i]),
                range: start..token.range.end,
            });
            (start, first) = (token.range.end, i + 1);
        }
    }
    if let Some(last) = found.last_mut() {
        // A comment at the end belongs to the statement before it.
        last.range.end = text.len();
    }
    found
}

fn kind(text: &str, tokens: &[&Token]) -> StatementKind {
    let words: Vec<_> = tokens.iter().take(4).map(|token| token.of(text)).collect();
    let words = match words.as_slice() {
        ["private", rest @ ..] => rest,
        all => all,
    };
    match words {
        [DECLARE, "(", ..] => StatementKind::Parameter,
        ["fn", name, ..] => {
            let open = tokens.iter().position(|token| token.of(text).starts_with('('));
            let inside = open.map_or(&[][..], |open| &tokens[open..]);
            let names = inside.iter().take_while(|token| token.of(text) != ")");
            let names = names.filter(|token| token.class == Class::Name && token.of(text) != "()");
            let arity =
                if inside.first().is_some_and(|t| t.of(text) == "()") { 0 } else { names.count() };
            StatementKind::Function((*name).to_owned(), arity)
        }
        _ => StatementKind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_into_its_statements() {
        let text = "// a\nparam(\"x\", 1);\n/// f\nfn f(a, b) { a }\nlet m = #{ a: 1 };\nif m { 1 } else { 2 }\nfor i in 0..2 { f(i) }\nfn g() {}\nx.y()";
        let found = statements(text);
        let kinds: Vec<_> = found.iter().map(|s| s.kind.clone()).collect();
        let f = |name: &str, n| StatementKind::Function(name.to_owned(), n);
        assert_eq!(
            kinds,
            [
                StatementKind::Parameter,
                f("f", 2),
                StatementKind::Other,
                StatementKind::Other,
                StatementKind::Other,
                f("g", 0),
                StatementKind::Other
            ]
        );
        let whole: String = found.iter().map(|s| &text[s.range.clone()]).collect();
        assert_eq!(whole, text);
        assert_eq!(text[found[3].range.clone()].trim(), "if m { 1 } else { 2 }");
    }
}
