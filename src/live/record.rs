//! The record of a session, as the text of a recipe that does the same.
//!
//! An input is kept when it has run to its end; of an input that was stopped, the statements before the
//! one that ran. Failed inputs are left out. Parameters are declared once, at the top, with their
//! values; of a function that was defined again, the last definition stays.

use super::statements::{StatementKind, statements};
use crate::recipe::{
    lexer::{Class, tokens},
    params::{PARAMETERS, Parameter},
    sources::Location,
};

/// A part of the recipe.
#[derive(Debug, Clone)]
struct Fragment {
    /// Name and number of parameters of the function that the part defines.
    function: Option<(String, usize)>,
    text: String,
}

/// The parts of the inputs.
#[derive(Debug, Default)]
pub(super) struct Record {
    parts: Vec<Fragment>,
}

impl Record {
    /// Adds an input that ran to its end.
    pub(super) fn add(&mut self, text: &str) {
        self.add_before(text, text.len());
    }

    /// Adds the statements of an input that were done when it stopped at `place`.
    pub(super) fn add_until(&mut self, text: &str, place: Option<&Location>) {
        let (line, column) = place.map_or((1, 0), |place| (place.line, place.column - 1));
        let start: usize =
            text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
        let rest = &text[start.min(text.len())..];
        let within = rest.char_indices().nth(column).map_or(rest.len(), |(at, _)| at);
        let at = start + within;
        let running = statements(text).into_iter().find(|s| s.range.contains(&at));
        self.add_before(text, running.map_or(0, |statement| statement.range.start));
    }

    /// Adds the statements before byte `end`, and all functions.
    fn add_before(&mut self, text: &str, end: usize) {
        let mut code = String::new();
        for statement in statements(text) {
            let own = &text[statement.range.clone()];
            match statement.kind {
                StatementKind::Parameter => {}
                StatementKind::Function(name, parameters) => {
                    let function = Some((name, parameters));
                    self.parts.retain(|part| part.function != function);
                    self.parts.push(Fragment { function, text: own.trim().to_owned() });
                }
                StatementKind::Other if statement.range.end <= end => code.push_str(own),
                StatementKind::Other => {}
            }
        }
        let code = ended(&without_module_doc(&code));
        if !code.is_empty() {
            self.parts.push(Fragment { function: None, text: code });
        }
    }

    /// The recipe so far.
    pub(super) fn text(&self, parameters: &[Parameter]) -> String {
        let parts: Vec<_> = self.parts.iter().map(|part| part.text.as_str()).collect();
        let body = parts.join("\n");
        let used = parameters.iter().filter(|p| uses(&body, &p.name));
        let declared: String = used.map(|p| format!("{}\n", p.declaration())).collect();
        match declared.is_empty() {
            true => format!("{body}\n"),
            false => format!("{declared}\n{body}\n"),
        }
    }

    /// The recipe with one more input.
    pub(super) fn text_with(&self, text: &str, parameters: &[Parameter]) -> String {
        let mut with = Self { parts: self.parts.clone() };
        with.add(text);
        with.text(parameters)
    }
}

/// Whether the text has `P::name`.
fn uses(text: &str, name: &str) -> bool {
    let all = tokens(text);
    let in_code = all.windows(3).any(|words| {
        [PARAMETERS, "::", name].iter().zip(words).all(|(word, token)| token.of(text) == *word)
    });
    // Or in an interpolation.
    in_code
        || all.iter().any(|token| {
            token.class == Class::Text && token.of(text).contains(&format!("{PARAMETERS}::{name}"))
        })
}

/// Without lines of documentation of the whole recipe: it has its own.
fn without_module_doc(text: &str) -> String {
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//!"));
    lines.collect::<Vec<_>>().join("\n").trim().to_owned()
}

/// With a semicolon behind the last statement, so that others may follow.
fn ended(text: &str) -> String {
    let all = tokens(text);
    let last = all.iter().rev().find(|token| token.class != Class::Comment);
    match last {
        Some(last) if last.of(text) != ";" => {
            format!("{};{}", &text[..last.range.end], &text[last.range.end..])
        }
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::recipe::sources::Source;

    #[test]
    fn what_worked_is_kept_once() {
        let mut record = Record::default();
        record.add("let x = 1 // one");
        record.add("fn f(a) { a }");
        record.add("//! A recipe.\n\nparam(\"n\", 2);\nprint(P::n);");
        record.add("fn f(a) { a + 1 } f(x)");
        let text = record.text(&[]);
        assert_eq!(text, "let x = 1; // one\nprint(P::n);\nfn f(a) { a + 1 }\nf(x);\n");
    }

    #[test]
    fn of_a_stopped_input_the_statements_before_stay() {
        let mut record = Record::default();
        let text =
            "let a = 1;\nlet b = 2;\nfor i in 0..9 {\n    f(i);\n}\nfn f(i) { i }\nlet c = 3;";
        let source = Rc::new(Source { name: "<repl:1>".to_owned(), text: text.to_owned() });
        record.add_until(text, Some(&Location { source, line: 4, column: 5 }));
        assert_eq!(record.text(&[]), "fn f(i) { i }\nlet a = 1;\nlet b = 2;\n");
    }
}
