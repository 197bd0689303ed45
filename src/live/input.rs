//! Whether an input is complete, or more lines belong to it.

use rhai::{ParseError, ParseErrorType};

use crate::recipe::{
    indices::{Added, as_values},
    lexer::{Class, Token, tokens},
    parser,
};

/// The completeness of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Completeness {
    /// It can be run, or has a fault that no further line can mend.
    Whole,
    /// It lacks a closing bracket, the end of a text, or the other side of an operator.
    Incomplete,
}

/// Signs and words that no input ends with.
const GOES_ON: [&str; 22] = [
    "|", "||", "&", "&&", ".", "?.", "::", ",", "=", "=>", "+", "-", "*", "/", "%", "**", "??",
    "as", "in", "else", "let", "const",
];

/// The completeness of the input. Rhai takes a comment without an end for a whole one.
pub fn completeness(text: &str) -> Completeness {
    let tokens = tokens(text);
    let code: Vec<_> = tokens.iter().filter(|token| token.class != Class::Comment).collect();
    if let Some(last) = tokens.last()
        && !last.closed
        && goes_over_lines(last.of(text))
    {
        return Completeness::Incomplete;
    }
    match open_brackets(&tokens) {
        open if open > 0 => return Completeness::Incomplete,
        open if open < 0 => return Completeness::Whole,
        _ => {}
    }
    let Some(last) = code.last() else { return Completeness::Whole };
    // Rhai takes `|a|` for a function that does nothing.
    if matches!(last.class, Class::Sign | Class::Keyword) && GOES_ON.contains(&last.of(text)) {
        return Completeness::Incomplete;
    }
    let (values, added) = as_values(text);
    match parser::parser().compile(values) {
        Err(error) if lacks_its_end(&error, &added, text, last.range.start) => {
            Completeness::Incomplete
        }
        _ => Completeness::Whole,
    }
}

/// Whether a text or a comment that has begun may end in another line.
fn goes_over_lines(token: &str) -> bool {
    token.starts_with(['`', '#']) || token.starts_with("/*") || token.ends_with('\\')
}

/// Brackets that are not closed; below 0 where one closes that was not open.
fn open_brackets(tokens: &[Token]) -> i64 {
    let mut open = 0;
    for token in tokens {
        match token.class {
            Class::Open => open += 1,
            Class::Close => open -= 1,
            _ => {}
        }
        if open < 0 {
            return open;
        }
    }
    open
}

/// Whether the parser wanted more behind the last token, which starts at byte `last`: its fault then
/// stands at the end of the text.
fn lacks_its_end(error: &ParseError, added: &Added, text: &str, last: usize) -> bool {
    match error.err_type() {
        ParseErrorType::UnexpectedEOF => return true,
        ParseErrorType::BadInput(_) => return false,
        _ => {}
    }
    let position = error.position();
    let Some(line) = position.line() else { return false };
    let column = added.written_column(line, position.position().unwrap_or(0));
    let before = &text[..last];
    let last_line = before.matches('\n').count() + 1;
    let last_column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    (line, column) > (last_line, last_column)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_whole(text: &str) -> bool {
        completeness(text) == Completeness::Whole
    }

    #[test]
    fn a_whole_input_is_run() {
        for text in [
            "",
            "1 + 1",
            "let x = 1",
            "let x = 1;",
            "if x { 1 }",
            "// only this",
            "x.f()",
            "\"abc",
            "1 + )",
            "}",
            "let x = 1\nlet y = 2;",
            "fn f(x) { x }",
            "for b in l { f(b) }",
            "let = 1",
            "t[.., 0]",
            "x?[1]",
        ] {
            assert!(is_whole(text), "{text}");
        }
    }

    #[test]
    fn an_input_without_its_end_goes_on() {
        for text in [
            "/* a",
            "let x = /* a",
            "let x =",
            "1 +",
            "f(",
            "for b in l {",
            "#{ a: 1,",
            "`abc",
            "`a ${x",
            "if x",
            "fn f(x)",
            "let x = [",
            "t[.., 0",
            "t[0, 1] +",
            "x.",
            "|a|",
            "import \"a\" as",
            "for b in",
            "\"abc \\",
        ] {
            assert!(!is_whole(text), "{text}");
        }
    }
}
